"""The page of a MUSE run: all states of a method, untrusted text stays text, tags balance, equal input gives equal bytes."""

import re
from copy import deepcopy
from typing import Any

import pytest
from test_report import HOSTILE, Page

from experiments.muse.summary import paths, picture
from experiments.report import render_muse
from ngdiff.text import visible

METRICS = {"verbmem": 0.9, "knowmem": 0.8, "utility": 0.7, "auc": 0.99, "privleak": -98.0}
METRICS |= {f"{name}_recall": 0.5 for name in ("verbmem", "knowmem", "utility")}
METRICS |= {"knowmem_zero_shot": 0.11, "knowmem_kept_shots": 0.22, "utility_zero_shot": 0.33}


def model(name: str, kind: str = "method", **metrics: Any) -> dict[str, Any]:
    row = {"prompt": f"{name} begins", "truth": "so it was", "generation": "so it is", "f1": 0.667, "recall": 0.6}
    rows = {part: [row] * 9 for part in ("passages", "forget", "seen")}
    found = {
        "name": name,
        "kind": kind,
        "method": None,
        "selected": None,
        "usable": None,
        "stopped": None,
        "metrics": METRICS | metrics,
        "rows": rows,
    }
    if kind == "method":
        looks: dict[str, Any] = {"knowledge": [{"step": 5 * i, "knowmem": 0.8 / i} for i in (1, 2, 3)]}
        looks["balance"] = [{"step": 2 * i, "auc": 1.0 - 0.1 * i, "utility": 0.7 - 0.02 * i} for i in range(1, 8)]
        found["method"] = {"rule": "ngdiff", "forget": "nll", "retain": "nll", "base": "sgd", "learning_rate": "auto"}
        found["method"] |= {"steps": 15, "skipped_steps": 0, "looks": looks}
        found["usable"] = {"epoch": 1.5, "metrics": METRICS | {"privleak": -60.0}, "rows": rows}
        found["stopped"] = {"epoch": 2.4, "metrics": METRICS | {"privleak": 3.0}, "rows": rows}
        found["selected"] = {"epoch": 2.0, "metrics": METRICS | {"knowmem": 0.125, "utility": 0.35}, "rows": rows}
    return found


def run(*methods: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    models = [model("target", "start"), model("retrained", "reference", privleak=None), *methods]
    kinds = [(kind, fold) for kind in ("scalability", "sustainability") for fold in (1, 2, 3, 4)]
    folds = [
        {
            "method": m["name"],
            "kind": kind,
            "fold": fold,
            "texts": 10 * fold,
            "metrics": METRICS | {"utility": 0.7 - 0.1 * fold},
        }
        for m in methods
        for kind, fold in kinds
    ]
    steps = [
        {"method": m["name"], "step": i, "retain_loss": 0.1, "forget_loss": 0.1 * 2**i, "lr": 0.1}
        for m in methods
        for i in range(3)
    ]
    return {"settings": {"data": "synthetic"}, "models": models, "folds": folds}, steps, {"seed": 0}


def words(html: str) -> str:
    return " ".join(" ".join(Page(html).text).split())


def test_all_states_of_a_method_are_shown() -> None:
    found = words(render_muse(*run(model("ngdiff", knowmem=0.0))))
    for state in ("selected, epoch 2 ", "usable, epoch 1.5 ", "stopped, epoch 2.4 ", "last epoch "):
        assert found.count(state) == 3  # in the benchmark's table, in that of other prompts, in that of recall
    assert "after every epoch" not in found
    assert "at every look" not in found
    lead = found.split("Results")[0]
    assert all(text in lead for text in ("50.0%", "0.800", "0.125"))  # as selected: utility 0.35 of 0.7


def test_answers_after_other_prompts_are_shown_for_every_state() -> None:
    found = words(render_muse(*run(model("ngdiff", knowmem_zero_shot=0.44))))
    table = found.split("The same questions after other prompts")[1].split("ROUGE-L recall")[0]
    assert all(title in table for title in ("KnowMem, no examples", "KnowMem, examples of kept texts", "Utility, no examples"))
    assert table.count("0.110 0.220 0.330") == 5  # target, retrained model, the method as selected, usable and stopped
    assert table.count("0.440 0.220 0.330") == 1  # and after its last epoch


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("selected", "KnowMem is above the retrained model's after every epoch: ga, lossnorm."),
        ("usable", "Utility is below nine tenths of the target's at every look: ga, lossnorm."),
        ("stopped", "The attack's AUC is above one half at every look: ga, lossnorm."),
    ],
)
def test_methods_that_never_meet_a_rule_are_named(rule: str, sentence: str) -> None:
    methods = {name: model(name) for name in ("ngdiff", "ga", "lossnorm")}
    methods["ga"][rule] = methods["lossnorm"][rule] = None
    found = words(render_muse(*run(*methods.values())))
    assert sentence in found
    assert found.count(f"{rule}, epoch") == 3  # of NGDiff, in three tables


def test_each_plot_shows_the_state_of_its_rule() -> None:
    ngdiff, ga = model("ngdiff"), model("ga", privleak=60.0, utility=0.2, knowmem=0.05)
    ga["selected"] = ga["usable"] = None
    html = render_muse(*run(ngdiff, ga))
    knowledge, leakage = re.findall(r'aria-label="(utility \(higher[^"]*)"', html)
    assert "ngdiff (0.125, 0.350), ga (0.0500, 0.200)" in knowledge
    assert "ngdiff (-60.0, 0.700), ga (60.0, 0.200)" in leakage


def test_without_validation_texts_nothing_is_said_of_stopping() -> None:
    ngdiff = model("ngdiff")
    ngdiff["stopped"] = ngdiff["usable"] = None
    del ngdiff["method"]["looks"]["balance"]
    html = render_muse(*run(ngdiff))
    assert "stopped" not in html
    assert "usable" not in html
    assert "nine tenths" not in html
    assert "one half" not in html
    assert "Methods are shown as selected, and" in html
    _, leakage = re.findall(r'aria-label="(utility \(higher[^"]*)"', html)
    assert "ngdiff (-98.0, 0.350)" in leakage


def test_folds_are_drawn_from_the_target_on() -> None:
    html = render_muse(*run(model("ngdiff"), model("ga")))
    assert html.count("utility against texts forgotten: ngdiff from 0.700 to 0.300, ga from 0.700 to 0.300") == 2
    assert "forget KnowMem against step: ngdiff from 0.800 to 0.267" in html
    assert "attack on validation texts, AUC against step: ngdiff from 0.900 to 0.300" in html
    assert "utility against 1 - AUC: 0 is memorised, 0.5 not recognised: ngdiff from 0.680 to 0.560" in html


def test_a_run_without_folds_or_ngdiff() -> None:
    results, steps, manifest = run()
    found = words(render_muse(results | {"folds": []}, steps, manifest))
    assert "no model unlearned with NGDiff" in found
    assert "Scalability" not in found


def test_tags_balance_bytes_are_equal_and_nothing_is_loaded() -> None:
    arguments = run(model("ngdiff"), model("ga", privleak=None, utility=None))
    html = render_muse(*deepcopy(arguments))
    assert html == render_muse(*arguments)
    for tag, attributes in Page(html).elements:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert "src" not in attributes
    assert html.count("://") == html.count('<a href="https://arxiv.org/') > 0


@pytest.mark.parametrize("where", ["name", "text"])
def test_hostile_text_is_escaped_and_visible(where: str) -> None:
    subject = model(HOSTILE if where == "name" else "ngdiff")
    row = {"prompt": HOSTILE, "truth": HOSTILE, "generation": HOSTILE, "f1": 0.1, "recall": 0.1}
    for state in ("selected", "usable", "stopped"):
        subject[state]["rows"] = dict.fromkeys(("passages", "forget", "seen"), [row] * 9)
    html = render_muse(*run(subject))
    page = Page(html.encode().decode())
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert not set(html) & set("\x1b\x9b\u202e\ud800")
    assert visible(HOSTILE) in "".join(page.text)


def test_the_picture_of_folds_begins_with_the_runs_that_have_folds() -> None:
    common = {"corpus": "synthetic news", "verbmem": 0.5}
    rows = [common | {"seed": seed, "model": "target", "utility": 0.9 - 0.4 * seed, "knowmem": 0.8} for seed in (0, 1)]
    folds = [
        common | {"seed": 0, "method": "ngdiff", "kind": kind, "fold": 1, "texts": 15, "utility": 0.7, "knowmem": 0.3}
        for kind in ("scalability", "sustainability")
    ]
    for axes, expected in zip(picture(folds, rows).axes, ([0.9, 0.7], [0.8, 0.3]) * 2, strict=True):
        (line,) = axes.get_lines()
        assert list(line.get_ydata()) == expected


def test_the_picture_of_paths_begins_with_the_target_and_has_a_line_a_run() -> None:
    common = {"corpus": "synthetic news"}
    rows = [common | {"seed": seed, "model": "target", "utility": 1.0 - 0.1 * seed} for seed in (0, 1)]
    looks = [
        common | {"seed": seed, "method": method, "step": step, "auc": auc, "utility": 0.5}
        for seed in (0, 1)
        for method in ("ngdiff", "ga")
        for step, auc in ((4, 0.75), (8, 0.25))
    ]
    *lines, chance = paths(looks, rows).axes[0].get_lines()
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in lines] == [
        ([0.0, 0.25, 0.75], [start, 0.5, 0.5]) for start in (1.0, 0.9, 1.0, 0.9)
    ]
    assert list(chance.get_xdata()) == [0.5, 0.5]
