"""The step in plain torch: readable, exact, and what every faster backend is compared with.

All buffers are contiguous, one-dimensional and of one length n. Nothing here waits for the device: a step that must not
happen is masked by the zero-dimensional boolean tensor `finite`, not by a Python `if`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 20  # float64 temporaries of 8 MiB each, whatever n is


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


def direction_(
    theta: Tensor,
    retain: Tensor,
    forget: Tensor,
    coefficients: Tensor,
    finite: Tensor,
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
) -> Tensor:
    """Write base(c_R g_R - c_F g_F) over `retain`, advancing the base optimizer's state.

    Args:
        theta: parameters, shape (n,); read for weight decay only.
        retain: g_R, shape (n,); holds the direction afterwards.
        forget: g_F, shape (n,); unchanged.
        coefficients: (c_R, c_F), shape (2,), float64.
        finite: boolean, shape (); where False the direction is zero and the state stays bit for bit as it was.
        state: buffers of the base, see `bases.state_shapes`; updated in place.
        hyper: "base" ("sgd" or "adamw") and its hyperparameters, by torch.optim's names.

    Returns:
        `retain`, now the direction.
    """
    _combine_(retain, forget, coefficients)
    direction = _DIRECTIONS[hyper["base"]](theta, retain, finite, state, hyper)
    return retain.copy_(torch.where(finite, direction, torch.zeros_like(direction)))


def apply_(theta: Tensor, direction: Tensor, lr: float | Tensor) -> None:
    """theta <- theta - lr direction, in place."""
    theta.sub_(direction * lr)


def step_(
    theta: Tensor,
    retain: Tensor,
    forget: Tensor,
    coefficients: Tensor,
    finite: Tensor,
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    lr: float | Tensor,
) -> None:
    """theta <- theta - lr base(c_R g_R - c_F g_F): `direction_`, then `apply_`."""
    apply_(theta, direction_(theta, retain, forget, coefficients, finite, state, hyper), lr)


def probe_(out: Tensor, theta: Tensor, direction: Tensor, h: float) -> None:
    """Write theta + h direction into `out`; theta and direction are only read."""
    torch.add(theta, direction, alpha=h, out=out)


def _combine_(retain: Tensor, forget: Tensor, coefficients: Tensor) -> None:
    """Write d = c_R g_R - c_F g_F over g_R. In float64, because 1/||g|| can exceed the largest float32."""
    c_r, c_f = coefficients
    for r, f in zip(retain.split(CHUNK), forget.split(CHUNK), strict=True):
        r.copy_(c_r * r.double() - c_f * f.double())


def _sgd(theta: Tensor, d: Tensor, finite: Tensor, state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> Tensor:
    """torch.optim.SGD: coupled weight decay, then heavy-ball or Nesterov momentum without dampening."""
    if hyper["weight_decay"]:
        d = d + hyper["weight_decay"] * theta
    if not hyper["momentum"]:
        return d
    buffer = _advance_(state["momentum_buffer"], hyper["momentum"] * state["momentum_buffer"] + d, finite)
    return d + hyper["momentum"] * buffer if hyper["nesterov"] else buffer


def _adamw(theta: Tensor, d: Tensor, finite: Tensor, state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> Tensor:
    """torch.optim.AdamW: bias-corrected moments, decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101)."""
    beta1, beta2 = hyper["betas"]
    step = _advance_(state["step"], state["step"] + 1, finite).double()
    m = _advance_(state["exp_avg"], torch.lerp(state["exp_avg"], d, 1 - beta1), finite)
    v = _advance_(state["exp_avg_sq"], beta2 * state["exp_avg_sq"] + (1 - beta2) * d * d, finite)
    # Where the first step is refused, step is 0 and 0 / 0 appears below; `direction_` masks it.
    m_hat = m / (1 - beta1**step).to(m.dtype)
    v_hat = v / (1 - beta2**step).to(v.dtype)
    return m_hat / (v_hat.sqrt() + hyper["eps"]) + hyper["weight_decay"] * theta


def _advance_(old: Tensor, new: Tensor, finite: Tensor) -> Tensor:
    """Overwrite `old` by `new`, unless the step is refused."""
    return old.copy_(torch.where(finite, new, old))


_DIRECTIONS = {"sgd": _sgd, "adamw": _adamw}
