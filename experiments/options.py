"""Options that several commands have, and the folder that a run writes to if none is given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

TofuData = Annotated[str, typer.Option(help="'synthetic', 'hub' (locuslab/TOFU), or a folder of json files.")]
Preset = Annotated[str, typer.Option(help="mini (20 authors, forget 2), forget01, forget05 or forget10.")]
Size = Annotated[str, typer.Option(help="Size of the model trained from scratch: 1m, 3m, 12m or 100m.")]
FinetuneLr = Annotated[float | None, typer.Option(help="Peak rate. Default: 2e-3 from scratch, 1e-5 pretrained.")]
OwnRules = Annotated[str | None, typer.Option(help="Python file that registers rules of your own with @ngdiff.rules.register.")]
NewTokens = Annotated[int, typer.Option(help="Length of a generation at most.")]
EvalRows = Annotated[int | None, typer.Option(help="Rows a set to evaluate. Default: all.")]
Jobs = Annotated[
    int | None, typer.Option(help="Models computed side by side. Default: one a core for models from scratch on CPUs, else 1.")
]
Seed = Annotated[int, typer.Option(help="Decides everything random.")]
Out = Annotated[Path | None, typer.Option(help="Output folder. Default: one in runs/, named by the options.")]


def folder(name: str, data: str, seed: int, chosen: Mapping[str, Any], usual: Mapping[str, Any]) -> Path:
    """A folder in runs/, named by what runs, its data and its seed; other than usual settings get one of their own."""
    from experiments.stages import json_hash

    source = data if data in ("synthetic", "hub") else Path(data).resolve().name
    suffix = "" if chosen == usual else f"-{json_hash(dict(chosen))[:6]}"
    return Path("runs") / f"{name}-{source}-{seed}{suffix}"
