"""The results of a TOFU run as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

# What fits into 80 characters; the report has all of it.
COLUMNS = (
    ("forget\nprob.", ("sets", "forget", "probability")),
    ("forget\nROUGE", ("sets", "forget", "rouge")),
    ("forget\nlog10 p", ("log10_forget_quality",)),
    ("retain\nprob.", ("sets", "retain", "probability")),
    ("retain\nROUGE", ("sets", "retain", "rouge")),
    ("retain\nutil.", ("retain_utility",)),
    ("model\nutil.", ("model_utility",)),
)


def results_table(results: Mapping[str, Any]) -> Table:
    """One row a model, in the order of the results."""
    table = Table(title="TOFU, " + results["settings"]["preset"], caption=_skipped(results), box=SIMPLE_HEAD, padding=0)
    table.add_column("model", no_wrap=True)
    table.add_column("rate", justify="right", no_wrap=True)
    for title, _ in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for model in results["models"]:
        method = model["method"]
        rate = "" if method is None else _number(method["learning_rate"])
        # Escaped by Text: names come from the command line.
        table.add_row(Text(model["name"]), rate, *(_number(_pick(model["metrics"], path)) for _, path in COLUMNS))
    return table


def _skipped(results: Mapping[str, Any]) -> Text | None:
    """Which methods met losses or gradients that were not finite, and how often; None if none did."""
    counts = {model["name"]: model["method"]["skipped_steps"] for model in results["models"] if model["method"]}
    found = [f"{name} {count}" for name, count in counts.items() if count]
    return Text("steps skipped as not finite: " + ", ".join(found)) if found else None


def _pick(metrics: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        metrics = metrics[key]
    return metrics


def _number(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.2g}" if abs(value) < 0.1 else f"{value:.3g}"
