"""The results: a CSV that grows, and its picture."""

import csv
from pathlib import Path
from typing import Any

from ngdiff_kernels.bench.contestants import OURS

COLUMNS = (
    *("device", "dtype", "base", "n", "contestant", "milliseconds", "p20", "p80", "limit_milliseconds", "time_over_limit"),
    *("ours_times_faster", "copy_gigabytes_per_second", "repeats", "commit", "torch", "triton", "python", "threads"),
)


def append(path: Path, found: list[dict[str, Any]]) -> None:
    """Add rows to a CSV, with a header if it is new."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(found)


def plot(path: Path, picture: Path) -> None:
    """Time of a step, and fraction of the memory's limit, against n: of the last measurement of each setting in a CSV."""
    from matplotlib.figure import Figure

    with path.open(encoding="utf-8") as file:
        last = {tuple(row[key] for key in ("device", "dtype", "base", "n", "contestant")): row for row in csv.DictReader(file)}
    settings = sorted({key[:3] for key in last})
    figure = Figure(figsize=(9.6, 3.3 * len(settings)), layout="constrained")
    panels = figure.subplots(len(settings), 2, squeeze=False)
    for (time_axis, limit_axis), setting in zip(panels, settings, strict=True):
        for name in dict.fromkeys(key[4] for key in last):
            found = sorted((int(key[3]), row) for key, row in last.items() if key[:3] == setting and key[4] == name)
            sizes = [n for n, _ in found]
            style: dict[str, Any] = {"linewidth": 2.4 if name == OURS else 1.2, "marker": "o", "markersize": 3.5, "label": name}
            time_axis.loglog(sizes, [float(row["milliseconds"]) for _, row in found], **style)
            limit_axis.semilogx(sizes, [1 / float(row["time_over_limit"]) for _, row in found], **style)
        device, dtype, base = setting
        time_axis.set_title(f"{base}, {dtype}, {device}", loc="left", fontsize=9)
        time_axis.set_ylabel("milliseconds a step")
        limit_axis.set_ylabel("limit / time (higher is better)")
        limit_axis.set_ylim(bottom=0)
        for axis in (time_axis, limit_axis):
            axis.set_xlabel("parameters")
            axis.grid(color="#dddddd", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(picture, dpi=140)
