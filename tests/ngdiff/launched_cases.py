"""What the ranks of the tests of `ngdiff` under a launcher run: the command itself."""

import contextlib
import io
import sys
from collections.abc import Mapping
from typing import Any

import distributed_cases as cases
import pytest
import torch
import torch.distributed as dist

from ngdiff import NGDiffTrainer, cli
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
    "bug", an error of ours on the second rank; "interrupted", all are at the fifth step; "fsdp", none, but weights are split.
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
    if fault == "fsdp":
        split(patch)


def interrupted(*arguments: Any) -> Any:
    """Training that all ranks are told to break off."""

    def on_step(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    return training.train(*arguments[:-1], on_step)


def split(patch: pytest.MonkeyPatch) -> None:
    """As `--fsdp`, which accelerate refuses on a CPU."""
    patch.setattr(training, "SHARDED", {})
    patch.setattr(settings, "default_device", lambda: torch.device("cuda"))
    made = NGDiffTrainer.__init__

    def make(self: Any, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        cases.shard(self, "SHARDED_STATE_DICT")

    patch.setattr(NGDiffTrainer, "__init__", make)
