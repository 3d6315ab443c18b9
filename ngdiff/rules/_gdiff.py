from dataclasses import dataclass

import torch

from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.rules._registry import Rule, register


@register("gdiff")
@dataclass(frozen=True)
class GDiff(Rule):
    """Gradient difference, a static linear scalarization: d = c g_R - (1 - c) g_F.

    Args:
        c: weight of the retain task, in [0, 1]; 0.9, 0.5 and 0.1 are the values usually reported.

    Raises:
        ValueError: c outside [0, 1].

    Source: Liu et al., "Continual learning and private unlearning", arXiv 2203.12817; with weight c in arXiv 2410.22086.
    """

    c: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.c <= 1:
            raise ValueError(f"gdiff: c = {self.c} is outside [0, 1]; give the weight of the retain task, e.g. 0.9")

    @property
    def kernel(self) -> tuple[str, float]:
        """Its device form."""
        return "gdiff", self.c

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        return Coefficients(torch.full_like(gram.retain, self.c), torch.full_like(gram.forget, 1 - self.c))
