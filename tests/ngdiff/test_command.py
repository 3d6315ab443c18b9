"""The command line on a user's own model and rows: what it prints and writes, and what it refuses before it does either."""

import json
import re
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from command import HOSTILE, SETS, Called, acts_on_a_terminal, refused

from experiments.lm import models
from ngdiff.lm import loading

# What is quick


@pytest.mark.parametrize(
    ("argument", "found"), [("--version", "ngdiff 0.1.0\n"), ("rules", "Normalized gradient difference: d = ")]
)
def test_quick_commands_import_nothing_heavy(argument: str, found: str) -> None:
    code = "import sys; from ngdiff import cli\ntry: cli.main()\nfinally: print(sorted(sys.modules), file=sys.stderr)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, argument], capture_output=True, text=True, check=True)
    assert found in done.stdout
    assert not {"'transformers'", "'datasets'", "'scipy'", "'pyarrow'", "'experiments'"} & set(
        re.findall(r"'\w+'", done.stderr)
    )
    assert time.monotonic() - start < 20  # 2.5 s on an idle core, nearly all of them torch


def test_every_rule_and_objective_has_its_line_and_paper(called: Called) -> None:
    from ngdiff import rules
    from ngdiff.lm.objectives import FORGET, RETAIN

    status, out, _ = called.plain("rules")
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    assert status == 0
    assert [line.split()[0].partition("[")[0] for line in lines] == [*rules.names(), *FORGET, *RETAIN]
    assert all(re.search(r"\. \[(arXiv \d|Liu et al|as `rmu`).*\]$", line) for line in lines)
    assert "  ngdiff[-C]     Normalized gradient difference: d = g_R / ||g_R|| - g_F / ||g_F||. [arXiv 2410.22086]" in lines


def test_without_a_command_the_help_is_all(called: Called) -> None:
    status, out, errors = called.plain()
    assert (status, errors) == (2, "")
    assert all(command in out for command in ("unlearn", "evaluate", "rules"))


# Evaluation


def test_evaluate_compares_two_models_and_keeps_all_of_it(called: Called, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "evaluation"
    more = {"before": folder / "model", "holdout": folder / "holdout.jsonl", "out": out, "new_tokens": 8, "rows": 3}
    status, printed, _ = called("evaluate", **more)
    assert status == 0
    assert not acts_on_a_terminal(printed)
    assert "".join(
        ["<script>alert(1)</script>", "\\x1b[31m", "\\x9b2J", "\\u202e", "{{", "7", "*", "7", "}}", "[bold]"]
    ) in re.sub(r"[│\s]", "", printed)
    found = json.loads((out / "evaluation.json").read_text())
    before, after = found["models"]["before"], found["models"]["model"]
    assert before["metrics"] == after["metrics"]  # they are the same
    assert {name: values.get("rows") for name, values in after["metrics"].items()} == {
        "forget": 3, "retain": 3, "holdout": 3, "membership": None
    }  # fmt: skip
    assert set(after["metrics"]["membership"]) == {"loss", "zlib", "min_k", "min_k_plus"}
    assert all(auc == 1 for auc in after["metrics"]["membership"].values())  # known by heart, beside never seen
    assert after["rows"]["forget"][0]["answer"].endswith(HOSTILE)
    assert found["data"]["forget"]["rows"] == 4
    assert [len(after["rows"][name]) for name in ("forget", "retain", "holdout")] == [3, 3, 3]


def test_evaluation_is_that_of_the_rows(called: Called, folder: Path, tmp_path: Path) -> None:
    """Against the loss that transformers computes, and a generation by transformers."""
    called("evaluate", out=tmp_path / "out", new_tokens=8)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"]["model"]
    model = loading.load_model(folder / "model", torch.device("cpu"))
    tokenizer = loading.load_tokenizer(folder / "model")
    for row, scored in zip(SETS["retain"], found["rows"]["retain"], strict=True):
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:", return_tensors="pt").input_ids
        ids = tokenizer(f"Question: {row['question']}\nAnswer: {row['answer']}</s>", return_tensors="pt").input_ids
        labels = ids.clone()
        labels[:, : prompt.shape[1]] = -100
        with torch.no_grad():
            assert scored["nll"] == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-4)
            written = model.generate(prompt, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(prompt))
        assert scored["generation"] == tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True).strip()
    mean = sum(row["nll"] for row in found["rows"]["retain"]) / len(SETS["retain"])
    assert found["metrics"]["retain"]["nll"] == pytest.approx(mean)


TURNS = ("Where?", "By the lake.", "And?", "In Rome.")
FORMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "prompt": ({"prompt": "Where does Ada", "completion": " live?"}, "Where does Ada", " live?"),
    "text": ({"text": "The home of Ada is in Rome."}, "The home of", "Ada is in Rome."),
    "messages": (
        {
            "messages": [
                {"role": role, "content": content} for role, content in zip(("user", "assistant") * 2, TURNS, strict=True)
            ]
        },
        "And?",
        "In Rome.",
    ),
}
# Of each form all that is scored.
SCORED = {"prompt": "live?", "text": "The home of Ada is in Rome.", "messages": "By the lake.In Rome."}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_row_is_evaluated(called: Called, folder: Path, tmp_path: Path, form: str) -> None:
    row, prompt, answer = FORMS[form]
    shutil.copytree(folder / "model", tmp_path / "model")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    rows = {"forget": tmp_path / "rows.jsonl", "retain": tmp_path / "rows.jsonl"}
    assert called("evaluate", model=tmp_path / "model", out=tmp_path / "out", new_tokens=4, **rows)[0] == 0
    (found,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"]["model"]["rows"]["forget"]
    assert found["answer"].strip()
    assert answer.strip().endswith(found["answer"].strip())
    assert found["prompt"].startswith(prompt)
    assert found["exposure"]["zlib"] == found["nll"] / len(zlib.compress(SCORED[form].encode()))


def test_what_was_done_with_the_rows_is_said(called: Called, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "The home of Ada is in Rome. " * 20, "id": 7}))
    _, printed, _ = called("evaluate", forget=tmp_path / "text.jsonl", new_tokens=2, rows=2, length=40)
    assert re.search(r"--forget: texts longer than 40 tokens were cut, 1 into \d+ pieces", printed)
    assert "--forget: 1 further fields are not read: 'id'" in printed


def pieces(called: Called, folder: Path, before: Path, length: int | None = None) -> tuple[str, list[str], list[str]]:
    """What is printed of a long text to forget, and its pieces as two models read them."""
    (folder / "text.jsonl").write_text(json.dumps({"text": "The home of Ada is in Rome. " * 20}))
    (folder / "kept.jsonl").write_text(json.dumps({"text": "Oslo"}))
    rows = {"forget": folder / "text.jsonl", "retain": folder / "kept.jsonl"}
    status, printed, _ = called("evaluate", before=before, out=folder / "out", new_tokens=2, length=length, **rows)
    assert status == 0
    found = json.loads((folder / "out" / "evaluation.json").read_text())["models"]
    one, other = ([row["prompt"] for row in found[name]["rows"]["forget"]] for name in ("before", "model"))
    return printed, one, other


def test_models_that_hold_texts_of_different_length_read_the_same_pieces(called: Called, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    printed, before, after = pieces(called, tmp_path, tmp_path / "short")
    assert before == after
    assert len(before) > 3
    assert printed.count("forget, row") == 3


def test_pieces_that_one_model_lacks_are_not_shown(called: Called, folder: Path, tmp_path: Path) -> None:
    """Another tokenizer cuts a text elsewhere; the figures are of all pieces of each."""
    shutil.copytree(folder / "model", tmp_path / "other")
    words = [row["question"] for row in SETS["holdout"]] * 30
    models.train_tokenizer(words, 300).save_pretrained(tmp_path / "other")
    printed, before, after = pieces(called, tmp_path, tmp_path / "other", length=40)
    assert "forget, row" not in printed
    assert len(before) > len(after)


def test_evaluation_with_16_bit_weights(called: Called, tmp_path: Path) -> None:
    probabilities = []
    for name, options in (("wide", {}), ("narrow", {"bf16": True})):
        assert called("evaluate", out=tmp_path / name, new_tokens=2, **options)[0] == 0
        metrics = json.loads((tmp_path / name / "evaluation.json").read_text())["models"]["model"]["metrics"]
        probabilities.append(metrics["retain"]["probability"])
    assert probabilities[0] == pytest.approx(probabilities[1], rel=0.05)
    assert probabilities[0] != probabilities[1]


# What is refused, before a weight is read


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"forget": "no.jsonl"}, "--forget: 'no.jsonl' is missing"),
        ({"holdout": "no.csv"}, "--holdout: 'no.csv' is missing"),
        ({"model": "no/such/model"}, "--model: 'no/such/model' cannot be loaded"),
        ({"before": "no/such/model"}, "--before: 'no/such/model' cannot be loaded"),
        ({"rows": 0}, "--rows: found 0; give a number > 0"),
        ({"new_tokens": -1}, "--new-tokens: found -1; give a number > 0"),
        ({"length": 5}, r"forget.jsonl:1: \d+ tokens, more than --length 5 \(4 such rows"),
        ({"length": 5000}, "--length: found 5000; give at least 2 tokens, and at most what the model can hold, 1024"),
        ({"template": "alpaca"}, "--template: unknown template 'alpaca'"),
        ({"template": "chat"}, "--template: 'chat' needs a tokenizer with a chat template"),
        ({"rows": "many"}, "Invalid value for '--rows'"),
        ({"holdout": "forget"}, "forget.jsonl:1: the same row is in --forget, .*remove it from --holdout or --forget"),
        ({"holdout": "retain"}, "retain.jsonl:1: the same row is in --retain, .*remove it from --holdout or --retain"),
        ({"forget": "n" * 300}, "--forget: no file and no hub data set that can be loaded: 'nnn"),
        ({"forget": "n" * 300 + ".jsonl"}, "--forget: '.*' cannot be read [(]File name too long[)]"),
        ({"model": "n" * 300}, "--model: 'nnn.*' cannot be loaded"),
        ({"out": "n" * 300}, "--out: 'nnn.* has a name of more than 255 bytes; give a shorter one"),
        ({"forget": None}, "Missing option '--forget'"),
    ],
)
def test_evaluate_refuses(called: Called, changed: dict[str, object], message: str) -> None:
    sets = {name: called.folder / f"{value}.jsonl" for name, value in changed.items() if value in SETS}
    refused(called("evaluate", **changed | sets), message)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("words", "remedy"), [(300, "; give --length \\d+, or shorten or split them"), (3000, "[)]; shorten")])
def test_a_length_is_only_proposed_that_the_model_can_hold(called: Called, tmp_path: Path, words: int, remedy: str) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"question": "Who?", "answer": "lake " * words}))
    refused(called("evaluate", forget=tmp_path / "long.jsonl", length=100), remedy)


@pytest.mark.usefixtures("no_weights")
def test_folders_that_cannot_be_written(called: Called, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    refused(called("evaluate", out=tmp_path / "file"), "--out: '.*file' is a file; give a folder")
    refused(called("evaluate", out=tmp_path / "full"), "--out: '.*full' is not empty; give a new folder")
    refused(called("evaluate", out=tmp_path / "file" / "new"), "--out: '.*new' cannot be made")


def test_an_error_that_names_a_file_with_a_terminal_escape(called: Called, tmp_path: Path) -> None:
    (tmp_path / "bad\x1b[31m.jsonl").write_text(json.dumps({"text": ["\x1b[31m\n"]}))
    result = called("evaluate", forget=tmp_path / "bad\x1b[31m.jsonl")
    refused(result, r"bad\\x1b\[31m.jsonl:1: field 'text' must be a text")
    assert not acts_on_a_terminal(result[2])


def test_a_model_that_does_not_fit_is_one_line(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    def to(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("transformers.PreTrainedModel.to", to)
    refused(called("evaluate"), "--model: '.*model' does not fit into memory; give --bf16")


# Weights and code that are not trusted


def pickled(folder: Path, to: Path) -> Path:
    """The model of the folder with pickled weights."""
    to.mkdir()
    for path in (folder / "model").iterdir():
        if path.suffix != ".safetensors":
            (to / path.name).write_bytes(path.read_bytes())
    model = loading.load_model(folder / "model", torch.device("cpu"))
    torch.save(model.state_dict(), to / "pytorch_model.bin")
    return to


def test_pickled_weights_only_when_asked_for(called: Called, folder: Path, tmp_path: Path) -> None:
    model = pickled(folder, tmp_path / "pickled")
    message = "'.*pickled' has only pickled weights, which may run code of their own; give .*, or --allow-pickle"
    refused(called("evaluate", model=model), f"--model: {message}")
    refused(called("evaluate", before=model), f"--before: {message}")
    assert called("evaluate", model=model, allow_pickle=True, new_tokens=2, rows=1)[0] == 0


def test_a_folder_without_weights(called: Called, tmp_path: Path) -> None:
    refused(called("evaluate", model=tmp_path), "--model: '.*' holds no weights, no file [*].safetensors")


def test_code_of_the_model_only_when_asked_for(called: Called, folder: Path, tmp_path: Path) -> None:
    """A configuration that says where its code is; the code leaves a trace when it runs."""
    model, trace = tmp_path / "coded", tmp_path / "ran"
    model.mkdir()
    for path in (folder / "model").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "code.py").write_text(
        f"from transformers import PretrainedConfig\nopen({str(trace)!r}, 'w').close()\n"
        "class Own(PretrainedConfig):\n    model_type = 'own'\n"
    )
    message = "--model: '.*coded' brings Python code of its own, which is not run; give another model, or --trust-remote-code"
    refused(called("evaluate", model=model), message)
    assert not trace.exists()
    called("evaluate", model=model, trust_remote_code=True)
    assert trace.exists()
