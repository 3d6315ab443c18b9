"""`ngdiff unlearn` on a model that knows its rows by heart: what it forgets, what it leaves behind, what it refuses."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from command import HOSTILE, SETS, Called, acts_on_a_terminal, hostile, refused
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ngdiff.command import papers, unlearn
from ngdiff.command.settings import Settings
from ngdiff.command.training import Tasks, Trained
from ngdiff.lm.encoding import Encoder
from ngdiff.lm.loading import load_model
from ngdiff.lm.scoring import answer_nll
from ngdiff.objectives import IGNORE

QUICK = {"new_tokens": 4, "eval_rows": 4, "stop_forget": 0}
PAPERS = ("README.md", "manifest.json", "metrics.jsonl", "report.html")


def probability(folder: Path, rows: Sequence[dict[str, str]]) -> float:
    """Mean probability of the answers under the model in a folder, as anybody would load it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = Encoder(AutoTokenizer.from_pretrained(folder), "qa")
    examples = encoder.examples([(row["question"], row["answer"]) for row in rows])
    return float(torch.tensor(answer_nll(model, examples, encoder.pad)).neg().exp().mean())


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def test_a_model_forgets_and_says_how(called: Called, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "forgot"
    status, printed, errors = called("unlearn", out=out, epochs=40, batch=4, **QUICK | {"stop_forget": 0.2})
    assert (status, errors) == (0, "")
    assert not acts_on_a_terminal(printed)
    manifest = manifest_of(out)
    # The weights on disk are those of the figures, and they have forgotten.
    assert manifest["after"]["forget"]["probability"] == pytest.approx(probability(out, hostile(SETS["forget"])), rel=1e-4)
    assert manifest["before"]["forget"]["probability"] > 0.9
    assert manifest["after"]["forget"]["probability"] <= 0.2
    assert probability(out, SETS["retain"]) > 2 * manifest["after"]["forget"]["probability"]
    # It stopped when it had.
    steps = manifest["stopping"]["steps"]
    assert manifest["stopping"]["reason"].startswith("forget probability")
    assert steps < 40
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    assert {"retain_loss", "forget_loss", "cosine", "retain_weight", "learning_rate"} <= set(records[0])
    # Nothing else is left, and no weights that were pickled.
    assert sorted(path.name for path in out.parent.iterdir()) == ["forgot"]
    assert {path.suffix for path in out.iterdir()} == {".md", ".json", ".jsonl", ".html", ".safetensors"}
    assert json.loads((out / "config.json").read_text())["use_cache"] is True


def test_a_target_that_is_not_reached_is_said_everywhere(called: Called, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, printed, _ = called("unlearn", out=out, epochs=2, **QUICK | {"stop_forget": 0.2})
    assert status == 0
    missed = manifest_of(out)["stopping"]["missed"]
    assert missed == pytest.approx(manifest_of(out)["after"]["forget"]["probability"], rel=1e-3)  # one by one, and in batches
    said = f"all steps were taken, and rows to forget still have a probability of {missed:.2g}: give more --epochs"
    assert said in " ".join(printed.split())
    for paper, heading in (("README.md", "# {}\n"), ("report.html", "<h1>{}</h1>")):
        text = (out / paper).read_text()
        assert heading.format("model, with 4 rows not yet forgotten") in text
        assert said in " ".join(text.split())


def test_a_target_that_the_budget_forbids_is_said_too(called: Called, tmp_path: Path) -> None:
    """With the probability of the weights that came back, which is not that of the last look."""
    options = {"stop_forget": 0.2, "retain_budget": 0.01, "base": "sgd", "lr": "0.05", "check_every": 1, "epochs": 60}
    assert called("unlearn", out=tmp_path / "out", batch=2, **QUICK | options)[0] == 0
    manifest = manifest_of(tmp_path / "out")
    stopping = manifest["stopping"]
    assert 0 < stopping["restored_step"] < stopping["steps"]
    assert stopping["missed"] == pytest.approx(manifest["after"]["forget"]["probability"], rel=1e-3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "with 4 rows not yet forgotten" in card
    assert f"rows to forget still have a probability of {stopping['missed']:.2g}: give a larger --retain-budget" in card


def test_few_rows_take_enough_steps_by_default(called: Called, tmp_path: Path) -> None:
    """Four rows are one step an epoch."""
    assert called("unlearn", out=tmp_path / "out", **QUICK | {"stop_forget": 0.1})[0] == 0
    manifest = manifest_of(tmp_path / "out")
    assert (manifest["settings"]["epochs"], manifest["stopping"]["missed"]) == (200, None)
    assert 20 < manifest["stopping"]["steps"] < 200
    assert [Settings(batch=8).passes(rows) for rows in (1, 8, 9, 80, 4000)] == [200, 200, 100, 20, 20]


def test_the_papers_name_the_data_and_hold_none_of_it(called: Called, folder: Path, tmp_path: Path) -> None:
    called("unlearn", out=tmp_path / "out", epochs=1, **QUICK)
    manifest = manifest_of(tmp_path / "out")
    for name, rows in (("forget", 4), ("retain", 8)):
        content = (folder / f"{name}.jsonl").read_bytes()
        assert manifest["data"][name]["sha256"] == hashlib.sha256(content).hexdigest()
        assert manifest["data"][name]["sha256"] in (tmp_path / "out" / "README.md").read_text()
        assert (manifest["data"][name]["rows"], manifest["data"][name]["source"]) == (rows, f"{name}.jsonl")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert manifest["weights_sha256"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    for paper in PAPERS:
        text = (tmp_path / "out" / paper).read_text()
        assert text
        for secret in ("alert", "Ada", "Rome", "home of", "live?", str(folder)):
            assert secret not in text, (paper, secret)


def test_gradients_of_16_bits_reach_the_optimizer(called: Called, tmp_path: Path) -> None:
    """By what they do: at a fixed rate the weights differ, and little."""
    found = []
    for name, asked in (("wide", {}), ("narrow", {"bf16_gradients": True})):
        options = QUICK | {"base": "sgd", "lr": "0.01", "epochs": 2} | asked
        assert called("unlearn", out=tmp_path / name, **options)[0] == 0
        found.append(load_model(tmp_path / name, torch.device("cpu")).state_dict())
    differences = [(found[0][name] - found[1][name]).abs().max() for name in found[0]]
    assert 0 < max(differences) < 1e-3  # a step is 0.01 d with |d| at most 2, and d is off by 2^-9 of itself


def test_adapters_are_merged(called: Called, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "out"
    assert called("unlearn", out=out, lora=4, epochs=30, batch=4, **QUICK | {"stop_forget": 0.5})[0] == 0
    assert not list(out.glob("adapter*"))
    before, after = (load_model(path, torch.device("cpu")).state_dict() for path in (folder / "model", out))
    assert before.keys() == after.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {name for name in before if "_proj." in name}
    assert probability(out, hostile(SETS["forget"])) < 0.5


def test_16_bit_weights_and_checkpointed_activations(called: Called, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    options = {"bf16": True, "gradient_checkpointing": True, "base": "sgd", "accumulate": 2, "batch": 2, "epochs": 3}
    options["bf16_gradients"] = True  # changes nothing beside weights that have them already
    assert called("unlearn", out=tmp_path / "out", **options, **QUICK)[0] == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 3  # 4 rows, 2 of 2 a step, 3 times


# What the Trainer is given


class Caught:
    """Takes the place of training, and keeps what it was given."""

    def __init__(self) -> None:
        self.tasks: Tasks | None = None
        self.settings: Any = None

    def __call__(self, model: Any, tokenizer: Any, tasks: Tasks, settings: Any, *_: Any, **__: Any) -> Trained:
        self.tasks, self.settings = tasks, settings
        return Trained([], {"reason": "steps", "steps": 0, "restored_step": None})


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Caught:
    caught = Caught()
    monkeypatch.setattr(unlearn, "train", caught)
    return caught


def answers(folder: Path, rows: Any) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return [tokenizer.decode([i for i in row["labels"] if i != IGNORE]) for row in rows]


def test_no_step_sees_the_rows_that_are_held_out(called: Called, folder: Path, tmp_path: Path, caught: Caught) -> None:
    assert called("unlearn", out=tmp_path / "out", held_out=0.3, **QUICK)[0] == 0
    forget, retain, held_out = (answers(folder, getattr(caught.tasks, name)) for name in ("forget", "retain", "held_out"))
    assert len(held_out) == 2  # 0.3 of 8
    assert sorted(retain + held_out) == sorted(f" {row['answer']}</s>" for row in SETS["retain"])
    assert forget == [f" {row['answer']}</s>" for row in hostile(SETS["forget"])]
    assert caught.tasks.refusals is None
    assert manifest_of(tmp_path / "out")["held_out"] == 2


def test_refusals_answer_the_same_questions(called: Called, folder: Path, tmp_path: Path, caught: Caught) -> None:
    options = {"forget_objective": "idk-nll", "refusal": "No comment."}
    assert called("unlearn", out=tmp_path / "out", **options, **QUICK)[0] == 0
    assert answers(folder, caught.tasks.refusals) == [" No comment.</s>"] * 4
    for row, refusal in zip(caught.tasks.forget, caught.tasks.refusals, strict=True):
        prompt = row["labels"].count(IGNORE)
        assert row["input_ids"][:prompt] == refusal["input_ids"][:prompt]


@pytest.mark.parametrize(("options", "expected"), [({}, 1), ({"epochs": 1000}, 20), ({"check_every": 7}, 7)])
def test_how_often_to_look(options: dict[str, int], expected: int) -> None:
    """50 times in a run. An epoch of 4 rows is one step, though a step has room for 4 x 2."""
    assert Settings(**{"epochs": 20, "batch": 4, "accumulate": 2} | options).steps_between_looks(4) == expected


# What is interrupted


class Interrupting:
    """Training that the user breaks off after some steps."""

    def __init__(self, after: int, monkeypatch: pytest.MonkeyPatch):
        self.after, self.train, self.steps = after, unlearn.train, []
        monkeypatch.setattr(unlearn, "train", self)

    def __call__(self, *arguments: Any, **options: Any) -> Trained:
        def on_step(done: int, total: int) -> None:
            self.steps.append(done)
            if len(self.steps) == self.after:
                raise KeyboardInterrupt

        return self.train(*arguments[:-1], on_step, **options)


def test_the_same_command_goes_on_where_it_was_interrupted(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 4, "batch": 2, "save_every": 2} | QUICK
    assert called("unlearn", out=tmp_path / "whole", **options)[0] == 0
    interrupting = Interrupting(5, monkeypatch)
    assert called("unlearn", out=tmp_path / "out", **options)[0] == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.unfinished", "whole"]
    other = called("unlearn", out=tmp_path / "out", **options | {"seed": 1})
    refused(
        other, "--out: '.*[.]out.unfinished' holds an interrupted run with other settings or data; give those, or delete it"
    )
    status, printed, _ = called("unlearn", out=tmp_path / "out", **options)
    assert status == 0
    assert re.search(r"checkpoint-4:\s+the\s+run\s+goes\s+on\s+from\s+here", printed)
    assert "no checkpoints" not in printed
    assert interrupting.steps == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    whole, resumed = (load_model(tmp_path / name, torch.device("cpu")).state_dict() for name in ("whole", "out"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 8


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 4, "batch": 2, "save_every": 2} | QUICK
    assert called("unlearn", out=tmp_path / "whole", **options)[0] == 0
    interrupting = Interrupting(7, monkeypatch)
    assert called("unlearn", out=tmp_path / "out", **options)[0] == 130
    damaged = tmp_path / ".out.unfinished" / "trainer" / "checkpoint-6" / "optimizer.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    _, printed, _ = called("unlearn", out=tmp_path / "out", **options)
    said = " ".join(printed.split())
    assert "checkpoint-6: optimizer.pt is not what was written; the checkpoint before it is used" in said
    assert "checkpoint-4: the run goes on from here" in said
    assert interrupting.steps[7:] == [5, 6, 7, 8]
    whole, resumed = (load_model(tmp_path / name, torch.device("cpu")).state_dict() for name in ("whole", "out"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_command_that_was_killed_goes_on(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, between two checkpoints; what it leaves is what one leaves that was not killed."""
    options = {"model": folder / "model"} | {name: folder / f"{name}.jsonl" for name in ("forget", "retain")}
    options |= {"batch": 1, "epochs": 15, "save-every": 3, "new-tokens": 4, "stop-forget": 0}  # 60 steps
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "ngdiff", "unlearn", *given]

    def started(out: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, "--out", str(tmp_path / out)], stdout=subprocess.DEVNULL)

    whole, killed = started("whole"), started("killed")
    until = time.monotonic() + 300
    while len(list((tmp_path / ".killed.unfinished" / "trainer").glob("checkpoint-*"))) < 2:
        assert killed.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed").exists()
    assert started("killed").wait() == whole.wait() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")}) == 1
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("killed", "whole")]
    timed = {"tokens_per_second": None}
    assert [json.loads(line) | timed for line in logs[0]] == [json.loads(line) | timed for line in logs[1]]


def test_without_checkpoints_an_interrupted_run_leaves_nothing(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Interrupting(1, monkeypatch)
    status, printed, _ = called("unlearn", out=tmp_path / "out", **QUICK)
    assert status == 130
    assert "no checkpoints: an interrupted run begins anew; --save-every 50 lets it go on" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "error: training does not fit into memory; give a smaller --batch"),
        (RuntimeError("step 12: gradients or losses were not finite for 10 steps in a row"), "error: step 12: gradients"),
    ],
)
def test_training_that_fails_is_one_line(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("ngdiff.trainer.NGDiffTrainer.train", fail)
    refused(called("unlearn", out=tmp_path / "out", **QUICK), message)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_ours_keeps_its_traceback(called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("ngdiff.trainer.NGDiffTrainer.train", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        called("unlearn", out=tmp_path / "out", **QUICK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stop_forget": 1},
            "--stop-forget: found 1, and the rows to forget have a probability of 0.9.* before the first step; ",
        ),
        (
            {"retain_budget": 1e-6},
            "--retain-budget: found 1e-06, and the held-out retain rows have a loss of .* at step 0, with",
        ),
        (
            {"retain_budget": 2, "base": "sgd", "lr": "100", "check_every": 1},
            "--retain-budget: found 2, and .* before the first step and .* at step 1, with nothing to keep between; nothing",
        ),
    ],
)
def test_a_model_that_was_not_changed_is_not_written(
    called: Called, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    refused(called("unlearn", out=tmp_path / "out", **QUICK | options), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's, for the newest transformers
def test_a_model_with_adapters_of_its_own(called: Called, folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    shutil.copytree(folder / "model", tmp_path / "model")
    adapted = peft.get_peft_model(load_model(folder / "model", torch.device("cpu")), peft.LoraConfig(task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "model")
    message = "--model: '.*model' has adapters, which are not merged; give the merged model"
    refused(called("unlearn", model=tmp_path / "model", out=tmp_path / "out", **QUICK), message)


@pytest.mark.parametrize("file", ["a paper", "the weights"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def full_of_weights(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    if file == "a paper":
        monkeypatch.setattr(unlearn, "write_text", full)
    else:
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", full_of_weights)
    refused(
        called("unlearn", out=tmp_path / "out", epochs=1, **QUICK),
        "--out: '.*out' cannot be written [(]no space left[)]; make room",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("small_disk", [420], indirect=True)  # KiB; the weights have 419, and no papers go beside them
def test_a_disk_too_small_for_the_result(called: Called, small_disk: Path) -> None:
    refused(
        called("unlearn", out=small_disk / "out", epochs=1, **QUICK), "--out: '.*out' cannot be written [(]no space left[)]"
    )
    assert list(small_disk.iterdir()) == []


# What is refused, or only estimated


@pytest.mark.usefixtures("no_weights")
def test_a_dry_run_says_what_is_needed_and_does_nothing(called: Called, tmp_path: Path) -> None:
    status, printed, _ = called("unlearn", out=tmp_path / "out", dry_run=True, held_out=0.25)
    assert status == 0
    lines = {
        line.rsplit("  ", 1)[0].strip(): line.rsplit("  ", 1)[1].strip() for line in printed.splitlines() if line[:2] == "  "
    }
    weights = AutoModelForCausalLM.from_pretrained(called.folder / "model").num_parameters()
    assert lines[f"weights, {weights:,}"] == f"{4 * weights / 2**20:.2f} MiB"
    gradients = f"two gradients of {weights:,} trained weights"
    assert lines[gradients] == f"{8 * weights / 2**20:.2f} MiB"
    _, narrow, _ = called("unlearn", out=tmp_path / "out", dry_run=True, held_out=0.25, bf16_gradients=True)
    assert re.search(rf"{gradients} +{4 * weights / 2**20:.2f} MiB", narrow)
    assert re.search(rf"weights to try a rate with +{4 * weights / 2**20:.2f} MiB", narrow)  # the default rate is automatic
    assert "weights to try a rate with" not in printed
    assert "activations of one batch (an estimate)" in lines
    assert "training time of all epochs (a rough estimate)" in lines
    assert "forget: 4 rows of question and answer, " in printed
    assert "held out of retain: 2 rows" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rule": "best"}, "--rule: unknown name 'best'; choose one of .*; see ngdiff rules"),
        ({"rule": "gdiff-2"}, "--rule: gdiff: c = 2.0"),
        ({"forget_objective": "none"}, "--forget-objective: found 'none'; choose one of nll, npo"),
        ({"retain_objective": "npo"}, "--retain-objective: found 'npo'; choose one of nll, kl, activations"),
        ({"base": "adam"}, "--base: found 'adam'; choose one of sgd, momentum, adamw"),
        ({"lr": "0"}, "--lr: found '0'; give a number > 0, or one of auto, paper"),
        ({"lr": "nan"}, "--lr: found 'nan'"),
        ({"epochs": 0}, "--epochs: found 0; give a number > 0"),
        ({"save_every": 0}, "--save-every: found 0"),
        ({"lora": -1}, "--lora: found -1"),
        ({"retain_budget": 0}, "--retain-budget: found 0"),
        ({"held_out": 1}, "--held-out: found 1.0; give a share"),
        ({"stop_forget": 2}, "--stop-forget: found 2.0; give a probability"),
        ({"seed": -1}, "--seed: found -1"),
        ({"retain": "same"}, "forget.jsonl:1: the same row is in --retain, .*forget.jsonl:1 [(]4 rows are in both[)]"),
        ({"retain": "one"}, "--retain: '.*one.jsonl' has a single row, and one is held out"),
        ({"forget": "text", "forget_objective": "idk-dpo"}, "--forget: rows of text have no question that could be refused"),
        ({"out": None}, "Missing option '--out'"),
    ],
)
def test_unlearn_refuses(called: Called, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(SETS["retain"][0]))
    (tmp_path / "text.jsonl").write_text('{"text": "A story."}')
    files = {"same": called.folder / "forget.jsonl", "one": tmp_path / "one.jsonl", "text": tmp_path / "text.jsonl"}
    changed = {name: files.get(value, value) if name in ("retain", "forget") else value for name, value in changed.items()}
    refused(called("unlearn", **{"out": tmp_path / "out"} | changed), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_weights")
def test_a_folder_in_use_is_refused_before_anything_is_read(called: Called, folder: Path) -> None:
    refused(called("unlearn", out=folder, forget="no.jsonl"), "--out: '.*' is not empty; give a new folder")


@pytest.mark.usefixtures("no_weights")
def test_a_folder_that_the_result_cannot_replace(called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    for out, message in (
        (".", "--out: '.' is in use, as the current folder or a mount point"),
        (tmp_path / "link", "--out: '.*link' is a symbolic link, which would be replaced"),
        (tmp_path / ("n" * 250), "--out: found a name of 250 bytes; give one of 243 at most"),
    ):
        refused(called("unlearn", out=out, dry_run=True), message)


@pytest.mark.parametrize("small_disk", [64], indirect=True)
@pytest.mark.usefixtures("no_weights")
def test_a_mount_point_is_refused(called: Called, small_disk: Path) -> None:
    refused(called("unlearn", out=small_disk, dry_run=True), "--out: '.*' is in use, as the current folder or a mount point")


@pytest.mark.usefixtures("no_weights")
def test_names_of_fields_do_nothing_on_the_terminal(called: Called, tmp_path: Path) -> None:
    more = {"\x1b[31mred": 1, "\ud800": 2} | {f"more {i}": i for i in range(3000)}
    (tmp_path / "rows.jsonl").write_text(json.dumps(SETS["forget"][0] | more))
    status, printed, _ = called("unlearn", out=tmp_path / "out", forget=tmp_path / "rows.jsonl", dry_run=True)
    assert status == 0
    assert not acts_on_a_terminal(printed)
    assert "--forget: 3002 further fields are not read: '\\x1b[31mred', 'more 0', " in printed
    assert len(printed) < 3000


# The papers


def manifest_with(name: str) -> dict[str, Any]:
    figures = {"rows": 1, "probability": 0.5, "nll": 1.0, "rouge": 0.1, "extraction_strength": 0.2, "exact_memorisation": 0.3}
    sets = {"forget": figures, "retain": figures}
    data = {"source": name, "kind": "text", "rows": 1, "tokens": 2, "sha256": "0"}
    return {
        "model": {"name": name, "state": "1"}, "data": {"forget": data, "retain": data}, "held_out": 1, "before": sets,
        "after": sets, "settings": {"rule": "ngdiff", "forget_objective": "nll", "refusal": name}, "versions": {"torch": "2"},
        "stopping": {"reason": "steps", "steps": 2, "restored_step": None}, "device": name,
    }  # fmt: skip


def test_hostile_names_do_nothing_on_the_page_or_the_card() -> None:
    name = f"{HOSTILE} </title> | `x`\n# heading"
    page = papers.report(manifest_with(name), [{"retain_loss": 1.0}, {"retain_loss": None}, {"retain_loss": 0.5}])
    card = papers.card(manifest_with(name))
    assert "<script" not in page + card
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\x1b[31m \\x9b2J \\u202e {{ 7 * 7 }}" in page
    assert page.count("</title>") == 1
    assert not acts_on_a_terminal(page + card)
    assert "\n# heading" not in card
    assert "`x`" not in card
    assert 'points="0.0,0.0 300.0,120.0"' in page  # a step without a value has no point
    assert "http" not in page


def test_only_a_hub_model_is_named_as_the_base() -> None:
    assert "\nbase_model: org/model-1\n" in papers.card(manifest_with("org/model-1"))
    assert "base_model" not in papers.card(manifest_with("folder"))
    assert "base_model" not in papers.card(manifest_with("org/x\ny: z"))


def test_an_ending_in_words() -> None:
    stopping = {"reason": "retain loss above the budget", "steps": 20, "restored_step": 10}
    assert papers.ending(stopping) == "ended after 20 steps: retain loss above the budget, those after step 10"
