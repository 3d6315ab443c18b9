from dataclasses import dataclass

import torch

from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.rules._registry import Rule, register


@register("mgda")
@dataclass(frozen=True)
class MGDA(Rule):
    """Multiple-gradient descent: the shortest vector between the two, d = w g_R - (1 - w) g_F.

    w = g_F.(g_F + g_R) / ||g_R + g_F||^2, clamped to [0, 1]. Neither task gets worse, and d is never longer than the shorter
    gradient. Where one is zero so is d. Where g_R = -g_F every w gives the same d, and w = 1/2.

    Source: Desideri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", Comptes Rendus 2012; two
        tasks in closed form: Sener & Koltun, arXiv 1810.04650, Algorithm 1.
    """

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        # The sum of both numerators, so that the weights add up to 1; rounding may leave less than 0.
        length = (gram.forget + gram.cross) + (gram.retain + gram.cross)
        apart = length > 0
        divisor = torch.where(apart, length, torch.ones_like(length))

        def weight(other: torch.Tensor) -> torch.Tensor:
            # Each weight by its own formula: 1 - w would lose the digits of a small one.
            return torch.where(apart, ((other + gram.cross) / divisor).clamp(0, 1), 0.5)

        return Coefficients(weight(gram.forget), weight(gram.retain))
