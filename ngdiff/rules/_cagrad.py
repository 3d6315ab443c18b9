from dataclasses import dataclass

import torch
from torch import Tensor

from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.rules._registry import Rule, register


@register("cagrad")
@dataclass(frozen=True)
class CAGrad(Rule):
    """Conflict-averse gradient: of all d within c ||g_0|| of the mean g_0 = (g_R - g_F) / 2, the best for the worse-off task.

    d = g_0 + c ||g_0|| g_w / ||g_w|| with g_w = w g_R - (1 - w) g_F, and w in [0, 1] minimising g_w.g_0 + c ||g_0|| ||g_w||,
    for two tasks in closed form. Where g_w is zero up to rounding d = g_0.

    Args:
        c: radius, in [0, 1); 0 is GDiff-0.5, and from 1 on d = 0 may be best.

    Raises:
        ValueError: c outside [0, 1).

    Source: Liu et al., "Conflict-averse gradient descent for multi-task learning", arXiv 2110.14048, Algorithm 1.
    """

    c: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.c < 1:
            raise ValueError(f"cagrad: c = {self.c} is outside [0, 1); give the radius around the mean gradient, e.g. 0.5")

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        a, b, cross = gram.scaled()
        x = -cross  # g_R.(-g_F)
        radius = self.c * (a + b + 2 * x).clamp(min=0).sqrt() / 2
        w, v = _weights(a, b, x, radius)
        squares, product = w * w * a + v * v * b, 2 * w * v * x
        square = squares + product  # ||g_w||^2, off by a few eps of its terms
        seen = square > 8 * torch.finfo(a.dtype).eps * (squares + product.abs())
        pull = radius * torch.where(seen, square, torch.ones_like(square)).rsqrt() * seen
        return Coefficients(0.5 + pull * w, 0.5 + pull * v)


def _weights(a: Tensor, b: Tensor, x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """w and 1 - w that minimise F(w) = g_w.g_0 + radius ||g_w||, with a, b, x the Gram matrix of the tasks' g_1 and g_2.

    F'(w) = slope + radius y / ||g_w|| with slope = (g_1 - g_2).g_0 and y = (g_1 - g_2).g_w, which is linear in w. Because
    spread ||g_w||^2 = y^2 + det with spread = ||g_1 - g_2||^2, F' vanishes where y = -slope sqrt(det / (radius^2 spread -
    slope^2)). Where that root does not exist F is monotone.
    """
    slope, spread, det = (a - b) / 2, a + b - 2 * x, (a * b - x * x).clamp(min=0)
    room = radius * radius * spread - slope * slope
    inside = (room > 0) & (spread > 0)
    y = -slope * (det / torch.where(inside, room, torch.ones_like(room))).sqrt()
    divisor = torch.where(inside, spread, torch.ones_like(spread))
    # Each from a difference of its own: 1 - w would lose the digits of a small one.
    w, v = ((y + b - x) / divisor).clamp(0, 1), ((a - x - y) / divisor).clamp(0, 1)
    end = (1 - slope.sign()) / 2
    return torch.where(inside, w, end), torch.where(inside, v, 1 - end)
