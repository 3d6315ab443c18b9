"""Methods over seeds: the table, the Pareto front and its picture."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from experiments.tofu.comparison import grouped, markdown, pareto_front, picture

POINTS = st.dictionaries(st.integers(0, 99), st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points: dict[int, tuple[int, int]]) -> None:
    front = pareto_front(points)
    assert front
    for name, (x, y) in points.items():
        dominated = any(a >= x and b >= y and (a > x or b > y) for a, b in points.values())
        assert (name in front) != dominated
    xs, ys = zip(*(points[name] for name in front), strict=True)
    assert list(xs) == sorted(xs, reverse=True)
    assert list(ys) == sorted(ys)


def row(method: str, base: str, **values: Any) -> dict[str, Any]:
    known = {
        "learning_rate": 1e-4,
        "forget_probability": 0.1,
        "forget_rouge": 0.2,
        "log10_forget_quality": -2.0,
        "retain_kept": 0.9,
        "retain_rouge": 0.8,
        "retain_utility": 0.7,
    }
    return {"method": method, "base": base} | known | values


ROWS = [
    row("before", "", learning_rate=""),
    row("retain-only", "", learning_rate="", log10_forget_quality=None),
    row("npo", "adamw", forget_rouge=0.1, retain_kept=0.5),
    row("$_^", "adamw", forget_rouge=0.3, retain_kept=0.8),  # a rule of the user's own may have any name
    row("npo", "adamw", forget_rouge=0.3, retain_kept=0.7, learning_rate=3e-4),
]


def test_the_table_has_means_and_sample_deviations() -> None:
    lines = markdown(ROWS).splitlines()
    assert lines[2] == "| before |  |  | 1 | 0.1 | 0.2 | -2 | 0.9 | 0.8 | 0.7 |"
    assert " - |" in lines[3]
    # (0.1, 0.3): mean 0.2, deviation 0.1414; (0.5, 0.7): mean 0.6, deviation 0.1414.
    assert lines[4] == "| npo | adamw | 0.0001, 0.0003 | 2 | 0.1 ± 0 | 0.2 ± 0.1 | -2 ± 0 | 0.6 ± 0.1 | 0.8 ± 0 | 0.7 ± 0 |"


def test_rows_are_grouped_by_method_and_base() -> None:
    assert {key: len(rows) for key, rows in grouped(ROWS).items()} == {
        ("before", ""): 1,
        ("retain-only", ""): 1,
        ("npo", "adamw"): 2,
        ("$_^", "adamw"): 1,
    }


def test_the_picture_draws_the_front_of_the_means() -> None:
    figure = picture(ROWS)
    left, right = figure.axes
    (front,) = [line for line in left.lines if line.get_label() == "Pareto front"]
    assert [(round(x, 9), round(y, 9)) for x, y in front.get_xydata()] == [(0.2, 0.6), (0.3, 0.8)]
    assert {text.get_text() for text in left.texts} == {"before", "retain-only", "npo", "$_^"}
    assert {text.get_text() for text in right.texts} == {"before", "npo", "$_^"}  # the reference has no forget quality
