"""Several finished runs side by side: one CSV, what each was made with, and one picture."""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.tofu import comparison
from experiments.tofu.metrics import share
from ngdiff.errors import UserError
from ngdiff.files import read_json, write_json, write_text

# Of the forget set, where every metric was asked for; right and wrong are the paraphrased and the perturbed answers.
KNOWN = (
    *("extraction_strength", "exact_memorisation"),
    *("right_probability", "wrong_probability", "rouge_right", "rouge_wrong"),
)
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus", "gradient_norm", "reference")
COLUMNS = (
    "data",
    "preset",
    "seed",
    "base",
    "method",
    "learning_rate",
    "rates_tried",
    "steps",
    "skipped_steps",
    "forget_probability",
    "retain_probability",
    "forget_kept",
    "retain_kept",
    "forget_rouge",
    "retain_rouge",
    "forget_truth_ratio",
    "retain_truth_ratio",
    "log10_forget_quality",
    "retain_utility",
    "model_utility",
    *(f"forget_{name}" for name in KNOWN),
    "privleak",
    *(f"auc_{attack}" for attack in ATTACKS),
)
RETAIN_COLOUR, FORGET_COLOUR = "#0072B2", "#D55E00"  # told apart by all common kinds of colour vision


def summarize(folders: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Write runs.csv, table.md, manifests.json, tradeoff.png and pareto.png for finished runs.

    Args:
        folders: output folders of runs, at least one.
        out: where to write; made if absent.

    Returns:
        One row a model and run, with the columns of the CSV.

    Raises:
        UserError: a folder holds no finished run, or the runs cannot stand in one table.
    """
    runs = [_read(folder) for folder in folders]
    rows = _distinct([row for found, _ in runs for row in found])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {str(out)!r} cannot be made ({error.strerror}); give another folder") from None
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "runs.csv", text.getvalue())
    write_json(out / "manifests.json", {str(folder): run[1] for folder, run in zip(folders, runs, strict=True)})
    write_text(out / "table.md", comparison.markdown(rows))
    picture(rows).savefig(out / "tradeoff.png", dpi=150)
    comparison.picture(rows).savefig(out / "pareto.png", dpi=comparison.DPI)
    return rows


def _read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        return _rows(read_json(folder / "results.json")), read_json(folder / "manifest.json")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder}: no finished run ({error!r}); give output folders of `experiments tofu`") from None


def _distinct(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with start and reference of a seed once: runs with other bases repeat them.

    Raises:
        UserError: the data differ, or a method comes twice for one seed.
    """
    data = {(row["data"], row["preset"]) for row in rows}
    if len(data) > 1:
        raise UserError(f"summary: found runs of {' and '.join(map(' '.join, sorted(data)))}; give those of one data set")
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("seed", "base", "method"))
        if key in found and row["base"]:
            raise UserError(f"summary: found {row['method']} {row['base']} twice for seed {row['seed']}; give each run once")
        found.setdefault(key, row)
    return list(found.values())


def _rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    settings, (start, *_) = results["settings"], results["models"]
    before = start["metrics"]["sets"]
    rows = []
    for model in results["models"]:
        method, metrics = model["method"] or {}, model["metrics"]
        row = {"data": Path(settings["data"]).name, "preset": settings["preset"], "seed": settings["seed"]}
        row["method"] = model["name"].removesuffix(f" {method.get('base')}")
        row["rates_tried"] = max(1, len(method["tried"])) if method else ""
        row |= {name: method.get(name, "") for name in ("base", "learning_rate", "steps", "skipped_steps")}
        for name in ("forget", "retain"):
            row |= {f"{name}_{metric}": metrics["sets"][name][metric] for metric in ("probability", "rouge", "truth_ratio")}
            row[f"{name}_kept"] = share(metrics["sets"][name]["probability"], before[name]["probability"])
        row |= {name: metrics[name] for name in ("log10_forget_quality", "retain_utility", "model_utility")}
        for name in KNOWN:
            row[f"forget_{name}"] = metrics["sets"]["forget"].get(name)
        privacy = metrics.get("privacy") or {"privleak": None, "auc": {}}
        row |= {"privleak": privacy["privleak"]} | {f"auc_{attack}": privacy["auc"].get(attack) for attack in ATTACKS}
        rows.append(row)
    return rows


def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """For each method and base the answer probability that is left on both sets, as a share of the start; a dot a seed."""
    bases = sorted({row["base"] for row in rows if row["base"]})
    figure = Figure(figsize=(4.6 * len(bases) + 0.6, 3.4), layout="constrained")
    axes = figure.subplots(1, len(bases), sharey=True, squeeze=False)[0]
    for axis, base in zip(axes, bases, strict=True):
        _panel(axis, base, [row for row in rows if row["base"] in ("", base) and row["method"] != "before"])
    axes[0].legend(loc="upper left", bbox_to_anchor=(0, 1.22), ncols=2, frameon=False)
    return figure


def _panel(axis: Axes, base: str, rows: Sequence[dict[str, Any]]) -> None:
    methods = list(dict.fromkeys(row["method"] for row in rows))[::-1]
    for task, colour, marker in (("retain", RETAIN_COLOUR, "o"), ("forget", FORGET_COLOUR, "X")):
        values: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            values[row["method"]].append(row[f"{task}_kept"])
        points = [(value, methods.index(method)) for method, found in values.items() for value in found]
        x, y = zip(*points, strict=True)
        axis.scatter(x, y, color=colour, alpha=0.35, s=22, marker=marker, linewidths=0)
        means = [fmean(values[method]) for method in methods]
        axis.scatter(means, range(len(methods)), color=colour, s=70, marker=marker, label=f"{task} set", linewidths=0, zorder=3)
    axis.set_yticks(range(len(methods)), methods)
    axis.set_xlim(-0.04, 1.04)
    axis.set_xlabel(f"answer probability after / before ({base})")
    axis.grid(axis="y", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
