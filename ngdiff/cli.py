"""The command line: `ngdiff`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import ngdiff
from ngdiff import command_line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

ROWS = "json, jsonl, csv or parquet file, or a hub data set as name:config:split"
Forget = Annotated[str, typer.Option(help=f"Rows to forget: {ROWS}.")]
Retain = Annotated[str, typer.Option(help="Rows to keep, in the same forms.")]
Template = Annotated[
    str,
    typer.Option(help="Of questions and answers: qa, llama2, chat or plain. auto: chat if the tokenizer has it, else qa."),
]
Length = Annotated[int | None, typer.Option(help="Tokens of a row at most. Default: 1024, or what the model can hold.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickled weights, which may run code of their own.")]
TrustCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")]
NewTokens = Annotated[int, typer.Option(help="Length of a generation at most.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ngdiff {ngdiff.__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Make a language model forget chosen rows and keep the rest."""


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Hub id or folder.")],
    forget: Forget,
    retain: Retain,
    before: Annotated[str | None, typer.Option(help="Another model to compare with, e.g. the one before unlearning.")] = None,
    holdout: Annotated[str | None, typer.Option(help="Rows like --forget that no model saw, for membership attacks.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for evaluation.json, with all texts and generations.")] = None,
    rows: Annotated[int, typer.Option(help="Rows of each set at most, evenly spaced.")] = 100,
    new_tokens: NewTokens = 200,
    template: Template = "auto",
    length: Length = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustCode = False,
) -> None:
    """Compare models on rows to forget and rows to keep: how likely, how much by heart, what they say."""
    command_line.quiet()
    from ngdiff.command.compare import Comparison
    from ngdiff.command.inputs import Reading
    from ngdiff.lm.loading import Trust

    models = {} if before is None else {"before": ("--before", before)}
    reading = Reading(template, length, Trust(allow_pickle, trust_remote_code))
    comparison = Comparison(
        models | {"model": ("--model", model)}, forget, retain, holdout, reading, rows=rows, new_tokens=new_tokens, out=out
    )
    comparison.run(Console())


@app.command()
def rules() -> None:
    """List combination rules and objectives: name, what it does, paper."""
    from ngdiff.command.catalogue import lines

    for line in lines():
        print(line)


def main() -> None:
    """Run the command line."""
    command_line.run(app)
