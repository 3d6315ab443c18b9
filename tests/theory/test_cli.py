"""`python -m theory`: exit status, one line for what the user can mend, JSON, and a report that is whole."""

import json
import sys
from pathlib import Path

import pytest

from ngdiff.gram import Coefficients, inverse_norm
from ngdiff.rules import NGDiff
from theory import cli, page
from theory.claims import CLAIMS


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["theory", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_one_claim_in_detail(monkeypatch, capsys):
    assert call(monkeypatch, "--claim", "A4", "--examples", "20") == 0
    text = capsys.readouterr().out
    assert text.startswith("A4. Stationarity")
    assert "proved: ||d||^2 = 0 at cos phi = 1" in text
    assert "false variant refuted" in text
    assert text.rstrip().endswith("stands")


def test_json(monkeypatch, capsys):
    assert call(monkeypatch, "--claim", "A2", "--claim", "T3", "--examples", "20", "--jobs", "1", "--json") == 0
    verdicts = json.loads(capsys.readouterr().out)
    assert [v["name"] for v in verdicts] == ["T3", "A2"]
    assert all(v["stands"] and 0 < v["worst_ratio"] <= 1 for v in verdicts)


def test_a_wrong_library_is_status_1(monkeypatch, capsys):
    swapped = lambda self, gram, losses=None: Coefficients(inverse_norm(gram.forget), inverse_norm(gram.retain))  # noqa: E731
    monkeypatch.setattr(NGDiff, "__call__", swapped)
    assert call(monkeypatch, "--claim", "T3", "--examples", "20") == 1
    assert "PROBLEM: violated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--claim", "T7"], "found 'T7'; give one of T1, T2"),
        (["--model", "7b"], "found '7b'; give tiny, 1m or none"),
        (["--examples", "0"], "--examples"),
    ],
)
def test_bad_arguments_are_one_line(monkeypatch, capsys, arguments, line):
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_report(monkeypatch, capsys, tmp_path: Path):
    """All claims with few problems, where no variant may escape for want of them: the parts of the report are there."""
    assert call(monkeypatch, "--examples", "100", "--model", "none", "--out", str(tmp_path / "report")) == 0
    folder = tmp_path / "report"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"## {name}. {claim.title}" in readme for name, claim in CLAIMS.items())
    for caption in page.CAPTIONS:
        assert f"]({caption}.png)" in readme
        assert (folder / f"{caption}.png").stat().st_size > 10_000
    stored = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    assert stored["manifest"]["command"] == "python -m theory --examples 100 --model none"
    assert len(stored["claims"]) == len(CLAIMS)
    assert not list(folder.glob(".*"))
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in CLAIMS)


def test_a_folder_that_cannot_be_written(monkeypatch, capsys, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    assert call(monkeypatch, "--out", str(tmp_path / "file")) == 2
    assert "cannot be written" in capsys.readouterr().err
