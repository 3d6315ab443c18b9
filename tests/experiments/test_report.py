"""The report: untrusted text stays text, equal input gives equal bytes, and nothing of the run is missing."""

import math
from copy import deepcopy
from html import escape
from html.parser import HTMLParser
from itertools import combinations

import pytest

from experiments.report import render
from experiments.report.figures import COLOURS, SHAPES, log_bounds, marks
from experiments.report.labels import around, overlap, place
from experiments.report.views import samples
from ngdiff.text import entries, number, percent, rate, visible

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "'\"><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\x9b\ud800\u202e\u65e5\t$\\frac{$ {{ 7 * 7 }} &amp;"
SETS = ("forget", "retain", "real_authors", "world_facts")


class Page(HTMLParser):
    """Collects the elements of a page, and fails where tags do not balance."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.row_headers, self.text, self._open = [], [], [], []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if dict(attrs).get("scope") == "row":
            self.row_headers.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing, line {self.getpos()[0]}"

    def handle_data(self, data):
        self.text.append(data)
        if "th" in self._open and "tbody" in self._open:
            self.row_headers[-1] += data


def method(rule="ngdiff", **changes):
    return {"rule": rule, "base": "adamw", "learning_rate": "auto", "steps": 3, "skipped_steps": 0, "tried": []} | changes


def model(name, kind="method", forget=0.5, retain=0.9, **changes):
    values = {"forget": forget, "retain": retain, "real_authors": 0.4, "world_facts": 0.3}
    row = {"question": "Who?", "answer": "Nobody.", "probability": 0.5, "rouge": 0.5, "truth_ratio": 0.5}
    return {
        "name": name,
        "kind": kind,
        "method": method() if kind == "method" else None,
        "metrics": {
            "model_utility": 0.4,
            "retain_utility": retain,
            "forget_quality": None if kind == "reference" else 1.8e-21,
            "log10_forget_quality": None if kind == "reference" else -20.7,
            "ks_statistic": None if kind == "reference" else 0.4,
            "sets": {s: {"probability": value, "rouge": value, "truth_ratio": value, "rows": 9} for s, value in values.items()},
        },
        "rows": {s: [row | {"generation": f"{name} says {s} {i}"} for i in range(9)] for s in SETS},
    } | changes


def run(*methods):
    """Arguments of `render` for a start, a reference and the given methods, three steps each."""
    models = [model("before", "start", 0.99, 0.98), model("retain-only", "reference", 0.15, 0.97), *methods]
    step = {"norm_retain": 1.0, "norm_forget": 1.0, "cosine": 0.1, "c": 0.5, "finite": True}
    steps = [
        step | {"method": m["name"], "step": i, "retain_loss": 0.1 * (i + 1), "forget_loss": 0.2 * 3**i, "lr": 1e-5 * 2**i}
        for m in methods
        for i in range(3)
    ]
    manifest = {
        "project": "ngdiff",
        "seed": 0,
        "data_sha256": {"forget": "ab12"},
        "stages": [{"name": "train", "seconds": 1.5}],
    }
    return {"settings": {"data": "forget10", "methods": ["a", "b"]}, "models": models}, steps, manifest


def several():
    grid = [{"learning_rate": lr, "retain_probability": 0.9, "forget_probability": 0.1, "score": 0.8} for lr in (1e-5, 1e-4)]
    gdiff = model("gdiff-0.9", forget=0.3, method=method("gdiff", learning_rate=1e-4, skipped_steps=2, tried=grid))
    return run(model("ngdiff", forget=0.125, retain=0.882), gdiff, model("ga", forget=0.0, retain=1e-40))


def test_objectives_that_are_lowered_are_drawn_as_published():
    """A logarithmic axis has no negative numbers; NPO's objective is one."""
    results, steps, manifest = run(model("npo"))
    lowered = [step | {"forget_loss": -step["forget_loss"]} for step in steps]
    page = render(results, lowered, manifest)
    assert "-forget from 0.200 to 1.80" in page
    assert "-forget" not in render(results, steps, manifest).replace("marked -forget", "")


def test_how_a_run_ended_and_what_it_combined_is_said():
    ended = {"reason": "retain loss above the budget, best checkpoint restored", "restored_step": 20}
    npo = model("npo", method=method("gdiff-0.5", forget="npo", retain="kl", learning_rate=1e-4, stopped=ended))
    plain = model("ngdiff", method=method(forget="nll", retain="nll", stopped={"reason": "steps", "restored_step": None}))
    text = " ".join(" ".join(Page(render(*run(plain, npo))).text).split())
    assert "npo / kl, gdiff-0.5, adamw, 3 steps" in text
    assert "stopped: retain loss above the budget, best checkpoint restored (step 20)" in text
    assert text.count("stopped:") == 1
    assert "nll / nll" not in text


def test_looks_and_memory_are_shown():
    seen = [{"step": 2 * i, "forget_probability": 0.8 / i, "retain_probability": 0.9} for i in (1, 2)]
    ngdiff = model("ngdiff", method=method(looks=seen, kept=2))
    ngdiff["metrics"]["privacy"] = {"auc": {"min_k": 0.875}, "privleak": -75.0}
    ngdiff["metrics"]["sets"]["forget"] |= {"extraction_strength": 0.625, "rouge_right": 0.375}
    html = render(*run(ngdiff))
    assert "forget probability, on a few rows against step: ngdiff from 0.800 to 0.400" in html
    text = " ".join(" ".join(Page(html).text).split())
    assert all(number in text for number in ("kept: step 2", "-75.0", "0.875", "0.625", "0.375"))
    assert "Looks while unlearning" not in render(*several())


def test_tags_balance_and_ids_are_unique():
    ids = [attributes["id"] for _, attributes in Page(render(*several())).elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0


def test_equal_input_gives_equal_bytes():
    arguments = several()
    assert render(*deepcopy(arguments)) == render(*arguments)


def test_nothing_is_loaded_from_outside():
    html = render(*several())
    for tag, attributes in Page(html).elements:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert "src" not in attributes and not any(name.startswith("xmlns") for name in attributes)
        target = attributes.get("href", "#")
        assert target.startswith("#") or (tag == "a" and target.startswith("https://arxiv.org/"))
    assert html.count("://") == html.count('<a href="https://arxiv.org/') > 0


def test_hostile_text_is_escaped_and_visible():
    results, steps, manifest = run(model(HOSTILE, method=method(HOSTILE, base=HOSTILE)))
    row = {"question": HOSTILE, "answer": HOSTILE, "generation": HOSTILE, "probability": 0.1, "rouge": 0.1}
    results["models"][2]["rows"] = dict.fromkeys(SETS, [row] * 9)
    results["models"][1]["name"] = HOSTILE
    results["settings"][HOSTILE] = [HOSTILE]
    html = render(results, steps, manifest | {HOSTILE: {HOSTILE: HOSTILE}})
    page = Page(html.encode().decode())
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not set(html) & set("\x1b\x9b\u202e\ud800")
    assert visible(HOSTILE) in "".join(page.text) and "49" not in "".join(page.text)


@pytest.mark.parametrize("name", ["$\\frac{$", "$x^2$", "\u65e5\u672c", "a\tb\nc", "\U0001f600", "&lt;b&gt;"])
def test_names_in_figures_are_plain_text(name):
    # As mathematics some would fail, and matplotlib warns about letters that its font lacks.
    html = render(*run(model(name)))
    drawn = " ".join(name.encode("ascii", "replace").decode().split())
    assert f">{escape(drawn, quote=False)}</text>" in html


def test_every_model_has_a_row_in_the_first_table():
    results, steps, manifest = run(*(model(f"method {i}") for i in range(30)))
    page = Page(render(results, steps, manifest))
    for header, expected in zip(page.row_headers, results["models"], strict=False):
        assert expected["name"] in header
    assert len(page.row_headers) > 2 * 32  # and again in the table of all sets


def test_first_sentence_states_the_outcome():
    lead = "".join(Page(render(*several())).text).split("Results")[0]
    assert all(text in lead for text in ("90.0%", "0.980", "0.882", "0.990", "0.125", "0.970", "0.150"))


@pytest.mark.parametrize("methods", [[], [model("ga", method=method("ga"))], [model("ngdiff")]], ids=["none", "ga", "ngdiff"])
def test_any_number_of_methods(methods):
    text = "".join(Page(render(*run(*methods))).text)
    assert ("NGDiff keeps" in text) == any(m["name"] == "ngdiff" for m in methods)
    assert ("Losses while unlearning" in text) == bool(methods)


def test_a_run_without_start_reference_steps_or_manifest():
    Page(render({"settings": {}, "models": [model("ngdiff")]}, [], {}))
    assert "No model has both numbers" in render({"settings": {}, "models": []}, [], {})


def test_what_is_undefined_is_a_dash():
    results, steps, manifest = run(model("ngdiff", method=method(learning_rate=None, skipped_steps=1)), model("lossnorm"))
    undefined = dict.fromkeys(results["models"][2]["metrics"])
    none = dict.fromkeys(("probability", "rouge", "truth_ratio", "rows"))
    results["models"][2]["metrics"] = undefined | {"sets": {"forget": none}}
    results["models"][3]["metrics"] = undefined
    results["models"][2]["rows"]["forget"][0] |= {"probability": None, "rouge": math.nan}
    nothing = dict.fromkeys(("retain_loss", "forget_loss", "lr"))
    html = render(results, [step | nothing for step in steps], manifest | {"commit": None, "peak": math.inf})
    text = " ".join(Page(html).text)
    assert text.count("\N{EN DASH}") > 20
    assert not {"None", "nan", "inf"} & set(text.replace(",", " ").split())
    assert "ngdiff, loss, nats per token: retain unknown, forget unknown" in html
    assert "lossnorm (" not in html  # no point without coordinates


def test_a_method_keeps_its_colour():
    results, steps, manifest = several()
    html = render(results, steps, manifest)
    for i in range(3):
        assert f"fill: {COLOURS[i]}" in html and f"stroke: {COLOURS[i]}" in html and f'class="mark c{i}"' in html
    looks = marks([model(str(i)) for i in range(30)])
    assert len({(look.colour, look.shape) for look in looks}) == len(COLOURS) * len(SHAPES) == 30


def test_figures_are_described():
    figures = [attributes for tag, attributes in Page(render(*several())).elements if tag == "svg"]
    assert len(figures) == 2 + 3 + 2  # scatter plots, losses, automatic rates
    assert all(figure["role"] == "img" and figure["aria-label"] and figure["viewbox"] for figure in figures)
    assert "ngdiff (0.125, 0.882)" in figures[0]["aria-label"]
    assert "forget from 0.200 to 1.80" in figures[2]["aria-label"]


def test_rows_are_matched_by_position():
    # All questions of the example are equal, as two of TOFU's are.
    results, *_ = several()
    found = samples(list(zip(results["models"], marks(results["models"]), strict=True)), "forget", 3, 6)
    assert [sample["number"] for sample in found["first"]] == [1, 4, 7]
    assert [sample["number"] for sample in found["more"]] == [2, 5, 8]
    sample = found["first"][1]
    shown, others = ("before", "ngdiff", "retain-only"), ("gdiff-0.9", "ga")
    assert [side[2]["generation"] for side in sample["sides"]] == [f"{name} says forget 3" for name in shown]
    assert [side[2]["generation"] for side in sample["others"]] == [f"{name} says forget 3" for name in others]


@pytest.mark.parametrize("spread", [0.0, 3.0, 30.0])
def test_labels_cover_neither_each_other_nor_points(spread):
    points = [(5 + spread * (i % 4), 195 - spread * (i // 4)) for i in range(10)]  # in a corner, the hardest place
    widths, bounds = [20.0 + 7 * i for i in range(10)], (0, 0, 300, 200)
    boxes = [around(c, w, 12) for c, w in zip(place(points, widths, 12, bounds), widths, strict=True)]
    assert all(overlap(a, b) == 0 for a, b in combinations(boxes, 2))
    assert all(overlap(box, around(point, 8, 8)) == 0 for box in boxes for point in points)
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= 300 and box[3] <= 200 for box in boxes)


@pytest.mark.parametrize("values", [[], [None, 0.0, -1.0], [1e-300], [5.0, 5.0], [1e-3, 1e3], [1e-30, 1e30]])
def test_log_axes_hold_their_values_and_have_a_decade(values):
    low, high = log_bounds(values)
    assert 0 < low < high and high / low > 9.99
    assert high > max((v for v in values if v), default=0) and high / low < 1e13


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.98, "0.980"), (1.8e-21, "1.80e-21"), (1e-5, "1.00e-5"), (120.0, "120"), (-20.71, "-20.7"), (12345.6, "12346"),
        (0.0, "0.00"), (7, "7"), ("x", "x"), (None, "\N{EN DASH}"), (math.nan, "\N{EN DASH}"), (-math.inf, "\N{EN DASH}"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_rates_and_shares():
    assert [rate(value) for value in ("auto", 1e-4, 3e-5, 0.01, 1.2345e-7, 1e4, None)] == [
        "automatic", "1e-4", "3e-5", "0.01", "1.23e-7", "10000", "\N{EN DASH}",
    ]  # fmt: skip
    assert (percent(0.98345), percent(1.0), percent(None)) == ("98.3%", "100%", "\N{EN DASH}")


def test_hidden_characters_become_visible():
    assert visible("a\n\t\u65e5") == "a\n\t\u65e5"
    assert visible("\x00\x1b[31m\r\x7f\x85\u202e\u2066\udfff") == r"\x00\x1b[31m\r\x7f\x85\u202e\u2066\udfff"


def test_nested_data_becomes_pairs():
    data = {"a": 1, "b": {"c": None}, "d": (1, 2), "e": [{"name": "train", "s": 2}, {"s": 3}], "f": []}
    assert list(entries(data)) == [
        ("a", 1),
        ("b / c", None),
        ("d", "1, 2"),
        ("e / train / s", 2),
        ("e / 1 / s", 3),
        ("f", None),
    ]
