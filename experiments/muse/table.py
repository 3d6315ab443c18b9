"""The results of a MUSE run as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from experiments.report.muse_views import never, states

COLUMNS = ("verbmem", "knowmem", "utility", "privleak")


def results_table(results: Mapping[str, Any]) -> Table:
    """One row a model and state."""
    table = Table(
        title=f"MUSE, {results['settings']['corpus']}",
        caption=Text("\n".join(never(results["models"]))),
        box=SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("model", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for model in results["models"]:
        for state in states(model):
            _add(table, model["name"], state.title, state.metrics)
    return table


def _add(table: Table, name: str, state: str, metrics: Mapping[str, float | None]) -> None:
    # Escaped by Text: names come from the command line.
    table.add_row(Text(name), state, *(_number(metrics[column], 1 if column == "privleak" else 3) for column in COLUMNS))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
