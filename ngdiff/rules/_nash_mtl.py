from dataclasses import dataclass

import torch

from ngdiff.gram import Coefficients, Gram, Losses, inverse_norm
from ngdiff.rules._registry import Rule, register


@register("munba")
@register("nash-mtl")
@dataclass(frozen=True)
class NashMTL(Rule):
    """Nash bargaining between the tasks, known as MUNBa in unlearning: c_R g_R.d = c_F (-g_F).d = 1.

    For two tasks c_R = 1 / (||g_R|| sqrt(1 - cos phi)) and c_F likewise, which is NGDiff's direction with length sqrt 2. Where
    both gradients point the same way up to rounding there is no bargain, and d = 0. A zero gradient has the unit vector 0.

    Source: Navon et al., "Multi-task learning as a bargaining game", arXiv 2202.01017; for unlearning Wu & Harandi, "MUNBa",
        arXiv 2411.15537.
    """

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        gain = 1 - gram.cosine
        # Rounding of the cosine leaves a few eps where nothing is to be gained, whose inverse root would be noise.
        possible = gain > 4 * torch.finfo(gain.dtype).eps
        scale = torch.where(possible, gain, torch.ones_like(gain)).rsqrt() * possible
        return Coefficients(scale * inverse_norm(gram.retain), scale * inverse_norm(gram.forget))
