"""A MUSE run from data to report: train target and retrained model, unlearn by every method and fold, evaluate everything."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments import report
from experiments.lm import models
from experiments.lm.methods import Method
from experiments.lm.monitor import Look, Monitor
from experiments.lm.pretrained import MUSE_MODELS
from experiments.lm.training import FROM_SCRATCH, PRETRAINED, Schedule
from experiments.lm.unlearning import Rows
from experiments.model_stages import ModelStages, Plan, key_of, lines, read_lines
from experiments.muse.data import SCALABILITY, SUSTAINABILITY, Texts, load
from experiments.muse.evaluate import ANSWER_TOKENS, PASSAGE_TOKENS, Reader, answered, asked, evaluate, min_k, other_prompts
from experiments.muse.metrics import Evaluation, summary
from experiments.muse.settings import PUBLISHED, Settings
from experiments.muse.sources import open_source
from experiments.output import Output
from experiments.own_rules import load_rules
from experiments.side_by_side import Piece, checked_jobs, shared, side_by_side
from experiments.sources import text_hash
from experiments.speed import Speed, tokens_per_second
from ngdiff.errors import UserError
from ngdiff.files import read_json, write_json, write_text
from ngdiff.lm import loading
from ngdiff.lm.devices import default_device
from ngdiff.lm.encoding import Example
from ngdiff.lm.membership import CHANCE, auc
from ngdiff.lm.packing import encode_text, packed
from ngdiff.progress import Progress

TARGET, RETRAINED = "target", "retrained"
KNOWLEDGE, BALANCE = "knowledge", "balance"  # what is looked at while a model unlearns
SELECTED, USABLE, STOPPED = "selected", "usable", "stopped"  # states of it that are kept, see `MuseRun._monitors`
LOOKS = 6  # at the balance in an epoch, or a few more: near the end familiarity changes by half of its range in one
USE = 0.9  # of the target's utility, below which a model is of no use
# Of models from scratch: what it takes to know every text by heart, and to find its facts by the question. Noise on the
# weights, and Muon in the place of AdamW, leave less to be lost when unlearning changes them for the sake of other texts.
TRAINING = replace(FROM_SCRATCH, epochs=12, batch=8, lr=4e-3, optimizer="muon", noise=0.06)


class MuseRun:
    """One run. Building it checks every input and writes nothing; `run` does the work.

    Args:
        settings: what to do.
        out: folder for everything that the run leaves.
        progress: shows what is being done.
        jobs: processes that compute models side by side and share the cores; None takes one a core for models from scratch on
            the CPU, where a second core gains them little, and else 1. They change results no more than another number of
            threads does. With more than one, the script that calls needs `if __name__ == "__main__":`.

    Raises:
        UserError: an input is bad, or the folder cannot be used.
    """

    def __init__(self, settings: Settings, out: Path, progress: Progress, jobs: int | None = 1):
        self.settings, self.progress, self.device = settings, progress, default_device()
        self.jobs = checked_jobs(jobs, alone=settings.model is not None or self.device.type != "cpu")
        self.output = Output(out, settings.as_dict())
        self.data = load(open_source(settings.data, settings.corpus, settings.seed), bool(settings.folded))
        self.tokenizer = self._tokenizer()
        self.pad = int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id)
        self._check_lengths()
        self.identity = {source: loading.identity(source) for source in self._pretrained()}
        inputs = {"data": self.data.sha256, "pretrained": self.identity, "length": settings.row_length}
        self.model_stages = ModelStages(out, inputs, self.tokenizer, self.device, settings.seed, progress)
        self.speeds: dict[str, Speed] = {}
        self.begin = 0.0

    def run(self) -> dict[str, Any]:
        """Compute what is not there yet, write results and report, and return the results."""
        self.begin = time.monotonic()
        self.output.create()
        if self.jobs > 1:
            side_by_side(partial(_elsewhere, self.settings, self.output.folder), self._pieces(), self.jobs, self.progress)
        (target, known), (retrained, reference) = self.begun(TARGET), self.begun(RETRAINED)
        entries = [self._entry(TARGET, "start", known, reference), self._entry(RETRAINED, "reference", reference, reference)]
        steps: list[dict[str, Any]] = []
        for name in self.settings.methods:
            entry, records = self.method(name)
            entries.append(entry)
            steps += [{"method": name, **record} for record in records]
        folds = [point for name in self.settings.folded for kind in self.data.folds for point in self.folds(name, kind)]
        results = {"benchmark": "muse", "settings": self.settings.as_dict(), "models": entries, "folds": folds}
        return self._write(results, steps, [path for path in (target, retrained) if isinstance(path, Path)])

    # What can be computed side by side

    def _processes(self) -> dict[str, Any]:
        """Of the manifest. The memory of a GPU is counted by the process that uses it, and this one does not."""
        if self.jobs == 1:
            return {"jobs": 1, "threads": torch.get_num_threads()}
        jobs, threads = shared(self.jobs, self._pieces())
        return {"jobs": jobs, "threads": threads} | ({} if self.device.type == "cpu" else {"peak_memory_mib": None})

    def _pieces(self) -> list[list[Piece]]:
        """First the two models, then what begins with them, the longest first."""
        folds = self.data.folds
        begun: list[Piece] = [("begun", TARGET), ("begun", RETRAINED)]
        rows: list[Piece] = [("folds", name, SUSTAINABILITY) for name in self.settings.folded if SUSTAINABILITY in folds]
        methods: list[Piece] = [("method", name) for name in self.settings.methods]
        numbers = range(len(folds.get(SCALABILITY, ())), 0, -1)
        nested: list[Piece] = [("fold", name, SCALABILITY, number) for name in self.settings.folded for number in numbers]
        return [begun, rows + methods + nested]

    def begun(self, name: str) -> tuple[Path | str, Evaluation]:
        """The target or the retrained model, and its evaluation."""
        folder = self._trained(name, {TARGET: self.data.train, RETRAINED: self.data.kept}[name])
        return folder, self._evaluate(name, folder)

    def method(self, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A method's entry of the results, and a record of each of its steps."""
        folder = self._unlearned(self.begun(TARGET)[0], self.data.forget, self.settings.chosen()[name], self._level)
        return self._method_entry(name, folder), read_lines(folder / "metrics.jsonl")

    def folds(self, name: str, kind: str) -> list[dict[str, Any]]:
        """A method's entries of all folds of a kind."""
        return [self.fold(name, kind, number) for number in range(1, len(self.data.folds[kind]) + 1)]

    def fold(self, name: str, kind: str, number: int) -> dict[str, Any]:
        """A method's entry of a fold, after the whole budget."""
        folds = self.data.folds[kind]
        found = self._evaluate(f"{name}, {kind} {number}", self._fold_unlearned(name, kind, number))
        texts = len(folds[number - 1]) if kind == SCALABILITY else sum(map(len, folds[:number]))
        point = {"method": name, "kind": kind, "fold": number, "texts": texts}
        return point | {"metrics": summary(found, self.begun(RETRAINED)[1])}

    # Inputs

    def _pretrained(self) -> list[str]:
        """Hub ids and folders of the models that are loaded and not trained here."""
        if self.settings.target:
            return list(dict.fromkeys([self._given(TARGET), self._given(RETRAINED), str(self.settings.model)]))
        return [self.settings.model] if self.settings.model else []

    def _given(self, name: str) -> str:
        given = str(getattr(self.settings, name))
        return str(getattr(MUSE_MODELS[self.settings.corpus], name)) if given == PUBLISHED else given

    def _tokenizer(self) -> Any:
        """Trained on the texts, or the pretrained model's own."""
        if self.settings.model is None:
            # The holdout too: a tokenizer that knows the words of the others alone would tell them apart for the attacks.
            unseen = dict.fromkeys((*self.data.holdout, *self.data.validation))  # most have the second among the first
            texts = [text.text for text in (*self.data.train, *unseen)]
            return models.train_tokenizer(texts, models.SIZES[self.settings.size].vocabulary)
        tokenizer = loading.load_tokenizer(self.settings.model)
        if tokenizer.eos_token_id is None:
            raise UserError("--model: its tokenizer has no end-of-sequence token, which ends every text; choose another model")
        for source in self._pretrained():
            loading.check_pretrained(source, tokenizer, models.PUBLISHED)
        return tokenizer

    def _check_lengths(self) -> None:
        """Refuse rows and prompts that the model has no positions for."""
        sources: Sequence[str | None] = self._pretrained() or [None]
        limit = min(models.positions(source, self.settings.size) for source in sources)
        if self.settings.row_length > limit:
            raise UserError(f"--length: found {self.settings.row_length}, the model has {limit} positions; lower it")
        prompts = [(row.place, row.prompt, PASSAGE_TOKENS) for row in self.data.passages]
        for knowledge in (self.data.forget_knowledge, self.data.seen_knowledge, *other_prompts(self.data).values()):
            prompts += [(row.place, asked(knowledge, row), ANSWER_TOKENS) for row in knowledge.evaluated]
        for place, prompt, tokens in prompts:
            longest = len(self.tokenizer(prompt)["input_ids"]) + 1 + tokens
            if longest > limit:
                raise UserError(f"{place}: needs {longest} tokens, the model has {limit} positions; shorten the prompt")

    def _rows(self, texts: Texts) -> list[Example]:
        ids = [encode_text(self.tokenizer, text.text) for text in texts]
        return packed(ids, self.settings.row_length, models.holds_several_documents(self.settings.model))

    # Stages

    def _trained(self, name: str, texts: Texts) -> Path | str:
        """The model that knows these texts: trained here, or the one that was given."""
        if self.settings.target:
            return self._given(name)
        start = self.settings.model or self.model_stages.initial(models.SIZES[self.settings.size])
        rows = {"rows": text_hash(text.text for text in texts)}
        return self.model_stages.finetuned(f"train-{name}", start, self._rows(texts), self.pad, self._schedule(), rows)

    def _schedule(self) -> Schedule:
        s, schedule = self.settings, PRETRAINED if self.settings.model else TRAINING
        epochs, batch, lr = s.epochs or schedule.epochs, s.finetune_batch or schedule.batch, s.finetune_lr or schedule.lr
        return replace(schedule, epochs=epochs, batch=batch, lr=lr)

    def _unlearned(self, start: Path | str, texts: Texts, method: Method, level: float | None, prefix: str = "unlearn") -> Path:
        """Folder of the model after the whole budget; with a `level`, in it the states that `_monitors` keep."""
        s, rows = self.settings, self._rows(texts)
        batch, retain_batch = s.batches
        epoch = math.ceil(len(rows) / batch)
        inputs: dict[str, Any] = {"rows": text_hash(text.text for text in texts), "level": level}
        if s.own_rules:
            inputs["own_rules"] = load_rules(s.own_rules)  # what the file says now
        return self.model_stages.unlearned(
            start,
            lambda: Rows(rows, self._rows(self.data.retain), self.pad),
            method,
            Plan(s.passes * epoch, batch, retain_batch=retain_batch),
            inputs,
            None if level is None else lambda model: self._monitors(level, epoch),
            prefix,
        )

    def _monitors(self, level: float, epoch: int) -> dict[str, Monitor]:
        """What looks at a model while it unlearns, and keeps states of it.

        MUSE's rule asks what the model answers, after each epoch, and selects the first that knows no more than the retrained
        model, whose KnowMem is the `level`. The other two are ours and need no retrained model. Several times in an epoch they
        ask how familiar the forget texts look beside texts that no model has seen, and how much use the model is. A run is
        stopped where they look no more familiar: the attack's AUC is that of chance. The last state that is usable until then
        is the nearest that the method comes to that without breaking the model.
        """
        found = {KNOWLEDGE: Monitor(epoch, self._knowledge, {SELECTED: partial(_first_down_to, "knowmem", level)})}
        if self.data.validation:
            use = USE * fmean(row.f1 for row in self.begun(TARGET)[1].seen)
            rules = {STOPPED: partial(_first_down_to, "auc", CHANCE), USABLE: partial(_last_from, "utility", use)}
            found[BALANCE] = Monitor(max(1, epoch // LOOKS), self._balance, rules, until=STOPPED)
        return found

    def _knowledge(self, model: Any) -> Look:
        rows, _ = answered(self._reader(model), self.data.forget_knowledge)
        return {"knowmem": fmean(row.f1 for row in rows)}

    def _balance(self, model: Any) -> Look:
        """AUC of MUSE's attack against texts that its evaluation does not read, and utility."""
        reader = self._reader(model)
        rows, _ = answered(reader, self.data.seen_knowledge)
        familiarity = auc(min_k(reader, self.data.members["forget"]), min_k(reader, self.data.validation))
        return {"auc": familiarity, "utility": fmean(row.f1 for row in rows)}

    def _evaluate(self, name: str, folder: Path | str) -> Evaluation:
        def compute(target: Path) -> None:
            speed = Speed()
            with self.progress.spinner(f"evaluate-{name}") as on_part:
                found = evaluate(
                    self._reader(loading.load_model(folder, self.device, models.PUBLISHED)), self.data, on_part, speed
                )
            write_json(target / "rows.json", asdict(found))
            write_json(target / "speed.json", asdict(speed))

        stage = self.model_stages.stages.run(f"evaluate-{key_of(folder)}", {"model": key_of(folder)}, compute)
        self.speeds[stage.name] = Speed(**read_json(stage / "speed.json"))
        return Evaluation.from_dict(read_json(stage / "rows.json"))

    def _reader(self, model: Any) -> Reader:
        return Reader(model, self.tokenizer, self.pad, self.settings.row_length)

    @property
    def _level(self) -> float:
        """KnowMem of the retrained model."""
        return fmean(row.f1 for row in self.begun(RETRAINED)[1].forget)

    def _fold_unlearned(self, name: str, kind: str, number: int) -> Path:
        """Folder of the model after a fold: nested ones begin with the target, disjoint ones with the model after the last."""
        start, method, texts = self.begun(TARGET)[0], self.settings.chosen()[name], self.data.folds[kind][number - 1]
        # All texts at once are the run of the table. Elsewhere no epoch is selected, so none is looked at; the first fold of
        # both kinds is one run.
        if kind == SCALABILITY and texts == self.data.forget:
            return self._unlearned(start, texts, method, self._level)
        if kind == SUSTAINABILITY and number > 1:
            start = self._fold_unlearned(name, kind, number - 1)
        return self._unlearned(start, texts, method, None, "fold")

    # Results

    def _entry(self, name: str, kind: str, found: Evaluation, reference: Evaluation) -> dict[str, Any]:
        entry = {"name": name, "kind": kind, "method": None, SELECTED: None, USABLE: None, STOPPED: None}
        return entry | {"metrics": summary(found, None if kind == "reference" else reference), "rows": found.rows()}

    def _method_entry(self, name: str, folder: Path) -> dict[str, Any]:
        """The states of one method: after the whole budget, and those that were kept."""
        method, reference = self.settings.chosen()[name], self.begun(RETRAINED)[1]
        final = self._evaluate(f"{name}, last epoch", folder)
        entry = self._entry(name, "method", final, reference)
        looks, ended = read_json(folder / "looks.json"), read_json(folder / "stopping.json")
        records = read_lines(folder / "metrics.jsonl")
        entry["method"] = {
            "rule": method.rule,
            "forget": method.forget,
            "retain": method.retain,
            "base": method.base,
            "learning_rate": method.lr,
            "steps": ended["steps"],
            "skipped_steps": sum(not record["finite"] for record in records),
            "looks": {monitor: found["looks"] for monitor, found in looks.items()},
        }
        epoch = looks[KNOWLEDGE]["looks"][0]["step"]
        by_step: dict[int, Evaluation] = {}
        for state, step in (kept for found in looks.values() for kept in found["kept"].items()):
            by_step[step] = by_step.get(step) or self._evaluate(f"{name}, {state}", folder / state)
            kept = by_step[step]
            entry[state] = {"epoch": step / epoch, "metrics": summary(kept, reference), "rows": kept.rows()}
        return entry

    def _write(self, results: dict[str, Any], steps: list[dict[str, Any]], trained: Sequence[Path]) -> dict[str, Any]:
        out = self.output.folder
        made_with = self.model_stages.manifest(
            trained,
            data_sha256=self.data.sha256,
            pretrained=self.identity,
            parameters=models.parameter_count(trained[0]) if trained else None,
            wall_seconds=round(time.monotonic() - self.begin, 1),  # of this call, which may have found stages of earlier ones
            evaluation_tokens_per_second=tokens_per_second(self.speeds.values()),
            **self._processes(),
        )
        write_json(out / "results.json", results)
        write_text(out / "metrics.jsonl", lines(steps))
        write_json(out / "manifest.json", made_with)
        write_text(out / "report.html", report.render_muse(results, steps, made_with))
        return results


def _elsewhere(settings: Settings, out: Path, progress: Progress) -> MuseRun:
    """The same run in another process."""
    return MuseRun(replace(settings), out, progress, jobs=1)  # a new one of the settings registers rules of the user's own


def _first_down_to(name: str, level: float, look: Look, best: Look | None) -> bool:
    """Whether this is the first look at which something is at or below its level."""
    return best is None and look[name] <= level


def _last_from(name: str, level: float, look: Look, best: Look | None) -> bool:
    """Whether something is at or above its level, now as never later: every such look takes the place of the one before."""
    return look[name] >= level
