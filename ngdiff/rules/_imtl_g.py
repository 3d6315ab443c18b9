from dataclasses import dataclass

import torch

from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.rules._registry import Rule, register


@register("imtl-g")
@dataclass(frozen=True)
class IMTLG(Rule):
    """Impartial gradients: d = w g_R - (1 - w) g_F whose projections onto both unit gradients are equal.

    For two tasks w = ||g_F|| / (||g_R|| + ||g_F||), which is NGDiff's direction: d is NGDiff's times ||g_R|| ||g_F|| / (||g_R||
    + ||g_F||). Where a gradient is zero so is d; where both are, w = 1/2.

    Source: Liu et al., "Towards impartial multi-task learning", ICLR 2021, Section 3.1.
    """

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        retain, forget = gram.retain.sqrt(), gram.forget.sqrt()
        both = retain + forget
        nonzero = both > 0
        divisor = torch.where(nonzero, both, torch.ones_like(both))
        return Coefficients(torch.where(nonzero, forget / divisor, 0.5), torch.where(nonzero, retain / divisor, 0.5))
