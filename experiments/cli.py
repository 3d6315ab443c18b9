"""The command line: `python -m experiments`."""

import typer

from experiments import command_line
from experiments.muse.cli import muse
from experiments.tofu.cli import bench_eval, rates, summary, tofu

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="Unlearning experiments.")


@app.callback()
def experiments() -> None:
    """Unlearning experiments."""


for command in (tofu, muse, rates, summary, bench_eval):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    command_line.run(app, "interrupted: the same command continues at the first unfinished stage")
