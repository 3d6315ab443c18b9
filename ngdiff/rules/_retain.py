from dataclasses import dataclass
from typing import ClassVar

import torch

from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.rules._registry import Rule, register


@register("retain")
@dataclass(frozen=True)
class RetainOnly(Rule):
    """Gradient descent on the retain loss alone: d = g_R. What the model does if nothing is asked to be forgotten.

    Source: the fine-tuning baseline of Maini et al., "TOFU", arXiv 2401.06121.
    """

    tasks: ClassVar[tuple[str, ...]] = ("retain",)

    @property
    def kernel(self) -> tuple[str, float]:
        """Its device form: GDiff with all the weight on retain."""
        return "gdiff", 1.0

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        return Coefficients(torch.ones_like(gram.retain), torch.zeros_like(gram.forget))
