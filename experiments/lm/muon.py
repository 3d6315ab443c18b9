"""Muon in float32: an optimizer of weight matrices whose steps have all singular values near 1."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# x -> a x + b x^3 + c x^5, five times, brings singular values from about 0.003 to 1 between 0.7 and 1.2; Jordan et al.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized: W <- W - lr 0.2 sqrt(max(m, n)) orthogonal(momentum).

    It is `torch.optim.Muon(adjust_lr_fn="match_rms_adamw", weight_decay=0)` but for the type of the iteration, which there is
    bfloat16: most CPUs have no instructions for it, and a step of a small model takes six times as long.

    Args:
        params: matrices, shape (m, n); an embedding, whose rows are looked up one by one, is better left to AdamW.
        lr: with this scaling a step is about as long as AdamW's of the same rate, in the root mean square.
        momentum: of the running mean of gradients.

    Raises:
        ValueError: a parameter is no matrix.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scaling of Liu et al., "Muon is
        scalable for LLM training", arXiv 2502.16982.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim != 2:
                raise ValueError(f"Muon: a parameter of shape {tuple(parameter.shape)}; give matrices, and the rest to AdamW")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                mean = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(mean, group["momentum"])
                parameter.sub_(orthogonal(ahead), alpha=group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V' of the matrix U S V', by Newton and Schulz's iteration in its own type; shape (m, n), as given."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)  # a matrix of zeros stays one
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
