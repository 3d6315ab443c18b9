"""What a run of the optimizer holds at its peak, measured in processes of their own, beside what `ngdiff.memory` counts."""

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments import manifest
from experiments.lm.models import SIZES, build_llama, train_tokenizer
from ngdiff import TwoTaskOptimizer, memory
from ngdiff.command.settings import BASES
from ngdiff.files import write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Weights, how small updates survive in them, and gradients.
WAYS = (
    ("float32", "master", "float32"),
    ("float32", "master", "bfloat16"),
    ("bfloat16", "master", "bfloat16"),
    ("bfloat16", "stochastic", "bfloat16"),
)
WARM_UP = "12m"  # large enough for all that is compiled for large models
TOKENS = 8  # so few that activations are nothing beside the weights
KIB, PAGE = 1024, resource.getpagesize()


def compare(size: str, out: Path, report: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Measure every base and precision, and write memory.json.

    Args:
        size: of the Llama, see `experiments.lm.models.SIZES`.
        out: folder of the file.
        report: told each figure as it is measured.

    Returns:
        For each base and precision: counted and measured bytes a parameter.
    """
    rows: list[dict[str, Any]] = []
    for base in BASES:
        for way in WAYS:
            row = dict(zip(("base", "dtype", "low_precision", "gradient_dtype"), (base, *way), strict=True))
            rows.append(row | _apart(size, base, *way))
            named = "{base:<9} {dtype:<9} {low_precision:<11} gradients {gradient_dtype:<9}".format(**row)
            report(f"{named} counted {rows[-1]['counted']:5.2f}, measured {rows[-1]['measured']:5.2f}")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "memory.json", {"size": size, "rows": rows, "manifest": manifest.manifest(torch.device("cpu"))})
    return rows


def _apart(*arguments: str) -> dict[str, float]:
    """`measure` in a new process, for a process's peak never falls."""
    command = [sys.executable, "-m", "experiments.lm.bench_memory", *arguments]
    # Otherwise glibc keeps blocks that are free again, here one copy of the weights, for others that never come.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(size: str, base: str, dtype: str, low_precision: str, gradient_dtype: str) -> dict[str, float]:
    """Bytes a parameter, counted and at the peak of two steps, beyond what the process holds without the model.

    On the CPU: resident memory, in which activations of a few tokens are included. Compilers and other libraries that a first
    step loads are not: a small model has taken one before.
    """
    _two_steps(WARM_UP, base, dtype, low_precision, gradient_dtype)
    gc.collect()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    parameters = _two_steps(size, base, dtype, low_precision, gradient_dtype)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    counted = memory.bytes_per_parameter(BASES[base], DTYPES[dtype], low_precision, DTYPES[gradient_dtype])
    return {"parameters": parameters, "counted": counted, "measured": (peak - before) / parameters}


def _two_steps(size: str, base: str, dtype: str, low_precision: str, gradient_dtype: str) -> int:
    """Two steps of a model with random weights; returns the number of its parameters."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])  # built in its precision, as a checkpoint is loaded
    try:
        model = build_llama(SIZES[size], train_tokenizer(["a"], SIZES[size].vocabulary))
    finally:
        torch.set_default_dtype(default)
    kept = None if gradient_dtype == dtype else DTYPES[gradient_dtype]
    optimizer = TwoTaskOptimizer(model.parameters(), lr=1e-4, low_precision=low_precision, gradient_dtype=kept, **BASES[base])
    ids = torch.arange(TOKENS)[None]
    for _ in range(2):
        for task in ("retain", "forget"):
            with optimizer.task(task):
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
