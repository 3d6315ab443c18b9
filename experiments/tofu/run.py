"""A TOFU run from data to report: fine-tune, fine-tune the reference, unlearn by every method, evaluate everything."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments import manifest, report
from experiments.errors import UserError
from experiments.lm import models
from experiments.lm.devices import default_device
from experiments.lm.encoding import Encoder, Example
from experiments.lm.methods import Method
from experiments.lm.scoring import answer_nll
from experiments.lm.training import FROM_SCRATCH, PRETRAINED, Schedule, finetune
from experiments.lm.unlearning import Rows, Timing, unlearn
from experiments.output import Output
from experiments.own_rules import load_rules
from experiments.progress import Progress
from experiments.stages import Stages, code_hash, json_hash, read_json, write_json, write_text
from experiments.tofu.data import EvaluationRow, Row, TofuData, load
from experiments.tofu.evaluate import evaluate
from experiments.tofu.metrics import ScoredRow, forget_quality, share, summary
from experiments.tofu.settings import TARGETS, Settings
from experiments.tofu.sources import open_source
from ngdiff import ReferenceCache, StoppingCriteria
from ngdiff.stopping import forget_target

BEFORE, REFERENCE = "before", "retain-only"


class TofuRun:
    """One run. Building it checks every input and writes nothing; `run` does the work.

    Args:
        settings: what to do.
        out: folder for everything that the run leaves.
        progress: shows what is being done.

    Raises:
        UserError: an input is bad, or the folder cannot be used.
    """

    def __init__(self, settings: Settings, out: Path, progress: Progress):
        self.settings = settings
        self.progress = progress
        self.device = default_device()
        self.output = Output(out, settings.as_dict())
        self.data = _limited(load(open_source(settings.data, settings.seed), settings.preset), settings.eval_rows)
        self.encoder = self._encoder()
        self._check_lengths()
        self.model_identity = models.identity(settings.model) if settings.model else None
        common = {
            "code": code_hash(manifest.ROOT),
            "versions": manifest.versions(),
            "device": self.device.type,
            "data": self.data.sha256,
            "pretrained": self.model_identity,
            "seed": settings.seed,
        }
        self.stages = Stages(self.output.folder / "stages", common)
        self.references = self.output.folder / "reference" / json_hash(common)[:16]  # other code may compute other values

    def run(self) -> dict[str, Any]:
        """Compute what is not there yet, write results and report, and return the results."""
        full = self.memorised()
        retain_only = self._finetune("finetune-retain", self._initial_model(), self.data.retain)
        reference = self._evaluate(REFERENCE, retain_only)
        entries = [
            self._entry(BEFORE, "start", None, self._evaluate(BEFORE, full), reference),
            self._entry(REFERENCE, "reference", None, reference, None),
        ]
        steps: list[dict[str, Any]] = []
        target = self._forget_target(full, reference)
        for name, trials in self.settings.trials().items():
            folder, method = self._best_trial(full, trials, target)
            records = read_lines(folder / "metrics.jsonl")
            steps += [{"method": name, **record} for record in records]
            method["skipped_steps"] = sum(not record["finite"] for record in records)
            entries.append(self._entry(name, "method", method, self._evaluate(name, folder), reference))
        return self._write({"settings": self.settings.as_dict(), "models": entries}, steps, [full, retain_only])

    def memorised(self) -> Path:
        """Folder of the model that every method starts from, fine-tuned on all rows."""
        self.output.create()
        return self._finetune("finetune-all", self._initial_model(), self.data.train)

    # Inputs

    def _encoder(self) -> Encoder:
        """The tokenizer: trained on the rows, or the pretrained model's own."""
        if self.settings.model is None:
            texts = [text for row in self.data.train for text in (row.question, row.answer)]
            tokenizer = models.train_tokenizer(texts, models.SIZES[self.settings.size].vocabulary)
        else:
            tokenizer = models.load_tokenizer(self.settings.model)
            models.check_pretrained(self.settings.model, tokenizer)
        return Encoder(tokenizer, self.settings.template)

    def _check_lengths(self) -> None:
        """Refuse a row that the model has no positions for, instead of cutting it."""
        limit = models.positions(self.settings.model, self.settings.size)
        for rows in (self.data.train, *self.data.evaluation.values()):
            for row in rows:
                answers = row.answers if isinstance(row, EvaluationRow) else (row.answer,)
                longest = max(len(self.encoder.example(row.question, answer).ids) for answer in answers)
                longest = max(longest, len(self.encoder.prompt_ids(row.question)) + self.settings.new_tokens)
                if longest > limit:
                    raise UserError(
                        f"{row.place}: needs {longest} tokens, the model has {limit} positions; shorten it or --new-tokens"
                    )

    def _examples(self, rows: Sequence[Row]) -> list[Example]:
        return [self.encoder.example(row.question, row.answer) for row in rows]

    def _schedule(self) -> Schedule:
        s, schedule = self.settings, FROM_SCRATCH if self.settings.model is None else PRETRAINED
        epochs, batch, lr = s.epochs or schedule.epochs, s.finetune_batch or schedule.batch, s.finetune_lr or schedule.lr
        return replace(schedule, epochs=epochs, batch=batch, lr=lr)

    # Stages

    def _initial_model(self) -> Path | str:
        """Folder of the model from scratch, or the name of the pretrained one."""
        if self.settings.model is not None:
            return self.settings.model
        size = models.SIZES[self.settings.size]

        def compute(folder: Path) -> None:
            torch.manual_seed(_seed(self.settings.seed, "model"))
            self._save(models.build_llama(size, self.encoder.tokenizer), folder)

        return self.stages.run("model", {"size": asdict(size)}, compute)

    def _finetune(self, name: str, start: Path | str, rows: Sequence[Row]) -> Path:
        schedule = self._schedule()

        def compute(folder: Path) -> None:
            model = models.load_model(start, self.device)
            generator = torch.Generator().manual_seed(_seed(self.settings.seed, "finetune"))
            torch.manual_seed(_seed(self.settings.seed, name))  # dropout, in models that have it
            with self.progress.task(name) as on_step:
                tokens = finetune(model, self._examples(rows), self.encoder.pad, schedule, generator, on_step)
            self._save(model, folder)
            write_json(folder / "training.json", {"tokens": tokens})

        inputs = {"start": _name(start), "schedule": asdict(schedule), "rows": [row.place for row in rows]}
        return self.stages.run(name, inputs | {"template": self.encoder.template}, compute)

    def unlearned(self, start: Path, method: Method, target: float | None = None) -> Path:
        """Folder of the model after unlearning, with its steps, what ended them, and how long they took.

        Args:
            start: folder of the model before.
            method: how to unlearn.
            target: forget probability to stop at, if any.
        """
        s = self.settings

        def compute(folder: Path) -> None:
            model = models.load_model(start, self.device)
            generator = torch.Generator().manual_seed(_seed(s.seed, "unlearn"))  # equal batches for every method
            torch.manual_seed(_seed(s.seed, "unlearn"))
            cache = ReferenceCache(self.references, model) if method.needs_reference else None
            stopping, timing = StoppingCriteria(target, s.retain_budget), Timing()
            with self.progress.task(f"unlearn-{method.slug}") as on_step:
                steps = unlearn(
                    model, self._rows(), method, s.steps, s.batch, generator, on_step,
                    cache=cache, stopping=stopping, check_every=s.check_every, timing=timing,
                )  # fmt: skip
                records = list(steps)
            self._save(model, folder)
            write_text(folder / "metrics.jsonl", _lines(records))
            write_json(folder / "stopping.json", stopping.summary(len(records)))
            write_json(folder / "timing.json", {"seconds": timing.total, "rate_share": timing.rate_share})

        inputs = {"start": start.name, "method": asdict(method), "steps": s.steps, "batch": s.batch, "rows": self._counts()}
        inputs |= {
            "stop": [target, s.retain_budget, s.check_every if StoppingCriteria(target, s.retain_budget).active else None]
        }
        if s.own_rules:
            inputs["own_rules"] = load_rules(s.own_rules)  # what the file says now
        return self.stages.run(f"unlearn-{method.slug}", inputs, compute)

    def _rows(self) -> Rows:
        """What unlearning sees. Each forget row has one refusal, drawn once, so that its reference is computed once."""
        refusals, generator = self.data.refusals, torch.Generator().manual_seed(_seed(self.settings.seed, "refusals"))
        drawn = torch.randint(len(refusals), (len(self.data.forget),), generator=generator).tolist()
        refused = [self.encoder.example(row.question, refusals[i]) for row, i in zip(self.data.forget, drawn, strict=True)]
        forget, retain, held_out = map(self._examples, (self.data.forget, self.data.retained, self.data.validation))
        return Rows(forget, retain, self.encoder.pad, refused, held_out)

    def _counts(self) -> dict[str, int]:
        return {"forget": len(self.data.forget), "retain": len(self.data.retained), "refusals": len(self.data.refusals)}

    def _forget_target(self, start: Path, reference: Mapping[str, Sequence[ScoredRow]]) -> float | None:
        """The forget probability to stop at, None if that is no criterion."""
        wanted = self.settings.stop_forget
        if wanted is None or wanted not in TARGETS:
            return None if wanted is None else float(wanted)
        paraphrases = fmean(math.exp(-row.nll_right) for row in self._evaluate(BEFORE, start)["forget"])
        known = fmean(math.exp(-row.nll_answer) for row in reference["forget"])
        return forget_target(known if wanted == "auto" else None, paraphrases)

    def _evaluate(self, name: str, folder: Path) -> dict[str, list[ScoredRow]]:
        def compute(target: Path) -> None:
            model = models.load_model(folder, self.device)
            with self.progress.spinner(f"evaluate-{name}") as on_part:
                scored = evaluate(model, self.encoder, self.data.evaluation, self.settings.new_tokens, on_part)
            write_json(target / "rows.json", {key: [asdict(row) for row in rows] for key, rows in scored.items()})

        texts = {"template": self.encoder.template, "new_tokens": self.settings.new_tokens}
        inputs = {"model": folder.name, "rows": self._evaluated_rows()} | texts
        stored = read_json(self.stages.run(f"evaluate-{_slug(name)}", inputs, compute) / "rows.json")
        return {key: [ScoredRow.from_dict(row) for row in members] for key, members in stored.items()}

    def _best_trial(self, start: Path, trials: Sequence[Method], target: float | None) -> tuple[Path, dict[str, Any]]:
        """The folder of the best learning rate, and what was tried.

        Best is the largest of min(share of the retain probability kept, share of the forget probability lost), on validation
        rows, which neither the steps nor the evaluation sees, and on the forget rows.
        """
        folders = [self.unlearned(start, method, target) for method in trials]
        tried: list[dict[str, Any]] = []
        if len(trials) > 1:
            before = self.probabilities(start)
            for method, folder in zip(trials, folders, strict=True):
                after = self.probabilities(folder)
                score = min(share(after["retain"], before["retain"]), 1 - share(after["forget"], before["forget"]))
                probabilities = {f"{key}_probability": value for key, value in after.items()}
                tried.append({"learning_rate": method.lr, "score": score} | probabilities)
        best = max(range(len(tried)), key=lambda i: tried[i]["score"]) if tried else 0
        method, stopped = trials[best], read_json(folders[best] / "stopping.json")
        entry: dict[str, Any] = {"rule": method.rule, "forget": method.forget, "retain": method.retain, "base": method.base}
        entry |= {"learning_rate": method.lr, "steps": stopped.pop("steps"), "stopped": stopped}
        return folders[best], entry | {"tried": tried}

    def probabilities(self, folder: Path, evaluated: bool = False) -> dict[str, float]:
        """Mean answer probability of a model, on the forget rows and on the retain rows of validation or evaluation."""
        name = "probabilities" if evaluated else "validate"

        def compute(target: Path) -> None:
            model = models.load_model(folder, self.device)
            with self.progress.spinner(f"{name}-{folder.name.rpartition('-')[0]}"):
                rows = {"forget": self.data.forget, "retain": self.data.validation}
                examples = {key: self._examples(self.data.evaluation[key] if evaluated else rows[key]) for key in rows}
                nll = {key: answer_nll(model, members, self.encoder.pad) for key, members in examples.items()}
            means = {key: fmean(math.exp(-value) for value in values) for key, values in nll.items()}
            write_json(target / "probabilities.json", means)

        inputs = {"model": folder.name, "rows": self._evaluated_rows() if evaluated else self._counts()}
        return read_json(self.stages.run(f"{name}-{folder.name}", inputs, compute) / "probabilities.json")

    def _evaluated_rows(self) -> dict[str, int]:
        return {name: len(members) for name, members in self.data.evaluation.items()}

    def _save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)

    # Results

    def _entry(
        self,
        name: str,
        kind: str,
        method: dict[str, Any] | None,
        scored: Mapping[str, Sequence[ScoredRow]],
        reference: Mapping[str, Sequence[ScoredRow]] | None,
    ) -> dict[str, Any]:
        quality: dict[str, Any] = {"forget_quality": None, "log10_forget_quality": None, "ks_statistic": None}
        if reference is not None:
            quality = forget_quality(scored["forget"], reference["forget"])
        rows = {key: [row.as_dict(key) for row in members] for key, members in scored.items()}
        return {"name": name, "kind": kind, "method": method, "metrics": summary(scored) | quality, "rows": rows}

    def _write(self, results: dict[str, Any], steps: list[dict[str, Any]], finetuned: list[Path]) -> dict[str, Any]:
        out = self.output.folder
        made_with = self._manifest(finetuned)
        write_json(out / "results.json", results)
        write_text(out / "metrics.jsonl", _lines(steps))
        write_json(out / "manifest.json", made_with)
        write_text(out / "report.html", report.render(results, steps, made_with))
        return results

    def _manifest(self, finetuned: list[Path]) -> dict[str, Any]:
        seconds = self.stages.seconds
        tokens = sum(read_json(path / "training.json")["tokens"] for path in finetuned)
        time = sum(read_json(path / "stage.json")["seconds"] for path in finetuned)
        return manifest.manifest(
            self.device,
            seed=self.settings.seed,
            data_sha256=self.data.sha256,
            pretrained=self.model_identity,
            parameters=models.parameter_count(finetuned[0]),
            wall_seconds=round(sum(seconds.values()), 1),
            finetune_tokens_per_second=round(tokens / time),
            stages=[{"name": name, "seconds": round(value, 2)} for name, value in seconds.items()],
        )


def _limited(data: TofuData, rows: int | None) -> TofuData:
    return replace(data, evaluation={name: members[:rows] for name, members in data.evaluation.items()})


def _seed(seed: int, purpose: str) -> int:
    """A seed of its own for every purpose, so that adding a stage changes no other one."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:4], "big")


def _name(start: Path | str) -> str:
    return start.name if isinstance(start, Path) else start


def _slug(name: str) -> str:
    return re.sub(r"[ :+]", "-", name).replace("@", "-at-")


def _lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
