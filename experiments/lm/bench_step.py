"""The cost of NGDiff's step: two backwards and a rate now and then, beside GDiff's one backward of the weighted sum."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments import manifest
from experiments.lm.models import SIZES, build_llama, train_tokenizer
from ngdiff import TwoTaskOptimizer
from ngdiff.errors import UserError
from ngdiff.files import write_json
from ngdiff.lm.devices import autocast, default_device

GDIFF, NGDIFF = "GDiff, one backward", "NGDiff, automatic rate"
RATE = 1e-4  # of GDiff; any small one, for it changes no time


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        size: of the Llama, see `experiments.lm.models.SIZES`; random weights in float32.
        rows, length: of each task in a step, and tokens of each row, all scored.
        steps: of each way in a round, timed together: enough for the share of refreshes to be that of a long run.
        rounds: how often, in alternation, after one that is not counted.
    """

    size: str = "100m"
    rows: int = 2
    length: int = 128
    steps: int = 20
    rounds: int = 3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int) and value < (2 if name == "length" else 1):
                raise UserError(f"--{name}: found {value}; give a larger number")
        if self.size not in SIZES:
            raise UserError(f"--size: unknown value {self.size!r}; choose one of {', '.join(SIZES)}")


class Way(ABC):
    """A model of its own, and one way to take a step with it."""

    def __init__(self, workload: Workload, device: torch.device):
        torch.manual_seed(0)
        tokenizer = train_tokenizer(["a"], SIZES[workload.size].vocabulary)
        tokenizer.add_tokens([f"<{i}>" for i in range(SIZES[workload.size].vocabulary - len(tokenizer))])
        self.model = build_llama(SIZES[workload.size], tokenizer).to(device).train()
        self.refreshes = 0

    def loss(self, ids: Tensor) -> Tensor:
        """Mean NLL of all tokens, in the precision of a run."""
        with autocast(ids.device):
            return self.model(input_ids=ids, labels=ids, use_cache=False).loss

    @abstractmethod
    def step(self, retain: Tensor, forget: Tensor) -> None:
        """One step."""


class GDiff(Way):
    """What one would write with torch alone: the weighted sum of the losses, and AdamW in its fastest form."""

    def __init__(self, workload: Workload, device: torch.device):
        super().__init__(workload, device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), RATE, weight_decay=0.0, fused=True)

    def step(self, retain: Tensor, forget: Tensor) -> None:
        """Both passes, then one backward."""
        (0.5 * self.loss(retain) - 0.5 * self.loss(forget)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class NGDiff(Way):
    """Ours, with AdamW."""

    def __init__(self, workload: Workload, device: torch.device):
        super().__init__(workload, device)
        self.optimizer = TwoTaskOptimizer(self.model.parameters(), base="adamw", lr="auto")

    def step(self, retain: Tensor, forget: Tensor) -> None:
        """A pass and a backward a task."""
        losses = []
        for task, ids in (("retain", retain), ("forget", forget)):
            with self.optimizer.task(task):
                loss = self.loss(ids)
                loss.backward()
            losses.append(loss.detach())
        exact = None if retain.is_cuda else losses[0]  # on a GPU the pass was made in half precision
        self.optimizer.step(losses=(losses[0], losses[1]), probe=lambda: self._probe(retain), probe_here=exact)
        assert self.optimizer.auto is not None
        self.refreshes = len(self.optimizer.auto.trace)

    def _probe(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, labels=ids, use_cache=False).loss


def compare(workload: Workload, out: Path, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Time both ways in alternation, and write step.json.

    Args:
        workload: what is timed.
        out: folder of the file.
        report: told each time as it is measured.

    Returns:
        seconds: way -> each round's; ratio: median of the rounds' ratios; refreshes in each round.
    """
    device = default_device()
    ways = {GDIFF: GDiff(workload, device), NGDIFF: NGDiff(workload, device)}
    batches = _batches(workload, device)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    refreshes = []
    for number in range(workload.rounds + 1):
        before = ways[NGDIFF].refreshes
        for name, way in ways.items():
            spent = _timed(way, batches, device)
            if number:  # the first round searches for the rate and warms up
                seconds[name].append(spent)
                report(f"{name}: {spent / workload.steps:.3f} s a step")
        if number:
            refreshes.append(ways[NGDIFF].refreshes - before)
    ratio = median(b / a for a, b in zip(seconds[GDIFF], seconds[NGDIFF], strict=True))
    result = {"workload": asdict(workload), "seconds": seconds, "ratio": ratio, "refreshes": refreshes}
    parameters = sum(p.numel() for p in ways[GDIFF].model.parameters())
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "step.json", result | {"manifest": manifest.manifest(device, seed=0, parameters=parameters)})
    return result


def _batches(workload: Workload, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    generator, shape = torch.Generator().manual_seed(0), (workload.rows, workload.length)
    vocabulary = SIZES[workload.size].vocabulary

    def drawn() -> Tensor:
        return torch.randint(vocabulary, shape, generator=generator).to(device)

    return [(drawn(), drawn()) for _ in range(workload.steps)]


def _timed(way: Way, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> float:
    start = time.perf_counter()
    for retain, forget in batches:
        way.step(retain, forget)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
