"""The command line: `python -m experiments`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments.muse.cli import muse
from experiments.tofu.cli import bench_eval, rates, tofu
from ngdiff import command_line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="Unlearning experiments.")


@app.callback()
def experiments() -> None:
    """Unlearning experiments."""


for command in (tofu, muse, rates, bench_eval):
    app.command()(command)


@app.command()
def summary(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of finished runs, all of tofu or all of muse.")],
    out: Annotated[Path, typer.Option(help="Folder for the CSV files, manifests.json and the pictures.")],
) -> None:
    """Put finished runs side by side in one CSV and one picture."""
    from experiments.muse import summary as of_muse
    from experiments.tofu import summary as of_tofu

    rows = (of_muse if of_muse.is_run(runs[0]) else of_tofu).summarize(runs, out)
    Console().print(f"{len(rows)} rows: {out / 'runs.csv'}", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line."""
    command_line.run(app, "interrupted: the same command continues at the first unfinished stage")
