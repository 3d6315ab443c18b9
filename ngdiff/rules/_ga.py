from dataclasses import dataclass
from typing import ClassVar

import torch

from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.rules._registry import Rule, register


@register("ga")
@dataclass(frozen=True)
class GA(Rule):
    """Gradient ascent on the forget loss alone: d = -g_F.

    Source: Jang et al., "Knowledge unlearning for mitigating privacy risks in language models", arXiv 2210.01504.
    """

    tasks: ClassVar[tuple[str, ...]] = ("forget",)

    @property
    def kernel(self) -> tuple[str, float]:
        """Its device form."""
        return "ga", 0.0

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        return Coefficients(torch.zeros_like(gram.retain), torch.ones_like(gram.forget))
