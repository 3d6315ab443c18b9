"""The results of a TOFU run as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

COLUMNS = (
    ("forget\nprob.", ("sets", "forget", "probability")),
    ("forget\nROUGE", ("sets", "forget", "rouge")),
    ("forget\ntruth", ("sets", "forget", "truth_ratio")),
    ("forget qual.\nlog10 p", ("log10_forget_quality",)),
    ("retain\nprob.", ("sets", "retain", "probability")),
    ("retain\nROUGE", ("sets", "retain", "rouge")),
    ("retain\ntruth", ("sets", "retain", "truth_ratio")),
    ("retain\nutility", ("retain_utility",)),
    ("model\nutility", ("model_utility",)),
)


def results_table(results: Mapping[str, Any]) -> Table:
    """One row a model, in the order of the results."""
    table = Table(title="TOFU, " + results["settings"]["preset"])
    table.add_column("model")
    table.add_column("learning\nrate", justify="right")
    for title, _ in COLUMNS:
        table.add_column(title, justify="right")
    for model in results["models"]:
        method = model["method"]
        rate = "" if method is None else _number(method["learning_rate"])
        table.add_row(model["name"], rate, *(_number(_pick(model["metrics"], path)) for _, path in COLUMNS))
    return table


def _pick(metrics: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        metrics = metrics[key]
    return metrics


def _number(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.3g}"
