"""What the page of a MUSE run shows, taken from the data as it is stored."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from experiments.report import views
from experiments.report.figures import Axis, Mark, finite, scatter, series
from experiments.report.views import Marked

KINDS = {"scalability": "Scalability: more to forget at once", "sustainability": "Sustainability: request after request"}
PRIVLEAK_ENDS = (-100.0, 100.0)


class State(NamedTuple):
    """A state of a model: what kept it ("" where nothing had to), after how many epochs (None after all), its metrics."""

    name: str
    epoch: float | None
    metrics: Mapping[str, Any]

    @property
    def title(self) -> str:
        """For a table."""
        return self.name if self.epoch is None else f"{self.name}, epoch {self.epoch:.3g}"


class Rule(NamedTuple):
    """By which look a state is kept, and what to say where none is."""

    looks: str
    unmet: str


# Key of a state in results.json -> the rule that keeps it, in the order of the tables.
RULES = {
    "selected": Rule("knowledge", "KnowMem is above the retrained model's after every epoch"),
    "usable": Rule("balance", "Utility is below nine tenths of the target's at every look"),
    "stopped": Rule("balance", "The attack's AUC is above one half at every look"),
}
Point = tuple[float, float | None]


def states(model: Mapping[str, Any]) -> list[State]:
    """Those of a method that were kept, if any were, and the last one; of another model the only one."""
    if model["kind"] != "method":
        return [State("", None, model["metrics"])]
    kept = [State(rule, model[rule]["epoch"], model[rule]["metrics"]) for rule in RULES if model[rule]]
    return [*kept, State("last epoch", None, model["metrics"])]


def never(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each rule that some methods have not met."""
    found = []
    for name, rule in RULES.items():
        names = [m["name"] for m in models if m["method"] and rule.looks in m["method"]["looks"] and not m[name]]
        found += [f"{rule.unmet}: {', '.join(names)}."] if names else []
    return found


def stopping(models: Marked) -> bool:
    """Whether there were validation texts, to stop by."""
    return any(RULES["stopped"].looks in model["method"]["looks"] for model, _ in models if model["method"])


def table(models: Marked) -> list[dict[str, Any]]:
    """One line a model and state."""
    return [
        {"model": model, "mark": mark, "state": state.title, "metrics": state.metrics}
        for model, mark in models
        for state in states(model)
    ]


def headline(models: Marked) -> dict[str, Any] | None:
    """What the first sentence compares: target, retrained model and NGDiff as selected; None without NGDiff."""
    found = {model["kind"]: model for model, _ in models if model["kind"] != "method"}
    subject = next((m for m, _ in models if (m.get("method") or {}).get("rule") == "ngdiff"), None)
    if subject is None:
        return None
    after = shown(subject)
    before, utility = finite(found["start"]["metrics"]["utility"]), finite(after["utility"])
    kept = utility / before if before and utility is not None else None
    start, reference = found["start"]["metrics"], found["reference"]["metrics"]
    selected = subject["selected"]
    state = f"at epoch {selected['epoch']:.3g} by the selection rule" if selected else "after all epochs"
    return {"subject": subject, "state": state, "after": after, "start": start, "reference": reference, "kept": kept}


def scatters(models: Marked) -> list[Markup]:
    """Utility against knowledge, each method as selected, and against leakage, each while it was usable if that was asked."""
    names, marks = [model["name"] for model, _ in models], [mark for _, mark in models]
    second = "usable" if stopping(models) else "selected"
    leak = [
        None if value is None else max(PRIVLEAK_ENDS[0], min(value, PRIVLEAK_ENDS[1])) for value in _privleak(models, second)
    ]
    axes = (
        ("selected", Axis("forget KnowMem (lower is better)", _values(models, "selected", "knowmem"), (0, 1))),
        (second, Axis("PrivLeak, cut at ±100 (0 is best)", leak, PRIVLEAK_ENDS)),
    )
    drawn = [
        scatter(names, marks, x, Axis("utility (higher is better)", _values(models, rule, "utility"), (0, 1)))
        for rule, x in axes
    ]
    return [figure for figure in drawn if figure is not None]


def looks(models: Marked) -> list[Markup]:
    """What was seen of each method while it unlearned: knowledge and familiarity by step, and utility by familiarity."""
    plots: list[tuple[str, str, str, Callable[[Mapping[str, Any]], Point]]] = [
        ("knowledge", "step", "forget KnowMem", lambda look: (float(look["step"]), finite(look["knowmem"]))),
        ("balance", "step", "attack on validation texts, AUC", lambda look: (float(look["step"]), finite(look["auc"]))),
        ("balance", "1 - AUC: 0 is memorised, 0.5 not recognised", "utility", path_point),
    ]
    drawn = []
    for name, x, label, point in plots:
        seen = [(model["name"], mark, (model["method"] or {"looks": {}})["looks"].get(name)) for model, mark in models]
        lines = [(model, mark, list(map(point, looks))) for model, mark, looks in seen if looks]
        if lines:
            drawn.append(series(x, label, lines))
    return drawn


def path_point(look: Mapping[str, Any]) -> Point:
    """How far the forget texts have come to look unseen, and the utility that is left."""
    return 1 - look["auc"], finite(look["utility"])


def folds(models: Marked, points: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Markup]]]:
    """For each kind of folds its title, and utility and KnowMem against the number of texts forgotten."""
    start: Mapping[str, Any] = next((model["metrics"] for model, _ in models if model["kind"] == "start"), {})
    marks = {model["name"]: mark for model, mark in models}
    found = []
    for kind, title in KINDS.items():
        own = [point for point in points if point["kind"] == kind]
        if own:
            found.append((title, [_fold_figure(start, marks, own, *names) for names in _FOLD_LABELS]))
    return found


_FOLD_LABELS = (("utility", "utility"), ("knowmem", "forget KnowMem"))


def _fold_figure(
    start: Mapping[str, Any], marks: Mapping[str, Mark], points: Sequence[Mapping[str, Any]], name: str, label: str
) -> Markup:
    lines = []
    for method in dict.fromkeys(point["method"] for point in points):
        values = [(float(p["texts"]), finite(p["metrics"][name])) for p in points if p["method"] == method]
        lines.append((method, marks[method], [(0.0, finite(start[name])), *values]))
    return series("texts forgotten", label, lines)


def samples(models: Marked, name: str, shown: int, unfolded: int) -> dict[str, Any]:
    """What the models wrote, each method as selected: rows evenly spread, shown and to be unfolded."""
    renamed = []
    for model, mark in models:
        rows = (model["selected"] or model)["rows"][name]
        named = [{**row, "question": row["prompt"], "answer": row["truth"]} for row in rows]
        renamed.append(({**model, "rows": {name: named}}, mark))
    return views.samples(renamed, name, shown, unfolded)


def shown(model: Mapping[str, Any], rule: str = "selected") -> Mapping[str, Any]:
    """The metrics of the state that a rule has kept, or after the whole budget where it has kept none."""
    return (model[rule] or model)["metrics"]


def _values(models: Marked, rule: str, name: str) -> list[float | None]:
    return [finite(shown(model, rule)[name]) for model, _ in models]


def _privleak(models: Marked, rule: str) -> list[float | None]:
    # Against itself the retrained model leaks nothing.
    return [0.0 if m["kind"] == "reference" else finite(shown(m, rule)["privleak"]) for m, _ in models]
