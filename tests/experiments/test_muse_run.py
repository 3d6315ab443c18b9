"""A whole MUSE run, small: what it leaves, which states it shows, what its folds unlearn, what an interruption costs."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from html import unescape
from io import StringIO
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from experiments import model_stages
from experiments.cli import main
from experiments.lm import methods, models
from experiments.lm.pretrained import MUSE_MODELS
from experiments.muse import evaluate as muse_evaluate
from experiments.muse import run as muse_run
from experiments.muse import synthetic
from experiments.muse.metrics import Written
from experiments.muse.run import MuseRun
from experiments.muse.settings import Settings
from experiments.muse.summary import summarize
from experiments.muse.table import results_table
from ngdiff.errors import UserError
from ngdiff.files import read_json
from ngdiff.lm.encoding import Example
from ngdiff.lm.packing import encode_text, packed
from ngdiff.progress import Progress
from ngdiff.rules import _registry

TINY = models.Size(hidden=16, layers=1, heads=2, intermediate=32, vocabulary=400)
SMALL = {"epochs": 1, "length": 64, "unlearn_epochs": 2, "batch": 8, "methods": ("ngdiff", "ga"), "fold_methods": ("ngdiff",)}
RULE = """
import torch
from ngdiff import rules
from ngdiff.gram import Coefficients

@rules.register("half-and-half")
class HalfAndHalf(rules.Rule):
    def __call__(self, gram, losses=None):
        return Coefficients(torch.full_like(gram.retain, 0.5), torch.full_like(gram.forget, 0.5))
"""
COUNTS = {"raw": 8, "verbmem": 4, "knowmem": 6, "privleak": 6}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of the generator, as a folder of files: eight texts a split, folds of two, four, six and eight."""
    folder = tmp_path_factory.mktemp("corpus")
    splits = {"raw": ("forget", "retain1", "retain2", "holdout"), "verbmem": ("forget",)}
    splits |= {
        "privleak": ("forget", "retain", "holdout", "validation"),
        "knowmem": ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl"),
    }
    for config, names in splits.items():
        for name in names:
            write(folder, config, name, synthetic.rows(config, name)[: COUNTS[config]])
    forget = synthetic.rows("raw", "forget")[:8]
    for i in range(1, 5):
        write(folder, "scal", f"forget_{i}", forget[: 2 * i])
        write(folder, "sust", f"forget_{i}", forget[2 * i - 2 : 2 * i])
    return folder


def write(folder: Path, config: str, split: str, rows: list[dict[str, str]]) -> None:
    (folder / config).mkdir(exist_ok=True)
    (folder / config / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(monkeypatch)


def make_tiny(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(models.SIZES, "1m", TINY)
    patch.setattr(muse_evaluate, "PASSAGE_TOKENS", 6)
    patch.setattr(muse_evaluate, "ANSWER_TOKENS", 3)


def run(folder: Path, corpus: Path, **changes: Any) -> MuseRun:
    return MuseRun(Settings(**{"data": str(corpus)} | SMALL | changes), folder, Progress(Console(quiet=True)), jobs=1)


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("muse") / "run"
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        run(folder, corpus).run()
    return folder


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def test_what_a_run_leaves(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.yaml", "results.json", "metrics.jsonl", "manifest.json", "report.html", "stages"}
    found = results(finished)
    assert [(model["name"], model["kind"]) for model in found["models"]] == [
        ("target", "start"),
        ("retrained", "reference"),
        ("ngdiff", "method"),
        ("ga", "method"),
    ]
    for model in found["models"]:
        assert {name: len(rows) for name, rows in model["rows"].items()} == {"passages": 4, "forget": 6, "seen": 6}
        assert (model["metrics"]["privleak"] is None) == (model["kind"] == "reference")
        assert {"knowmem_zero_shot", "knowmem_kept_shots", "utility_zero_shot"} < set(model["metrics"])
    manifest = json.loads((finished / "manifest.json").read_text())
    assert set(manifest["evaluation_tokens_per_second"]) == {"scoring", "generating"}
    assert manifest["data_sha256"]["raw/forget"]
    assert 0 < manifest["stage_seconds"] <= manifest["wall_seconds"]  # in one process
    page = (finished / "report.html").read_text()
    assert "Scalability" in page
    assert "<script" not in page


def test_all_states_of_a_method(finished: Path) -> None:
    """The first epoch at or below the retrained model's KnowMem, the first look with the attack at chance, the last usable one
    until then, and the last one.
    """
    found = results(finished)
    level, use = found["models"][1]["metrics"]["knowmem"], 0.9 * found["models"][0]["metrics"]["utility"]
    for model in found["models"][2:]:
        looks = model["method"]["looks"]
        epoch, steps = looks["knowledge"][0]["step"], model["method"]["steps"]
        assert [look["step"] for look in looks["knowledge"]] == [epoch, 2 * epoch] == [epoch, steps]
        last = looks["balance"][-1]["step"]
        assert [look["step"] for look in looks["balance"]] == list(range(1, last + 1))  # an epoch has fewer than 12 steps
        assert last == steps or model["stopped"]  # no look is taken that would say nothing new
        assert looks["knowledge"][-1]["knowmem"] == pytest.approx(model["metrics"]["knowmem"], rel=1e-12)
        usable = [look for look in looks["balance"] if look["utility"] >= use]
        expected = {
            "selected": next((look for look in looks["knowledge"] if look["knowmem"] <= level), None),
            "usable": usable[-1] if usable else None,
            "stopped": next((look for look in looks["balance"] if look["auc"] <= 0.5), None),
        }
        for state, look in expected.items():
            assert (model[state] or {"epoch": None})["epoch"] == (look and look["step"] / epoch)
        for state, name in (("selected", "knowmem"), ("usable", "utility"), ("stopped", "utility")):
            if model[state]:
                assert model[state]["metrics"][name] == pytest.approx(expected[state][name], rel=1e-12)
    assert any(model["stopped"] for model in found["models"][2:])


def test_the_usable_state_is_the_last_one_with_nine_tenths_of_the_utility(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten looks, the last of which is not taken: the fourth is the last before utility is lost, the sixth is a comeback."""
    utility = [1.0, 0.8, 0.89, 0.9, 0.5, 0.91, 0.7, 0.2, 0.9]
    looks: list[int] = []

    def balance(self: MuseRun, model: Any) -> dict[str, float]:
        looks.append(0)
        return {"auc": 0.5 if len(looks) == 8 else 0.9, "utility": utility[len(looks) - 1]}

    class Known:
        seen = (type("Row", (), {"f1": 1.0}),)

    monkeypatch.setattr(MuseRun, "_balance", balance)
    made, model = run(tmp_path, corpus), models.build_llama(TINY, run(tmp_path, corpus).tokenizer)
    monkeypatch.setattr(made, "begun", lambda name: (tmp_path, Known))
    monitor = made._monitors(0.0, 6)["balance"]
    for step in range(11):
        monitor(model, step, 10)
    assert monitor.kept == {"usable": 6, "stopped": 8}


def test_a_stopped_state_is_that_of_its_step(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look after every step, and chance at the last one of the first epoch: where a run of one epoch ends."""
    looks: list[int] = []

    def balance(self: MuseRun, model: Any) -> dict[str, float]:
        looks.append(0)
        return {"auc": 0.5 if len(looks) == 5 else 0.9, "utility": 0.0}

    monkeypatch.setattr(MuseRun, "_balance", balance)
    ga = {"methods": ("ga",), "fold_methods": ()}
    found = run(tmp_path / "two", corpus, **ga).run()["models"][2]
    assert (found["stopped"]["epoch"], len(looks)) == (1.0, 5)
    run(tmp_path / "one", corpus, unlearn_epochs=1, **ga).run()
    kept, last, short = (
        load_file(next((tmp_path / name / "stages").glob(f"unlearn-*/{where}model.safetensors")))
        for name, where in (("two", "stopped/"), ("two", ""), ("one", ""))
    )
    assert all(torch.equal(kept[name], short[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)


def test_the_attack_that_stops_reads_other_texts_than_the_evaluation(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, read = run(tmp_path, corpus), []
    monkeypatch.setattr(muse_run, "min_k", lambda reader, texts: read.append(texts) or [0.0])
    monkeypatch.setattr(muse_run, "answered", lambda reader, knowledge: ([Written("", "", "", 0.25, 0.0)], 0))
    assert made._balance(None) == {"auc": 0.5, "utility": 0.25}
    assert read == [made.data.members["forget"], made.data.validation]
    assert not set(made.data.validation) & set(made.data.members["holdout"])


def test_where_no_rule_is_met_no_state_is_kept(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muse_run, "fmean", lambda values: fmean(values) - 2)  # the level is then below every KnowMem
    monkeypatch.setattr(MuseRun, "_knowledge", lambda self, model: {"knowmem": 0.5})
    monkeypatch.setattr(MuseRun, "_balance", lambda self, model: {"auc": 0.51, "utility": -2.0})
    found = run(tmp_path, corpus, fold_methods=()).run()
    assert all(model[state] is None for model in found["models"] for state in ("selected", "usable", "stopped"))
    assert found["folds"] == []
    console = Console(record=True, width=100, file=StringIO())
    console.print(results_table(found))
    for printed in (console.export_text(), unescape((tmp_path / "report.html").read_text())):
        text = " ".join(printed.split())
        assert "KnowMem is above the retrained model's after every epoch: ngdiff, ga." in text
        assert "Utility is below nine tenths of the target's at every look: ngdiff, ga." in text
        assert "The attack's AUC is above one half at every look: ngdiff, ga." in text


def test_without_validation_texts_no_state_is_stopped(corpus: Path, tmp_path: Path) -> None:
    plain = tmp_path / "corpus"
    shutil.copytree(corpus, plain)
    (plain / "privleak" / "validation.jsonl").unlink()
    found = run(tmp_path / "run", plain, fold_methods=(), methods=("ga",)).run()
    assert [set(model["method"]["looks"]) for model in found["models"][2:]] == [{"knowledge"}]
    assert found["models"][2]["stopped"] is found["models"][2]["usable"] is None
    assert "stopped" not in (tmp_path / "run" / "report.html").read_text()
    summarize([tmp_path / "run"], tmp_path / "summary")
    assert {path.name for path in (tmp_path / "summary").iterdir()} == {"runs.csv", "manifests.json"}


def test_runs_of_an_earlier_version_are_refused_in_a_summary(finished: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    found = results(finished)
    for model in found["models"]:
        del model["usable"]
    (old / "results.json").write_text(json.dumps(found))
    shutil.copy(finished / "manifest.json", old)
    with pytest.raises(UserError, match="old: of an earlier version, which kept other states; run it again"):
        summarize([finished, old], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folds_unlearn_more_at_once_or_one_after_the_other(finished: Path) -> None:
    points = results(finished)["folds"]
    assert [(p["kind"], p["fold"], p["texts"]) for p in points] == [
        (kind, fold, 2 * fold) for kind in ("scalability", "sustainability") for fold in (1, 2, 3, 4)
    ]
    # All nested texts are the forget set: the same run, which is not computed twice.
    method = next(model for model in results(finished)["models"] if model["name"] == "ngdiff")
    assert points[3]["metrics"] == method["metrics"]
    assert points[0]["metrics"] == points[4]["metrics"]  # the first of both kinds is one set of texts
    runs = {path.name: read_inputs(path) for path in (finished / "stages").glob("fold-*")}
    target = next((finished / "stages").glob("train-target-*")).name
    from_target = [name for name, inputs in runs.items() if inputs["start"] == target]
    assert (len(from_target), len(runs)) == (3, 6)  # folds 1 to 3, and three more of the disjoint ones after the first
    chain = {inputs["start"]: name for name, inputs in runs.items() if inputs["start"] != target}
    first = next(name for name in from_target if name in chain)
    assert chain[chain[chain[first]]] in runs
    assert len({runs[name]["rows"] for name in (first, *chain.values())}) == 4


def read_inputs(path: Path) -> Any:
    return json.loads((path / "stage.json").read_text())["inputs"]


def stages_of(folder: Path, prefix: str) -> str:
    return next(path.name for path in (folder / "stages").iterdir() if path.name.startswith(prefix))


def test_two_runs_of_one_command_are_identical(finished: Path, corpus: Path, tmp_path: Path) -> None:
    run(tmp_path, corpus).run()
    for name in ("results.json", "metrics.jsonl", "config.yaml"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name


def test_summary_has_all_states_and_the_folds(finished: Path, tmp_path: Path) -> None:
    rows = summarize([finished], tmp_path)
    written = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert [(row["model"], row["state"]) for row in written] == [(row["model"], row["state"]) for row in rows]
    models_ = results(finished)["models"]
    states = ("selected", "usable", "stopped")
    assert len(rows) == len(models_) + sum(model[state] is not None for model in models_ for state in states)
    assert float(written[0]["knowmem"]) == models_[0]["metrics"]["knowmem"]
    folds = list(csv.DictReader((tmp_path / "folds.csv").read_text().splitlines()))
    assert [int(row["texts"]) for row in folds] == [2, 4, 6, 8] * 2
    looks = list(csv.DictReader((tmp_path / "looks.csv").read_text().splitlines()))
    seen = [(m["name"], look) for m in models_[2:] for look in m["method"]["looks"]["balance"]]
    assert [(row["method"], float(row["auc"]), float(row["utility"])) for row in looks] == [
        (name, look["auc"], look["utility"]) for name, look in seen
    ]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("folds.png", "paths.png"))
    with pytest.raises(UserError, match="no finished run of MUSE"):
        summarize([tmp_path], tmp_path / "other")


@pytest.mark.parametrize("broken", ["finetune", "evaluate", "unlearn"])
def test_an_interrupted_run_continues(
    broken: str, finished: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(muse_run if broken == "evaluate" else model_stages, broken, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, corpus).run()
    run(tmp_path, corpus).run()
    assert (tmp_path / "results.json").read_bytes() == (finished / "results.json").read_bytes()


def test_models_that_are_given_are_not_trained(finished: Path, corpus: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """By folder, and by the word that stands for the benchmark's own."""
    given = {name: str(finished / "stages" / stages_of(finished, f"train-{name}")) for name in ("target", "retrained")}
    options = {"model": given["target"], "length": 64, "batch": 8, "fold_methods": (), "methods": ("ga@1e-4",)}
    first = run(tmp_path / "a", corpus, **options, **given).run()
    assert first["models"][0]["metrics"] == results(finished)["models"][0]["metrics"]
    monkeypatch.setitem(MUSE_MODELS, "news", type(MUSE_MODELS["news"])(**given))
    published = run(tmp_path / "b", corpus, **options, target="published", retrained="published").run()
    assert [model["metrics"] for model in published["models"]] == [model["metrics"] for model in first["models"]]


@pytest.mark.parametrize("both", [False, True])
def test_the_tokenizer_knows_what_no_model_sees_too(corpus: Path, tmp_path: Path, both: bool) -> None:
    """Else words of these alone would break into more pieces, which an attack takes for membership. In the generator's corpus
    the validation texts are in the holdout too, and count once.
    """
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    held_out, validation = synthetic.rows("raw", "holdout")[: COUNTS["raw"]], synthetic.rows("privleak", "validation")
    validation = validation[: COUNTS["privleak"]]
    write(folder, "raw", "holdout", held_out + validation if both else held_out)
    made = run(tmp_path / "run", folder)
    texts = [text.text for part in (made.data.forget, made.data.retain, made.data.seen) for text in part]
    texts += [row["text"] for row in held_out + validation]
    assert made.tokenizer.get_vocab() == models.train_tokenizer(texts, TINY.vocabulary).get_vocab()
    assert made.tokenizer.get_vocab() != models.train_tokenizer(texts[:-6], TINY.vocabulary).get_vocab()


def test_unlearning_sees_rows_of_the_asked_length(corpus: Path, tmp_path: Path) -> None:
    made = run(tmp_path, corpus, length=40)
    rows = made._rows(made.data.forget)
    assert max(len(row.ids) for row in rows) <= 40
    words = torch.tensor([len(made.tokenizer(text.text)["input_ids"]) + 1 for text in made.data.forget])
    assert sum(len(row.ids) for row in rows) >= int(words.sum()) - len(rows)  # at most a lone last token a text is left out


def test_every_stage_sees_the_texts_that_it_should(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target learns all splits but the holdout, the retrained model all of these but the forget texts; unlearning keeps the
    first half of the others, so that the utility is of texts that it has not seen.
    """
    made, learnt = run(tmp_path, corpus), {}
    monkeypatch.setattr(MuseRun, "_evaluate", lambda self, name, folder: None)
    stages = made.model_stages
    monkeypatch.setattr(stages, "initial", lambda size: tmp_path)
    monkeypatch.setattr(stages, "finetuned", lambda name, start, rows, *_: learnt.update({name: rows}) or tmp_path)
    monkeypatch.setattr(stages, "unlearned", lambda start, rows, *_: learnt.update(unlearn=rows()) or tmp_path)
    made.begun("target")
    made.begun("retrained")
    made._unlearned(tmp_path, made.data.forget, Settings().chosen()["ga"], None)

    def rows(*splits: str) -> list[Example]:
        texts = [row["text"] for split in splits for row in synthetic.rows("raw", split)[: COUNTS["raw"]]]
        return packed([encode_text(made.tokenizer, text) for text in texts], 64)

    assert learnt["train-target"] == rows("forget", "retain1", "retain2")
    assert learnt["train-retrained"] == rows("retain1", "retain2")
    assert (learnt["unlearn"].forget, learnt["unlearn"].retain) == (rows("forget"), rows("retain1"))


def test_the_first_method_unlearns_the_folds_unless_others_are_named() -> None:
    assert Settings().folded == Settings().methods[:1]
    assert Settings(methods=("ga", "ngdiff")).folded == ("ga",)
    assert Settings(methods=("ga", "ngdiff"), fold_methods=("ngdiff",)).folded == ("ngdiff",)
    assert Settings(fold_methods=()).folded == ()


def test_retain_rows_are_as_many_as_the_default_or_as_asked_for(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings().batches == (3, 9)
    assert Settings(batch=5).batches == (5, 15)
    assert Settings(batch=5, retain_batch=3).batches == (5, 3)
    assert Settings(model="m").batches == (32, 32)
    assert [Settings().row_length, Settings(model="m").row_length, Settings(model="m", length=64).row_length] == [192, 2048, 64]
    assert [Settings().passes, Settings(model="m").passes, Settings(unlearn_epochs=4).passes] == [9, 10, 4]
    made, seen = run(tmp_path, corpus, batch=2, retain_batch=5), []
    monkeypatch.setattr(made.model_stages, "unlearned", lambda *arguments: seen.append(arguments[3]) or tmp_path)
    made._unlearned(tmp_path, made.data.forget, Settings().chosen()["ga"], None)
    assert (seen[0].batch, seen[0].retain_batch) == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus", "poems"], "--corpus: unknown value 'poems'; choose one of news, books"),
        (["--methods", "idknll"], "--methods: 'idknll' teaches refusals"),
        (["--methods", "ga,ga"], "--methods: found ga,ga, with a repetition"),
        (["--methods", ""], "--methods: found none"),
        (["--methods", "ga", "--fold-methods", "ngdiff"], "--fold-methods: 'ngdiff' is not among --methods"),
        (["--retain-batch", "0"], "--retain-batch: found 0; give a whole number >= 1"),
        (["--length", "1"], "--length: found 1; give a whole number >= 2"),
        (["--length", "4096"], "--length: found 4096, the model has 1024 positions"),
        (["--rate", "0"], "--rate: found 0.0; give a learning rate > 0"),
        (["--target", "x"], "--target, --retrained: found one of the two"),
        (["--target", "x", "--retrained", "y"], "--target: found without --model"),
        (["--data", "nowhere"], "--data: 'nowhere' is not a folder"),
        (["--corpus", "books"], "the built-in generator has 'news' alone"),
        (["--seed", "-1"], "--seed: found -1"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["experiments", "muse", "--out", str(out), *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_prompts_that_do_not_fit_are_refused(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "positions", lambda source, size: 70)
    monkeypatch.setattr(muse_run, "PASSAGE_TOKENS", 69)
    with pytest.raises(UserError, match="tokens, the model has 70 positions; shorten the prompt"):
        run(tmp_path, corpus)


def test_other_prompts_have_no_examples_or_those_of_kept_texts(corpus: Path, tmp_path: Path) -> None:
    data = run(tmp_path, corpus).data
    found = muse_evaluate.other_prompts(data)
    assert {name: (k.evaluated, k.shots) for name, k in found.items()} == {
        "knowmem_zero_shot": (data.forget_knowledge.evaluated, ()),
        "knowmem_kept_shots": (data.forget_knowledge.evaluated, data.seen_knowledge.shots),
        "utility_zero_shot": (data.seen_knowledge.evaluated, ()),
    }
    assert data.seen_knowledge.shots != data.forget_knowledge.shots
    question = data.forget_knowledge.evaluated[0]
    assert muse_evaluate.asked(found["knowmem_zero_shot"], question) == f"Question: {question.question}\nAnswer:"


def test_other_prompts_that_do_not_fit_are_refused(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(tmp_path, corpus)
    own = (made.data.forget_knowledge, made.data.seen_knowledge)
    limit = max(len(made.tokenizer(muse_evaluate.asked(k, row))["input_ids"]) for k in own for row in k.evaluated) + 1 + 3
    monkeypatch.setattr(models, "positions", lambda source, size: limit)
    monkeypatch.setattr(muse_run, "ANSWER_TOKENS", 3)
    monkeypatch.setattr(muse_run, "PASSAGE_TOKENS", 0)
    made._check_lengths()
    longer = replace(made.data.seen_knowledge, shots=made.data.seen_knowledge.shots * 3)
    monkeypatch.setattr(muse_run, "other_prompts", lambda data: {"knowmem_kept_shots": longer})
    with pytest.raises(UserError, match=f"tokens, the model has {limit} positions; shorten the prompt"):
        made._check_lengths()


def test_all_methods_are_the_published_ones_that_read_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Caught:
        def __init__(self, settings: Settings, *_: Any):
            asked.append(settings.methods)
            raise UserError("enough")

    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(muse_run, "MuseRun", Caught)
    monkeypatch.setattr(sys, "argv", ["experiments", "muse", "--methods", "all"])
    with pytest.raises(SystemExit):
        main()
    assert asked == [tuple(name for name in methods.ALL if not name.startswith("idk"))]


def test_the_first_look_at_or_below_the_level_is_kept() -> None:
    kept: dict[str, float] | None = None
    found = []
    for value in (0.5, 0.31, 0.3, 0.1):
        look = {"knowmem": value}
        if muse_run._first_down_to("knowmem", 0.3, look, kept):
            kept = look
        found.append(kept)
    assert found == [None, None, {"knowmem": 0.3}, {"knowmem": 0.3}]


def test_prompts_begin_as_texts_do_and_are_not_ended(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = run(tmp_path, corpus), []
    monkeypatch.setattr(muse_evaluate, "greedy", lambda model, ids, *_: seen.extend(ids) or [[] for _ in ids])
    muse_evaluate.continued(made._reader(None), made.data.passages)
    muse_evaluate.answered(made._reader(None), made.data.forget_knowledge)
    begin, end = made.tokenizer.bos_token_id, made.tokenizer.eos_token_id
    assert len(seen) == 10
    for ids in seen:
        assert (ids[0], ids.count(begin), end in ids) == (begin, 1, False)
    assert made.tokenizer.decode(seen[0][1:]) == made.data.passages[0].prompt
    assert made.tokenizer.decode(seen[-1][-8:]).endswith("\nAnswer:")


def test_side_by_side_a_run_computes_what_it_computes_alone(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digit, and with a rule of the user's own, which each process has to register."""
    monkeypatch.undo()  # processes of their own know nothing of the tiny model
    monkeypatch.setattr(_registry, "_RULES", dict(_registry._RULES))
    file = tmp_path / "mine.py"
    file.write_text(RULE)
    few = {"length": 32, "unlearn_epochs": 1, "batch": 32, "own_rules": str(file)}
    few |= {"methods": ("half-and-half",), "fold_methods": ("half-and-half",)}
    settings = Settings(**{"data": str(corpus)} | SMALL | few)
    threads, runs, found = torch.get_num_threads(), [], []
    try:
        for jobs in (1, 2):
            torch.set_num_threads(jobs)  # one for each process
            runs.append(MuseRun(settings, tmp_path / str(jobs), Progress(Console(quiet=True)), jobs))
            found.append(runs[-1].run())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    alone, beside = (run.model_stages.stages for run in runs)
    assert alone.computed
    assert not beside.computed  # all was there
    assert alone.seconds.keys() == beside.seconds.keys()
    made = [read_json(tmp_path / str(jobs) / "manifest.json") for jobs in (1, 2)]
    assert [(manifest["jobs"], manifest["threads"]) for manifest in made] == [(1, 1), (2, 1)]
