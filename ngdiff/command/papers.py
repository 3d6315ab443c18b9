"""What goes with an unlearned model: its card and a page of figures. Both are made of numbers and settings alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ngdiff.lm.evaluation import FORGET, RETAIN
from ngdiff.lm.sources import HUB
from ngdiff.stopping import STEPS
from ngdiff.text import entries, number, rate, visible

# Metric -> its name, and where it should go for the rows to forget.
FIGURES = {
    "probability": "probability of the answer, per token",
    "rouge": "ROUGE-L recall of what the model writes",
    "extraction_strength": "extraction strength",
    "exact_memorisation": "exact memorisation",
    "nll": "loss, nats a token",
}
CURVES = {
    "retain_loss": "retain loss",
    "forget_loss": "forget loss",
    "cosine": "cosine of the two gradients",
    "learning_rate": "learning rate",
}
WIDTH, HEIGHT = 300.0, 120.0  # of a curve


def card(manifest: Mapping[str, Any]) -> str:
    """The model card, README.md.

    Args:
        manifest: what was done, with which figures.
    """
    model = str(manifest["model"]["name"])
    on_hub = "/" in model and HUB.fullmatch(model) is not None
    return _template("card.md.j2", _in_markdown).render(m=manifest, figures=FIGURES, sets=(FORGET, RETAIN), hub=on_hub)


def report(manifest: Mapping[str, Any], logs: Sequence[Mapping[str, Any]]) -> str:
    """The page, report.html: no script, no external resource.

    Args:
        manifest: what was done, with which figures.
        logs: one record a step.
    """
    curves = [(name, curve([record.get(key) for record in logs])) for key, name in CURVES.items()]
    drawn = [(name, figure) for name, figure in curves if figure is not None]
    shown = {key: value for key, value in manifest.items() if key not in ("before", "after")}
    page = _template("report.html.j2", _in_html)
    return page.render(m=manifest, figures=FIGURES, sets=(FORGET, RETAIN), curves=drawn, entries=list(entries(shown)))


def title(manifest: Mapping[str, Any]) -> str:
    """What the model is now. Where a target was not reached it is not without the rows."""
    rows, missed = manifest["data"]["forget"]["rows"], manifest["stopping"].get("missed")
    state = f"without {rows} rows" if missed is None else f"with {rows} rows not yet forgotten"
    return f"{manifest['model']['name']}, {state}"


def ending(stopping: Mapping[str, Any]) -> str:
    """How a run ended, in words."""
    reason = "all steps were taken" if stopping["reason"] == STEPS else stopping["reason"]
    restored = "" if stopping["restored_step"] is None else f", those after step {stopping['restored_step']}"
    missed = stopping.get("missed")
    more = "more --epochs" if stopping["reason"] == STEPS else "a larger --retain-budget"
    short = "" if missed is None else f", and rows to forget still have a probability of {missed:.2g}: give {more}"
    return f"ended after {stopping['steps']} steps: {reason}{restored}{short}"


def curve(values: Sequence[float | None]) -> dict[str, Any] | None:
    """The points of a line, with the ends of both axes; None where there are fewer than two.

    A step without a value has no point.
    """
    known = [(i, value) for i, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return None
    low, high = (bound(value for _, value in known) for bound in (min, max))
    span = high - low or 1.0
    points = [f"{WIDTH * i / (len(values) - 1):.1f},{HEIGHT - HEIGHT * (value - low) / span:.1f}" for i, value in known]
    return {"points": " ".join(points), "low": low, "high": high, "steps": len(values)}


def _template(name: str, finalize: Any) -> Any:
    environment = Environment(
        loader=PackageLoader("ngdiff.command"),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "rate": rate}
    environment.globals |= {"ending": ending, "title": title}
    return environment.get_template(name)


def _in_html(value: object) -> object:
    """Before it is escaped."""
    return value if isinstance(value, Markup) else visible(str(value))


def _in_markdown(value: object) -> str:
    """In one line, and without what would begin a tag, a cell or code."""
    return visible(str(value)).replace("\n", " ").translate(str.maketrans("`|<>", "'/()"))
