"""A rule of the user's own, from a file, through a whole run."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments import own_rules
from experiments.lm import models
from experiments.tofu.run import TofuRun
from experiments.tofu.settings import Settings
from ngdiff import rules
from ngdiff.errors import UserError
from ngdiff.progress import Progress
from ngdiff.rules import _registry

RULE = """
from dataclasses import dataclass
import torch
from ngdiff import rules
from ngdiff.gram import Coefficients

@rules.register("half-and-half")
@dataclass(frozen=True)
class HalfAndHalf(rules.Rule):
    share: float = 0.5

    def __call__(self, gram, losses=None):
        return Coefficients(torch.full_like(gram.retain, self.share), torch.full_like(gram.forget, 1 - self.share))
"""


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(_registry, "_RULES", dict(_registry._RULES))
    monkeypatch.setattr(own_rules, "_loaded", {})


def test_a_run_with_a_rule_of_ones_own(tmp_path: Path, monkeypatch):
    """It does what GDiff-0.5 does, to the last digit of every result."""
    monkeypatch.setitem(models.SIZES, "1m", models.Size(hidden=16, layers=1, heads=2, intermediate=32, vocabulary=512))
    file = tmp_path / "mine.py"
    file.write_text(RULE)
    small = {"epochs": 1, "rates": (1e-3,), "steps": 2, "batch": 4, "new_tokens": 4, "eval_rows": 4}
    settings = Settings(methods=("half-and-half-0.5", "gdiff-0.5"), own_rules=str(file), **small)
    assert Settings(methods=("half-and-half",), own_rules=str(file)).own_rules == str(file)  # a second time
    TofuRun(settings, tmp_path / "run", Progress(Console(quiet=True))).run()
    entries = json.loads((tmp_path / "run" / "results.json").read_text())["models"]
    mine, theirs = ({**entry, "name": "", "method": None} for entry in entries[-2:])
    assert mine == theirs
    stages = {path.name for path in (tmp_path / "run" / "stages").iterdir()}
    assert any(name.startswith("unlearn-nll+nll-half-and-half-0.5-adamw-0.001") for name in stages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("1 / 0", "failed with ZeroDivisionError: division by zero"),
        ("x = 1", "registers no rule"),
        (RULE.replace("half-and-half", "ngdiff"), "is taken by NGDiff"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    before = rules.names()
    with pytest.raises(UserError, match=message) as caught:
        Settings(own_rules=str(file))
    assert str(caught.value).startswith("--own-rules: ")
    assert "\n" not in str(caught.value)
    assert rules.names() == before


def test_a_file_that_changes_under_a_run_is_refused(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(RULE)
    first = own_rules.load_rules(str(file))
    assert own_rules.load_rules(str(file)) == first
    file.write_text(RULE + "\n# changed\n")
    with pytest.raises(UserError, match="has changed since it was loaded"):
        own_rules.load_rules(str(file))
