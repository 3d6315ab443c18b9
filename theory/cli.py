"""The command line: `python -m theory`."""

import os
import sys
from errno import EACCES
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ngdiff import command_line
from theory import examination

REPORT = Path(__file__).parent / "report"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def check(
    claim: Annotated[
        list[str] | None, typer.Option(help="T1 to T6, A1 to A7 or LM, in full detail. Default: all, and a report.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Problems drawn for each claim, the same at every run.")] = 300,
    model: Annotated[str, typer.Option(help="Language model to check T3 to T6 on: tiny, 1m, or none.")] = "tiny",
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = REPORT,
) -> None:
    """Check every claim against the library: numbers, algebra, counterexamples, and false variants that must be refuted."""
    # Imported here, so that --help does not wait for torch and sympy.
    from theory import figures, page

    everything = not claim
    names = _known(claim or [], model)
    if everything:
        _make(out)
    made_with = page.manifest(f"python -m theory --examples {examples} --model {model}")
    console = Console(stderr=json)
    verdicts = []
    for verdict in _examine(names, examples, model, jobs):
        verdicts.append(verdict)
        if everything:
            console.print(
                f"{verdict['name']:<3} {'stands' if verdict['stands'] else 'FAILS'}  {verdict['title']}", highlight=False
            )
    if json:
        print(page.to_json(verdicts))
    elif everything:
        console.print(page.table(verdicts))
    if everything:
        page.write(out, verdicts, figures.draw_all(out), made_with)
        console.print(f"Report: {out / 'README.md'}", soft_wrap=True, highlight=False)
    for verdict in verdicts:
        if not everything and not json:
            console.print(page.details(verdict), markup=False, highlight=False, soft_wrap=True)
        elif not verdict["stands"]:
            for problem in verdict["problems"]:
                print(f"{verdict['name']}: {problem}", file=sys.stderr)
    raise typer.Exit(0 if all(verdict["stands"] for verdict in verdicts) else 1)


def _known(asked: list[str], model: str) -> list[str]:
    """The names to examine, in order."""
    from theory.claims import CLAIMS
    from theory.language_model import RUNS

    if model not in (*RUNS, "none"):
        raise typer.BadParameter(f"found {model!r}; give {', '.join(RUNS)} or none", param_hint="--model")
    every = [*CLAIMS, *([examination.MODEL] if model != "none" else [])]
    wrong = [name for name in asked if name not in every]
    if wrong:
        raise typer.BadParameter(f"found {wrong[0]!r}; give one of {', '.join(every)}", param_hint="--claim")
    return [name for name in every if not asked or name in asked]


def _examine(names: list[str], examples: int, model: str, jobs: int) -> Any:
    claims = [name for name in names if name != examination.MODEL]
    if claims:
        yield from examination.claims(claims, examples, jobs)
    if examination.MODEL in names:
        yield examination.model(model)


def _make(folder: Path) -> None:
    """Refuse a folder that cannot be written before anything is computed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as error:
        raise typer.BadParameter(
            f"{str(folder)!r} cannot be written ({error.strerror}); give another", param_hint="--out"
        ) from None


def main() -> None:
    """Run the command line. A claim that fails is exit status 1."""
    command_line.run(app)
