from dataclasses import dataclass

from ngdiff.gram import Coefficients, Gram, Losses, conflict
from ngdiff.rules._registry import Rule, register


@register("pcgrad")
@dataclass(frozen=True)
class PCGrad(Rule):
    """Gradient surgery: each gradient without its part that hurts the other task, and their sum.

    d = (1 + p / ||g_R||^2) g_R - (1 + p / ||g_F||^2) g_F with p = max(g_R.g_F, 0): the tasks are in conflict where the
    gradients agree, because one loss is to fall and the other to rise. A zero gradient is in conflict with nothing.

    Source: Yu et al., "Gradient surgery for multi-task learning", arXiv 2001.06782, Algorithm 1.
    """

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        return Coefficients(1 + conflict(gram, gram.retain), 1 + conflict(gram, gram.forget))
