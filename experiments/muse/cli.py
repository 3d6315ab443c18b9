"""MUSE's command."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments.command_line import quiet, split


def muse(
    data: Annotated[str, typer.Option(help="'synthetic', 'hub' (muse-bench/MUSE-News, -Books), or a folder.")] = "synthetic",
    corpus: Annotated[str, typer.Option(help="news or books.")] = "news",
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder of a pretrained model. Default: train from scratch.")
    ] = None,
    size: Annotated[str, typer.Option(help="Size of the model trained from scratch: 1m, 3m, 12m or 100m.")] = "1m",
    epochs: Annotated[int | None, typer.Option(help="Epochs of training. Default: 20 from scratch, 5 pretrained.")] = None,
    finetune_batch: Annotated[int | None, typer.Option(help="Rows a step. Default: 4 from scratch, 32 pretrained.")] = None,
    finetune_lr: Annotated[float | None, typer.Option(help="Peak rate. Default: 2e-3 from scratch, 1e-5 pretrained.")] = None,
    target: Annotated[
        str | None, typer.Option(help="A model that knows all texts, or 'published' (MUSE's own), in the place of training.")
    ] = None,
    retrained: Annotated[str | None, typer.Option(help="With --target: a model that never saw the forget texts.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens a row. Default: 384 from scratch, 2048 pretrained.")] = None,
    methods: Annotated[
        str, typer.Option(help="Separated by commas, as for tofu: [FORGET[+RETAIN]:]RULE or a published method, /base, @rate.")
    ] = "satimp:ngdiff/sgd,ngdiff/sgd,ga,gdiff-0.5,npo,simnpo",
    own_rules: Annotated[
        str | None, typer.Option(help="Python file that registers rules of your own with @ngdiff.rules.register.")
    ] = None,
    base: Annotated[str, typer.Option(help="Base optimizer: adamw, sgd, momentum.")] = "adamw",
    rate: Annotated[
        float | None, typer.Option(help="Rate of methods without their own. Default: 1e-4 from scratch, 1e-5 pretrained.")
    ] = None,
    unlearn_epochs: Annotated[int, typer.Option(help="Passes over the forget texts.")] = 10,
    batch: Annotated[int | None, typer.Option(help="Rows a task in each step. Default: 4 from scratch, 32 pretrained.")] = None,
    fold_methods: Annotated[
        str | None,
        typer.Option(help="Methods that unlearn the folds too; '' for none. Default: NGDiff, GA and GDiff of the above."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: one in runs/, named by the options.")] = None,
) -> None:
    """Train on news or books, unlearn some, evaluate by MUSE's metrics and report. The same command continues a run."""
    from experiments.muse.run import MuseRun
    from experiments.muse.settings import Settings
    from experiments.muse.table import results_table
    from experiments.progress import Progress
    from experiments.stages import json_hash

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
        methods=split(methods),
        own_rules=own_rules,
        base=base,
        rate=rate,
        unlearn_epochs=unlearn_epochs,
        batch=batch,
        fold_methods=None if fold_methods is None else split(fold_methods),
        seed=seed,
    )
    source = data if data in ("synthetic", "hub") else Path(data).resolve().name
    suffix = "" if settings == Settings(data=data, corpus=corpus, seed=seed) else f"-{json_hash(settings.as_dict())[:6]}"
    folder = out or Path("runs") / f"muse-{corpus}-{source}-{seed}{suffix}"
    console = Console()
    results = MuseRun(settings, folder, Progress(console)).run()
    console.print(results_table(results))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, highlight=False)
