"""The step in plain torch: readable, exact, and what every faster backend is compared with.

All buffers are contiguous, one-dimensional and of one length n. Nothing here waits for the device: a step that must not
happen is masked by the zero-dimensional boolean tensor `finite`, not by a Python `if`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ngdiff_kernels.bases import compute_dtype
from ngdiff_kernels.rounding import stochastic_round

CHUNK = 1 << 20  # elements worked on at a time: temporaries of 8 MiB each in float64, whatever n is


def gram(retain: Tensor, forget: Tensor) -> Tensor:
    """(g_R.g_R, g_F.g_F, g_R.g_F) as float64, summed chunk by chunk in a fixed order.

    The square of the smallest float32, 1.4e-45, and of the largest, 3.4e38, are both normal numbers in float64, so
    gradients of up to 32 bits neither overflow nor underflow here.

    Args:
        retain: g_R, shape (n,).
        forget: g_F, shape (n,).

    Returns:
        Shape (3,), float64, on the device of the gradients. Non-finite where a gradient is.
    """
    total = torch.zeros(3, dtype=torch.float64, device=retain.device)
    for r, f in zip(retain.split(CHUNK), forget.split(CHUNK), strict=True):
        r, f = r.double(), f.double()
        total += torch.stack([r.dot(r), f.dot(f), r.dot(f)])
    return total


def combine_(retain: Tensor, forget: Tensor, coefficients: Tensor) -> None:
    """Write d = c_R g_R - c_F g_F over g_R, rounded to its dtype.

    Computed in float64, because 1/||g|| can exceed the largest float32.

    Args:
        retain: g_R, shape (n,); holds d afterwards.
        forget: g_F, shape (n,); unchanged.
        coefficients: (c_R, c_F), shape (2,), float64.
    """
    for r, f in zip(retain.split(CHUNK), forget.split(CHUNK), strict=True):
        r.copy_(_combined(r, f, coefficients))


def base_step_(
    theta: Tensor,
    d: Tensor,
    finite: Tensor,
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    lr: float | Tensor,
    seed: int | None = None,
) -> None:
    """theta <- theta - lr base(d), advancing the base optimizer's state.

    Args:
        theta: parameters, shape (n,).
        d: the combined gradient, shape (n,); unchanged.
        finite: boolean, shape (); where False, theta and the state stay bit for bit as they were.
        state: buffers of the base, see `bases.state_shapes`; updated in place.
        hyper: "base" ("sgd" or "adamw") and its hyperparameters, by torch.optim's names.
        lr: learning rate.
        seed: for theta of 16 bits without master weights: round at random, with the bits of this seed, see
            `rounding.stochastic_round`; None rounds to nearest.
    """
    _advance(theta, d.split(CHUNK), finite, state, hyper, lr, seed)


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
    """theta <- theta - lr base(c_R g_R - c_F g_F). The gradients are only read, and d is not rounded to their dtype."""
    pairs = zip(retain.split(CHUNK), forget.split(CHUNK), strict=True)
    combined = (_combined(r, f, coefficients).to(compute_dtype(theta.dtype)) for r, f in pairs)
    _advance(theta, combined, finite, state, hyper, lr, seed)


def probe_(
    out: Tensor, theta: Tensor, d: Tensor, state: Mapping[str, Tensor], hyper: Mapping[str, Any], h: float | Tensor
) -> None:
    """Write theta + h base(d), which is where `base_step_` with lr = -h would go, into `out`. All else is only read."""
    for o, (t, g, s) in zip(out.split(CHUNK), _chunks(theta, d.split(CHUNK), state), strict=True):
        weights = _weights(t, s)
        direction, _ = DIRECTIONS[hyper["base"]](weights, g.to(weights.dtype), s, hyper)
        o.copy_(weights + h * direction)


def _combined(r: Tensor, f: Tensor, coefficients: Tensor) -> Tensor:
    c_r, c_f = coefficients
    return c_r * r.double() - c_f * f.double()


def _advance(
    theta: Tensor,
    directions: Iterable[Tensor],
    finite: Tensor,
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    lr: float | Tensor,
    seed: int | None,
) -> None:
    """The step, given d a chunk at a time."""
    for i, (t, g, s) in enumerate(_chunks(theta, directions, state)):
        weights = _weights(t, s)
        direction, advanced = DIRECTIONS[hyper["base"]](weights, g.to(weights.dtype), s, hyper)
        new = weights - lr * direction
        if "master" in s:
            advanced["master"] = new
        for name, value in advanced.items():
            s[name].copy_(torch.where(finite, value, s[name]))
        nearest = seed is None or "master" in s or t.dtype == new.dtype
        rounded = new.to(t.dtype) if nearest else stochastic_round(new, t.dtype, cast(int, seed), i * CHUNK)
        t.copy_(torch.where(finite, rounded, t))
    if "step" in state:
        state["step"].add_(finite)


def _weights(theta: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """What a step starts from: the master weights where they are kept."""
    return state["master"] if "master" in state else theta.to(compute_dtype(theta.dtype))


def _chunks(
    theta: Tensor, directions: Iterable[Tensor], state: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """theta, d and state a chunk at a time, as views; scalars of the state stay whole."""
    scalars = {name: value for name, value in state.items() if not value.dim()}
    flat = {name: value.split(CHUNK) for name, value in state.items() if value.dim()}
    for i, (t, g) in enumerate(zip(theta.split(CHUNK), directions, strict=True)):
        yield t, g, scalars | {name: chunks[i] for name, chunks in flat.items()}


Direction = tuple[Tensor, dict[str, Tensor]]  # base(d), and the flat state after this step


def _sgd(theta: Tensor, d: Tensor, state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> Direction:
    """torch.optim.SGD: coupled weight decay, then heavy-ball or Nesterov momentum without dampening."""
    if hyper["weight_decay"]:
        d = d + hyper["weight_decay"] * theta
    if not hyper["momentum"]:
        return d, {}
    buffer = hyper["momentum"] * state["momentum_buffer"] + d
    return d + hyper["momentum"] * buffer if hyper["nesterov"] else buffer, {"momentum_buffer": buffer}


def bias_corrections(state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """By what AdamW divides its two moments at the next step, 1 - beta^step: shape () and float64."""
    beta1, beta2 = hyper["betas"]
    step = state["step"].double() + 1
    return 1 - beta1**step, 1 - beta2**step


def _adamw(theta: Tensor, d: Tensor, state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> Direction:
    """torch.optim.AdamW: bias-corrected moments, decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101)."""
    beta1, beta2 = hyper["betas"]
    first, second = hyper.get("corrections") or bias_corrections(state, hyper)
    m = torch.lerp(state["exp_avg"], d, 1 - beta1)
    v = beta2 * state["exp_avg_sq"] + (1 - beta2) * d * d
    m_hat, v_hat = m / first.to(m.dtype), v / second.to(v.dtype)
    direction = m_hat / (v_hat.sqrt() + hyper["eps"]) + hyper["weight_decay"] * theta
    return direction, {"exp_avg": m, "exp_avg_sq": v}


DIRECTIONS = {"sgd": _sgd, "adamw": _adamw}
