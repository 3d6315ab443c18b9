"""The backend for CPUs: the arithmetic of `reference` in float32, compiled into one pass a sweep by torch.compile.

Short buffers, other dtypes than float32, numbers outside the range where float32 is exact enough, and machines without a C++
compiler take the plain reference.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ngdiff_kernels import reference
from ngdiff_kernels.reference import combine_, probe_

__all__ = ["base_step_", "combine_", "gram", "probe_", "step_"]

SHORT = 1 << 22  # elements below which compiling costs more than a thousand steps would save
ROW = 512  # elements summed in float32 before float64 takes over: 32 additions a lane of 16, or 64 a lane of 8
SAFE = 2.0**100  # coefficients between 1 / SAFE and SAFE neither overflow nor underflow in float32


def gram(retain: Tensor, forget: Tensor) -> Tensor:
    """As `reference.gram`, within 68 u = 4e-6 sum |a_i b_i| of each exact product, by the worst case of rounding.

    Measured: below 6e-7 on constant gradients, whose roundings all go the same way, and 2e-8 on random ones.
    """
    n = len(retain)
    if not _compiles(retain, forget):
        return reference.gram(retain, forget)
    whole = n - n % ROW
    rows = _compiled(_row_products)(retain[:whole], forget[:whole])
    total = torch.stack([row.sum(dtype=torch.float64) for row in rows]) + reference.gram(retain[whole:], forget[whole:])
    # A product that underflows is off by 2^-150; n of them must stay below 2^-22 of either square. NaN fails the test too.
    exact = bool((total[:2] > n * 2.0**-128).all()) and bool(total.isfinite().all())
    return total if exact else reference.gram(retain, forget)


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
    if not _compiles(theta, d):
        reference.base_step_(theta, d, finite, state, hyper, lr, seed)
    elif finite:
        _advance(theta, d, None, None, state, hyper, lr)


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
    """As `reference.step_`, with d computed in float32."""
    safe = bool(((coefficients == 0) | ((coefficients > 1 / SAFE) & (coefficients < SAFE))).all())
    if not (safe and _compiles(theta, retain, forget)):
        reference.step_(theta, retain, forget, coefficients, finite, state, hyper, lr, seed)
    elif finite:
        _advance(theta, retain, forget, coefficients.float(), state, hyper, lr)


def _advance(
    theta: Tensor,
    retain: Tensor,
    forget: Tensor | None,
    coefficients: Tensor | None,
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    lr: float | Tensor,
) -> None:
    # Tensors, because a compiled function is compiled again for every new number.
    rate = torch.as_tensor(lr, dtype=torch.float32)
    constants = {name: hyper[name] for name in ("base", "momentum", "nesterov", "betas", "eps", "weight_decay")}
    _compiled(_update)(theta, retain, forget, coefficients, dict(state), constants, rate)
    if "step" in state:
        state["step"].add_(1)


def _row_products(retain: Tensor, forget: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The products of every ROW elements, for gradients whose length is a multiple of it."""
    r, f = retain.view(-1, ROW), forget.view(-1, ROW)
    return (r * r).sum(1), (f * f).sum(1), (r * f).sum(1)


def _update(
    theta: Tensor,
    retain: Tensor,
    forget: Tensor | None,
    coefficients: Tensor | None,
    state: dict[str, Tensor],
    hyper: dict[str, Any],
    lr: Tensor,
) -> None:
    d = retain
    if forget is not None and coefficients is not None:
        d = coefficients[0] * retain - coefficients[1] * forget
    direction, advanced = reference.DIRECTIONS[hyper["base"]](theta, d, state, hyper)
    for name, value in advanced.items():
        state[name].copy_(value)
    theta.sub_(lr * direction)


def _compiles(*buffers: Tensor) -> bool:
    """Whether compiled code is for these buffers and can be had."""
    return all(b.dtype == torch.float32 and len(b) >= SHORT for b in buffers) and _compiler_works()


@lru_cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


@lru_cache
def _compiler_works() -> bool:
    """Compile the products once, to see; what it makes is used later.

    With as many elements as will come at least: the compiler uses several threads only for code that it first sees at work
    on much data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler uses what torch deprecates
            _compiled(_row_products)(torch.ones(SHORT - SHORT % ROW), torch.ones(SHORT - SHORT % ROW))
    except Exception as error:  # torch raises whatever its compiler does
        warnings.warn(f"torch.compile does not work here ({type(error).__name__}), so steps are slower", stacklevel=4)
        return False
    return True
