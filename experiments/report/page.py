"""The page: the template, and what it is given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.report import views
from experiments.report.figures import COLOURS, NAMED, marks
from experiments.report.text import entries, number, percent, rate, visible

# Heading, direction that is better, where the number is in a model's metrics; in groups.
COLUMNS = {
    "Forget set": (
        ("probability", "↓", ("sets", "forget", "probability")),
        ("ROUGE", "↓", ("sets", "forget", "rouge")),
        ("truth ratio", "↑", ("sets", "forget", "truth_ratio")),
    ),
    "Forget quality": (
        ("p", "↑", ("forget_quality",)),
        ("log₁₀ p", "↑", ("log10_forget_quality",)),
    ),
    "Retain set": (
        ("probability", "↑", ("sets", "retain", "probability")),
        ("ROUGE", "↑", ("sets", "retain", "rouge")),
        ("truth ratio", "↑", ("sets", "retain", "truth_ratio")),
    ),
    "Utility": (
        ("retain", "↑", ("retain_utility",)),
        ("model", "↑", ("model_utility",)),
    ),
}
SAMPLES = {"forget": (6, 24), "retain": (4, 12)}  # rows of a set that are shown, and with those that can be unfolded


def render(results: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> str:
    """The report as HTML: no script, no external resource, equal bytes for equal input.

    Args:
        results: settings, and the models with their metrics and scored rows.
        steps: records of all unlearning steps, in order, each with the name of its method.
        manifest: what the run ran on.
    """
    models = list(zip(results["models"], marks(results["models"]), strict=True))
    template = _environment().get_template("template.html.j2")
    return template.render(
        models=models,
        columns=COLUMNS,
        colours=COLOURS,
        numbered=sum(mark.number is not None for _, mark in models) > NAMED,
        headline=views.headline(models),
        scatters=views.scatters(models),
        losses=views.losses(models, steps),
        rates=views.rates(models, steps),
        samples={name: views.samples(models, name, *counts) for name, counts in SAMPLES.items()},
        settings=[(key, value if value is None else str(value)) for key, value in entries(results.get("settings") or {})],
        manifest=list(entries(manifest)),
    ).lstrip()


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "rate": rate}
    environment.globals |= {"metric": views.metric}
    return environment


def _printed(value: object) -> object:
    """Runs on whatever the template prints, before it is escaped: no text from the data has another way to the page."""
    return value if isinstance(value, Markup) else visible(str(value))
