"""What lies between Trainer's step and ours: the losses and batches of a step, its optimizer, schedule and log."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ngdiff import rules
from ngdiff.optimizer import TwoTaskOptimizer

Batch = Mapping[str, Tensor]


class Supply(Protocol):
    """What a step needs beside the gradients."""

    def __call__(self) -> tuple[tuple[Tensor, Tensor], Callable[[], Tensor], Tensor | None]:
        """(retain, forget) losses, a probe of the retain loss, and what that would return at the present weights, if known."""


class StepWithoutArguments(TwoTaskOptimizer):
    """Our optimizer behind the `step()` that Trainer calls.

    Args:
        supply: asked at each step.
        params, rule, options: of `TwoTaskOptimizer`.
    """

    def __init__(self, supply: Supply, params: Any, rule: rules.Rule, **options: Any):
        super().__init__(params, rule, **options)
        self._supply = supply

    def step(self, closure: Any = None, **_: Any) -> Any:
        """As `TwoTaskOptimizer.step`."""
        losses, probe, here = self._supply()
        return super().step(closure, losses=losses, probe=probe, probe_here=here)


class NoSchedule(LRScheduler):
    """Leaves the rate to the optimizer."""

    def get_lr(self) -> list[float | Tensor]:
        """The rates as they are."""
        return [group["lr"] for group in self.optimizer.param_groups]


@dataclass
class Accumulated:
    """What the batches since the last step have left.

    Attributes:
        sums: task -> its loss so far.
        retained: the retain batches with their shares, for probes.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    retained: list[tuple[Batch, Tensor | float]] = field(default_factory=list)

    def add(self, losses: Mapping[str, Tensor], retain: Batch, share: Tensor | float) -> None:
        """What one batch leaves."""
        self.sums = {task: self.sums[task] + loss if self.sums else loss for task, loss in losses.items()}
        self.retained.append((retain, share))

    @property
    def losses(self) -> tuple[Tensor, Tensor]:
        """(retain, forget)."""
        return self.sums["retain"], self.sums["forget"]


@dataclass
class Meter:
    """Sums since the last log, kept on the device: nothing waits before they are read."""

    losses: list[Tensor] = field(default_factory=list)
    tokens: int = 0
    since: float = field(default_factory=time.perf_counter)

    def add(self, losses: tuple[Tensor, Tensor]) -> None:
        """The losses of one step."""
        self.losses.append(torch.stack(losses))

    def read(self, accelerator: Any, optimizer: TwoTaskOptimizer) -> dict[str, float]:
        """What is logged; the sums begin anew."""
        report, now = optimizer.last_step, time.perf_counter()
        if not self.losses or report is None:
            return {}
        retain, forget = accelerator.reduce(torch.stack(self.losses).mean(0), "mean").tolist()
        tokens = accelerator.reduce(torch.tensor(float(self.tokens), device=accelerator.device), "sum").item()
        seconds = now - self.since
        self.losses, self.tokens, self.since = [], 0, now
        retained, forgot = report.coefficients.retain, report.coefficients.forget
        gram = report.gram
        square = retained**2 * gram.retain - 2 * retained * forgot * gram.cross + forgot**2 * gram.forget
        return {
            "grad_norm": square.clamp(min=0).sqrt().item(),
            "retain_loss": retain,
            "forget_loss": forget,
            "grad_norm_retain": gram.retain.sqrt().item(),
            "grad_norm_forget": gram.forget.sqrt().item(),
            "cosine": gram.cosine.item(),
            "retain_weight": report.coefficients.weight.item(),
            "skipped_steps": optimizer.skipped_steps,
            "tokens_per_second": tokens / seconds,
        }
