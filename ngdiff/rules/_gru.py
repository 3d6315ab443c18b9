from dataclasses import dataclass

import torch

from ngdiff.gram import Coefficients, Gram, Losses, conflict
from ngdiff.rules._registry import Rule, register


@register("gru")
@dataclass(frozen=True)
class GRU(Rule):
    """Gradient rectified unlearning: ascent on the forget loss, without its part that would raise the retain loss.

    d = -(g_F - p / ||g_R||^2 g_R) with p = max(g_R.g_F, 0): the nearest direction to -g_F with g_R.d >= 0. The retain loss is
    kept to first order, not improved. A zero retain gradient asks for nothing.

    Source: Wang et al., "GRU: mitigating the trade-off between unlearning and retention for large language models", arXiv
        2503.09117; here from the gradients of the step alone, so that the rule has no state.
    """

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        return Coefficients(conflict(gram, gram.retain), torch.ones_like(gram.forget))
