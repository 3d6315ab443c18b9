"""The models of a run, each a stage: made, fine-tuned, unlearned. What the two benchmarks share."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments import manifest
from experiments.lm import models
from experiments.lm.methods import Method
from experiments.lm.monitor import Monitor
from experiments.lm.training import Schedule, finetune
from experiments.lm.unlearning import Rows, Timing, unlearn
from experiments.stages import Stages, code_hash, json_hash
from ngdiff import ReferenceCache, StoppingCriteria
from ngdiff.files import read_json, write_json, write_text
from ngdiff.lm import loading
from ngdiff.lm.encoding import Example
from ngdiff.machine import versions
from ngdiff.progress import Progress

STAGES = "stages"  # folder of all stages


@dataclass(frozen=True)
class Plan:
    """How an unlearning run goes, whatever its method.

    Attributes:
        steps, batch: how many steps at most, and of how many rows a task.
        retain_batch: of how many rows of the retain task, if not of `batch`.
        target: forget probability to stop at, if any.
        budget: loss on held-out retain rows to stop above, if any.
        check_every: steps from one look at the two to the next.
        schedule: whose warm-up and decay constant rates follow, if any.
    """

    steps: int
    batch: int
    target: float | None = None
    budget: float | None = None
    check_every: int = 10
    schedule: Schedule | None = None
    retain_batch: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """What the result depends on."""
        active = StoppingCriteria(self.target, self.budget).active
        return asdict(self) | {"check_every": self.check_every if active else None}


class ModelStages:
    """Makes models in stages.

    Args:
        root: folder of the stages.
        inputs: what all of them depend on, such as hashes of the data.
        tokenizer: saved beside every model.
        device: where models are computed.
        seed: decides everything random.
        progress: shows what is being done.
    """

    def __init__(
        self, root: Path, inputs: Mapping[str, Any], tokenizer: Any, device: torch.device, seed: int, progress: Progress
    ):
        common = {
            "code": code_hash(manifest.ROOT),
            "versions": versions(manifest.PACKAGES),
            "device": device.type,
            "seed": seed,
        }
        self.stages = Stages(root / STAGES, common | dict(inputs))
        self.references = root / "reference" / json_hash(self.stages.common)[:16]  # other code may compute other values
        self.tokenizer, self.device, self.seed, self.progress = tokenizer, device, seed, progress

    def initial(self, size: models.Size) -> Path:
        """Folder of a model with random weights."""

        def compute(folder: Path) -> None:
            torch.manual_seed(seed_of(self.seed, "model"))
            self._save(models.build_llama(size, self.tokenizer), folder)

        return self.stages.run("model", {"size": asdict(size)}, compute)

    def finetuned(
        self, name: str, start: Path | str, examples: Sequence[Example], pad: int, schedule: Schedule, inputs: Mapping[str, Any]
    ) -> Path:
        """Folder of a fine-tuned model.

        Args:
            name: of the stage.
            start: folder or hub id of the model before.
            examples: rows.
            pad: id to pad with.
            schedule: how long and how fast.
            inputs: what tells the rows from others.
        """

        def compute(folder: Path) -> None:
            model = loading.load_model(start, self.device, models.PUBLISHED)
            generator = torch.Generator().manual_seed(seed_of(self.seed, "finetune"))
            torch.manual_seed(seed_of(self.seed, name))  # dropout, in models that have it
            with self.progress.task(name) as on_step:
                tokens = finetune(model, examples, pad, schedule, generator, on_step)
            self._save(model, folder)
            write_json(folder / "training.json", {"tokens": tokens})

        return self.stages.run(name, {"start": key_of(start), "schedule": asdict(schedule), **inputs}, compute)

    def unlearned(
        self,
        start: Path | str,
        rows: Callable[[], Rows],
        method: Method,
        plan: Plan,
        inputs: Mapping[str, Any],
        watch: Callable[[Any], Mapping[str, Monitor]] | None = None,
        prefix: str = "unlearn",
    ) -> Path:
        """Folder of a model after unlearning, with its steps, what ended them, how long they took and what monitors saw.

        Args:
            start: folder or hub id of the model before.
            rows: makes what the run sees; called only if the stage is not there yet.
            method, plan: how to unlearn.
            inputs: what tells the rows and the looks from others.
            watch: from the model before unlearning to what looks at it, each with a name; a state that one keeps is saved in a
                folder of the state's name inside. Called only if the stage is not there yet.
            prefix: of the stage's name.
        """

        def compute(folder: Path) -> None:
            model = loading.load_model(start, self.device, models.PUBLISHED)
            generator = torch.Generator().manual_seed(seed_of(self.seed, "unlearn"))  # equal batches for every method
            torch.manual_seed(seed_of(self.seed, "unlearn"))
            cache = ReferenceCache(self.references, model) if method.needs_reference else None
            stopping, timing, monitors = StoppingCriteria(plan.target, plan.budget), Timing(), watch(model) if watch else {}
            with self.progress.task(f"{prefix}-{method.slug}") as on_step:
                steps = unlearn(
                    model, rows(), method, plan.steps, plan.batch, generator, on_step,
                    cache=cache, stopping=stopping, check_every=plan.check_every, timing=timing, monitors=monitors.values(),
                    schedule=plan.schedule, retain_batch=plan.retain_batch,
                )  # fmt: skip
                records = list(steps)
            self._save(model, folder)
            write_text(folder / "metrics.jsonl", lines(records))
            write_json(folder / "stopping.json", stopping.summary(len(records)))
            write_json(folder / "timing.json", {"seconds": timing.total, "rate_share": timing.rate_share})
            if monitors:
                self._save_kept(model, monitors, folder)

        inputs = {"start": key_of(start), "method": asdict(method), "plan": plan.as_dict(), **inputs}
        return self.stages.run(f"{prefix}-{method.slug}", inputs, compute)

    def _save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _save_kept(self, model: Any, monitors: Mapping[str, Monitor], folder: Path) -> None:
        write_json(folder / "looks.json", {name: {"looks": m.looks, "kept": m.kept} for name, m in monitors.items()})
        for monitor in monitors.values():
            for state in monitor.kept:
                monitor.restore(model, state)
                (folder / state).mkdir()
                self._save(model, folder / state)

    def manifest(self, trained: Sequence[Path], **entries: Any) -> dict[str, Any]:
        """What the run was made with.

        Args:
            trained: folders of the models that were fine-tuned here.
            entries: of the run.
        """
        seconds = self.stages.seconds
        tokens = sum(read_json(path / "training.json")["tokens"] for path in trained)
        time = sum(read_json(path / "stage.json")["seconds"] for path in trained)
        return manifest.manifest(
            self.device,
            seed=self.seed,
            **entries,
            stage_seconds=round(sum(seconds.values()), 1),
            finetune_tokens_per_second=round(tokens / time) if time else None,
            stages=[{"name": name, "seconds": round(value, 2)} for name, value in seconds.items()],
        )


def seed_of(seed: int, purpose: str) -> int:
    """A seed of its own for every purpose, so that adding a stage changes no other one."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:4], "big")


def lines(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as the text of a metrics.jsonl."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def key_of(folder: Path | str) -> str:
    """What tells one model from another, fit for the name of a stage: its own stage, or a hash of its name on the hub."""
    if isinstance(folder, str):
        return f"given-{json_hash(folder)[:16]}"
    return folder.name if folder.parent.name == STAGES else f"{folder.parent.name}-{folder.name}"
