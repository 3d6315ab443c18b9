"""What the page shows, taken from the data as it is stored. A model goes with its mark: `Marked`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from experiments.report.figures import MUTED, Axis, Line, Mark, curves, finite, log_bounds, scatter, series

Model = Mapping[str, Any]
Steps = Sequence[Mapping[str, Any]]
Marked = Sequence[tuple[Model, Mark]]
Panels = list[tuple[Model, Mark, Markup]]


def metric(model: Model | None, *path: str) -> Any:
    """The entry at `path` in a model's metrics, None where any part of the path is missing."""
    value: Any = (model or {}).get("metrics")
    for name in path:
        value = (value or {}).get(name)
    return value


def headline(models: Marked) -> dict[str, Any] | None:
    """The models that the first sentence compares, and the share of retain probability kept; None without NGDiff."""
    start, subject = _first(models, "start"), _ngdiff(models)
    if subject is None:
        return None
    before, after = (finite(metric(model, "sets", "retain", "probability")) for model in (start, subject))
    kept = after / before if before and after is not None else None
    return {"start": start, "subject": subject, "reference": _first(models, "reference"), "kept": kept}


def scatters(models: Marked) -> list[Markup]:
    """Utility against forgetting: by probabilities, and by TOFU's forget quality."""
    probability = {name: _values(models, "sets", name, "probability") for name in ("forget", "retain")}
    quality = _values(models, "log10_forget_quality")
    # Compared with itself, the reference has p = 1.
    quality = [0.0 if model["kind"] == "reference" else q for (model, _), q in zip(models, quality, strict=True)]
    lowest = min(-1.0, *(q for q in quality if q is not None), 0.0)
    pairs = (
        (
            Axis("forget answer probability (lower is better)", probability["forget"], (0, 1)),
            Axis("retain answer probability", probability["retain"], (0, 1)),
        ),
        (
            Axis("forget quality, log₁₀ p (higher is better)", quality, (lowest, 0)),
            Axis("retain utility", _values(models, "retain_utility"), (0, 1)),
        ),
    )
    drawn = [scatter([model["name"] for model, _ in models], [mark for _, mark in models], x, y) for x, y in pairs]
    return [figure for figure in drawn if figure is not None]


def losses(models: Marked, steps: Steps) -> Panels:
    """Both losses of each method that has steps."""

    def lines(mark: Mark, own: Steps) -> list[Line]:
        name, forget = "forget", _column(own, "forget_loss")
        if any(value is not None and value < 0 for value in forget):  # published as a loss to be lowered, and drawn as that
            name, forget = "-forget", [None if value is None else -value for value in forget]
        return [Line("retain", MUTED, _column(own, "retain_loss")), Line(name, mark.colour, forget)]

    return _panels("loss, nats per token", models, steps, lines)


def rates(models: Marked, steps: Steps) -> Panels:
    """The learning rate of each method that set it itself."""
    automatic = [(model, mark) for model, mark in models if isinstance((model.get("method") or {}).get("learning_rate"), str)]
    return _panels("learning rate", automatic, steps, lambda mark, own: [Line("", mark.colour, _column(own, "lr"))])


def abilities(models: Marked) -> list[tuple[str, str]]:
    """The tasks of general ability and their metrics, in the order of the first model that has them."""
    found: dict[tuple[str, str], None] = {}
    for model, _ in models:
        for task, values in (metric(model, "general_ability") or {}).items():
            found |= dict.fromkeys((task, name) for name in values)
    return list(found)


def looks(models: Marked) -> list[Markup]:
    """What the looks at each model while it unlearned saw: probability on both tasks, a line a method."""
    found = []
    for task in ("forget", "retain"):
        lines = []
        for model, mark in models:
            seen = (model.get("method") or {}).get("looks") or []
            if seen:
                lines.append((model["name"], mark, [(float(s["step"]), finite(s[f"{task}_probability"])) for s in seen]))
        if lines:
            found.append(series("step", f"{task} probability, on a few rows", lines))
    return found


def samples(models: Marked, name: str, shown: int, unfolded: int) -> dict[str, Any]:
    """Rows of one set, evenly spread over it: those that are shown, those that can be unfolded, and how many it has."""
    rows = [(model, mark, (model.get("rows") or {}).get(name) or []) for model, mark in models]
    main = [_first(models, "start"), _ngdiff(models) or _first(models, "method"), _first(models, "reference")]
    total = max((len(own) for _, _, own in rows), default=0)
    first = _spread(total, shown)
    more = [i for i in _spread(total, unfolded) if i not in first]
    return {"total": total, "first": [_sample(rows, main, i) for i in first], "more": [_sample(rows, main, i) for i in more]}


def _panels(label: str, models: Marked, steps: Steps, lines: Callable[[Mark, Steps], list[Line]]) -> Panels:
    """One figure a method, all with the same ends of the vertical axis."""
    own = [(model, mark, [step for step in steps if step["method"] == model["name"]]) for model, mark in models]
    drawn = [(model, mark, [step["step"] for step in mine], lines(mark, mine)) for model, mark, mine in own if mine]
    bounds = log_bounds(value for *_, group in drawn for line in group for value in line.values)
    return [(model, mark, curves(model["name"], label, numbers, group, bounds)) for model, mark, numbers, group in drawn]


def _sample(rows: Sequence[tuple[Model, Mark, Sequence[Any]]], main: Sequence[Model | None], i: int) -> dict[str, Any]:
    """Row i as each model answers it. Rows are matched by position: two questions of TOFU are equal."""
    sides = [(model, mark, own[i]) for model, mark, own in rows if i < len(own)]
    chosen = [side for model in main for side in sides if side[0] is model]
    others = [side for side in sides if all(side[0] is not model for model in main)]
    row = sides[0][2]
    return {"number": i + 1, "question": row["question"], "answer": row["answer"], "sides": chosen, "others": others}


def _spread(total: int, wanted: int) -> list[int]:
    """At most `wanted` of the integers below `total`, evenly spaced from 0."""
    return [i * total // wanted for i in range(wanted)] if total > wanted else list(range(total))


def _first(models: Marked, kind: str) -> Model | None:
    return next((model for model, _ in models if model["kind"] == kind), None)


def _ngdiff(models: Marked) -> Model | None:
    return next((model for model, _ in models if (model.get("method") or {}).get("rule") == "ngdiff"), None)


def _values(models: Marked, *path: str) -> list[float | None]:
    return [finite(metric(model, *path)) for model, _ in models]


def _column(steps: Steps, name: str) -> list[float | None]:
    return [finite(step.get(name)) for step in steps]
