"""Finished MUSE runs side by side: a table of all states of every method, what was seen on the way there, and the folds."""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.muse_views import KINDS, path_point, states
from ngdiff.errors import UserError
from ngdiff.files import read_json, write_json, write_text
from ngdiff.lm.membership import CHANCE

METRICS = (
    *("verbmem", "knowmem", "utility", "privleak", "auc", "verbmem_recall", "knowmem_recall", "utility_recall"),
    *("knowmem_zero_shot", "knowmem_kept_shots", "utility_zero_shot"),
)
COLUMNS = ("corpus", "seed", "model", "state", "epoch", "base", "learning_rate", "steps", "skipped_steps", *METRICS)
FOLD_COLUMNS = ("corpus", "seed", "method", "kind", "fold", "texts", *METRICS)
LOOK_COLUMNS = ("corpus", "seed", "method", "step", "auc", "utility")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PANELS = (("utility", "utility (more is better)"), ("knowmem", "forget KnowMem (less is better)"))


def summarize(folders: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Write runs.csv, manifests.json, and looks.csv, folds.csv and a picture of each where there were any.

    Args:
        folders: output folders of runs, at least one.
        out: where to write; made if absent.

    Returns:
        One row a model, state and run, with the columns of runs.csv.

    Raises:
        UserError: a folder holds no finished run of MUSE, or one of an earlier version.
    """
    runs = [_read(folder) for folder in folders]
    rows = [row for results, _ in runs for row in _rows(results)]
    folds = [row for results, _ in runs for row in _fold_rows(results)]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {str(out)!r} cannot be made ({error.strerror}); give another folder") from None
    write_text(out / "runs.csv", _csv(COLUMNS, rows))
    write_json(out / "manifests.json", {str(folder): run[1] for folder, run in zip(folders, runs, strict=True)})
    if looks := [row for results, _ in runs for row in _look_rows(results)]:
        write_text(out / "looks.csv", _csv(LOOK_COLUMNS, looks))
        paths(looks, rows).savefig(out / "paths.png", dpi=150)
    if folds:
        write_text(out / "folds.csv", _csv(FOLD_COLUMNS, folds))
        picture(folds, rows).savefig(out / "folds.png", dpi=150)
    return rows


def is_run(folder: Path) -> bool:
    """Whether a folder holds a finished run of MUSE."""
    try:
        return read_json(folder / "results.json")["benchmark"] == "muse"
    except (OSError, ValueError, LookupError, TypeError):
        return False


def paths(looks: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Utility against how far the forget texts have come to look unseen, while methods unlearn: a line a method and run."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    starts = {(row["corpus"], row["seed"]): row["utility"] for row in rows if row["model"] == "target"}
    marks = product(("-", "--", ":"), COLOURS)
    for method, (style, colour) in zip(dict.fromkeys(row["method"] for row in looks), cycle(marks), strict=False):
        for number, (run, utility) in enumerate(starts.items()):
            seen = [path_point(row) for row in looks if (row["method"], row["corpus"], row["seed"]) == (method, *run)]
            x, y = zip((0.0, utility), *seen, strict=True)
            label = method if number == 0 else None
            axes.plot(x, y, marker=".", linestyle=style, color=colour, label=label, markersize=4, linewidth=1)
    axes.axvline(CHANCE, color="#666666", linewidth=0.8, linestyle=":")
    axes.set(xlabel="1 - AUC of the attack: 0 is memorised, 0.5 not recognised", ylabel="utility", ylim=(-0.03, 1.03))
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    _plain(axes)
    return figure


def picture(folds: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Utility and KnowMem against the number of texts forgotten: means over seeds, with their range."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    runs = {(row["corpus"], row["seed"]) for row in folds}
    starts = [row for row in rows if row["model"] == "target" and (row["corpus"], row["seed"]) in runs]
    for axes_of_kind, (kind, title) in zip(
        figure.subplots(2, len(PANELS), sharex=True, sharey=True), KINDS.items(), strict=True
    ):
        for axes, (name, label) in zip(axes_of_kind, PANELS, strict=True):
            _panel(axes, [row for row in folds if row["kind"] == kind], name, [row[name] for row in starts])
            axes.set(title=title if name == "utility" else "", ylabel=label, xlabel="texts forgotten", ylim=(-0.03, 1.03))
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def _panel(axes: Axes, folds: Sequence[Mapping[str, Any]], name: str, start: Sequence[float]) -> None:
    for method, colour in zip(dict.fromkeys(row["method"] for row in folds), cycle(COLOURS), strict=False):
        values: dict[int, list[float]] = {0: list(start)}
        for row in folds:
            if row["method"] == method:
                values.setdefault(row["texts"], []).append(row[name])
        texts = sorted(values)
        axes.plot(texts, [fmean(values[n]) for n in texts], "o-", color=colour, label=method, markersize=4)
        axes.fill_between(texts, [min(values[n]) for n in texts], [max(values[n]) for n in texts], color=colour, alpha=0.15)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not is_run(folder) or not (folder / "manifest.json").is_file():
        raise UserError(f"{folder}: no finished run of MUSE; give output folders of `experiments muse`")
    results = read_json(folder / "results.json")
    if any("usable" not in model for model in results["models"]):
        raise UserError(f"{folder}: of an earlier version, which kept other states; run it again in a new folder")
    return results, read_json(folder / "manifest.json")


def _rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for model in results["models"]:
        method = model["method"] or {}
        common = _common(results) | {"model": model["name"]}
        common |= {name: method.get(name, "") for name in ("base", "learning_rate", "steps", "skipped_steps")}
        rows += [common | {"state": s.name, "epoch": s.epoch} | _metrics(s.metrics) for s in states(model)]
    return rows


def _look_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    methods = [model for model in results["models"] if model["method"]]
    seen = [(model["name"], look) for model in methods for look in model["method"]["looks"].get("balance", [])]
    return [_common(results) | {"method": name} | look for name, look in seen]


def _fold_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    named = ("method", "kind", "fold", "texts")
    return [_common(results) | {name: p[name] for name in named} | _metrics(p["metrics"]) for p in results["folds"]]


def _common(results: Mapping[str, Any]) -> dict[str, Any]:
    settings = results["settings"]
    corpus = settings["corpus"] if settings["data"] != "synthetic" else f"synthetic {settings['corpus']}"
    return {"corpus": corpus, "seed": settings["seed"]}


def _metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in METRICS}


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
