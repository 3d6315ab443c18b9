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
def unlearn(
    model: Annotated[str, typer.Option(help="Hub id or folder.")],
    forget: Forget,
    retain: Retain,
    out: Annotated[Path, typer.Option(help="New folder for the unlearned model and what belongs to it.")],
    rule: Annotated[str, typer.Option(help="How the two gradients are combined; see ngdiff rules.")] = "ngdiff",
    forget_objective: Annotated[str, typer.Option(help="What is raised on the rows to forget; see ngdiff rules.")] = "satimp",
    retain_objective: Annotated[str, typer.Option(help="What is lowered on the rows to keep: nll, kl or activations.")] = "nll",
    base: Annotated[str, typer.Option(help="sgd, momentum or adamw.")] = "adamw",
    lr: Annotated[str, typer.Option(help="auto, or a learning rate.")] = "auto",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the rows to forget at most. Default: 20, or as many as make 200 steps.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows of each task that a process reads at once.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Such batches a step.")] = 1,
    length: Length = None,
    template: Template = "auto",
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    stop_forget: Annotated[
        float, typer.Option(help="Stop where forget rows, 32 of them, have at most this probability; 0 never does.")
    ] = 0.1,
    retain_budget: Annotated[
        float | None,
        typer.Option(help="Stop where held-out retain rows lose more, in nats a token; the best weights are restored."),
    ] = None,
    check_every: Annotated[
        int | None, typer.Option(help="Steps between two looks whether to stop. Default: 50 looks in a run.")
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of the retain rows that no step sees; at most 256 rows.")] = 0.1,
    lora: Annotated[int | None, typer.Option(help="Train adapters of this rank, e.g. 16, and merge them at the end.")] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Weights of 16 bits, with float32 copies of those that are trained.")
    ] = False,
    bf16_gradients: Annotated[
        bool, typer.Option("--bf16-gradients", help="Both gradients in 16 bits, also where the weights have 32.")
    ] = False,
    refusal: Annotated[
        str, typer.Option(help="What to say instead, for the objectives idk-nll and idk-dpo.")
    ] = "I don't know.",
    eval_rows: Annotated[int, typer.Option(help="Rows of each set for the figures before and after.")] = 64,
    new_tokens: NewTokens = 200,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints, from which the same command goes on when interrupted.")
    ] = None,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Of several processes, each keeps a share of the weights, not a copy.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and print what the run would need.")] = False,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustCode = False,
) -> None:
    """Make a model forget rows and keep others, and write it to a folder that AutoModelForCausalLM loads.

    Under torchrun, torchrun --nproc-per-node 4 -m ngdiff unlearn ..., the processes share each step, and the first one writes.
    """
    command_line.quiet()
    from ngdiff import processes
    from ngdiff.command.inputs import Reading
    from ngdiff.command.settings import Settings
    from ngdiff.command.unlearn import Unlearning
    from ngdiff.lm.loading import Trust

    settings = Settings(
        rule=rule, forget_objective=forget_objective, retain_objective=retain_objective, base=base, lr=lr, epochs=epochs,
        batch=batch, accumulate=accumulate, seed=seed, stop_forget=stop_forget, retain_budget=retain_budget,
        check_every=check_every, held_out=held_out, lora=lora, gradient_checkpointing=gradient_checkpointing, bf16=bf16,
        bf16_gradients=bf16_gradients, refusal=refusal, eval_rows=eval_rows, new_tokens=new_tokens, save_every=save_every,
        fsdp=fsdp,
    )  # fmt: skip
    reading = Reading(template, length, Trust(allow_pickle, trust_remote_code))
    with processes.launched():
        Unlearning(model, forget, retain, out, settings, reading).run(Console(quiet=not processes.is_first()), dry_run)


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Hub id or folder.")],
    forget: Forget,
    retain: Retain,
    before: Annotated[str | None, typer.Option(help="Another model to compare with, e.g. the one before unlearning.")] = None,
    holdout: Annotated[str | None, typer.Option(help="Rows like --forget that no model saw, for membership attacks.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for evaluation.json, with all texts and generations.")] = None,
    rows: Annotated[int, typer.Option(help="Rows of each set at most, always the same ones.")] = 100,
    new_tokens: NewTokens = 200,
    bf16: Annotated[bool, typer.Option("--bf16", help="Weights of 16 bits.")] = False,
    template: Template = "auto",
    length: Length = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustCode = False,
) -> None:
    """Compare models on rows to forget and rows to keep: how likely, how much by heart, what they say."""
    command_line.quiet()
    from ngdiff import processes
    from ngdiff.command.compare import Comparison
    from ngdiff.command.inputs import Reading
    from ngdiff.lm.loading import Trust

    models = {} if before is None else {"before": ("--before", before)}
    reading = Reading(template, length, Trust(allow_pickle, trust_remote_code))
    comparison = Comparison(
        models | {"model": ("--model", model)}, forget, retain, holdout, reading, rows, new_tokens, bf16, out
    )
    with processes.launched():
        comparison.run(Console(quiet=not processes.is_first()))


@app.command()
def rules() -> None:
    """List combination rules and objectives: name, what it does, paper."""
    from ngdiff.command.catalogue import lines

    for line in lines():
        print(line)


def main() -> None:
    """Run the command line."""
    command_line.run(app)
