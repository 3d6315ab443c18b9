from dataclasses import dataclass

import torch

from ngdiff.gram import Coefficients, Gram, Losses, inverse_norm
from ngdiff.rules._registry import Rule, register

# Float32 gradients of one direction leave a gain of about the square of their unit roundoff, 4e-15, whose inverse root would be
# a direction of noise.
NOTHING = 1e-13


@register("munba")
@register("nash-mtl")
@dataclass(frozen=True)
class NashMTL(Rule):
    """Nash bargaining between the tasks, known as MUNBa in unlearning: c_R g_R.d = c_F (-g_F).d = 1.

    For two tasks c_R = 1 / (||g_R|| sqrt(1 - cos phi)) and c_F likewise, which is NGDiff's direction with length sqrt 2. Where
    both gradients point the same way, up to the rounding of float32, there is no bargain, and d = 0. Gradients rounded to 16
    bits may differ by more, and d is then a step of length sqrt 2 along their rounding. A zero gradient has the unit vector 0.

    Source: Navon et al., "Multi-task learning as a bargaining game", arXiv 2202.01017; for unlearning Wu & Harandi, "MUNBa",
        arXiv 2411.15537.
    """

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        gain = 1 - gram.cosine
        possible = gain > NOTHING
        scale = torch.where(possible, gain, torch.ones_like(gain)).rsqrt() * possible
        return Coefficients(scale * inverse_norm(gram.retain), scale * inverse_norm(gram.forget))
