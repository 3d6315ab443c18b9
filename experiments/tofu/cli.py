"""TOFU's commands."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments import options
from experiments.options import EvalRows, FinetuneLr, NewTokens, Out, OwnRules, Preset, Seed, Size, TofuData
from ngdiff.command_line import numbers, quiet, split
from ngdiff.errors import UserError


def tofu(
    data: TofuData = "synthetic",
    preset: Preset = "mini",
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder or short name (llama-3.2-1b, ...). Default: train from scratch.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="locuslab or open-unlearning: their steps, batch and rate, for models with a short name.")
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt template: auto, qa, llama2 or chat.")] = "auto",
    size: Size = "1m",
    epochs: Annotated[int | None, typer.Option(help="Epochs of fine-tuning. Default: 16 from scratch, 5 pretrained.")] = None,
    finetune_batch: Annotated[int | None, typer.Option(help="Rows a step. Default: 8 from scratch, 32 pretrained.")] = None,
    finetune_lr: FinetuneLr = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Separated by commas: [FORGET[+RETAIN]:]RULE, or a published method, each with optional /base, @rate; or all. "
            "E.g. ngdiff, npo:ngdiff, nll+kl:gdiff-0.5, simnpo@1e-4, ngdiff@auto:1e-3."
        ),
    ] = "ngdiff,ga,gdiff-0.9,gdiff-0.5,gdiff-0.1,lossnorm",
    own_rules: OwnRules = None,
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
    new_tokens: NewTokens = 200,
    eval_rows: EvalRows = None,
    metrics: Annotated[str, typer.Option(help="tofu (the benchmark's own), or all: memorisation and attacks too.")] = "all",
    eval_every: Annotated[int | None, typer.Option(help="Look at a few rows every so many steps of unlearning.")] = None,
    eval_subset: Annotated[int, typer.Option(help="Rows a task that such a look sees.")] = 32,
    keep_best: Annotated[
        str | None, typer.Option(help="Keep the state that was best by this: score, retain_probability, forget_rouge, ...")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="A model that knows all rows, or 'published', in the place of fine-tuning.")
    ] = None,
    retrained: Annotated[str | None, typer.Option(help="With --target: a model that knows the retain rows alone.")] = None,
    ability: Annotated[
        str, typer.Option("--general-ability", help="Tasks of lm-evaluation-harness, e.g. mmlu; needs the extra lm-eval.")
    ] = "",
    task_folder: Annotated[str | None, typer.Option(help="Folder with such tasks of your own, as yaml files.")] = None,
    ability_rows: Annotated[int | None, typer.Option(help="Rows of such a task. Default: all.")] = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Fine-tune, unlearn, evaluate by TOFU's metrics and report. The same command continues an interrupted run."""
    # Imported here, so that --help does not wait for transformers.
    from experiments.tofu.run import TofuRun
    from experiments.tofu.settings import Settings
    from experiments.tofu.table import results_table
    from ngdiff.progress import Progress

    quiet()
    settings = Settings(
        data=data,
        preset=preset,
        model=model,
        recipe=recipe,
        template=template,
        size=size,
        epochs=epochs,
        finetune_batch=finetune_batch,
        finetune_lr=finetune_lr,
        methods=split(methods),
        own_rules=own_rules,
        bases=split(bases),
        rates=numbers("--rates", rates),
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
        general_ability=split(ability),
        task_folder=task_folder,
        ability_rows=ability_rows,
        seed=seed,
    )
    usual = Settings(data=data, preset=preset, seed=seed)
    folder = out or options.folder(f"tofu-{preset}", data, seed, settings.as_dict(), usual.as_dict())
    console = Console()
    results = TofuRun(settings, folder, Progress(console)).run()
    console.print(results_table(results))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, highlight=False)


def rates(
    data: TofuData = "synthetic",
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
    from experiments.tofu.rates import Study, table
    from ngdiff.progress import Progress

    quiet()
    study = Study(
        data,
        split(kinds),
        numbers("--initials", initials),
        split(bases),
        numbers("--seeds", seeds, int),
        steps,
        batch,
    )
    console = Console()
    console.print(table(study.run(out, Progress(console))))
    console.print(f"Figures: {out / 'rates.csv'}, {out / 'rates.png'}", soft_wrap=True, highlight=False)


def bench_eval(
    data: TofuData = "synthetic",
    preset: Preset = "mini",
    size: Size = "1m",
    new_tokens: NewTokens = 200,
    eval_rows: EvalRows = None,
    rounds: Annotated[int, typer.Option(help="How often each way is timed, in alternation.")] = 3,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/bench-eval"),
) -> None:
    """Time the evaluation of a memorised model beside one row at a time with `model.generate`, and compare row by row."""
    from experiments.tofu.bench_evaluation import compare
    from experiments.tofu.run import TofuRun
    from experiments.tofu.settings import Settings
    from ngdiff.progress import Progress

    quiet()
    if rounds < 1:
        raise UserError(f"--rounds: found {rounds}; give a whole number >= 1")
    console = Console()
    settings = Settings(data=data, preset=preset, size=size, new_tokens=new_tokens, eval_rows=eval_rows, seed=seed)
    found = compare(TofuRun(settings, out, Progress(console)), rounds, lambda line: console.print(line, highlight=False))
    agree = f"{found['equal_generations']} of {found['compared']} generations equal"
    console.print(f"{found['speedup']:.1f} x faster than one row at a time, {agree};", highlight=False)
    console.print(f"NLLs within {found['largest_difference_of_nll']:.1g} nats; all metrics cost {found['cost_of_all']:.2f} x.")
    console.print(f"Figures: {out / 'bench.json'}", soft_wrap=True, highlight=False)
