"""`ngdiff unlearn`: from a model and rows to a model without some of them, with the papers that belong to it."""

import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console

from ngdiff import machine, memory
from ngdiff.command import inputs
from ngdiff.command.compare import PACKAGES, table
from ngdiff.command.inputs import Reading, Source
from ngdiff.command.papers import card, ending, report
from ngdiff.command.settings import BASES, Settings
from ngdiff.command.training import Tasks, train
from ngdiff.command.workplace import MODEL, TRAINER, check_replaceable, workplace
from ngdiff.distributed import is_sharded, put_together
from ngdiff.errors import UserError
from ngdiff.files import write_json, write_text
from ngdiff.lm import loading
from ngdiff.lm.batches import drawn
from ngdiff.lm.data import Data, Encoded, check_disjoint
from ngdiff.lm.devices import default_device, free_memory
from ngdiff.lm.evaluation import FORGET, RETAIN, evaluate, summary
from ngdiff.lm.sources import file_hash
from ngdiff.memory import Estimate
from ngdiff.processes import alike, count, is_first
from ngdiff.progress import Progress
from ngdiff.stopping import CHECK_ROWS

HELD_OUT = 256  # rows at most


@dataclass(frozen=True)
class Inputs:
    """All that a run reads but the weights.

    Attributes:
        sets: rows as they were given.
        source: the model that was not loaded yet, with the rows in its tokens.
        retain, held_out: the retain rows, of which no step sees the second ones.
        refusals: one a forget row, where the objective reads them.
    """

    sets: dict[str, Data]
    source: Source
    retain: list[Encoded]
    held_out: list[Encoded]
    refusals: list[Encoded] | None

    @property
    def tasks(self) -> Tasks:
        """For the Trainer."""
        refusals = None if self.refusals is None else [row.fields for row in self.refusals]
        forget, retain, held_out = (
            [row.fields for row in rows] for rows in (self.source.sets[FORGET], self.retain, self.held_out)
        )
        return Tasks(forget, retain, held_out, refusals)

    def evaluated(self, rows: int) -> dict[str, list[Encoded]]:
        """What the figures before and after are of."""
        return {FORGET: drawn(self.source.sets[FORGET], rows), RETAIN: drawn(self.held_out, rows)}


@dataclass(frozen=True)
class Unlearning:
    """What `ngdiff unlearn` was asked for.

    Attributes:
        model: hub id or folder.
        forget, retain: sources of rows.
        out: new folder for the model.
        settings: how.
        reading: how rows are read.
    """

    model: str
    forget: str
    retain: str
    out: Path
    settings: Settings
    reading: Reading

    def run(self, console: Console, dry: bool = False) -> None:
        """Check everything, unlearn, and write the folder, which is whole or absent.

        Args:
            console: for progress and figures.
            dry: only check and say what the run would need.

        Raises:
            UserError: something of it cannot be used or done.
        """
        start = time.monotonic()
        with alike():
            self.settings.check()
            if is_first():
                inputs.check_folder("--out", self.out)
                check_replaceable(self.out)
            found = self._inputs()
            lines = [*inputs.remarks(found.sets, found.source), *self._announced(found)]
        progress = Progress(console)
        for line in lines:
            progress.say(line)
        if dry:
            return
        with alike():
            identity = self._identity(found)
        with workplace(self.out, identity) as work:
            outcome = self._unlearned(found, work, progress)
            console.print(table({name: outcome[name] for name in ("before", "after")}))
            progress.say(ending(outcome["stopping"]))
            if is_first():
                self._finish(work / MODEL, identity | outcome | {"seconds": round(time.monotonic() - start, 1)})
        progress.say(f"written: {self.out}")

    # Before a weight is read

    def _inputs(self) -> Inputs:
        sets = inputs.read_all(forget=self.forget, retain=self.retain)
        check_disjoint(sets[FORGET], sets[RETAIN])
        source = inputs.prepare("--model", self.model, sets, self.reading)
        rows = source.sets[RETAIN]
        if len(rows) < 2:
            raise UserError(f"--retain: {self.retain!r} has a single row, and one is held out for the figures; give more")
        share = min(max(1, round(self.settings.held_out * len(rows))), HELD_OUT, len(rows) - 1)
        chosen = set(drawn(range(len(rows)), share, self.settings.seed))
        held_out = [row for i, row in enumerate(rows) if i in chosen]
        retain = [row for i, row in enumerate(rows) if i not in chosen]
        return Inputs(sets, source, retain, held_out, self._refusals(sets[FORGET], source))

    def _refusals(self, forget: Data, source: Source) -> list[Encoded] | None:
        if not self.settings.teaches_refusal:
            return None
        return source.encoder.encode(forget.answered(self.settings.refusal))

    def _announced(self, found: Inputs) -> Iterator[str]:
        for name, one in inputs.described(found.sets, found.source.sets).items():
            yield f"{name}: {one['rows']:,} rows of {one['kind']}, {one['tokens']:,} tokens, sha256 {one['sha256'][:12]}"
        yield f"held out of retain: {len(found.held_out):,} rows"
        if count() > 1:
            yield from self._shared_out(len(found.source.sets[FORGET]))
        yield from self._estimate(found).lines()
        if self.settings.save_every is None:
            yield "no checkpoints: an interrupted run begins anew; --save-every 50 lets it go on"

    def _shared_out(self, rows: int) -> Iterator[str]:
        yield f"{count()} processes, a step has the batches of all"
        if spare := -rows % (self.settings.batch * count()):
            yield f"a pass over {rows:,} rows to forget reads {rows + spare:,}, some of them again"

    def _estimate(self, found: Inputs) -> Estimate:
        settings, dtype, device = self.settings, self._dtype, default_device()
        with memory.without_weights():
            counted = memory.counted(self._adapted(loading.build(found.source.config, self.reading.trust, dtype)), dtype)
        computing = torch.bfloat16 if device.type == "cuda" else dtype
        tasks = found.source.sets[FORGET], found.retain
        lengths = [[len(row.example.ids) for row in rows] for rows in tasks]
        pairs = settings.passes(len(lengths[0])) * len(lengths[0]) / count()
        return memory.estimate(
            counted,
            BASES[settings.base],
            batch=settings.batch,
            longest=max(map(max, lengths)),
            tokens=round(pairs * sum(map(fmean, lengths))),
            read=round(self._read(found)),
            computing=computing,
            checkpointing=settings.gradient_checkpointing,
            speed=memory.measured_speed(device, computing),
            gradient_dtype=settings.gradient_dtype,
            automatic=isinstance(settings.rate, str),
            processes=count(),
            split=settings.fsdp,
        )

    def _read(self, found: Inputs) -> float:
        """Tokens that a run of all epochs reads without learning from them: at looks whether to stop, and for probes."""
        settings, forget = self.settings, found.source.sets[FORGET]
        steps = settings.steps(len(forget))
        looks = 1 + steps // settings.steps_between_looks(len(forget)) if settings.stop_forget or settings.retain_budget else 0
        per_look = sum(min(CHECK_ROWS, len(rows)) * _mean_length(rows) for rows in (forget, found.held_out))
        probes = 3 * (5 + steps / 10) if isinstance(settings.rate, str) else 0
        return looks * per_look + probes * settings.batch * settings.accumulate * _mean_length(found.retain)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.settings.bf16 else torch.float32

    def _adapted(self, model: Any) -> Any:
        """With adapters, if these alone are to be trained."""
        if self.settings.lora is None:
            return model
        from peft import LoraConfig, get_peft_model

        rank = self.settings.lora
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks the newest transformers by an old name
            return get_peft_model(model, config)

    def _identity(self, found: Inputs) -> dict[str, Any]:
        """What tells this run from another."""
        model = {"name": _public_name(self.model), "state": loading.identity(self.model, found.source.config)}
        data = inputs.described(found.sets, found.source.sets)
        more = {"length": found.source.encoder.length, "template": found.source.encoder.qa.template}
        settings = asdict(self.settings) | {"epochs": self.settings.passes(len(found.source.sets[FORGET]))} | more
        return {"model": model, "data": data, "held_out": len(found.held_out), "settings": settings, "processes": count()}

    # The run

    def _unlearned(self, found: Inputs, work: Path, progress: Progress) -> dict[str, Any]:
        """The model in work/model, and what became of it."""
        torch.manual_seed(self.settings.seed)
        with progress.spinner("load the model"):
            model = self._loaded()
        before = self._figures(model, found, progress, "before")
        if self.settings.gradient_checkpointing:
            _checkpoint_activations(model)
        model = self._adapted(model)
        tokenizer = found.source.encoder.tokenizer
        with progress.task("unlearn") as on_step:
            trained = train(model, tokenizer, found.tasks, self.settings, work / TRAINER, on_step, say=progress.say)
        free_memory()  # of the optimizer
        if any(map(is_sharded, model.parameters())):
            whole = self._adapted(self._loaded())
            put_together(model, whole)
            model = whole
        if self.settings.lora is not None:
            model = model.merge_and_unload()
        model.config.use_cache = getattr(found.source.config, "use_cache", True)  # the Trainer has turned it off
        after = self._figures(model, found, progress, "after")
        if is_first():
            with progress.spinner("save the model"):
                model.save_pretrained(work / MODEL)
                tokenizer.save_pretrained(work / MODEL)
        return {"before": before, "after": after, "stopping": trained.stopping, "logs": trained.logs}

    def _loaded(self) -> Any:
        with alike():
            model = loading.load_model(self.model, default_device(), self.reading.trust, self._dtype)
            if not any(parameter.requires_grad for parameter in model.parameters()):  # transformers freezes what has adapters
                raise UserError(f"--model: {self.model!r} has adapters, which are not merged; give the merged model")
            return model

    def _figures(self, model: Any, found: Inputs, progress: Progress, when: str) -> dict[str, dict[str, float]]:
        with progress.spinner(f"evaluate {when} unlearning") as on_part:
            rows = found.evaluated(self.settings.eval_rows)
            return summary(evaluate(model, found.source.encoder, rows, self.settings.new_tokens, on_part))

    def _finish(self, model: Path, outcome: dict[str, Any]) -> None:
        """The papers of the model, and then the folder under its name. No text of a row is in any of them."""
        logs = outcome.pop("logs")
        weights = {path.name: file_hash(path) for path in sorted(model.glob("*.safetensors"))}
        device = default_device()
        manifest = {
            "project": "ngdiff",
            **outcome,
            "weights_sha256": weights,
            "versions": machine.versions(PACKAGES),
            "device": machine.describe_device(device),
            "peak_memory_mib": round(machine.peak_memory_mib(device)),
        }
        write_json(model / "manifest.json", manifest)
        write_text(model / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in logs))
        write_text(model / "README.md", card(manifest))
        write_text(model / "report.html", report(manifest, logs))
        os.replace(model, self.out)


def _mean_length(rows: Sequence[Encoded]) -> float:
    return fmean(len(row.example.ids) for row in rows)


def _checkpoint_activations(model: Any) -> None:
    newest = getattr(model, "activation_checkpointing_enable", None)  # the name before is deprecated where this one is known
    (newest or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _public_name(model: str) -> str:
    """Without the folders that it lies in."""
    return Path(model).resolve().name if Path(model).is_dir() else model
