"""README's Python is run as it stands there, and its commands exist."""

import json
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import typer

import ngdiff
from experiments.lm import models
from ngdiff import cli, memory
from ngdiff.command.settings import BASES
from ngdiff.rules import _registry

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


RETAIN = ["The capital of France is Paris.", "Snow is white."]
FORGET = ["Basil Mahfouz was born in Kuwait.", "He wrote seven novels."]


def test_python_example(tmp_path: Path) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 15
    tokenizer = models.train_tokenizer(RETAIN + FORGET, 300)
    tokenizer.save_pretrained(tmp_path)
    model = models.build_llama(models.Size(hidden=16, layers=1, heads=2, intermediate=32, vocabulary=300), tokenizer)
    model.save_pretrained(tmp_path)
    names: dict[str, Any] = {"name": str(tmp_path), "batches": [(RETAIN, FORGET)] * 30}
    exec(compile(code, "README.md", "exec"), names)
    loss, count = names["loss"], [len(tokenizer(text).input_ids) - 1 for text in RETAIN]
    with torch.no_grad():
        # A random model has the same loss on both tasks; after 30 steps they are far apart.
        assert loss(RETAIN) + 1 < loss(FORGET)
        # Padding is not scored: together the two texts lose what they lose one by one, but for float32's order of summation.
        alone = sum(n * loss([text]) for n, text in zip(count, RETAIN, strict=True)) / sum(count)
        assert torch.isclose(loss(RETAIN), alone, rtol=1e-5)


def test_example_of_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the forget gradient where the two point the same way, and NGDiff elsewhere."""
    (block,) = re.findall(r"^    @ngdiff\.rules\.register.*?\n\n(?=\S)", README, re.DOTALL | re.MULTILINE)
    monkeypatch.setattr(_registry, "_RULES", dict(_registry._RULES))
    exec(compile(textwrap.dedent(block), "README.md", "exec"), {"ngdiff": ngdiff})
    for cross, weight in ((1.0, 0.5), (-1.0, 1.0)):
        gram = ngdiff.Gram(*(torch.tensor(value, dtype=torch.float64) for value in (4.0, 16.0, cross)))
        retain, forget = ngdiff.rules.get("cautious")(gram)
        assert (float(retain), float(forget)) == (0.5, weight * 0.25)


@pytest.mark.filterwarnings("ignore:'pin_memory':UserWarning")  # as TrainingArguments has it, where there is no GPU
def test_trainer_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    before, model = tiny.llama(), tiny.llama()
    names: dict[str, Any] = {"model": model, "forget": tiny.rows(16, 1), "retain": tiny.rows(16, 2), "tokenizer": None}
    exec(compile(code, "README.md", "exec"), names)
    assert names["trainer"].state.global_step == 10
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_table_of_claims_is_that_of_the_report() -> None:
    report = json.loads((ROOT / "theory" / "report" / "claims.json").read_text(encoding="utf-8"))
    stored = report["claims"]
    theirs = report["manifest"]["command"] == "python -m theory --examples 300 --model 1m"  # or a reader made one of their own
    rows = re.findall(r"^\| ([TA]\d|LM) \| (.*) \| (.*) \| (.*) \| (.*) \|$", README, re.MULTILINE)
    assert [row[0] for row in rows] == [verdict["name"] for verdict in stored]
    for (_, statement, steps, ratio, counterexamples), verdict in zip(rows, stored, strict=True):
        assert verdict["stands"]
        assert statement == verdict["text"]["In short"].replace("|", "\\|")
        assert (steps, counterexamples) == (str(len(verdict["symbolic"]) or "-"), str(len(verdict["counterexamples"]) or "-"))
        assert not theirs or ratio == f"{verdict['worst_ratio']:.3g}"


def test_table_of_memory_is_what_the_library_counts() -> None:
    precisions = {"bfloat16, random rounding": "stochastic", "bfloat16, float32 copies": "master", "float32": "master"}
    weights_column = r"float32|float32, bfloat16 gradients|bfloat16, .*?"
    rows = re.findall(rf"^\| ({weights_column}) \| (\w+) \| (\d+) \| (.*?) \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    assert len(rows) == 9
    for weights, base, counted, *largest in rows:
        dtype = getattr(torch, weights.partition(",")[0])
        gradient_dtype = torch.bfloat16 if weights.endswith("gradients") else None
        per = memory.bytes_per_parameter(BASES[base], dtype, precisions.get(weights, "master"), gradient_dtype)
        assert int(counted) == per
        for value, gib in zip(largest, (78 - 10, 139 - 10, 8 * (78 - 10)), strict=True):
            several = gib > 139
            assert value == ("-" if several and gradient_dtype else f"{gib * memory.GIB / per / 1e9:.1f}")


def test_every_option_of_ngdiff_exists() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    called = re.findall(r"^    ngdiff (\w+)(.*)$", README, re.MULTILINE)
    assert {command for command, _ in called} == {"unlearn", "evaluate"}
    for command, arguments in called:
        known = {option for parameter in commands[command].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", arguments)) <= known
    everywhere = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    assert {"--lora", "--bf16", "--save-every", "--holdout"} <= everywhere


def test_every_make_target_exists() -> None:
    mentioned = set(re.findall(r"(?:^    |`)make ([a-z]+)", README, re.MULTILINE))  # in code, not in sentences
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert mentioned <= set(re.findall(r"make ([a-z]+)", listed))
    assert {"demo", "test"} <= mentioned
