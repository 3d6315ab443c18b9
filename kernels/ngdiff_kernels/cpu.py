"""The backend for CPUs: the arithmetic of `reference` in float32.

Long buffers take code made by torch.compile, one pass over memory a sweep. Short ones, and machines without a C++ compiler,
take the same functions as they stand, a piece at a time that stays in cache. Other dtypes than float32, but for gradients of
bfloat16, and numbers outside the range where float32 is exact enough, are left to the reference.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ngdiff_kernels import reference

F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["base_step_", "combine_", "gram", "probe_", "step_"]

SHORT = 1 << 22  # elements below which compiling takes longer than it saves in a thousand steps
PIECE = 1 << 16  # elements worked on at a time without a compiler: six float32 buffers of them fit the cache of one core
ROW = 512  # elements summed in float32 before float64 takes over: 32 additions a lane of 16, or 64 a lane of 8
GRADIENTS = (torch.float32, torch.bfloat16)  # dtypes that float32 holds exactly
SAFE = 2.0**100  # coefficients between 1 / SAFE and SAFE neither overflow nor underflow in float32


def gram(retain: Tensor, forget: Tensor) -> Tensor:
    """As `reference.gram`, within 68 u = 4e-6 sum |a_i b_i| of each exact product, by the worst case of rounding.

    What underflows is lost on top of that: below 2^-22 of either square. Measured: below 6e-7 on constant gradients, whose
    roundings all go the same way, and 2e-8 on random ones.
    """
    if retain.dtype not in GRADIENTS:
        return reference.gram(retain, forget)
    n = len(retain)
    whole = n - n % ROW
    total = reference.gram(retain[whole:], forget[whole:])
    for r, f in _pieces(retain[:whole], forget[:whole]):
        total += torch.stack([row.sum(dtype=torch.float64) for row in _code(_row_products, n)(r, f)])
    # A product that underflows is off by 2^-150; n of them must stay below 2^-22 of either square. NaN fails the test too.
    exact = bool((total[:2] > n * 2.0**-128).all()) and bool(total.isfinite().all())
    return total if exact else reference.gram(retain, forget)


def combine_(retain: Tensor, forget: Tensor, coefficients: Tensor) -> None:
    """As `reference.combine_`, in float32."""
    if not _safe(coefficients, retain):
        reference.combine_(retain, forget, coefficients)
        return
    for r, f in _pieces(retain, forget):
        _code(_combine, len(retain))(r, f, coefficients.float())


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
    if theta.dtype != torch.float32:
        reference.base_step_(theta, d, finite, state, hyper, lr, seed)
    elif finite:
        _advance(theta, d, d, None, state, hyper, lr)


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
    if theta.dtype != torch.float32 or not _safe(coefficients, retain):
        reference.step_(theta, retain, forget, coefficients, finite, state, hyper, lr, seed)
    elif finite:
        _advance(theta, retain, forget, coefficients.float(), state, hyper, lr)


def probe_(
    out: Tensor, theta: Tensor, d: Tensor, state: Mapping[str, Tensor], hyper: Mapping[str, Any], h: float | Tensor
) -> None:
    """As `reference.probe_`."""
    if theta.dtype != torch.float32:
        reference.probe_(out, theta, d, state, hyper, h)
        return
    constants = _constants(state, hyper)
    for (o, t, g), piece in _pieces_with_state((out, theta, d), state):
        _code(_probed, len(theta))(o, t, g, piece, constants, _number(h))


def _safe(coefficients: Tensor, buffer: Tensor) -> bool:
    """Whether d can be computed in float32: the gradients fit, and no coefficient is far from 1 unless it is 0."""
    near = (coefficients == 0) | ((coefficients > 1 / SAFE) & (coefficients < SAFE))
    return buffer.dtype in GRADIENTS and bool(near.all())


def _advance(
    theta: Tensor,
    retain: Tensor,
    forget: Tensor,
    coefficients: Tensor | None,
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    lr: float | Tensor,
) -> None:
    constants = _constants(state, hyper)
    for (t, r, f), piece in _pieces_with_state((theta, retain, forget), state):
        _code(_update, len(theta))(t, r, f, coefficients, piece, constants, _number(lr))
    if "step" in state:
        state["step"].add_(1)


def _number(value: float | Tensor) -> Tensor:
    """As a tensor, because a compiled function is compiled again for every new number."""
    return torch.as_tensor(value, dtype=torch.float32)


def _constants(state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same for all elements. Powers are taken here: the compiler would take them anew for every element."""
    constants = {name: hyper[name] for name in ("base", "momentum", "nesterov", "betas", "eps", "weight_decay")}
    if hyper["base"] == "adamw":
        first, second = reference.bias_corrections(state, hyper)
        constants["corrections"] = (first.float(), second.float())
    return constants


def _pieces_with_state(
    buffers: tuple[Tensor, ...], state: Mapping[str, Tensor]
) -> Iterator[tuple[tuple[Tensor, ...], dict[str, Tensor]]]:
    """The buffers, and the flat entries of the state beside them; its count of steps is in the constants."""
    flat = {name: buffer for name, buffer in state.items() if buffer.dim()}
    for pieces in _pieces(*buffers, *flat.values()):
        yield pieces[: len(buffers)], dict(zip(flat, pieces[len(buffers) :], strict=True))


def _pieces(*buffers: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The buffers as they are for compiled code, and a piece at a time otherwise."""
    length = max(len(buffers[0]), 1) if _compiles(len(buffers[0])) else PIECE
    return zip(*(buffer.split(length) for buffer in buffers), strict=True)


def _code(function: F, n: int) -> F:
    """What to run for buffers of n elements: the function, or what the compiler made of it."""
    return _compiled(function) if _compiles(n) else function


def _row_products(retain: Tensor, forget: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The products of every ROW elements, for gradients whose length is a multiple of it."""
    r, f = retain.float().view(-1, ROW), forget.float().view(-1, ROW)
    return (r * r).sum(1), (f * f).sum(1), (r * f).sum(1)


def _combine(retain: Tensor, forget: Tensor, coefficients: Tensor) -> None:
    retain.copy_(_direction(retain, forget, coefficients))


def _direction(retain: Tensor, forget: Tensor, coefficients: Tensor | None) -> Tensor:
    """d in float32; with coefficients None it is already in `retain`."""
    if coefficients is None:
        return retain.float()
    return coefficients[0] * retain.float() - coefficients[1] * forget.float()


def _update(
    theta: Tensor,
    retain: Tensor,
    forget: Tensor,
    coefficients: Tensor | None,
    state: dict[str, Tensor],
    hyper: dict[str, Any],
    lr: Tensor,
) -> None:
    """The step."""
    d = _direction(retain, forget, coefficients)
    direction, advanced = reference.DIRECTIONS[hyper["base"]](theta, d, state, hyper)
    for name, value in advanced.items():
        state[name].copy_(value)
    theta.sub_(lr * direction)


def _probed(out: Tensor, theta: Tensor, d: Tensor, state: dict[str, Tensor], hyper: dict[str, Any], h: Tensor) -> None:
    direction, _ = reference.DIRECTIONS[hyper["base"]](theta, d.float(), state, hyper)
    out.copy_(theta + h * direction)


def _compiles(n: int) -> bool:
    """Whether buffers of n elements are worth compiled code, and it can be had."""
    return n >= SHORT and _compiler_works()


@lru_cache
def _compiled(function: F) -> F:
    return cast(F, torch.compile(function, dynamic=True))


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
