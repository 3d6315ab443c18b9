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

    Args:
        c: trade-off, in [0, 1]: d = 2 (c g_R / ||g_R|| - (1 - c) g_F / ||g_F||). 1/2 is the paper's rule, the only one that
            improves both tasks at every angle; with another the loss of the lighter task gets worse where cos phi is
            above min(c, 1 - c) / max(c, 1 - c).

    Raises:
        ValueError: c outside [0, 1].

    Source: Bu et al., "Unlearning as multi-task optimization", arXiv 2410.22086, NGDiff; the trade-off is ours.
    """

    c: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.c <= 1:
            raise ValueError(f"ngdiff: c = {self.c} is outside [0, 1]; give the weight of the retain task, e.g. 0.5")

    @property
    def kernel(self) -> tuple[str, float] | None:
        """Its device form, if the tasks weigh the same."""
        return ("ngdiff", 0.0) if self.c == 0.5 else None

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        return Coefficients(2 * self.c * inverse_norm(gram.retain), 2 * (1 - self.c) * inverse_norm(gram.forget))
