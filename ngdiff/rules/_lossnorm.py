from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.rules._registry import Rule, register


@register("lossnorm")
@dataclass(frozen=True)
class LossNorm(Rule):
    """Gradients weighed by the inverse of their losses: d = g_R / |L_R| - g_F / |L_F|.

    The absolute value is for forget objectives that are negative, because they are published as losses to be lowered. Where a
    loss is exactly zero, and 1 / L without meaning, its coefficient is defined as 0.

    Raises:
        ValueError: called without the losses.

    Source: arXiv 2410.22086, LossNorm.
    """

    needs_losses: ClassVar[bool] = True

    @property
    def kernel(self) -> tuple[str, float]:
        """Its device form."""
        return "lossnorm", 0.0

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        if losses is None:
            raise ValueError("lossnorm: the losses are missing; call step(losses=(retain_loss, forget_loss))")
        return Coefficients(_inverse(losses.retain), _inverse(losses.forget))


def _inverse(loss: Tensor) -> Tensor:
    zero = loss == 0
    return torch.where(zero, torch.ones_like(loss), loss.abs()).reciprocal() * ~zero
