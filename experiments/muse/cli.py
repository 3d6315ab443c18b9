"""MUSE's command."""

from typing import Annotated

import typer
from rich.console import Console

from experiments import options
from experiments.options import Jobs, Out, OwnRules, Seed, Size
from ngdiff.command_line import quiet, split


def muse(
    data: Annotated[
        str, typer.Option(help="'synthetic', 'hub' (muse-bench/MUSE-News, -Books), or a folder with their files.")
    ] = "synthetic",
    corpus: Annotated[str, typer.Option(help="news or books.")] = "news",
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder of a pretrained model. Default: train from scratch.")
    ] = None,
    size: Size = "1m",
    epochs: Annotated[int | None, typer.Option(help="Epochs of training. Default: 12 from scratch, 5 pretrained.")] = None,
    finetune_batch: Annotated[int | None, typer.Option(help="Rows a step. Default: 8 from scratch, 32 pretrained.")] = None,
    finetune_lr: Annotated[
        float | None, typer.Option(help="Peak rate. Default: 4e-3 from scratch, with Muon at twice that, 1e-5 pretrained.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="A model that knows all texts, or 'published' (MUSE's own), in the place of training.")
    ] = None,
    retrained: Annotated[str | None, typer.Option(help="With --target: a model that never saw the forget texts.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens a row. Default: 192 from scratch, 2048 pretrained.")] = None,
    methods: Annotated[
        str, typer.Option(help="all, or by commas as for tofu: [FORGET[+RETAIN]:]RULE or a published method, /base, @rate.")
    ] = "ceu:ngdiff/sgd,ga,gdiff-0.5",
    own_rules: OwnRules = None,
    base: Annotated[str, typer.Option(help="Base optimizer: adamw, sgd, momentum.")] = "adamw",
    rate: Annotated[
        float | None, typer.Option(help="Rate of methods without their own. Default: 1e-4 from scratch, 1e-5 pretrained.")
    ] = None,
    unlearn_epochs: Annotated[
        int | None, typer.Option(help="Passes over the forget texts. Default: 9 from scratch, 10 pretrained.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Forget rows in each step. Default: 3 from scratch, 32 pretrained.")] = None,
    retain_batch: Annotated[
        int | None,
        typer.Option(help="Retain rows in each step. Default: three times as many from scratch, as many pretrained."),
    ] = None,
    fold_methods: Annotated[
        str | None,
        typer.Option(help="Methods that unlearn the folds too; '' for none. Default: the first of --methods."),
    ] = None,
    seed: Seed = 0,
    jobs: Jobs = None,
    out: Out = None,
) -> None:
    """Train on news or books, unlearn some, evaluate by MUSE's metrics and report. The same command continues a run."""
    from experiments.muse.run import MuseRun
    from experiments.muse.settings import ALL, Settings
    from experiments.muse.table import results_table
    from ngdiff.progress import Progress

    quiet()
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
        methods=ALL if methods == "all" else split(methods),
        own_rules=own_rules,
        base=base,
        rate=rate,
        unlearn_epochs=unlearn_epochs,
        batch=batch,
        retain_batch=retain_batch,
        fold_methods=None if fold_methods is None else split(fold_methods),
        seed=seed,
    )
    usual = Settings(data=data, corpus=corpus, seed=seed)
    folder = out or options.folder(f"muse-{corpus}", data, seed, settings.as_dict(), usual.as_dict())
    console = Console()
    results = MuseRun(settings, folder, Progress(console), jobs).run()
    console.print(results_table(results))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, highlight=False)
