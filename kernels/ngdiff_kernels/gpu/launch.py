"""The backend for GPUs: the functions of `reference`, each one launch of a Triton kernel, and the whole step in one launch.

Under TRITON_INTERPRET=1 the same kernels run on the CPU, one program after the other, for tests.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import torch
import triton
from torch import Tensor

from ngdiff_kernels.gpu import kernels
from ngdiff_kernels.gpu.coefficients import RULES
from ngdiff_kernels.gpu.products import WIDTH

F = TypeVar("F", bound=Callable[..., Any])

ROWS = 128  # of a tile: 1024 elements, 8 a thread, so that each has two loads of 16 bytes a float32 buffer under way
THREADS = 128
PARTS = 4096  # programs of a launch at most
PROGRAMS_A_PROCESSOR = 16  # at most: 2048 threads, as many as a multiprocessor has
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

INTERPRETED = not isinstance(kernels.gram_kernel, triton.runtime.JITFunction)


def options(warp_size: int) -> dict[str, Any]:
    """What the compiler is told. Fused multiply-add is asked for by name: Triton is about to change what it does unasked."""
    return {"num_warps": THREADS // warp_size, "enable_fp_fusion": True}


OPTIONS = {} if INTERPRETED else options(64 if torch.version.hip else 32)


def _guarded(function: F) -> F:
    """Launch on the device of the first argument: Triton takes the current one, whatever the tensors say."""

    @wraps(function)
    def call(first: Tensor, *rest: Any, **options: Any) -> Any:
        with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
            return function(first, *rest, **options)

    return cast(F, call)


@_guarded
def gram(retain: Tensor, forget: Tensor) -> Tensor:
    """As `reference.gram`, within 5e-7 sum |a_i b_i| of each exact product; bit for bit the same at every call on a device.

    In a row of 8, what is below 2^-147 of its largest |a_i| times its largest |b_i| is lost on top of that.
    """
    out = torch.empty(3, dtype=torch.float64, device=retain.device)
    parts, barrier = _meeting(retain.device)
    grid = (_programs(retain),)
    kernels.gram_kernel[grid](out, retain, forget, retain.numel(), parts, barrier, ROWS=ROWS, **OPTIONS)
    return out


@_guarded
def combine_(retain: Tensor, forget: Tensor, coefficients: Tensor) -> None:
    """As `reference.combine_`, in float32."""
    if retain.numel():
        kernels.combine_kernel[(_tiles(retain),)](retain, forget, coefficients, retain.numel(), ROWS=ROWS, **OPTIONS)


@_guarded
def base_step_(
    theta: Tensor,
    d: Tensor,
    finite: Tensor,
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    lr: float | Tensor,
    seed: int | None = None,
) -> None:
    """As `reference.base_step_`."""
    _step(theta, d, d, d, finite, state, hyper, lr, seed, combined=True)


@_guarded
def step_(
    theta: Tensor,
    retain: Tensor,
    forget: Tensor,
    coefficients: Tensor,
    finite: Tensor,
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    lr: float | Tensor,
    seed: int | None = None,
) -> None:
    """As `reference.step_`, in one sweep that leaves g_R as it was."""
    _step(theta, retain, forget, coefficients, finite, state, hyper, lr, seed, combined=False)


@_guarded
def probe_(
    out: Tensor, theta: Tensor, d: Tensor, state: Mapping[str, Tensor], hyper: Mapping[str, Any], h: float | Tensor
) -> None:
    """As `reference.probe_`."""
    if not theta.numel():
        return
    first, second, weights, step = _buffers(theta, state)
    rate, numbers = _rate(h, theta.device), hyperparameters(hyper, theta.device)
    kernels.probe_kernel[(_tiles(theta),)](
        out, weights, d, first, second, step, rate, numbers, theta.numel(), **_base(hyper), ROWS=ROWS, **OPTIONS
    )


@_guarded
def fused_step_(
    theta: Tensor,
    retain: Tensor,
    forget: Tensor,
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    lr: float | Tensor,
    rule: str,
    parameter: float,
    losses: Tensor,
    limit: float,
    seed: int | None = None,
) -> Tensor:
    """The whole step in one launch: two sweeps with a meeting of all programs, and the rule, between them.

    Args:
        theta, retain, forget, state, hyper, lr, seed: as for `step_`.
        rule: name of a device rule, see `coefficients.RULES`.
        parameter: of the rule, such as the c of GDiff; 0 for rules without one.
        losses: (retain, forget), shape (2,), float64; zeros where the caller has none and the rule reads none.
        limit: the norm of d at which the step is refused.

    Returns:
        Shape (6,), float64: g_R.g_R, g_F.g_F, g_R.g_F, c_R, c_F, and 1 if the step was taken or 0 if it was refused, because a
        product or a loss is not finite or d reaches the limit; then nothing else was written.
    """
    report = torch.empty(6, dtype=torch.float64, device=theta.device)
    first, second, master, step = _buffers(theta, state)
    parts, barrier = _meeting(theta.device)
    constants = _base(hyper) | {"RULE": RULES[rule], "ROUNDING": _rounding(theta, state, seed), "ROWS": ROWS}
    arguments = (
        report, theta, retain, forget, first, second, master, step, losses, _numbers((parameter, limit), theta.device),
        _rate(lr, theta.device), hyperparameters(hyper, theta.device), theta.numel(), seed or 0, parts, barrier,
    )  # fmt: skip
    together = OPTIONS if INTERPRETED else OPTIONS | {"launch_cooperative_grid": True}
    grid = (min(_programs(theta), _resident(arguments, constants, together, theta.device)),)
    kernels.fused_step_kernel[grid](*arguments, **constants, **together)
    return report


def hyperparameters(hyper: Mapping[str, Any], device: torch.device) -> Tensor:
    """The hyperparameters of a base in device memory, in the order that `updates` reads."""
    logs = tuple(math.log(beta) if beta else -math.inf for beta in hyper["betas"])
    return _numbers((hyper["momentum"], hyper["weight_decay"], *hyper["betas"], *logs, hyper["eps"]), device)


def _step(
    theta: Tensor,
    retain: Tensor,
    forget: Tensor,
    coefficients: Tensor,
    finite: Tensor,
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    lr: float | Tensor,
    seed: int | None,
    combined: bool,
) -> None:
    first, second, master, step = _buffers(theta, state)
    _, barrier = _meeting(theta.device)
    kernels.step_kernel[(_programs(theta),)](
        theta, retain, forget, first, second, master, step, coefficients, finite, _rate(lr, theta.device),
        hyperparameters(hyper, theta.device), theta.numel(), seed or 0, barrier, **_base(hyper), COMBINED=combined,
        ROUNDING=_rounding(theta, state, seed), ROWS=ROWS, **OPTIONS,
    )  # fmt: skip


def _buffers(theta: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two buffers of the base, the weights to compute with and the count of steps; theta stands in where one is not kept."""
    first = state.get("exp_avg", state.get("momentum_buffer", theta))
    return first, state.get("exp_avg_sq", theta), state.get("master", theta), state.get("step", theta)


def _base(hyper: Mapping[str, Any]) -> dict[str, Any]:
    return {"BASE": hyper["base"], "MOMENTUM_ON": bool(hyper["momentum"]), "NESTEROV": bool(hyper["nesterov"])}


def _rounding(theta: Tensor, state: Mapping[str, Tensor], seed: int | None) -> str:
    if "master" in state:
        return "master"
    return "nearest" if seed is None or theta.dtype == torch.float32 else "stochastic"


def _tiles(buffer: Tensor) -> int:
    return triton.cdiv(buffer.numel(), ROWS * WIDTH.value)


@lru_cache
def _processors(device: torch.device) -> int:
    return 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def _programs(buffer: Tensor) -> int:
    """Programs of a sweep: one a tile, but no more than keep the device busy. A function of n and the device alone."""
    return max(1, min(_tiles(buffer), PROGRAMS_A_PROCESSOR * _processors(buffer.device), PARTS))


_RESIDENT: dict[Any, int] = {}


def _resident(arguments: tuple[Any, ...], constants: dict[str, Any], together: dict[str, Any], device: torch.device) -> int:
    """How many programs of the fused step the device holds at once."""
    if INTERPRETED:
        return 1  # programs run one after the other: a second one would never start
    # All that Triton compiles for: dtypes, addresses on 16-byte boundaries, constants.
    kinds = tuple((a.dtype, a.data_ptr() % 16 == 0) for a in arguments if isinstance(a, Tensor))
    key = (device, kinds, *((name, getattr(value, "__name__", value)) for name, value in constants.items()))
    if key not in _RESIDENT:
        kernel = kernels.fused_step_kernel.warmup(*arguments, grid=(1,), **constants, **together)
        kernel._init_handles()
        _RESIDENT[key] = programs_a_processor(kernel, torch.cuda.get_device_properties(device)) * _processors(device)
    return _RESIDENT[key]


def programs_a_processor(kernel: Any, properties: Any) -> int:
    """How many programs of a compiled kernel fit on one multiprocessor, from its registers, shared memory and threads."""
    registers = max(8, -(-kernel.n_regs // 8) * 8)  # of a thread; both makers hand them out by eights
    if torch.version.hip:
        # Four SIMD units, each with 512 vector registers a lane and 8 waves at most; two waves a program.
        return max(1, min(8, 512 // registers) * 4 // (THREADS // 64))
    shared = kernel.metadata.shared + 1024  # the system keeps 1 KiB of each program's for itself
    fits = (
        properties.regs_per_multiprocessor // (registers * THREADS),
        properties.shared_memory_per_multiprocessor // shared,
        properties.max_threads_per_multi_processor // THREADS,
        PROGRAMS_A_PROCESSOR,
    )
    return max(1, min(fits))


_MEETINGS: dict[Any, tuple[Tensor, Tensor]] = {}


def _meeting(device: torch.device) -> tuple[Tensor, Tensor]:
    """Room for the parts of the products, and a barrier; one pair a stream, for two launches must not share it at a time."""
    key = (device, None if INTERPRETED else torch.cuda.current_stream(device))
    if key not in _MEETINGS:
        parts = torch.empty(3 * PARTS, dtype=torch.float64, device=device)
        _MEETINGS[key] = parts, torch.zeros(2, dtype=torch.int32, device=device)
    return _MEETINGS[key]


def _rate(value: float | Tensor, device: torch.device) -> Tensor:
    return value.to(device, torch.float64) if isinstance(value, Tensor) else _number(float(value), device)


@lru_cache(maxsize=64)
def _number(value: float, device: torch.device) -> Tensor:
    """One number in device memory, by a fill: a copy from here would wait for all that the device has still to do."""
    return torch.full((), value, dtype=torch.float64, device=device)


@lru_cache(maxsize=256)
def _numbers(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers that do not change from step to step, copied into device memory once and never written there."""
    return torch.tensor(values, dtype=torch.float64, device=device)
