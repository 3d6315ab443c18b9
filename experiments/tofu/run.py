"""A TOFU run from data to report: fine-tune, fine-tune the reference, unlearn by every method, evaluate everything."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments import report
from experiments.lm import general_ability, models
from experiments.lm.methods import Method
from experiments.lm.monitor import Monitor
from experiments.lm.training import FROM_SCRATCH, PRETRAINED, Schedule
from experiments.lm.unlearning import Rows
from experiments.model_stages import ModelStages, Plan, key_of, lines, read_lines, seed_of
from experiments.output import Output
from experiments.own_rules import load_rules
from experiments.speed import Speed, tokens_per_second
from experiments.tofu.data import EvaluationRow, Row, TofuData, load
from experiments.tofu.evaluate import evaluate
from experiments.tofu.metrics import Evaluation, forget_quality, privacy, share, summary
from experiments.tofu.monitoring import KEPT, monitor
from experiments.tofu.settings import TARGETS, Settings
from experiments.tofu.sources import open_source
from ngdiff.errors import UserError
from ngdiff.files import read_json, write_json, write_text
from ngdiff.lm import loading
from ngdiff.lm.batches import spread
from ngdiff.lm.devices import default_device
from ngdiff.lm.encoding import Encoder, Example
from ngdiff.lm.scoring import answer_nll
from ngdiff.machine import versions
from ngdiff.progress import Progress
from ngdiff.stopping import forget_target

BEFORE, REFERENCE = "before", "retain-only"
LOOKS = "looks"  # name of the monitor


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
        if settings.general_ability:
            general_ability.check(settings.general_ability, settings.task_folder)
        self.model_identity = {source: loading.identity(source) for source in settings.pretrained()}
        inputs = {"data": self.data.sha256, "pretrained": self.model_identity}
        self.model_stages = ModelStages(out, inputs, self.encoder.tokenizer, self.device, settings.seed, progress)
        self.stages = self.model_stages.stages
        self.speeds: dict[str, Speed] = {}

    def run(self) -> dict[str, Any]:
        """Compute what is not there yet, write results and report, and return the results."""
        full, retain_only = self.memorised(), self._retain_only()
        reference = None if retain_only is None else self._evaluate(REFERENCE, retain_only)
        entries = [self._entry(BEFORE, "start", None, full, reference)]
        if retain_only is not None:
            entries.append(self._entry(REFERENCE, "reference", None, retain_only, None))
        steps: list[dict[str, Any]] = []
        target = self._forget_target(full, reference)
        for name, trials in self.settings.trials().items():
            folder, method = self._best_trial(full, trials, target)
            records = read_lines(folder / "metrics.jsonl")
            steps += [{"method": name, **record} for record in records]
            method["skipped_steps"] = sum(not record["finite"] for record in records)
            entries.append(self._entry(name, "method", method, _shown(folder), reference))
        trained = [folder for folder in (full, retain_only) if isinstance(folder, Path)]
        return self._write({"settings": self.settings.as_dict(), "models": entries}, steps, trained)

    def memorised(self) -> Path | str:
        """The model that every method starts from: fine-tuned here on all rows, or the one that was given."""
        self.output.create()
        return self.settings.given()[0] or self._finetune("finetune-all", self._initial_model(), self.data.train)

    def _retain_only(self) -> Path | str | None:
        """The model that never saw the forget rows; None where one that knows all was given, and none beside it."""
        if self.settings.target:
            return self.settings.given()[1]
        return self._finetune("finetune-retain", self._initial_model(), self.data.retain)

    # Inputs

    def _encoder(self) -> Encoder:
        """The tokenizer: trained on the rows, or the pretrained model's own."""
        if self.settings.model is None:
            texts = [text for row in self.data.train for text in (row.question, row.answer)]
            tokenizer = models.train_tokenizer(texts, models.SIZES[self.settings.size].vocabulary)
        else:
            tokenizer = loading.load_tokenizer(str(self.settings.base_model))
            for source in self.settings.pretrained():
                loading.check_pretrained(source, tokenizer, models.PUBLISHED)
        known = self.settings.known
        own = known.template if known and self.settings.template == "auto" else self.settings.template
        return Encoder(tokenizer, own)

    def _check_lengths(self) -> None:
        """Refuse a row that the model has no positions for, instead of cutting it."""
        given: Sequence[str | None] = self.settings.pretrained() or [None]
        limit = min(models.positions(source, self.settings.size) for source in given)
        for rows in (self.data.train, self.data.holdout, *self.data.evaluation.values()):
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
        if s.known:
            schedule = s.known.finetuning
        epochs, batch, lr = s.epochs or schedule.epochs, s.finetune_batch or schedule.batch, s.finetune_lr or schedule.lr
        return replace(schedule, epochs=epochs, batch=batch, lr=lr)

    # Stages

    def _initial_model(self) -> Path | str:
        """Folder of the model from scratch, or the name of the pretrained one."""
        return self.settings.base_model or self.model_stages.initial(models.SIZES[self.settings.size])

    def _finetune(self, name: str, start: Path | str, rows: Sequence[Row]) -> Path:
        inputs = {"rows": [row.place for row in rows], "template": self.encoder.template}
        return self.model_stages.finetuned(name, start, self._examples(rows), self.encoder.pad, self._schedule(), inputs)

    def unlearned(self, start: Path | str, method: Method, target: float | None = None) -> Path:
        """Folder of the model after unlearning, see `ModelStages.unlearned`.

        Args:
            start: folder of the model before.
            method: how to unlearn.
            target: forget probability to stop at, if any.
        """
        s = self.settings
        inputs: dict[str, Any] = {"rows": self._counts(), "template": self.encoder.template}
        if s.eval_every:
            inputs["looks"] = [s.eval_every, s.eval_subset, s.keep_best]
        if s.own_rules:
            inputs["own_rules"] = load_rules(s.own_rules)  # what the file says now
        plan = Plan(s.steps, s.batch, target, s.retain_budget, s.check_every)
        if s.unlearning:
            epoch = math.ceil(len(self.data.forget) / s.unlearning.batch)
            plan = replace(plan, steps=s.unlearning.epochs * epoch, batch=s.unlearning.batch, schedule=s.unlearning)
        return self.model_stages.unlearned(start, self._rows, method, plan, inputs, self._monitors if s.eval_every else None)

    def _monitors(self, model: Any) -> dict[str, Monitor]:
        """What looks at the model every `eval_every` steps, at a few rows that no evaluation sees, always the same."""
        s = self.settings
        rows = {"forget": spread(self.data.forget, s.eval_subset), "retain": spread(self.data.validation, s.eval_subset)}
        assert s.eval_every is not None
        return {LOOKS: monitor(model, self.encoder, rows, s.eval_every, s.new_tokens, s.keep_best)}

    def _rows(self) -> Rows:
        """What unlearning sees. Each forget row has one refusal, drawn once, so that its reference is computed once."""
        refusals, generator = self.data.refusals, torch.Generator().manual_seed(seed_of(self.settings.seed, "refusals"))
        drawn = torch.randint(len(refusals), (len(self.data.forget),), generator=generator).tolist()
        refused = [self.encoder.example(row.question, refusals[i]) for row, i in zip(self.data.forget, drawn, strict=True)]
        forget, retain, held_out = map(self._examples, (self.data.forget, self.data.retained, self.data.validation))
        return Rows(forget, retain, self.encoder.pad, refused, held_out)

    def _counts(self) -> dict[str, int]:
        return {"forget": len(self.data.forget), "retain": len(self.data.retained), "refusals": len(self.data.refusals)}

    def _forget_target(self, start: Path | str, reference: Evaluation | None) -> float | None:
        """The forget probability to stop at, None if that is no criterion."""
        wanted = self.settings.stop_forget
        if wanted is None or wanted not in TARGETS:
            return None if wanted is None else float(wanted)
        paraphrases = fmean(math.exp(-row.nll_right) for row in self._evaluate(BEFORE, start).forget)
        known = fmean(math.exp(-row.nll_answer) for row in reference.forget) if reference else None
        return forget_target(known if wanted == "auto" else None, paraphrases)

    def _evaluate(self, name: str, folder: Path | str) -> Evaluation:
        def compute(target: Path) -> None:
            model, speed = loading.load_model(folder, self.device, models.PUBLISHED), Speed()
            with self.progress.spinner(f"evaluate-{name}") as on_part:
                found = evaluate(
                    model, self.encoder, self.data.evaluation, self.settings.new_tokens, on_part,
                    holdout=self.data.holdout, metrics=self.settings.metrics, speed=speed,
                )  # fmt: skip
            write_json(target / "rows.json", asdict(found))
            write_json(target / "speed.json", asdict(speed))

        inputs: dict[str, Any] = {"rows": self._evaluated_rows()}
        inputs |= {"model": key_of(folder), "metrics": self.settings.metrics}
        inputs |= {"template": self.encoder.template, "new_tokens": self.settings.new_tokens}
        stage = self.stages.run(f"evaluate-{_slug(name)}", inputs, compute)
        self.speeds[stage.name] = Speed(**read_json(stage / "speed.json"))
        return Evaluation.from_dict(read_json(stage / "rows.json"))

    def _best_trial(self, start: Path | str, trials: Sequence[Method], target: float | None) -> tuple[Path, dict[str, Any]]:
        """The folder of the best learning rate, and what was tried.

        Best is the largest of min(share of the retain probability kept, share of the forget probability lost), on validation
        rows, which neither the steps nor the evaluation sees, and on the forget rows.
        """
        folders = [self.unlearned(start, method, target) for method in trials]
        tried: list[dict[str, Any]] = []
        if len(trials) > 1:
            before = self.probabilities(start)
            for method, folder in zip(trials, folders, strict=True):
                after = self.probabilities(_shown(folder))
                score = min(share(after["retain"], before["retain"]), 1 - share(after["forget"], before["forget"]))
                probabilities = {f"{key}_probability": value for key, value in after.items()}
                tried.append({"learning_rate": method.lr, "score": score} | probabilities)
        best = max(range(len(tried)), key=lambda i: tried[i]["score"]) if tried else 0
        method, stopped = trials[best], read_json(folders[best] / "stopping.json")
        entry: dict[str, Any] = {"rule": method.rule, "forget": method.forget, "retain": method.retain, "base": method.base}
        entry |= {"learning_rate": method.lr, "steps": stopped.pop("steps"), "stopped": stopped}
        if self.settings.eval_every:
            seen = read_json(folders[best] / "looks.json")[LOOKS]
            entry |= {"looks": seen["looks"], "kept": seen["kept"].get(KEPT)}
        return folders[best], entry | {"tried": tried}

    def probabilities(self, folder: Path | str, evaluated: bool = False) -> dict[str, float]:
        """Mean answer probability of a model, on the forget rows and on the retain rows of validation or evaluation."""
        name = "probabilities" if evaluated else "validate"

        def compute(target: Path) -> None:
            model = loading.load_model(folder, self.device, models.PUBLISHED)
            with self.progress.spinner(f"{name}-{key_of(folder).rpartition('-')[0]}"):
                rows = {"forget": self.data.forget, "retain": self.data.validation}
                examples = {key: self._examples(self.data.evaluation[key] if evaluated else rows[key]) for key in rows}
                nll = {key: answer_nll(model, members, self.encoder.pad) for key, members in examples.items()}
            means = {key: fmean(math.exp(-value) for value in values) for key, values in nll.items()}
            write_json(target / "probabilities.json", means)

        inputs = {"model": key_of(folder), "rows": self._evaluated_rows() if evaluated else self._counts()}
        return read_json(self.stages.run(f"{name}-{key_of(folder)}", inputs, compute) / "probabilities.json")

    def _evaluated_rows(self) -> dict[str, int]:
        rows: dict[str, Sequence[Row]] = {**self.data.evaluation, "holdout": self.data.holdout}
        return {name: len(members) for name, members in rows.items()}

    # Results

    def _entry(
        self,
        name: str,
        kind: str,
        method: dict[str, Any] | None,
        model: Path | str,
        reference: Evaluation | None,
    ) -> dict[str, Any]:
        found = self._evaluate(name, model)
        quality: dict[str, Any] = {"forget_quality": None, "log10_forget_quality": None, "ks_statistic": None}
        if reference is not None:
            quality = forget_quality(found.forget, reference.forget)
        rows = {key: [row.as_dict(key) for row in members] for key, members in found.sets.items()}
        metrics = summary(found.sets) | quality | {"privacy": privacy(found, reference)}
        if self.settings.general_ability:
            metrics["general_ability"] = self._ability(name, model)
        return {"name": name, "kind": kind, "method": method, "metrics": metrics, "rows": rows}

    def _ability(self, name: str, folder: Path | str) -> dict[str, dict[str, float]]:
        """What the model can do besides: the tasks of lm-evaluation-harness that were asked for."""
        s = self.settings

        def compute(target: Path) -> None:
            model = loading.load_model(folder, self.device, models.PUBLISHED)
            with self.progress.spinner(f"ability-{name}"):
                found = general_ability.general_ability(
                    model, self.encoder.tokenizer, s.general_ability, s.ability_rows, s.task_folder
                )
            write_json(target / "ability.json", found)

        inputs = {"model": key_of(folder), "tasks": list(s.general_ability), "rows": s.ability_rows, "folder": s.task_folder}
        inputs |= {"lm-eval": versions(["lm-eval"])["lm-eval"]}
        if s.task_folder:
            inputs["tasks_as_written"] = loading.identity(s.task_folder)  # what the files say now
        return read_json(self.stages.run(f"ability-{_slug(name)}", inputs, compute) / "ability.json")

    def _write(self, results: dict[str, Any], steps: list[dict[str, Any]], trained: list[Path]) -> dict[str, Any]:
        out = self.output.folder
        made_with = self._manifest(trained)
        write_json(out / "results.json", results)
        write_text(out / "metrics.jsonl", lines(steps))
        write_json(out / "manifest.json", made_with)
        write_text(out / "report.html", report.render(results, steps, made_with))
        return results

    def _manifest(self, trained: Sequence[Path]) -> dict[str, Any]:
        start = trained[0] if trained else None
        return self.model_stages.manifest(
            trained,
            data_sha256=self.data.sha256,
            pretrained=self.model_identity,
            parameters=models.parameter_count(start) if start else None,
            evaluation_tokens_per_second=tokens_per_second(self.speeds.values()),
        )


def _limited(data: TofuData, rows: int | None) -> TofuData:
    evaluation = {name: members[:rows] for name, members in data.evaluation.items()}
    return replace(data, evaluation=evaluation, holdout=data.holdout[:rows])


def _shown(folder: Path) -> Path:
    """The state of an unlearned model that is evaluated: the one that was kept, if one was."""
    return folder / KEPT if (folder / KEPT).is_dir() else folder


def _slug(name: str) -> str:
    return re.sub(r"[ :+/]", "-", name).replace("@", "-at-")
