from dataclasses import dataclass

from ngdiff.gram import Coefficients, Gram, Losses, inverse_norm
from ngdiff.rules._registry import Rule, register


@register("ngdiff")
@dataclass(frozen=True)
class NGDiff(Rule):
    """Normalized gradient difference: d = g_R / ||g_R|| - g_F / ||g_F||.

    d descends the retain loss and ascends the forget loss for every pair of gradients that do not point the same way, is
    unchanged when either loss is multiplied by a positive constant, and ||d|| <= 2. A gradient that is zero contributes
    nothing.

    Source: Bu et al., "Unlearning as multi-task optimization", arXiv 2410.22086, NGDiff.
    """

    @property
    def kernel(self) -> tuple[str, float]:
        """Its device form."""
        return "ngdiff", 0.0

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        return Coefficients(inverse_norm(gram.retain), inverse_norm(gram.forget))
