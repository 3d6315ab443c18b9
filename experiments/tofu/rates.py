"""How much the first learning rate matters: unlearning from many of them, with rates that set themselves or stay."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments import manifest
from experiments.lm.gen_optim import check_installed
from experiments.lm.methods import BASES, GEN, MODES, Method
from experiments.model_stages import read_lines
from experiments.tofu.metrics import share
from experiments.tofu.run import TofuRun
from experiments.tofu.settings import Settings
from ngdiff.errors import UserError
from ngdiff.files import read_json, write_json, write_text
from ngdiff.progress import Progress

FIXED = "fixed"
KINDS = (*MODES, GEN, FIXED)
LABELS = {"auto": "automatic, robust", "paper": "automatic, paper's formula", GEN: "automatic, gen-optim", FIXED: "fixed"}
COLOURS = {"auto": "#0072B2", "paper": "#009E73", GEN: "#CC79A7", FIXED: "#D55E00"}
MARKERS = {"auto": "o", "paper": "D", GEN: "s", FIXED: "X"}
KEPT, FORGOTTEN = 0.9, 0.1  # what counts as a success: retain probability left, as a share; forget probability left
COLUMNS = (
    "base", "kind", "initial", "seed", "success", "retain_kept", "forget_probability", "retain_probability", "last_rate",
    "skipped_steps", "seconds", "rate_share",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What to run: NGDiff with every kind of rate, from every initial rate, for every base and seed."""

    data: str
    kinds: Sequence[str]
    initials: Sequence[float]
    bases: Sequence[str]
    seeds: Sequence[int]
    steps: int
    batch: int

    def __post_init__(self) -> None:
        for name, words, known in (("kinds", self.kinds, KINDS), ("bases", self.bases, tuple(BASES))):
            for word in words:
                if word not in known:
                    raise UserError(f"--{name}: unknown value {word!r}; choose one of {', '.join(known)}")
        for value in self.initials:
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"--initials: found {value}; give learning rates > 0")
        for name in ("kinds", "initials", "bases", "seeds"):
            values = getattr(self, name)
            if not values:
                raise UserError(f"--{name}: found none; name at least one")
            if len(set(values)) < len(values):
                raise UserError(f"--{name}: found {','.join(map(str, values))}, with a repetition; name each once")
        if GEN in self.kinds:
            check_installed()

    def run(self, out: Path, progress: Progress) -> list[dict[str, Any]]:
        """Compute what is not in `out` yet; write rates.csv, rates.png and manifest.json there, and return the rows."""
        runs = [self._tofu(seed, out, progress) for seed in self.seeds]
        rows = [row for run in runs for row in self._rows(run)]
        rows.sort(key=lambda row: [row[name] for name in COLUMNS[:4]])
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(out / "rates.csv", text.getvalue())
        picture(rows).savefig(out / "rates.png", dpi=150)
        seconds = sum(value for run in runs for value in run.stages.seconds.values())
        data = {str(run.settings.seed): run.data.sha256 for run in runs}  # the generator's depend on the seed
        made_with = manifest.manifest(runs[0].device, data_sha256=data, stage_seconds=round(seconds))
        write_json(out / "manifest.json", made_with | {"steps": self.steps, "batch": self.batch, "seeds": list(self.seeds)})
        return rows

    def _tofu(self, seed: int, out: Path, progress: Progress) -> TofuRun:
        return TofuRun(Settings(data=self.data, seed=seed, steps=self.steps, batch=self.batch), out / f"seed-{seed}", progress)

    def _rows(self, run: TofuRun) -> list[dict[str, Any]]:
        start = run.memorised()
        before = run.probabilities(start, evaluated=True)
        cells = [(base, kind, initial) for base in self.bases for kind in self.kinds for initial in self.initials]
        return [self._row(run, start, before, *cell) for cell in cells]

    def _row(
        self, run: TofuRun, start: Path | str, before: dict[str, float], base: str, kind: str, initial: float
    ) -> dict[str, Any]:
        folder = run.unlearned(start, Method("ngdiff", base, initial if kind == FIXED else f"{kind}:{initial}"))
        after, timing = run.probabilities(folder, evaluated=True), read_json(folder / "timing.json")
        steps = read_lines(folder / "metrics.jsonl")
        kept = share(after["retain"], before["retain"])
        return {
            "base": base,
            "kind": kind,
            "initial": initial,
            "seed": run.settings.seed,
            "success": int(kept >= KEPT and after["forget"] <= FORGOTTEN),
            "retain_kept": kept,
            "forget_probability": after["forget"],
            "retain_probability": after["retain"],
            "last_rate": steps[-1]["lr"],
            "skipped_steps": sum(not step["finite"] for step in steps),
            "seconds": round(timing["seconds"], 1),
            "rate_share": round(timing["rate_share"], 4),
        }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Successes of each base and kind by initial rate, for the terminal."""
    initials = sorted({row["initial"] for row in rows})
    shown = Table(title=f"runs with >= {KEPT} of retain kept and forget <= {FORGOTTEN}", box=SIMPLE_HEAD)
    for name in ("base", "rate", *(f"{initial:g}" for initial in initials), "all"):
        shown.add_column(name, justify="left" if name in ("base", "rate") else "right")
    for base, kind in dict.fromkeys((row["base"], row["kind"]) for row in rows):
        mine = [row for row in rows if (row["base"], row["kind"]) == (base, kind)]
        counts = [_count([row for row in mine if row["initial"] == initial]) for initial in initials]
        shown.add_row(base, kind, *counts, _count(mine))
    return shown


def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """Retain probability kept, and forget probability left, against the initial rate; a dot a run, a line through the means."""
    bases = list(dict.fromkeys(row["base"] for row in rows))
    figure = Figure(figsize=(4.4 * len(bases) + 0.4, 5.4), layout="constrained")
    axes = figure.subplots(2, len(bases), sharex=True, sharey=True, squeeze=False)
    for column, base in enumerate(bases):
        for axis, name in zip(axes[:, column], ("retain_kept", "forget_probability"), strict=True):
            _curves(axis, [row for row in rows if row["base"] == base], name)
        axes[0, column].set_title(base, loc="left")
        axes[0, column].axhspan(KEPT, 1.05, color="#e8f3e8", zorder=0)
        axes[1, column].axhspan(-0.05, FORGOTTEN, color="#e8f3e8", zorder=0)
        axes[1, column].set_xlabel("initial learning rate")
    axes[0, 0].set_ylabel("retain probability, share kept")
    axes[1, 0].set_ylabel("forget probability")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _curves(axis: Axes, rows: Sequence[dict[str, Any]], name: str) -> None:
    for kind in (kind for kind in KINDS if any(row["kind"] == kind for row in rows)):
        mine = [row for row in rows if row["kind"] == kind]
        initials = sorted({row["initial"] for row in mine})
        means = [fmean(row[name] for row in mine if row["initial"] == initial) for initial in initials]
        look: dict[str, Any] = {"color": COLOURS[kind], "marker": MARKERS[kind]}
        axis.plot(initials, means, label=LABELS[kind], markersize=7, linewidth=1.6, **look)
        axis.scatter([row["initial"] for row in mine], [row[name] for row in mine], s=18, alpha=0.45, linewidths=0, **look)
    axis.set(xscale="log", ylim=(-0.05, 1.05))
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _count(rows: Sequence[dict[str, Any]]) -> str:
    return f"{sum(row['success'] for row in rows)}/{len(rows)}"
