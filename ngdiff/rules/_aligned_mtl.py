from dataclasses import dataclass

import torch

from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.rules._registry import Rule, register


@register("aligned-mtl")
@dataclass(frozen=True)
class AlignedMTL(Rule):
    """Aligned gradients: the mean of the orthogonal vectors nearest to g_R and -g_F, as long as their least singular value.

    With M the Gram matrix of g_R and -g_F the coefficients are sqrt(lambda_min) M^(-1/2) (1/2, 1/2), here by the closed form
    M^(-1/2) = (adj M + D) / (D sqrt(tr M + 2 D)), D = sqrt(det M). Where the gradients are parallel up to rounding M has one
    direction, and the coefficients are its projection M / tr M of (1/2, 1/2); likewise where one gradient is 5e7 times as long
    as the other, and there d jumps by as much. One of the coefficients may be negative.

    Source: Senushkin et al., "Independent component alignment for multi-task learning", arXiv 2305.19000, with the smallest
        eigenvalue as scale.
    """

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        a, b, cross = gram.scaled()
        x, trace = -cross, a + b
        square = (a * b - x * x).clamp(min=0)  # the determinant, off by eps a b
        largest = (trace + ((a - b).square() + 4 * x * x).sqrt()) / 2
        d, root = square.sqrt(), (largest * (trace + 2 * square.sqrt())).sqrt()
        # lambda_min = det / lambda_max is rounding below 2 eps lambda_max, the limit of matrix rank.
        full = square > 2 * torch.finfo(a.dtype).eps * largest.square()
        nonzero = trace > 0

        def coefficient(mine: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            aligned = (other + d - x) / torch.where(nonzero, root, torch.ones_like(root))
            projected = (mine + x) / torch.where(nonzero, trace, torch.ones_like(trace))
            return torch.where(nonzero, torch.where(full, aligned, projected), 1.0) / 2

        return Coefficients(coefficient(a, b), coefficient(b, a))
