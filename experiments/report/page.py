"""The pages: the templates, and what they are given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.report import muse_views, views
from experiments.report.figures import COLOURS, NAMED, marks
from ngdiff.text import entries, number, percent, rate, visible

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
    "Memory": (
        ("ES", "↓", ("sets", "forget", "extraction_strength")),
        ("EM", "↓", ("sets", "forget", "exact_memorisation")),
        ("PrivLeak", "→ 0", ("privacy", "privleak")),
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
# Attack, in the order of the table -> its name there.
ATTACKS = {
    "loss": "loss",
    "zlib": "zlib",
    "reference": "reference",
    "min_k": "Min-K",
    "min_k_plus": "Min-K++",
    "gradient_norm": "gradient norm",
}
SAMPLES = {"forget": (6, 24), "retain": (4, 12)}  # rows of a set that are shown, and with those that can be unfolded
MUSE_SAMPLES = {"passages": (4, 12), "forget": (4, 16), "seen": (3, 12)}


def render(results: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> str:
    """The report of a TOFU run as HTML: no script, no external resource, equal bytes for equal input.

    Args:
        results: settings, and the models with their metrics and scored rows.
        steps: records of all unlearning steps, in order, each with the name of its method.
        manifest: what the run ran on.
    """
    models = list(zip(results["models"], marks(results["models"]), strict=True))
    return _page(
        "tofu.html.j2",
        results,
        manifest,
        models=models,
        columns=COLUMNS,
        attacks=ATTACKS,
        reference=any(model["kind"] == "reference" for model, _ in models),
        abilities=views.abilities(models),
        numbered=sum(mark.number is not None for _, mark in models) > NAMED,
        headline=views.headline(models),
        scatters=views.scatters(models),
        losses=views.losses(models, steps),
        rates=views.rates(models, steps),
        looks=views.looks(models),
        samples={name: views.samples(models, name, *counts) for name, counts in SAMPLES.items()},
    )


def render_muse(results: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> str:
    """The report of a MUSE run as HTML, in the same way.

    Args:
        results: settings, the models with their metrics in all states and what they wrote, and the points of the folds.
        steps: records of all unlearning steps, in order, each with the name of its method.
        manifest: what the run ran on.
    """
    models = list(zip(results["models"], marks(results["models"]), strict=True))
    return _page(
        "muse.html.j2",
        results,
        manifest,
        models=models,
        numbered=False,
        lines=muse_views.table(models),
        never=muse_views.never(results["models"]),
        stopping=muse_views.stopping(models),
        headline=muse_views.headline(models),
        scatters=muse_views.scatters(models),
        looks=muse_views.looks(models),
        folds=muse_views.folds(models, results["folds"]),
        losses=views.losses(models, steps),
        rates=views.rates(models, steps),
        samples={name: muse_views.samples(models, name, *counts) for name, counts in MUSE_SAMPLES.items()},
    )


def _page(template: str, results: Mapping[str, Any], manifest: Mapping[str, Any], **content: Any) -> str:
    settings = [(key, value if value is None else str(value)) for key, value in entries(results.get("settings") or {})]
    page = _environment().get_template(template)
    return page.render(colours=COLOURS, settings=settings, manifest=list(entries(manifest)), **content).lstrip()


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
