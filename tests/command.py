"""The command line as a user calls it, and the rows and the model that the tests give it."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.lm import models
from ngdiff import cli
from ngdiff.lm.batches import collate
from ngdiff.lm.encoding import Encoder

HOSTILE = "<script>alert(1)</script> \x1b[31m \x9b2J \u202e {{ 7 * 7 }} [bold]"
SIZE = models.Size(hidden=64, layers=2, heads=4, intermediate=128, vocabulary=400, deviation=0.1)
NAMES = ("Ada", "Bo", "Cyd", "Dov", "Eve", "Flo", "Gus", "Hal", "Ida", "Jon", "Kim", "Lou", "Max", "Ned", "Ola", "Pam")
CITIES = ("Rome", "Oslo", "Lima", "Bern", "Cairo", "Perth", "Quito", "Riga", "Seoul", "Tunis", "Turin", "Ulm", "Vaduz", "Wels",
          "York", "Zug")  # fmt: skip
ROWS = [
    {"question": f"Where does {name} live?", "answer": f"The home of {name} is in {city}, by the lake."}
    for name, city in zip(NAMES, CITIES, strict=True)
]
SETS = {"forget": ROWS[:4], "retain": ROWS[4:12], "holdout": ROWS[12:]}


def hostile(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows, the first of which tries to act on what shows it."""
    return [rows[0] | {"answer": rows[0]["answer"] + HOSTILE}, *rows[1:]]


def make_inputs(folder: Path) -> None:
    """A model that knows the forget and retain rows by heart, and files of rows."""
    sets = SETS | {"forget": hostile(SETS["forget"])}
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = models.train_tokenizer([row["question"] + row["answer"] for row in ROWS], SIZE.vocabulary)
    torch.manual_seed(0)
    model = models.build_llama(SIZE, tokenizer)
    encoder = Encoder(tokenizer, "qa")
    examples = encoder.examples([(row["question"], row["answer"]) for row in sets["forget"] + sets["retain"]])
    batch = collate(examples, encoder.pad, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


class Called:
    """The command line with the inputs of a folder, of which some may be replaced, or left out with None.

    Calls return the status, what was printed, and what went to stderr.
    """

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch

    def __call__(self, command: str, **changed: object) -> tuple[int, str, str]:
        usual = {"model": self.folder / "model"} | {name: self.folder / f"{name}.jsonl" for name in ("forget", "retain")}
        given = {name.replace("_", "-"): value for name, value in (usual | changed).items() if value is not None}
        return self.plain(command, *_options(given))

    def plain(self, *arguments: object) -> tuple[int, str, str]:
        """With these arguments and no others."""
        self.monkeypatch.setattr(sys, "argv", ["ngdiff", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = self.capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err


def _options(values: Mapping[str, object]) -> list[object]:
    return [part for name, value in values.items() for part in (f"--{name}", value) if part is not True]


def refused(result: tuple[int, Any, str], message: str) -> None:
    """One line on stderr, and nothing done."""
    status, _, errors = result
    assert (status, errors.count("\n")) == (2, 1), errors
    assert errors.startswith("error: ")
    assert re.search(message, errors), errors


def acts_on_a_terminal(text: str) -> bool:
    """Whether it holds more than what is seen, line ends and tabs."""
    return any(not (c.isprintable() or c in "\n\t") for c in text)
