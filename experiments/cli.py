"""The command line: `python -m experiments`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments import command_line
from experiments.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="Unlearning experiments.")


@app.callback()
def experiments() -> None:
    """Unlearning experiments."""


@app.command()
def tofu(
    data: Annotated[str, typer.Option(help="'synthetic', 'hub' (locuslab/TOFU), or a folder of json files.")] = "synthetic",
    preset: Annotated[str, typer.Option(help="mini (20 authors, forget 2), forget01, forget05 or forget10.")] = "mini",
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder of a pretrained model. Default: train from scratch.")
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt template: auto, qa, llama2 or chat.")] = "auto",
    size: Annotated[str, typer.Option(help="Size of the model trained from scratch: 1m, 3m, 12m or 100m.")] = "1m",
    epochs: Annotated[int | None, typer.Option(help="Epochs of fine-tuning. Default: 16 from scratch, 5 pretrained.")] = None,
    finetune_batch: Annotated[int | None, typer.Option(help="Rows a step. Default: 8 from scratch, 32 pretrained.")] = None,
    finetune_lr: Annotated[float | None, typer.Option(help="Peak rate. Default: 2e-3 from scratch, 1e-5 pretrained.")] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Separated by commas: [FORGET[+RETAIN]:]RULE, or a published method, with an optional @rate; or all. "
            "E.g. ngdiff, npo:ngdiff, nll+kl:gdiff-0.5, simnpo@1e-4, ngdiff@auto:1e-3."
        ),
    ] = "ngdiff,ga,gdiff-0.9,gdiff-0.5,gdiff-0.1,lossnorm",
    own_rules: Annotated[
        str | None, typer.Option(help="Python file that registers rules of your own with @ngdiff.rules.register.")
    ] = None,
    bases: Annotated[str, typer.Option(help="Base optimizers, separated by commas: adamw, sgd, momentum.")] = "adamw",
    rates: Annotated[str, typer.Option(help="Learning rates to try for methods without their own; the best is kept.")] = "",
    steps: Annotated[int, typer.Option(help="Steps of unlearning.")] = 120,
    batch: Annotated[int, typer.Option(help="Rows a task in each step.")] = 16,
    stop_forget: Annotated[
        str | None,
        typer.Option(help="Stop at this forget probability: a number, auto (that of the retain-only model), or paraphrases."),
    ] = None,
    retain_budget: Annotated[
        float | None, typer.Option(help="Stop above this loss on validation rows, in nats, and restore the best weights.")
    ] = None,
    check_every: Annotated[int, typer.Option(help="Steps from one look at the two to the next.")] = 10,
    new_tokens: Annotated[int, typer.Option(help="Length of a generation at most.")] = 200,
    eval_rows: Annotated[int | None, typer.Option(help="Rows a set to evaluate. Default: all.")] = None,
    metrics: Annotated[str, typer.Option(help="tofu (the benchmark's own), or all: memorisation and attacks too.")] = "all",
    eval_every: Annotated[int | None, typer.Option(help="Look at a few rows every so many steps of unlearning.")] = None,
    eval_subset: Annotated[int, typer.Option(help="Rows a task that such a look sees.")] = 32,
    keep_best: Annotated[
        str | None, typer.Option(help="Keep the state that was best by this: score, retain_probability, forget_rouge, ...")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="A model that knows all rows already, in the place of fine-tuning.")
    ] = None,
    retrained: Annotated[str | None, typer.Option(help="With --target: a model that knows the retain rows alone.")] = None,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: one in runs/, named by the options.")] = None,
) -> None:
    """Fine-tune, unlearn, evaluate by TOFU's metrics and report. The same command continues an interrupted run."""
    # Imported here, so that --help does not wait for transformers.
    from experiments.progress import Progress
    from experiments.stages import json_hash
    from experiments.tofu.run import TofuRun
    from experiments.tofu.settings import Settings
    from experiments.tofu.table import results_table

    _quiet()
    settings = Settings(
        data=data,
        preset=preset,
        model=model,
        template=template,
        size=size,
        epochs=epochs,
        finetune_batch=finetune_batch,
        finetune_lr=finetune_lr,
        methods=_split(methods),
        own_rules=own_rules,
        bases=_split(bases),
        rates=_numbers("--rates", rates),
        steps=steps,
        batch=batch,
        stop_forget=stop_forget,
        retain_budget=retain_budget,
        check_every=check_every,
        new_tokens=new_tokens,
        eval_rows=eval_rows,
        metrics=metrics,
        eval_every=eval_every,
        eval_subset=eval_subset,
        keep_best=keep_best,
        target=target,
        retrained=retrained,
        seed=seed,
    )
    source = data if data in ("synthetic", "hub") else Path(data).resolve().name
    # Runs that differ in more than the name says get folders of their own.
    plain = Settings(data=data, preset=preset, seed=seed)
    suffix = "" if settings == plain else f"-{json_hash(settings.as_dict())[:6]}"
    folder = out or Path("runs") / f"tofu-{preset}-{source}-{seed}{suffix}"
    console = Console()
    results = TofuRun(settings, folder, Progress(console)).run()
    console.print(results_table(results))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, highlight=False)


@app.command()
def muse(
    data: Annotated[str, typer.Option(help="'synthetic', 'hub' (muse-bench/MUSE-News, -Books), or a folder.")] = "synthetic",
    corpus: Annotated[str, typer.Option(help="news or books.")] = "news",
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder of a pretrained model. Default: train from scratch.")
    ] = None,
    size: Annotated[str, typer.Option(help="Size of the model trained from scratch: 1m, 3m, 12m or 100m.")] = "1m",
    epochs: Annotated[int | None, typer.Option(help="Epochs of training. Default: 14 from scratch, 5 pretrained.")] = None,
    finetune_batch: Annotated[int | None, typer.Option(help="Rows a step. Default: 4 from scratch, 32 pretrained.")] = None,
    finetune_lr: Annotated[float | None, typer.Option(help="Peak rate. Default: 2e-3 from scratch, 1e-5 pretrained.")] = None,
    target: Annotated[
        str | None, typer.Option(help="A model that knows all texts, or 'published' (MUSE's own), in the place of training.")
    ] = None,
    retrained: Annotated[str | None, typer.Option(help="With --target: a model that never saw the forget texts.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens a row. Default: 384 from scratch, 2048 pretrained.")] = None,
    methods: Annotated[
        str, typer.Option(help="Separated by commas, as for tofu: [FORGET[+RETAIN]:]RULE or a published method, and @rate.")
    ] = "ngdiff,npo:ngdiff,ga,gdiff-0.5,npo,simnpo",
    own_rules: Annotated[
        str | None, typer.Option(help="Python file that registers rules of your own with @ngdiff.rules.register.")
    ] = None,
    base: Annotated[str, typer.Option(help="Base optimizer: adamw, sgd, momentum.")] = "adamw",
    rate: Annotated[
        float | None, typer.Option(help="Rate of methods without their own. Default: 1e-4 from scratch, 1e-5 pretrained.")
    ] = None,
    unlearn_epochs: Annotated[int, typer.Option(help="Passes over the forget texts.")] = 10,
    batch: Annotated[int | None, typer.Option(help="Rows a task in each step. Default: 8 from scratch, 32 pretrained.")] = None,
    fold_methods: Annotated[
        str, typer.Option(help="Methods that unlearn the folds too; '' leaves scalability and sustainability out.")
    ] = "ngdiff,ga,gdiff-0.5",
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: one in runs/, named by the options.")] = None,
) -> None:
    """Train on news or books, unlearn some, evaluate by MUSE's metrics and report. The same command continues a run."""
    from experiments.muse.run import MuseRun
    from experiments.muse.settings import Settings
    from experiments.muse.table import results_table
    from experiments.progress import Progress
    from experiments.stages import json_hash

    _quiet()
    settings = Settings(
        data=data,
        corpus=corpus,
        model=model,
        size=size,
        epochs=epochs,
        finetune_batch=finetune_batch,
        finetune_lr=finetune_lr,
        target=target,
        retrained=retrained,
        length=length,
        methods=_split(methods),
        own_rules=own_rules,
        base=base,
        rate=rate,
        unlearn_epochs=unlearn_epochs,
        batch=batch,
        fold_methods=_split(fold_methods),
        seed=seed,
    )
    source = data if data in ("synthetic", "hub") else Path(data).resolve().name
    suffix = "" if settings == Settings(data=data, corpus=corpus, seed=seed) else f"-{json_hash(settings.as_dict())[:6]}"
    folder = out or Path("runs") / f"muse-{corpus}-{source}-{seed}{suffix}"
    console = Console()
    results = MuseRun(settings, folder, Progress(console)).run()
    console.print(results_table(results))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, highlight=False)


@app.command()
def rates(
    data: Annotated[str, typer.Option(help="'synthetic', 'hub' (locuslab/TOFU), or a folder of json files.")] = "synthetic",
    kinds: Annotated[
        str, typer.Option(help="auto (robust), paper, gen (the package gen-optim), fixed; separated by commas.")
    ] = "auto,gen,fixed",
    initials: Annotated[str, typer.Option(help="Initial learning rates.")] = "1e-5,1e-4,1e-3,1e-2,1e-1,1",
    bases: Annotated[str, typer.Option(help="Base optimizers: sgd, momentum, adamw.")] = "sgd,adamw",
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "0,1,2",
    steps: Annotated[int, typer.Option(help="Steps of unlearning.")] = 200,
    batch: Annotated[int, typer.Option(help="Rows a task in each step.")] = 16,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/rates"),
) -> None:
    """Unlearn from many initial learning rates, to see how much they matter. Goes on where it was interrupted."""
    from experiments.progress import Progress
    from experiments.tofu.rates import Study, table

    _quiet()
    study = Study(
        data,
        _split(kinds),
        _numbers("--initials", initials),
        _split(bases),
        _numbers("--seeds", seeds, int),
        steps,
        batch,
    )
    console = Console()
    console.print(table(study.run(out, Progress(console))))
    console.print(f"Figures: {out / 'rates.csv'}, {out / 'rates.png'}", soft_wrap=True, highlight=False)


@app.command()
def summary(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="Folder for runs.csv, table.md, manifests.json and the pictures.")],
) -> None:
    """Put finished runs side by side in one CSV and one picture."""
    from experiments.tofu.summary import summarize

    rows = summarize(runs, out)
    Console().print(f"{len(rows)} rows: {out / 'runs.csv'}", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line."""
    command_line.run(app, "interrupted: the same command continues at the first unfinished stage")


def _quiet() -> None:
    """Progress and warnings of the libraries off: ours say what is being done."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # a hub that cannot be reached is one line, not one for every attempt


def _split(text: str, convert: Callable[[str], Any] = str) -> tuple[Any, ...]:
    return tuple(convert(part.strip()) for part in text.split(",") if part.strip())


def _numbers(option: str, text: str, kind: type[int] | type[float] = float) -> tuple[Any, ...]:
    def convert(part: str) -> float:
        try:
            return kind(part)
        except ValueError:
            example = "0,1,2" if kind is int else "1e-4,3e-4"
            raise UserError(f"{option}: found {part!r}; give numbers separated by commas, e.g. {example}") from None

    return _split(text, convert)
