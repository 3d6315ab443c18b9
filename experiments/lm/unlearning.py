"""One unlearning run: batches of both tasks through the library's optimizer."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import torch

from experiments.lm.gen_optim import GenOptimizer
from experiments.lm.methods import BASES, GEN, Method, split_rate
from experiments.lm.monitor import Monitor
from experiments.lm.training import Schedule
from ngdiff import AutoLearningRate, ReferenceCache, StoppingCriteria, TwoTaskOptimizer
from ngdiff.lm.batches import collate, spread
from ngdiff.lm.encoding import Example
from ngdiff.lm.objectives import FORGET, RETAIN, TaskLoss
from ngdiff.lm.scoring import answer_nll
from ngdiff.optimizer import TASKS

OWN = 0x5EED  # turns a run's seed into that of what one method alone draws, so that all methods see the same rows
CHECK_ROWS = 32  # rows of each task at which stopping criteria look: they come by author, so evenly spread


@dataclass(frozen=True)
class Rows:
    """What a run sees.

    Attributes:
        forget, retain: rows of the two tasks.
        pad: id to pad with.
        refusals: the questions of `forget`, each with a refusal for an answer; for objectives that read them.
        held_out: retain rows that no step sees, for stopping criteria.

    Raises:
        ValueError: one of the two tasks has no row.
    """

    forget: Sequence[Example]
    retain: Sequence[Example]
    pad: int
    refusals: Sequence[Example] | None = None
    held_out: Sequence[Example] = ()

    def __post_init__(self) -> None:
        for task in ("forget", "retain"):
            if not getattr(self, task):
                raise ValueError(f"Rows: no {task} row; give at least one a task")


@dataclass
class Timing:
    """How long a run took, and what the automatic rate cost.

    Attributes:
        plain, refreshing: seconds of each step of the optimizer, probes included, without and with a refresh of the rate.
        total: seconds of all of the run.
    """

    plain: list[float] = field(default_factory=list)
    refreshing: list[float] = field(default_factory=list)
    total: float = 0.0

    @property
    def rate_share(self) -> float:
        """Share of the run's time that refreshes took beyond plain steps."""
        if not self.refreshing or not self.total:
            return 0.0
        return (sum(self.refreshing) - len(self.refreshing) * (median(self.plain) if self.plain else 0.0)) / self.total


def unlearn(
    model: Any,
    rows: Rows,
    method: Method,
    steps: int,
    batch: int,
    generator: torch.Generator,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
    *,
    cache: ReferenceCache | None = None,
    stopping: StoppingCriteria | None = None,
    check_every: int = 10,
    timing: Timing | None = None,
    monitors: Collection[Monitor] = (),
    schedule: Schedule | None = None,
    retain_batch: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Unlearn in place, and yield a record of each step after it is taken.

    The rows of a step depend on the generator alone, so every method that gets an equal generator sees equal batches: the
    forget rows in shuffled passes, and the retain rows (or all, if fewer than asked for) drawn uniformly.

    Args:
        model: of transformers, on its device.
        rows: of both tasks.
        method: objectives, rule, base and rate.
        steps: how many at most.
        batch: rows a task in each step.
        generator: on the CPU.
        on_step: called after each step with (steps done, steps in all).
        cache: of this model, for objectives that compare with it as it was.
        stopping: looks at the model every `check_every` steps, and after the last.
        timing: filled in.
        monitors: look at the model now and then; their time is not the run's.
        schedule: whose warm-up and decay constant rates follow (an automatic one sets itself), and whose weight decay is used.
        retain_batch: rows of the retain task in each step, where they are not as many as those of the forget task. More of
            them make g_R, and an automatic rate, speak for more of what is to be kept.

    Yields:
        step, both losses (before the step), both gradient norms, cosine, c (weight of the retain task in the paper's
        c g_R - (1 - c) g_F), learning rate, and whether the step was finite and so was taken. Of a task that the rule does
        not read no gradient is computed, and its norm and the cosine are None.
    """
    begin, timing, watching = time.perf_counter(), timing or Timing(), 0.0
    model.train()
    run = _Run(
        model, rows, method, (batch, retain_batch or batch), generator, cache, schedule.weight_decay if schedule else 0.0
    )
    for step in range(steps + 1):
        before = time.perf_counter()
        for monitor in monitors:
            monitor(model, step, steps)
        watching += time.perf_counter() - before
        if stopping is not None and stopping.active and (step % check_every == 0 or step == steps):
            if stopping.check(model, step, *run.held_out()):
                break
            model.train()
        if step == steps:
            break
        if schedule and isinstance(method.lr, float):
            run.optimizer.param_groups[0]["lr"] = method.lr * schedule.factor(step, steps)
        yield {"step": step, **run.step(timing)}
        on_step(step + 1, steps)
    model.eval()
    timing.total = time.perf_counter() - begin - watching


class _Run:
    """The state of a run between two steps."""

    def __init__(
        self,
        model: Any,
        rows: Rows,
        method: Method,
        batches: tuple[int, int],
        generator: torch.Generator,
        cache: ReferenceCache | None,
        weight_decay: float,
    ):
        self.model, self.rows, self.generator = model, rows, generator
        batch, self.retain_batch = batches
        self.own = torch.Generator().manual_seed(generator.initial_seed() ^ OWN)
        u = torch.rand(model.config.get_text_config().hidden_size, generator=self.own)
        self.retain = TaskLoss(RETAIN[method.retain], model, rows.retain, None, rows.pad, cache)
        self.forget = TaskLoss(FORGET[method.forget], model, rows.forget, rows.refusals, rows.pad, cache, u)
        self.probed = TaskLoss(RETAIN["nll"], model, rows.retain, None, rows.pad, None)
        self.passes = _passes(len(rows.forget), batch, generator)
        self.optimizer = _optimizer(model, method, weight_decay)

    def step(self, timing: Timing) -> dict[str, Any]:
        """One step, and its record."""
        forget, retain = next(self.passes), self._drawn(self.generator)
        both = self._loss("retain", self.retain, retain), self._loss("forget", self.forget, forget)
        refreshes = _refreshes(self.optimizer)
        _synchronize(self.model.device)  # the backwards may still be under way, and are not the optimizer's time
        start = time.perf_counter()
        if isinstance(self.optimizer, GenOptimizer):
            self.optimizer.step(both, self._other_batch)
        else:
            here = both[0] if self.retain.objective is self.probed.objective else None
            self.optimizer.step(losses=both, probe=lambda: self.probed.probe(retain), probe_here=here)
        _synchronize(self.model.device)
        kind = timing.plain if _refreshes(self.optimizer) == refreshes else timing.refreshing
        kind.append(time.perf_counter() - start)
        return _record(both, self.optimizer)

    def _loss(self, name: str, task: TaskLoss, numbers: Sequence[int]) -> torch.Tensor:
        """The loss of a task, and its gradient in the optimizer if the rule reads it."""
        if name not in self.optimizer.rule.tasks:
            return task.value(numbers)
        with self.optimizer.task(name):
            return task.backward(numbers)

    def held_out(self) -> tuple[float, float]:
        """Mean answer probability on forget rows, and mean retain loss on rows that no step sees."""
        forget, held_out = spread(self.rows.forget, CHECK_ROWS), spread(self.rows.held_out, CHECK_ROWS)
        nll = answer_nll(self.model, [*forget, *held_out], self.rows.pad)
        return fmean(math.exp(-x) for x in nll[: len(forget)]), fmean(nll[len(forget) :])

    def _drawn(self, generator: torch.Generator) -> list[int]:
        return torch.randperm(len(self.rows.retain), generator=generator, device="cpu")[: self.retain_batch].tolist()

    def _other_batch(self) -> Any:
        from transformers import BatchEncoding

        other = self._drawn(self.own)
        return BatchEncoding(collate([self.rows.retain[i] for i in other], self.rows.pad, self.model.device))


def _optimizer(model: Any, method: Method, weight_decay: float) -> TwoTaskOptimizer | GenOptimizer:
    if isinstance(method.lr, str) and method.lr.startswith(GEN):
        _, initial = split_rate(method.lr)
        options: dict[str, Any] = {"base": method.base} | BASES[method.base]
        return GenOptimizer(model, method.rule, lr=initial or AutoLearningRate().initial, **options)
    return method.optimizer(model, weight_decay)


def _refreshes(optimizer: TwoTaskOptimizer | GenOptimizer) -> int:
    if isinstance(optimizer, GenOptimizer):
        return optimizer.refreshes
    return len(optimizer.auto.trace) if optimizer.auto else 0


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _passes(n: int, batch: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches of exactly `batch` of n indices, pass after shuffled pass."""
    pending: list[int] = []
    while True:
        while len(pending) < batch:
            pending += torch.randperm(n, generator=generator, device="cpu").tolist()
        yield pending[:batch]
        pending = pending[batch:]


def _record(losses: Sequence[torch.Tensor], optimizer: TwoTaskOptimizer | GenOptimizer) -> dict[str, Any]:
    report = optimizer.last_step
    assert report is not None
    unread = {f"norm_{task}" for task in TASKS if task not in optimizer.rule.tasks}
    unread |= {"cosine"} if unread else set()
    values = {
        "retain_loss": losses[0].item(),
        "forget_loss": losses[1].item(),
        "norm_retain": report.gram.retain.sqrt().item(),
        "norm_forget": report.gram.forget.sqrt().item(),
        "cosine": report.gram.cosine.item(),
        "c": report.coefficients.weight.item(),
        "lr": optimizer.param_groups[0]["lr"],
    }
    # JSON has no NaN.
    known = {name: value if name not in unread and math.isfinite(value) else None for name, value in values.items()}
    return {**known, "finite": bool(report.finite)}
