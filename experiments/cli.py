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


@app.command()
def bench_step(
    size: Annotated[str, typer.Option(help="Size of the model.")] = "100m",
    rows: Annotated[int, typer.Option(help="Rows a task in each step.")] = 2,
    length: Annotated[int, typer.Option(help="Tokens of a row.")] = 128,
    steps: Annotated[int, typer.Option(help="Steps of each way in a round.")] = 20,
    rounds: Annotated[int, typer.Option(help="How often each way is timed, in alternation.")] = 3,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/bench-step"),
) -> None:
    """Time NGDiff's step, rate included, beside GDiff's with one backward of the sum, on the same tokens."""
    from experiments.lm.bench_step import Workload, compare

    command_line.quiet()
    console = Console()
    found = compare(Workload(size, rows, length, steps, rounds), out, lambda line: console.print(line, highlight=False))
    console.print(f"{found['ratio']:.3f} x GDiff's step. Figures: {out / 'step.json'}", soft_wrap=True, highlight=False)


@app.command()
def bench_memory(
    size: Annotated[str, typer.Option(help="Size of the model.")] = "100m",
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/bench-memory"),
) -> None:
    """Measure the memory of a step for every base and precision, beside what the library counts."""
    from experiments.lm.bench_memory import compare

    command_line.quiet()
    console = Console()
    compare(size, out, lambda line: console.print(line, highlight=False))
    console.print(f"Bytes a parameter. Figures: {out / 'memory.json'}", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line."""
    command_line.run(app, "interrupted: the same command continues at the first unfinished stage")
