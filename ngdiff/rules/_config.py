from dataclasses import dataclass

import torch

from ngdiff.gram import Coefficients, Gram, Losses, inverse_norm
from ngdiff.rules._registry import Rule, register


@register("config")
@dataclass(frozen=True)
class ConFIG(Rule):
    """Conflict-free inverse gradients: the direction with equal cosines to g_R and -g_F, as long as both projections together.

    For two tasks it is NGDiff's direction: d = (||g_R|| + ||g_F||) / 2 (g_R / ||g_R|| - g_F / ||g_F||). Where one gradient is
    zero d is the other.

    Source: Liu et al., "ConFIG: towards conflict-free training of physics informed neural networks", arXiv 2408.11104,
        equation 2.
    """

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        retain, forget = inverse_norm(gram.retain), inverse_norm(gram.forget)
        tasks = (retain > 0).to(retain.dtype) + (forget > 0).to(retain.dtype)
        length = (gram.retain.sqrt() + gram.forget.sqrt()) / torch.clamp(tasks, min=1)
        return Coefficients(length * retain, length * forget)
