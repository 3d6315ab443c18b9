"""One unlearning run: batches of both tasks through the library's optimizer."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from experiments.lm.encoding import Example
from experiments.lm.training import accumulate, answer_loss
from ngdiff import AutoLearningRate, TwoTaskOptimizer

BASES = {"sgd": {}, "momentum": {"base": "sgd", "momentum": 0.9}, "adamw": {}}


@dataclass(frozen=True)
class Method:
    """A combination rule, a base optimizer and a learning rate ("auto" or a number)."""

    rule: str
    base: str
    lr: float | str

    def optimizer(self, model: Any) -> TwoTaskOptimizer:
        """A fresh optimizer over the model's parameters."""
        lr = AutoLearningRate() if self.lr == "auto" else self.lr
        options: dict[str, Any] = {"base": self.base} | BASES[self.base]
        return TwoTaskOptimizer(model.parameters(), rule=self.rule, lr=lr, **options)


def unlearn(
    model: Any,
    forget: Sequence[Example],
    retain: Sequence[Example],
    pad: int,
    method: Method,
    steps: int,
    batch: int,
    generator: torch.Generator,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> Iterator[dict[str, Any]]:
    """Unlearn in place, and yield a record of each step after it is taken.

    The rows of a step depend on the generator alone, so every method that gets an equal generator sees equal batches: the
    forget rows in shuffled passes, and `batch` retain rows (or all, if fewer) drawn uniformly.

    Yields:
        step, both losses (before the step), both gradient norms, cosine, c (weight of the retain task in the paper's
        c g_R - (1 - c) g_F), learning rate, and whether the step was finite and so was taken.
    """
    model.train()
    optimizer = method.optimizer(model)
    rows = _passes(len(forget), batch, generator)
    for step in range(steps):
        forget_rows = [forget[i] for i in next(rows)]
        retain_rows = [retain[i] for i in torch.randperm(len(retain), generator=generator, device="cpu")[:batch].tolist()]
        losses = []
        for task, examples in (("retain", retain_rows), ("forget", forget_rows)):
            with optimizer.task(task):
                losses.append(accumulate(model, examples, pad))
        optimizer.step(losses=(losses[0], losses[1]), probe=partial(answer_loss, model, retain_rows, pad, exact=True))
        yield _record(step, losses, optimizer)
        on_step(step + 1, steps)
    model.eval()


def _passes(n: int, batch: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches of exactly `batch` of n indices, pass after shuffled pass."""
    pending: list[int] = []
    while True:
        while len(pending) < batch:
            pending += torch.randperm(n, generator=generator, device="cpu").tolist()
        yield pending[:batch]
        pending = pending[batch:]


def _record(step: int, losses: list[torch.Tensor], optimizer: TwoTaskOptimizer) -> dict[str, Any]:
    report = optimizer.last_step
    assert report is not None
    values = {
        "retain_loss": losses[0].item(),
        "forget_loss": losses[1].item(),
        "norm_retain": report.gram.retain.sqrt().item(),
        "norm_forget": report.gram.forget.sqrt().item(),
        "cosine": report.gram.cosine.item(),
        "c": report.coefficients.weight.item(),
        "lr": optimizer.param_groups[0]["lr"],
    }
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
    return {"step": step, **finite, "finite": bool(report.finite)}
