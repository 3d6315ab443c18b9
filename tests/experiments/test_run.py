"""A whole run, small: what it leaves, that it is reproducible, and that an interruption costs one stage and changes nothing."""

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from rich.console import Console

from experiments import model_stages
from experiments.lm import models
from experiments.lm.pretrained import PRETRAINED_MODELS
from experiments.tofu import run as tofu_run
from experiments.tofu.bench_evaluation import compare
from experiments.tofu.run import TofuRun
from experiments.tofu.settings import Settings
from experiments.tofu.summary import summarize
from experiments.tofu.table import results_table
from ngdiff.errors import UserError
from ngdiff.lm import loading
from ngdiff.lm.batches import spread
from ngdiff.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "epochs": 1,
    "methods": ("ngdiff", "ga"),
    "rates": (1e-4, 1e-3),
    "steps": 2,
    "batch": 4,
    "new_tokens": 4,
    "eval_rows": 4,
}
TINY = models.Size(hidden=16, layers=1, heads=2, intermediate=32, vocabulary=512)


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.SIZES, "1m", TINY)


def run(folder: Path, **changes: Any) -> TofuRun:
    return TofuRun(Settings(**SMALL | changes), folder, Progress(Console(quiet=True)))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.SIZES, "1m", TINY)
        run(folder).run()
    return folder


def test_what_a_run_leaves(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.yaml", "results.json", "metrics.jsonl", "manifest.json", "report.html", "stages"}
    assert yaml.safe_load((finished / "config.yaml").read_text()) == Settings(**SMALL).as_dict()
    results = read(finished, "results.json")
    assert [model["name"] for model in results["models"]] == ["before", "retain-only", "ngdiff", "ga"]
    for model in results["models"]:
        assert {name: len(rows) for name, rows in model["rows"].items()} == dict.fromkeys(
            ("forget", "retain", "real_authors", "world_facts"), 4
        )
        assert 0 <= model["metrics"]["model_utility"] <= 1
        assert (model["metrics"]["forget_quality"] is None) == (model["name"] == "retain-only")
    manifest = read(finished, "manifest.json")
    assert manifest["versions"]["torch"]
    assert set(manifest["data_sha256"]) == {
        "forget10",
        "forget01",
        "forget10_perturbed",
        "holdout01",
        "real_authors_perturbed",
        "world_facts_perturbed",
        "refusals",
    }


def test_grid_keeps_the_best_rate(finished: Path) -> None:
    methods = {model["name"]: model["method"] for model in read(finished, "results.json")["models"] if model["method"]}
    assert methods["ngdiff"]["learning_rate"] == "auto"
    assert methods["ngdiff"]["tried"] == []
    tried = methods["ga"]["tried"]
    assert [trial["learning_rate"] for trial in tried] == [1e-4, 1e-3]
    assert methods["ga"]["learning_rate"] == max(tried, key=lambda trial: trial["score"])["learning_rate"]


def test_metrics_have_one_line_a_step(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(line["method"], line["step"]) for line in lines] == [("ngdiff", 0), ("ngdiff", 1), ("ga", 0), ("ga", 1)]
    # Equal batches: before the first step both methods see the same losses and gradients.
    for name in ("retain_loss", "forget_loss"):
        assert lines[0][name] == lines[2][name]
    # Beside a gradient of zeros, as GA's retain task has, the CPU sums in float64, and else in float32, within 4e-6: see
    # `ngdiff_kernels.cpu.gram`.
    assert lines[2]["norm_forget"] == pytest.approx(lines[0]["norm_forget"], rel=4e-6)
    assert (lines[2]["norm_retain"], lines[2]["cosine"]) == (None, None)  # which GA does not read
    assert lines[0]["c"] == pytest.approx(
        lines[0]["norm_forget"] / (lines[0]["norm_retain"] + lines[0]["norm_forget"]), rel=1e-12
    )


def test_two_runs_of_one_command_are_identical(finished: Path, tmp_path: Path) -> None:
    run(tmp_path).run()
    for name in ("results.json", "metrics.jsonl", "config.yaml"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name


def test_another_seed_gives_another_run(finished: Path, tmp_path: Path) -> None:
    run(tmp_path, seed=1).run()
    assert (tmp_path / "metrics.jsonl").read_bytes() != (finished / "metrics.jsonl").read_bytes()


def test_finished_run_computes_nothing_again(finished: Path) -> None:
    again = run(finished)
    before = (finished / "results.json").read_bytes()
    again.run()
    assert again.stages.computed == []
    assert (finished / "results.json").read_bytes() == before


@pytest.mark.parametrize("broken", ["finetune", "evaluate", "unlearn", "report"])
def test_interrupted_run_continues_at_the_first_unfinished_stage(
    broken: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a stage, then the same command."""

    def interrupt(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if broken == "report":
            patch.setattr(tofu_run.report, "render", interrupt)
        else:
            patch.setattr(tofu_run if broken == "evaluate" else model_stages, broken, interrupt)
        interrupted = run(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            interrupted.run()
    done = set(interrupted.stages.computed)
    assert not any(name.startswith(broken) for name in done) or broken == "report"
    assert not (tmp_path / "report.html").exists()
    continued = run(tmp_path)
    continued.run()
    assert done.isdisjoint(continued.stages.computed)
    assert (tmp_path / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


def test_every_published_method_runs_and_says_how_it_ended(tmp_path: Path) -> None:
    """Objectives that compare with the model before find it in the cache; nothing else is kept of it."""
    from experiments.lm.methods import ALL

    results = run(tmp_path, methods=("all",), rates=(1e-3,)).run()
    methods = {model["name"]: model["method"] for model in results["models"][2:]}
    assert list(methods) == list(ALL)
    for method in methods.values():
        assert method["steps"] == 2
        assert method["skipped_steps"] == 0
        assert method["stopped"] == {"reason": "steps", "restored_step": None}
    assert (methods["simnpo"]["forget"], methods["simnpo"]["rule"]) == ("simnpo", f"gdiff-{1 / 1.125}")
    assert (methods["kl"]["forget"], methods["kl"]["retain"]) == ("nll", "kl")
    # 324 retain rows for KL and again for RMU's activations; 40 forget rows for NPO, UNDIAL, and IdkDPO's refusals.
    (folder,) = (tmp_path / "reference").iterdir()
    assert len(list(folder.iterdir())) == 2 * 324 + 3 * 40
    again = run(tmp_path, methods=("all",), rates=(1e-3,))
    again.run()
    assert again.stages.computed == []


@pytest.mark.parametrize(
    ("changes", "reason", "steps", "restored"),
    [
        ({"stop_forget": "1"}, "forget probability at or below the target", 0, None),
        ({"stop_forget": "0"}, "steps", 2, None),
        ({"stop_forget": "0", "retain_budget": 100.0}, "steps", 2, None),
        ({"retain_budget": 1e-9}, "retain loss above the budget from the first check, nothing to restore", 0, None),
    ],
)
def test_stopping_criteria_end_a_run(tmp_path: Path, changes: Any, reason: str, steps: int, restored: int | None) -> None:
    results = run(tmp_path, methods=("ga@1e-9",), check_every=1, **changes).run()
    method = results["models"][-1]["method"]
    assert (method["stopped"]["reason"], method["steps"], method["stopped"]["restored_step"]) == (reason, steps, restored)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == steps
    assert reason in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("target", "model", "nll"), [("auto", 1, "nll_answer"), ("paraphrases", 0, "nll_right")])
def test_the_default_target_is_measured(
    target: str, model: int, nll: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forget probability of the retain-only model, or of the paraphrases before unlearning."""
    targets = []
    real = model_stages.StoppingCriteria
    monkeypatch.setattr(model_stages, "StoppingCriteria", lambda forget, budget: targets.append(forget) or real(forget, budget))
    results = run(tmp_path, methods=("ga@1e-9",), stop_forget=target).run()
    expected = fmean(math.exp(-row[nll]) for row in results["models"][model]["rows"]["forget"])
    assert set(targets) == {expected}


def test_a_budget_restores_the_best_weights(tmp_path: Path) -> None:
    """One step of ascent at a rate that destroys the model: the weights before it come back."""
    results = run(tmp_path, methods=("ga@1000",), retain_budget=8.0, check_every=1).run()
    before, _, after = results["models"]
    assert after["method"]["stopped"] == {
        "reason": "retain loss above the budget, best checkpoint restored",
        "restored_step": 0,
    }
    assert after["metrics"]["sets"] == before["metrics"]["sets"]


def test_every_metric_is_there(finished: Path) -> None:
    """Memorisation of both sets of authors, and attacks against the holdout; the retain-only model is held against chance."""
    names = {"exact_memorisation", "extraction_strength", "right_probability", "wrong_probability"}
    for model in read(finished, "results.json")["models"]:
        sets, privacy = model["metrics"]["sets"], model["metrics"]["privacy"]
        assert names | {"rouge_right", "rouge_wrong"} <= set(sets["forget"])
        assert names <= set(sets["retain"])
        assert not names & set(sets["world_facts"])
        attacks = {"loss", "zlib", "min_k", "min_k_plus", "gradient_norm"}
        assert set(privacy["auc"]) == attacks | ({"reference"} if model["kind"] != "reference" else set())
        assert all(0 <= value <= 1 for value in privacy["auc"].values())
    own = read(finished, "results.json")["models"][1]["metrics"]["privacy"]
    assert own["privleak"] == pytest.approx(100 * ((1 - own["auc"]["min_k"]) / 0.5 - 1), rel=1e-12)
    speed = read(finished, "manifest.json")["evaluation_tokens_per_second"]
    assert set(speed) == {"scoring", "generating"}
    assert min(speed.values()) > 0


def test_tofus_own_metrics_alone(finished: Path, tmp_path: Path) -> None:
    """They are the numbers among all metrics, but for roundings: batches hold other rows."""
    results = run(tmp_path, methods=("ngdiff",), metrics="tofu").run()
    everything = read(finished, "results.json")["models"]
    for mine, full in zip(results["models"], everything, strict=False):
        assert mine["metrics"]["privacy"] is None
        for name, found in mine["metrics"]["sets"].items():
            same = {key: full["metrics"]["sets"][name][key] for key in ("probability", "rouge", "truth_ratio", "rows")}
            assert found == pytest.approx(same, rel=1e-4)  # NLLs of about 6 nats in float32, over dozens of tokens


def test_the_state_that_was_best_is_the_one_evaluated(tmp_path: Path) -> None:
    """Ascent on the forget set destroys: the first look is best by retain probability, and results are those of that state."""
    watched = {"eval_every": 2, "eval_subset": 4, "steps": 6, "methods": ("ga@0.1",)}
    kept = run(tmp_path / "kept", **watched, keep_best="retain_probability").run()["models"][-1]
    method = kept["method"]
    assert [look["step"] for look in method["looks"]] == [2, 4, 6]
    best = max(method["looks"], key=lambda look: look["retain_probability"])
    assert method["kept"] == best["step"]
    assert method["kept"] != 6
    short = run(tmp_path / "short", steps=method["kept"], methods=("ga@0.1",)).run()["models"][-1]
    assert kept["metrics"] == short["metrics"]
    last = run(tmp_path / "last", **watched).run()["models"][-1]
    assert last["method"]["kept"] is None
    assert last["metrics"] != kept["metrics"]


def test_looks_are_at_rows_that_neither_steps_nor_the_evaluation_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as that can be: of the forget rows all are unlearned. Both are evenly spread, and the same for every method."""
    made, asked = run(tmp_path, eval_every=1, eval_subset=3), []
    monkeypatch.setattr(tofu_run, "monitor", lambda model, encoder, rows, *_: asked.append(rows))
    for _ in range(2):
        made._monitors(None)
    data = made.data
    assert asked == [{"forget": spread(data.forget, 3), "retain": spread(data.validation, 3)}] * 2
    assert len(asked[0]["retain"]) == 3
    others = [*data.retained, *data.evaluation["retain"]]
    assert not {row.question for row in asked[0]["retain"]} & {row.question for row in others}


def test_several_bases(tmp_path: Path) -> None:
    results = run(tmp_path, methods=("ngdiff",), bases=("sgd", "adamw", "momentum")).run()
    assert [model["name"] for model in results["models"][2:]] == ["ngdiff sgd", "ngdiff adamw", "ngdiff momentum"]


def test_pretrained_model_from_a_folder(finished: Path, tmp_path: Path) -> None:
    """A model folder that a run saved is a model folder like any other."""
    saved = next((finished / "stages").glob("finetune-all-*"))
    results = run(tmp_path / "out", model=str(saved), finetune_lr=1e-3, finetune_batch=8, methods=("ngdiff",)).run()
    assert [model["name"] for model in results["models"]] == ["before", "retain-only", "ngdiff"]


def test_models_that_are_given_are_not_made(finished: Path, tmp_path: Path) -> None:
    """From the two models of another run: the same results, and no fine-tuning."""
    all_rows, retain = (str(next((finished / "stages").glob(f"finetune-{name}-*"))) for name in ("all", "retain"))
    given = run(tmp_path / "out", model=all_rows, target=all_rows, retrained=retain, methods=("ngdiff",))
    models_of = given.run()["models"]
    before = read(finished, "results.json")["models"]
    assert [model["metrics"] for model in models_of[:2]] == [model["metrics"] for model in before[:2]]
    assert not any("finetune" in name for name in given.stages.computed)
    alone = run(tmp_path / "alone", model=all_rows, target=all_rows, methods=("ngdiff",)).run()
    assert [model["name"] for model in alone["models"]] == ["before", "ngdiff"]
    assert alone["models"][1]["metrics"]["forget_quality"] is None


def test_a_recipe_sets_steps_batch_and_schedule(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 forget rows are two batches of 32: ten epochs are 20 steps, the first one warms up, and the rate falls to the end."""
    saved = str(next((finished / "stages").glob("finetune-all-*")))
    known = replace(PRETRAINED_MODELS["phi-1.5"], model=saved)
    monkeypatch.setitem(PRETRAINED_MODELS, "phi-1.5", known)
    options = {"model": "Phi-1.5", "recipe": "open-unlearning", "methods": ("gdiff-0.5", "ngdiff"), "metrics": "tofu"}
    options |= {name: getattr(Settings, name) for name in ("steps", "batch", "rates")}  # as if they were not given
    results = run(tmp_path, target=saved, eval_rows=1, **options).run()
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    fixed = [step["lr"] for step in steps if step["method"] == "gdiff-0.5"]
    assert len(fixed) == 20
    assert fixed == pytest.approx(
        [1e-5 * known.unlearning["open-unlearning"].factor(step, 20) for step in range(20)], rel=1e-12
    )
    assert fixed[0] < fixed[1] == max(fixed) > fixed[-1] > 0
    assert results["models"][-1]["method"]["learning_rate"] == "auto"


def test_general_ability_goes_into_the_results(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(tofu_run.general_ability, "check", lambda tasks, folder: asked.append((tasks, folder)))
    found = {"trivia": {"acc": 0.25}}
    monkeypatch.setattr(tofu_run.general_ability, "general_ability", lambda *_: found)
    results = run(tmp_path, methods=("ngdiff",), general_ability=("trivia",)).run()
    assert asked == [(("trivia",), None)]
    assert [model["metrics"]["general_ability"] for model in results["models"]] == [found] * 3


def copied(finished: Path, folder: Path, **config: Any) -> Path:
    """A copy of a saved model, with entries of its configuration changed."""
    saved = next((finished / "stages").glob("finetune-all-*"))
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps(read(folder, "config.json") | config))
    return folder


def refuse_model(model: Path, folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(folder / "out", model=str(model))
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


def test_model_whose_vocabulary_does_not_fit(finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "model")
    models.build_llama(TINY, models.train_tokenizer(["a"], 300)).save_pretrained(folder)
    refuse_model(folder, tmp_path, r"has 512 tokens and the model embeds \d+; give")


def test_model_with_missing_weights(finished: Path, tmp_path: Path) -> None:
    refuse_model(
        copied(finished, tmp_path / "model", num_hidden_layers=2), tmp_path, r"lacks \d+ weights, such as model\.layers\.1"
    )


@pytest.mark.parametrize(
    "config", [{"vocab_size": 300}, {"vocab_size": "many"}, {"num_attention_heads": 0}, {"model_type": "x"}]
)
def test_model_that_cannot_be_loaded(finished: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    refuse_model(copied(finished, tmp_path / "model", **config), tmp_path, "--model: .* cannot be loaded")


def test_cut_weights(finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refuse_model(folder, tmp_path, "--model: .* cannot be loaded")


def test_other_weights_in_the_same_folder_are_another_model(finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "model")
    first = loading.identity(str(folder))
    models.build_llama(TINY, loading.load_tokenizer(folder)).save_pretrained(folder)
    assert loading.identity(str(folder)) != first


def test_row_longer_than_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.SIZES, "1m", models.Size(16, 1, 2, 32, 512, positions=60))
    with pytest.raises(UserError, match=r"row \d+: needs \d+ tokens, the model has 60 positions"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_non_finite_gradient_is_counted_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ngdiff.lm.objectives import TaskLoss

    calls = []
    real = TaskLoss.backward

    def poisoned(task: TaskLoss, numbers: Any) -> Any:
        loss = real(task, numbers)
        calls.append(loss)
        if len(calls) == 2:  # the forget task of the first step
            next(task.model.parameters()).grad[0] = float("nan")
        return loss

    monkeypatch.setattr(TaskLoss, "backward", poisoned)
    results = run(tmp_path, methods=("ngdiff",)).run()
    assert results["models"][-1]["method"]["skipped_steps"] == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["finite"] for line in lines] == [False, True]
    assert "skipped" in (tmp_path / "report.html").read_text().lower()
    with (console := Console(width=100)).capture() as shown:
        console.print(results_table(results))
    assert "steps skipped as not finite: ngdiff 1" in shown.get()


def command(*options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "NO_COLOR": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # no attempts to reach the hub; tiny tensors
    return subprocess.run(
        [sys.executable, "-m", "experiments", "tofu", *options], cwd=cwd, env=environment, capture_output=True, text=True
    )


def used_folder(folder: Path) -> list[str]:
    (folder / "used").mkdir()
    (folder / "used" / "thesis.tex").write_text("precious")
    return ["--out", "used"]


def other_run(folder: Path) -> list[str]:
    (folder / "other").mkdir()
    (folder / "other" / "config.yaml").write_text(yaml.safe_dump(Settings(seed=3).as_dict()))
    return ["--out", "other"]


def a_file(folder: Path) -> list[str]:
    (folder / "file").write_text("")
    return ["--out", "file"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--preset", "big"], "--preset: unknown value 'big'; choose one of mini"),
        (["--size", "7b"], "--size: unknown value '7b'; choose one of 1m"),
        (["--methods", "ngdif"], "unknown name 'ngdif'; choose one of aligned-mtl"),
        (["--methods", "gdiff-1.5"], "c = 1.5 is outside [0, 1]"),
        (["--methods", "ga@fast"], "'ga@fast' has 'fast' where a learning rate"),
        (["--methods", "ga,ga"], "with a repetition"),
        (["--methods", "gdiff,gdiff-0.5"], "'gdiff-0.5' is the same as another one"),
        (["--methods", ""], "--methods: found none"),
        (["--bases", ""], "--bases: found none"),
        (["--bases", "lion"], "--bases: unknown value 'lion'; choose one of sgd"),
        (["--rates", "1e-4,x"], "--rates: found 'x'"),
        (["--rates", "-1"], "--rates: found -1.0"),
        (["--methods", "npo:ngdif"], "unknown name 'ngdif'"),
        (["--methods", "pno:ngdiff"], "'pno:ngdiff' has 'pno' as forget objective; choose one of nll, npo"),
        (["--methods", "npo+kll:ngdiff"], "has 'kll' as retain objective; choose one of nll, kl, activations"),
        (["--methods", "ngdiff@auto:0"], "'ngdiff@auto:0' has 'auto:0' where a learning rate"),
        (["--methods", "npo,npo:gdiff-0.5"], "'npo:gdiff-0.5' is the same as another one"),
        (["--methods", "npo,npo@1e-4"], "'npo@1e-4' is the same as another one"),
        (["--stop-forget", "soon"], "--stop-forget: found 'soon'; give a probability from 0 to 1, or auto or paraphrases"),
        (["--stop-forget", "2"], "--stop-forget: found '2'; give a probability"),
        (["--retain-budget", "0"], "--retain-budget: found 0.0; give a loss > 0"),
        (["--check-every", "0"], "--check-every: found 0; give a whole number >= 1"),
        (["--steps", "0"], "--steps: found 0; give a whole number >= 1"),
        (["--steps", "many"], "'--steps': "),
        (["--seed", "-1"], "--seed: found -1"),
        (["--template", "alpaca"], "--template: unknown template 'alpaca'; choose one of auto"),
        (["--template", "chat"], "--template: 'chat' needs a tokenizer with a chat template"),
        (["--data", "no\x1b[31mwhere"], "is not a folder; give"),
        (["--model", "missing-folder/x"], "--model: 'missing-folder/x' cannot be loaded"),
        (["--colour", "red"], "--colour"),
        (used_folder, "--out: 'used' is not empty and holds no run; give"),
        (other_run, "--out: 'other' holds another run, with seed = 3 and not 0; give"),
        (a_file, "--out: 'file' is a file; give a folder"),
        (["--out", "x" * 300], "cannot be used"),
        (["--data", "x" * 300], "is not a folder"),
        (["--out", "/proc/ngdiff"], "--out: '/proc/ngdiff' cannot be"),
    ],
)
def test_bad_input_is_one_line_and_status_2(options: Any, found: str, tmp_path: Path) -> None:
    arguments = options(tmp_path) if callable(options) else options
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert found in done.stderr
    assert "\x1b" not in done.stderr
    assert done.stdout == ""
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_summary_puts_runs_side_by_side(finished: Path, tmp_path: Path) -> None:
    rows = summarize([finished], tmp_path)
    written = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert [row["method"] for row in written] == ["before", "retain-only", "ngdiff", "ga"]
    assert [row["rates_tried"] for row in written] == ["", "", "1", "2"]
    models_ = read(finished, "results.json")["models"]
    for row, model in zip(rows, models_, strict=True):
        before, after = (m["metrics"]["sets"]["retain"]["probability"] for m in (models_[0], model))
        assert row["retain_kept"] == after / before
        assert row["forget_rouge_wrong"] == model["metrics"]["sets"]["forget"]["rouge_wrong"]
        privacy = model["metrics"]["privacy"]
        found = {name.removeprefix("auc_"): value for name, value in row.items() if name.startswith("auc_")}
        assert {name: value for name, value in found.items() if value is not None} == privacy["auc"]
        assert row["privleak"] == privacy["privleak"]
    assert read(tmp_path, "manifests.json")[str(finished)] == read(finished, "manifest.json")
    assert (tmp_path / "tradeoff.png").stat().st_size > 5000
    assert (tmp_path / "pareto.png").stat().st_size > 5000
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| before", "| retain-only", "| ngdiff", "| ga"]


def test_summary_refuses_what_cannot_stand_in_one_table(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found ngdiff adamw twice for seed 0; give each run once"):
        summarize([finished, finished], tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("results.json", "manifest.json"):
        (other / name).write_text((finished / name).read_text().replace('"preset": "mini"', '"preset": "forget10"'))
    with pytest.raises(UserError, match="found runs of synthetic forget10 and synthetic mini; give those of one data set"):
        summarize([finished, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bases_of_one_seed_share_their_start(finished: Path, tmp_path: Path) -> None:
    run(tmp_path / "sgd", bases=("sgd",)).run()
    rows = summarize([finished, tmp_path / "sgd"], tmp_path / "out")
    assert [row["method"] for row in rows] == ["before", "retain-only", "ngdiff", "ga", "ngdiff", "ga"]


def test_the_comparison_of_all_methods_gives_each_a_grid() -> None:
    trials = Settings(methods=("all",)).trials()
    assert {name: len(found) for name, found in trials.items() if len(found) != 3} == dict.fromkeys(
        ("ngdiff", "npo:ngdiff", "simnpo:ngdiff"), 1
    )
    assert [method.lr for method in Settings(methods=("all",), rates=(1e-5,)).trials()["npo"]] == [1e-5]
    assert [method.lr for method in Settings(methods=("npo",)).trials()["npo"]] == [1e-4]


def test_summary_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run .*; give output folders"):
        summarize([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_method_with_a_base_of_its_own(tmp_path: Path) -> None:
    """It is tried once, whatever the other bases are, and its name, which has a slash, is no folder."""
    results = run(tmp_path, methods=("ngdiff/sgd", "ga@1e-4"), bases=("adamw", "sgd"), metrics="tofu").run()
    found = [(model["name"], model["method"]["base"]) for model in results["models"][2:]]
    assert found == [("ngdiff/sgd", "sgd"), ("ga@1e-4 adamw", "adamw"), ("ga@1e-4 sgd", "sgd")]


def test_bench_compares_row_by_row(tmp_path: Path) -> None:
    """Three ways in alternation; the plain loop agrees with the batches, and a loop that does not is seen."""
    told: list[str] = []
    found = compare(run(tmp_path, new_tokens=6, eval_rows=3), 2, told.append)
    assert {name: len(values) for name, values in found["seconds"].items()} == {
        "batched, TOFU's metrics": 2,
        "batched, all metrics": 2,
        "one row at a time": 2,
    }
    assert len(told) == 6
    assert found["compared"] == 12
    assert found["equal_generations"] == 12
    # Means of float32 log-probabilities of order 10: a few units of 1e-6.
    assert found["largest_difference_of_nll"] < 1e-4
    assert json.loads((tmp_path / "bench.json").read_text())["speedup"] == found["speedup"]
