"""`ngdiff evaluate`: models side by side on a user's rows."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ngdiff import machine
from ngdiff.command import inputs
from ngdiff.command.inputs import Reading, Source
from ngdiff.errors import UserError
from ngdiff.files import write_json
from ngdiff.lm import loading
from ngdiff.lm.data import Data, check_disjoint
from ngdiff.lm.devices import default_device
from ngdiff.lm.evaluation import FORGET, HOLDOUT, NEW_TOKENS, RETAIN, ScoredRow, evaluate, summary
from ngdiff.processes import alike, is_first
from ngdiff.progress import Progress
from ngdiff.text import number, visible

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "safetensors", "rouge-score")
SHOWN = {FORGET: 3, RETAIN: 2}  # rows of a set whose generations are printed
WIDTH = 240  # characters of a text that are printed at most
NAMES = {"nll": "loss in nats, the other way round", "rouge": "ROUGE-L recall"}  # of metrics that are no words
AIMS = {FORGET: ", lower is better", RETAIN: ", higher is better", "membership": " attacks, AUC, 0.5 is chance"}

Found = Mapping[str, Sequence[ScoredRow]]


@dataclass(frozen=True)
class Comparison:
    """What `ngdiff evaluate` was asked for.

    Attributes:
        models: what a model is called in tables -> (option, hub id or folder).
        forget, retain, holdout: sources of rows; the holdout is of rows that no model was trained on.
        rows: of each set at most, drawn once and for all.
        new_tokens: length of a generation at most.
        bf16: weights of 16 bits.
        out: folder for evaluation.json, which has all texts and generations.
    """

    models: Mapping[str, tuple[str, str]]
    forget: str
    retain: str
    holdout: str | None = None
    reading: Reading = inputs.DEFAULT
    rows: int = 100
    new_tokens: int = NEW_TOKENS
    bf16: bool = False
    out: Path | None = None

    def run(self, console: Console) -> None:
        """Check everything, evaluate each model, print the tables and write the file.

        Raises:
            UserError: something of it cannot be used.
        """
        with alike():
            inputs.check_positive(rows=self.rows, new_tokens=self.new_tokens)
            if self.out is not None and is_first():
                inputs.check_folder("--out", self.out)
            sets = self._sets()
            sources = self._sources(sets)
        progress = Progress(console)
        for remark in dict.fromkeys(line for source in sources.values() for line in inputs.remarks(sets, source)):
            progress.say(remark)
        found = {name: self._evaluated(name, source, progress) for name, source in sources.items()}
        if self.out is not None and is_first():
            self._write(self.out, sets, sources, found)
        console.print(table({name: summary(one) for name, one in found.items()}))
        for text in side_by_side(found):
            console.print(text)

    def _sets(self) -> dict[str, Data]:
        sets = inputs.read_all(forget=self.forget, retain=self.retain, holdout=self.holdout)
        for name in (FORGET, RETAIN) if HOLDOUT in sets else ():
            check_disjoint(sets[HOLDOUT], sets[name])  # an attack would find no difference between rows and themselves
        return sets

    def _sources(self, sets: Mapping[str, Data]) -> dict[str, Source]:
        """Each model's, with texts in pieces of one length, which all can hold."""

        def prepared(reading: Reading) -> dict[str, Source]:
            return {name: inputs.prepare(option, model, sets, reading) for name, (option, model) in self.models.items()}

        sources = prepared(self.reading)
        lengths = {source.encoder.length for source in sources.values()}
        return sources if len(lengths) == 1 else prepared(replace(self.reading, length=min(lengths)))

    def _evaluated(self, name: str, source: Source, progress: Progress) -> dict[str, list[ScoredRow]]:
        gc.collect()  # one model at a time
        option = self.models[name][0]
        with progress.spinner(f"evaluate {name}") as on_part:
            on_part("loading")
            dtype = torch.bfloat16 if self.bf16 else torch.float32
            with alike():
                model = loading.load_model(source.name, default_device(), self.reading.trust, dtype, option)
            return evaluate(model, source.encoder, source.sample(self.rows), self.new_tokens, on_part)

    def _write(self, out: Path, sets: Mapping[str, Data], sources: Mapping[str, Source], found: Mapping[str, Found]) -> None:
        settings = {"rows": self.rows, "new_tokens": self.new_tokens, "bf16": self.bf16, "template": self.reading.template}
        models = {
            name: {
                "model": sources[name].name,
                "metrics": summary(one),
                "rows": {key: [row.as_dict() for row in rows] for key, rows in one.items()},
            }
            for name, one in found.items()
        }
        data = inputs.described(sets, next(iter(sources.values())).sets)
        made = {"device": machine.describe_device(default_device()), "versions": machine.versions(PACKAGES)}
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "evaluation.json", {"settings": settings, "data": data, **made, "models": models})
        except OSError as error:
            raise UserError(f"--out: {str(out)!r} cannot be written ({error.strerror}); give another folder") from None


def table(metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Model -> set -> metric -> value, a column a model."""
    found = Table(*("", *metrics), title="What the models know", title_justify="left")
    for column in found.columns[1:]:
        column.justify = "right"
    first = next(iter(metrics.values()))
    for name, values in first.items():
        rows = f", {values['rows']} rows" if "rows" in values else ""
        found.add_section()
        found.add_row(Text(f"{name}{rows}{AIMS.get(name, '')}", style="bold"))
        for metric in values:
            if metric != "rows":
                shown = [number(float(one[name][metric])) for one in metrics.values()]
                found.add_row(f"  {NAMES.get(metric, metric.replace('_', ' '))}", *shown)
    return found


def side_by_side(found: Mapping[str, Found]) -> Iterator[Table]:
    """Some rows with what each model says. Nothing in a text acts on the terminal: controls appear as their escapes.

    Texts are cut into pieces of so many tokens, in which tokenizers differ: pieces that not all models have are left out.
    """
    first = next(iter(found.values()))
    said = {model: {name: {row.prompt: row.generation for row in one[name]} for name in SHOWN} for model, one in found.items()}
    for name, count in SHOWN.items():
        common = [(i, row) for i, row in enumerate(first[name]) if all(row.prompt in one[name] for one in said.values())]
        for i, row in common[:count]:
            shown = Table(show_header=False, title=f"{name}, row {i + 1}", title_justify="left", min_width=60)
            for label, text in (("prompt", row.prompt), ("answer", row.answer)):
                shown.add_row(label, _short(text))
            for model, one in said.items():
                shown.add_row(model, _short(one[name][row.prompt]))
            yield shown


def _short(text: str) -> Text:
    return Text(visible(text if len(text) <= WIDTH else text[:WIDTH] + " ..."))
