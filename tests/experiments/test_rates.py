"""The study of initial rates, small: what it leaves, and that it goes on where it was."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.lm import models
from experiments.tofu.rates import COLUMNS, Study, picture, table
from ngdiff.errors import UserError
from ngdiff.progress import Progress


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.SIZES, "1m", models.Size(hidden=16, layers=1, heads=2, intermediate=32, vocabulary=512))
    monkeypatch.setattr("experiments.tofu.run.FROM_SCRATCH", models_schedule())


def models_schedule() -> Any:
    from experiments.lm.training import Schedule

    return Schedule(epochs=1, batch=32, lr=2e-3)


def study(**changes: Any) -> Study:
    known = {"data": "synthetic", "kinds": ("auto", "paper", "gen", "fixed"), "initials": (1e-3, 1e-2), "bases": ("sgd",)}
    return Study(**known | {"seeds": (0,), "steps": 11, "batch": 4} | changes)


def test_every_cell_is_run_once_and_stored(tmp_path: Path) -> None:
    rows = study().run(tmp_path, Progress(Console(quiet=True)))
    written = list(csv.DictReader((tmp_path / "rates.csv").read_text().splitlines()))
    assert [tuple(row) for row in written] == [COLUMNS] * 8
    assert [(row["kind"], float(row["initial"])) for row in written] == [
        (kind, initial) for kind in ("auto", "fixed", "gen", "paper") for initial in (1e-3, 1e-2)
    ]
    for row in rows:
        assert row["success"] == (row["retain_kept"] >= 0.9 and row["forget_probability"] <= 0.1)
        assert (row["last_rate"] == row["initial"]) == (row["kind"] == "fixed") or row["kind"] == "gen"
        assert (row["rate_share"] != 0) == (row["kind"] != "fixed")
        assert row["seconds"] > 0
    assert len({row["last_rate"] for row in rows if row["kind"] == "gen"} - {1e-3, 1e-2}) > 0  # a refresh at the tenth step
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["steps"], manifest["batch"], manifest["seeds"]) == (11, 4, [0])
    assert (tmp_path / "rates.png").stat().st_size > 5000
    with (console := Console(width=100)).capture() as shown:
        console.print(table(rows))
    assert shown.get().count("/2") == 4  # four kinds, each of two runs in all
    again = study(kinds=("fixed",)).run(tmp_path, Progress(Console(quiet=True)))
    assert [row["seconds"] for row in again] == [row["seconds"] for row in rows if row["kind"] == "fixed"]  # not run again


def test_the_picture_has_a_curve_a_kind() -> None:
    rows = [
        {"base": base, "kind": kind, "initial": initial, "retain_kept": 0.9, "forget_probability": 0.1}
        for base in ("sgd", "adamw")
        for kind in ("auto", "fixed")
        for initial in (1e-3, 1.0)
    ]
    axes = picture(rows).axes
    assert len(axes) == 4
    for axis in axes:
        assert [line.get_label() for line in axis.lines] == ["automatic, robust", "fixed"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ("magic",)}, "--kinds: unknown value 'magic'; choose one of auto, paper, gen, fixed"),
        ({"bases": ("lion",)}, "--bases: unknown value 'lion'; choose one of sgd"),
        ({"initials": (0.0,)}, "--initials: found 0.0; give learning rates > 0"),
        ({"seeds": ()}, "--seeds: found none; name at least one"),
        ({"seeds": (0, 0)}, "--seeds: found 0,0, with a repetition; name each once"),
    ],
)
def test_bad_input(changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        study(**changes)
