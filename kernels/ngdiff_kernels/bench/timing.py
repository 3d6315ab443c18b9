"""Timing: in rounds of one call each, in random order, over several sets of buffers that together exceed the cache.

The limit is the time in which the device moves every byte that must move, at the bandwidth that copying shows between the same
calls.
"""

import platform
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import torch

from ngdiff_kernels.bench.contestants import IN_BACKWARD, OURS, Buffers, Step, contestants

CACHE = 2 * 2**30  # bytes of buffers to go through before the first set comes again; last-level caches reach 480 MiB
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COPY = "copy"


def measure(device: torch.device, dtype: torch.dtype, base: str, n: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of every call of every contestant, and of copying one buffer."""
    torch.compiler.reset()  # torch compiles a function for eight sizes at most and is slow ever after
    first = Buffers.random(n, dtype, device, base)
    sets = [first]
    while len(sets) < 64 and len(sets) * first.nbytes < CACHE:
        sets.append(Buffers.random(n, dtype, device, base))
    target = torch.empty_like(first.theta)

    def copy(b: Buffers) -> None:
        target.copy_(b.retain)

    steps = {COPY: copy} | contestants()
    order = cycle(sets)
    times: dict[str, list[float]] = {name: [] for name in steps}
    shuffle = Random(0).sample
    for round in range(-3, repeats):
        for name, step in shuffle(list(steps.items()), len(steps)):  # who comes after whom must not matter
            buffers = next(order)
            seconds = _timed(step, buffers, device)
            if round >= 0:  # the first rounds warm up and compile
                times[name].append(seconds)
    return times


def _timed(step: Step, buffers: Buffers, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        step(buffers)
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    step(buffers)
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def rows(device: torch.device, dtype: str, base: str, n: int, repeats: int) -> Iterator[dict[str, Any]]:
    """The rows of the CSV for one setting."""
    times = measure(device, DTYPES[dtype], base, n, repeats)
    sample = Buffers.random(n, DTYPES[dtype], device, base)
    bandwidth = 2 * sample.theta.nbytes / median(times[COPY])
    common = {"device": _device_name(device), "dtype": dtype, "base": base, "n": n, "repeats": repeats} | _versions()
    common["copy_gigabytes_per_second"] = f"{bandwidth / 1e9:.4g}"
    for name, seconds in times.items():
        if name == COPY:
            continue
        middle, parts = median(seconds), quantiles(seconds, n=5)
        limit = sample.bytes_moved(name == IN_BACKWARD) / bandwidth
        values = {"milliseconds": middle, "p20": parts[0], "p80": parts[3], "limit_milliseconds": limit}
        row = {key: f"{1000 * value:.4g}" for key, value in values.items()} | {"contestant": name}
        # Of the same round each: what slows one call down slows the other.
        faster = median(other / mine for other, mine in zip(seconds, times[OURS], strict=True))
        yield common | row | {"time_over_limit": f"{middle / limit:.3g}", "ours_times_faster": f"{faster:.3g}"}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> dict[str, Any]:
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    return {
        "commit": _commit(),
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str:
    """The checked-out commit, with "-dirty" if the measured code differs from it; results may; empty outside a checkout."""
    git = ["git", "-C", str(Path(__file__).resolve().parents[1])]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = found and subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."]).returncode
    return found + "-dirty" if changed else found
