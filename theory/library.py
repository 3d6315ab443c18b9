"""The one door to the library: everything that theory judges is computed by these functions, in float64."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from ngdiff_kernels import backend_for
from torch import Tensor

from ngdiff import AutoLearningRate, TwoTaskOptimizer, rules
from ngdiff.gram import Coefficients, Gram, Losses

Loss = Callable[[Tensor], Tensor]
LossPair = tuple[Loss, Loss]


class Combined(NamedTuple):
    """d = c_R g_R - c_F g_F of a rule, shape (n,), with its coefficients and the Gram matrix that they come from."""

    d: Tensor
    coefficients: Coefficients
    gram: Gram


def combine(rule: str | rules.Rule, retain: Tensor, forget: Tensor, losses: Losses | None = None) -> Combined:
    """The direction of a rule, by the kernels and the rule that the optimizer calls.

    Args:
        rule: its name, or the rule.
        retain, forget: g_R and g_F, shape (n,), float64.
        losses: of both tasks, for rules that read them.
    """
    backend = backend_for(retain.device, retain.dtype)
    gram = Gram.from_vector(backend.gram(retain, forget))
    coefficients = (rules.get(rule) if isinstance(rule, str) else rule)(gram, losses)
    d = retain.clone()
    backend.combine_(d, forget, torch.stack(coefficients))
    return Combined(d, coefficients, gram)


def direction_error(n: int) -> float:
    """How far NGDiff's d may be from its formula, in Euclidean norm, when computed in float64.

    A sum of n squares is off by n u relatively, its inverse square root by n/2 + 2 units, each product by one more: n/2 + 3 for
    a unit vector, twice that for two of them, and 2 u for their difference.
    """
    return (n + 8) * 2.0**-53


class Step(NamedTuple):
    """One step of a run: where it began, the gradients and NGDiff's or another rule's d there, and the rate taken."""

    theta: Tensor
    retain: Tensor
    forget: Tensor
    d: Tensor
    rate: float


def descend(
    losses: LossPair | Callable[[int], LossPair],
    theta: Sequence[float] | Tensor,
    rates: Sequence[float],
    rule: str | rules.Rule = "ngdiff",
    **options: Any,
) -> Iterator[Step]:
    """A run of `TwoTaskOptimizer` in float64; yields every step, then the end, where the rate is 0.

    Gradients and d are computed again beside the optimizer, so that its steps can be compared with them.

    Args:
        losses: (L_R, L_F), each a function of theta, shape (n,) -> shape (); or what gives such a pair for every step.
        theta: the start.
        rates: the learning rate of every step.
        rule, options: of the optimizer.
    """
    weights = torch.nn.Parameter(torch.as_tensor(theta, dtype=torch.float64).clone())
    optimizer = TwoTaskOptimizer([weights], rule=rule, lr=1.0, **options)
    for i, rate in enumerate([*rates, 0.0]):
        pair = losses(i) if callable(losses) else losses
        optimizer.param_groups[0]["lr"] = rate
        (l_r, g_r), (l_f, g_f) = (value_and_gradient(loss, weights) for loss in pair)
        yield Step(weights.detach().clone(), g_r, g_f, combine(optimizer.rule, g_r, g_f, Losses(l_r, l_f)).d, rate)
        if rate:
            backward_both(optimizer, pair, weights)
            optimizer.step(losses=(l_r, l_f))


def value_and_gradient(loss: Loss, theta: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, shape (), and its gradient, shape (n,)."""
    theta = theta.detach().requires_grad_()
    value = loss(theta)
    (gradient,) = torch.autograd.grad(value, theta)
    return value.detach(), gradient


def backward_both(optimizer: TwoTaskOptimizer, pair: LossPair, weights: Tensor) -> None:
    """Both tasks of a step."""
    for task, loss in zip(("retain", "forget"), pair, strict=True):
        with optimizer.task(task):
            loss(weights).backward()


def automatic_rate(losses: LossPair, theta: Sequence[float] | Tensor, initial: float) -> float:
    """The rate that the first step of `lr="auto"` chooses, with losses in float64."""
    weights = torch.nn.Parameter(torch.as_tensor(theta, dtype=torch.float64).clone())
    rate = AutoLearningRate(initial=initial, unit_roundoff=2.0**-53)
    optimizer = TwoTaskOptimizer([weights], lr=rate)
    backward_both(optimizer, losses, weights)
    optimizer.step(probe=lambda: losses[0](weights))
    return float(optimizer.param_groups[0]["lr"])
