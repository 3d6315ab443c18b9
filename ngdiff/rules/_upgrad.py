from dataclasses import dataclass

from ngdiff.gram import Coefficients, Gram, Losses, conflict
from ngdiff.rules._registry import Rule, register


@register("upgrad")
@dataclass(frozen=True)
class UPGrad(Rule):
    """Unconflicting projection: the mean of both gradients, each projected onto the cone of directions that help both tasks.

    For two tasks the projection takes away what PCGrad does, so d is half of PCGrad's. A zero gradient projects to itself.

    Source: Quinton & Rey, "Jacobian descent for multi-objective optimization", arXiv 2406.16232.
    """

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        return Coefficients((1 + conflict(gram, gram.retain)) / 2, (1 + conflict(gram, gram.forget)) / 2)
