"""What the ranks of the tests of `ngdiff` under a launcher run: the command itself."""

import contextlib
import gc
import io
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from ngdiff import NGDiffTrainer, TwoTaskOptimizer, cli
from ngdiff.command import settings, training, unlearn


def called(*arguments: str, only: Mapping[int, tuple[str, ...]] | None = None, fault: str = "") -> tuple[int, str, str]:
    """Status, output and errors of the command line on this rank.

    Args:
        arguments: of all ranks.
        only: rank -> what it is given in their place.
        fault: name of what goes wrong; see `broken`.
    """
    mine = (only or {}).get(dist.get_rank(), arguments)
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        patch.setattr(sys, "argv", ["ngdiff", *mine])
        broken(patch, fault)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    return int(exit_.value.code or 0), output.getvalue(), errors.getvalue()


def broken(patch: pytest.MonkeyPatch, fault: str) -> None:
    """Faults: "memory", the second rank has too little; "not finite", steps are; "disk", the first rank finds it full;
    "bug", an error of ours on the second rank; "interrupted", all are at the fifth step. "fsdp" and "fsdp in 16 bits" are
    none, but split the weights.
    """

    def fails(error: BaseException) -> Any:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        return fail

    rank = dist.get_rank()
    if fault == "memory" and rank == 1:
        patch.setattr(NGDiffTrainer, "train", fails(torch.OutOfMemoryError("CUDA out of memory")))
    if fault == "memory" and rank == 0:  # it would wait for the other until the launcher ends it
        patch.setattr(NGDiffTrainer, "train", fails(SystemExit(1)))
    if fault == "not finite":
        patch.setattr(NGDiffTrainer, "train", fails(RuntimeError("step 12: gradients or losses were not finite for 10 steps")))
    if fault == "disk" and rank == 0:
        patch.setattr(unlearn, "write_text", fails(OSError(28, "No space left on device")))
    if fault == "bug" and rank == 1:
        patch.setattr(unlearn.loading, "load_model", fails(TypeError("a bug")))
    if fault == "interrupted":
        patch.setattr(unlearn, "train", interrupted)
    if fault.startswith("fsdp"):
        split(patch, half=fault == "fsdp in 16 bits")


def interrupted(*arguments: Any, **options: Any) -> Any:
    """Training that all ranks are told to break off."""

    def on_step(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    return training.train(*arguments[:-1], on_step, **options)


def split(patch: pytest.MonkeyPatch, half: bool) -> None:
    """As `--fsdp` on GPUs, down to what accelerate makes of it, which takes these CPUs for some.

    Args:
        patch: undoes it.
        half: whether it computes in 16 bits, as it does on a GPU.
    """
    patch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    patch.setattr(settings, "default_device", lambda: torch.device("cuda"))
    patch.setattr(PartialState, "_prepare_backend", lambda *_, **__: ("gloo", DistributedType.MULTI_GPU))
    patch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda *_, **__: True)
    make, begin, probe = training.arguments, NGDiffTrainer.begin, NGDiffTrainer._retain_nll
    load = unlearn.Unlearning._loaded
    gc.collect()  # what the tests before have left

    def arguments(*given: Any) -> Any:
        return replace(make(*given), use_cpu=False, bf16=half)

    def begun(self: NGDiffTrainer) -> None:
        layers = [module for module in self.model.modules() if isinstance(module, LlamaDecoderLayer)]
        assert layers and all(isinstance(layer, FSDPModule) for layer in layers)  # each by itself
        assert all(isinstance(parameter, DTensor) for parameter in self.model.parameters())
        begin(self)

    def probed(self: NGDiffTrainer, batch: Any) -> torch.Tensor:
        dtypes = []
        layer = next(module for module in self.model.modules() if isinstance(module, LlamaDecoderLayer))
        hook = layer.mlp.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        found = probe(self, batch)
        hook.remove()
        assert dtypes == [next(layer.parameters()).dtype]  # 16 bits would hide what it looks for
        return found

    def loaded(self: unlearn.Unlearning) -> Any:
        assert not any(isinstance(found, TwoTaskOptimizer) for found in gc.get_objects())  # there is no room for both
        return load(self)

    patch.setattr(training, "arguments", arguments)
    patch.setattr(unlearn.Unlearning, "_loaded", loaded)
    patch.setattr(NGDiffTrainer, "begin", begun)
    patch.setattr(NGDiffTrainer, "_retain_nll", probed)
