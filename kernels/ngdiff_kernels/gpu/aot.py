"""Compile the kernels for GPUs that need not be there, and report what the compiler made of them.

`python -m ngdiff_kernels.gpu.aot --out FILE` writes one entry for each target and kernel: registers a thread, bytes spilled,
and how many loads and stores of 16 bytes there are beside how many there must be.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ngdiff_kernels.gpu import coefficients, kernels, launch
from ngdiff_kernels.gpu.products import WIDTH

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
FLOAT32_BUFFERS = {"first", "second", "master"}
GRADIENT_BUFFERS = {"retain", "forget", "d"}
DOUBLES = {"out", "report", "losses", "rule", "lr", "hyper", "parts", "coefficients", "h"}
NO_MOMENTUM = {"MOMENTUM_ON": False, "NESTEROV": False}


@dataclass(frozen=True)
class Variant:
    """A kernel with its dtype and constants, and the buffers that it reads and writes unmasked, in vectors.

    Gradients have the dtype of the weights, or one of their own.
    """

    kernel: str
    dtype: str
    constants: dict[str, Any]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    remark: str = ""
    gradient_dtype: str = ""

    def type_of(self, buffer: str) -> str:
        """The dtype of a buffer."""
        if buffer in FLOAT32_BUFFERS:
            return "fp32"
        return self.gradient_dtype if self.gradient_dtype and buffer in GRADIENT_BUFFERS else self.dtype

    @property
    def name(self) -> str:
        chosen = [str(value) for key, value in self.constants.items() if key in ("BASE", "ROUNDING")]
        chosen += ["combined"] * bool(self.constants.get("COMBINED"))
        return "-".join(
            [
                self.kernel,
                self.dtype,
                *chosen,
                *["nesterov"] * bool(self.constants.get("NESTEROV")),
                *[self.remark] * bool(self.remark),
                *[f"gradients {self.gradient_dtype}"] * bool(self.gradient_dtype),
            ]
        )

    def vectors(self, buffers: tuple[str, ...]) -> int:
        """Accesses of 16 bytes that each thread needs for its elements of a tile."""
        elements = launch.ROWS * WIDTH.value // launch.THREADS
        return sum(elements * BYTES[self.type_of(buffer)] // 16 for buffer in buffers)


def variants() -> Iterator[Variant]:
    """One of each kind: every kernel, every base, every dtype, every way of rounding."""
    gradients = ("retain", "forget")
    for dtype in BYTES:
        yield Variant("gram", dtype, {}, gradients, ())
        yield Variant("combine", dtype, {}, gradients, ("retain",))
    fused = {"RULE": coefficients.ngdiff}
    for dtype, base, rounding, narrow in (
        ("fp32", "sgd", "nearest", ""),
        ("fp32", "nesterov", "nearest", ""),
        ("fp32", "adamw", "nearest", ""),
        ("fp32", "adamw", "nearest", "bf16"),
        ("bf16", "sgd", "stochastic", ""),
        ("bf16", "adamw", "master", ""),
        ("bf16", "adamw", "stochastic", ""),
        ("fp16", "nesterov", "stochastic", ""),
        ("fp16", "adamw", "master", ""),
    ):
        state = {"sgd": (), "nesterov": ("first",), "adamw": ("first", "second")}[base]
        weights = "master" if rounding == "master" else "theta"
        momentum = base == "nesterov"
        constants = {"BASE": "sgd" if momentum else base, "MOMENTUM_ON": momentum, "NESTEROV": momentum, "ROUNDING": rounding}
        written = tuple(dict.fromkeys((weights, "theta", *state)))
        step = (weights, *gradients, *state)
        yield Variant("step", dtype, {"COMBINED": False} | constants, step, written, "", narrow)
        yield Variant("step", dtype, {"COMBINED": True} | constants, (weights, "retain", *state), written, "", narrow)
        yield Variant("fused_step", dtype, fused | constants, (*gradients, *step), written, "", narrow)
        probed = {key: value for key, value in constants.items() if key != "ROUNDING"}
        yield Variant("probe", dtype, probed, ("theta", "d", *state), ("out",), rounding, narrow)
    for name, rule in coefficients.RULES.items():
        constants = {"BASE": "sgd", "MOMENTUM_ON": True, "NESTEROV": False, "ROUNDING": "nearest", "RULE": rule}
        yield Variant("fused_step", "bf16", constants, (*gradients, "theta", *gradients, "first"), ("theta", "first"), name)


def compile_variant(variant: Variant, target: GPUTarget) -> Any:
    """The compiled kernel, for buffers on 16-byte boundaries, as the optimizer's are."""
    function = getattr(kernels, f"{variant.kernel}_kernel")
    constants = variant.constants | {"ROWS": launch.ROWS}
    signature = {name: "constexpr" if name in constants else _type(name, variant) for name in function.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    options = launch.options(target.warp_size) | ({"launch_cooperative_grid": True} if variant.kernel == "fused_step" else {})
    return triton.compile(source, target=target, options=options)


def _type(argument: str, variant: Variant) -> str:
    if argument in DOUBLES and (variant.kernel, argument) != ("probe", "out"):
        return "*fp64"
    kinds = {"n": "i64", "seed": "i64", "barrier": "*i32", "finite": "*i1", "step": "*fp32"}
    return kinds.get(argument, f"*{variant.type_of(argument)}")


def measure(variant: Variant, target: GPUTarget) -> dict[str, int]:
    """Registers, spills and accesses of 16 bytes of one kernel on one target."""
    compiled = compile_variant(variant, target)
    if target.backend == "hip":
        assembly = compiled.asm["amdgcn"]
        found = {key: int(re.search(rf"\.{key}:\s*(\d+)", assembly)[1]) for key in ("vgpr_count", "vgpr_spill_count")}  # type: ignore[index]
        registers, spilled = found["vgpr_count"], found["vgpr_spill_count"]
        loads, stores = (len(re.findall(rf"(?:global|buffer)_{kind}_dwordx4", assembly)) for kind in ("load", "store"))
    else:
        assembly = compiled.asm["ptx"]
        registers, spilled = _resources(compiled.asm["cubin"])
        loads, stores = (len(re.findall(rf"{kind}\.global(?:\.\w+)*?\.v4\.b32", assembly)) for kind in ("ld", "st"))
    return {
        "registers": registers,
        "spilled": spilled,
        "loads_of_16_bytes": loads,
        "loads_needed": variant.vectors(variant.reads),
        "stores_of_16_bytes": stores,
        "stores_needed": variant.vectors(variant.writes),
    }


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of local memory, by the tool that comes with Triton."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return registers, stack + local


def _measure_job(job: tuple[str, int]) -> tuple[str, dict[str, int]]:
    """By numbers, because Triton's functions do not travel between processes."""
    target, index = job
    variant = list(variants())[index]
    return variant.name, measure(variant, TARGETS[target])


def report() -> dict[str, Any]:
    """All variants on all targets."""
    jobs = [(name, index) for name in TARGETS for index, _ in enumerate(variants())]
    # Processes, not threads: LLVM orders some instructions by memory addresses, which other threads' work moves about.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        measured = list(pool.map(_measure_job, jobs, chunksize=8))
    entries: dict[str, Any] = {name: {} for name in TARGETS}
    for (name, _), (variant, values) in zip(jobs, measured, strict=True):
        entries[name][variant] = values
    return {
        "triton": triton.__version__,
        "elements_a_tile": launch.ROWS * WIDTH.value,
        "threads": launch.THREADS,
        "targets": entries,
    }


if __name__ == "__main__":
    # Triton goes through sets of names, so the order of its code, and with it a register or two, depends on Python's hashes.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONHASHSEED": "0"})
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    out = parser.parse_args().out
    out.write_text(json.dumps(report(), indent=1) + "\n", encoding="utf-8")
