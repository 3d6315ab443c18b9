"""Methods over several seeds: mean and spread as a table, and the trade-off with the Pareto front of the means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.labels import place

# What the table shows: heading, column of the CSV.
TABLE = (
    ("forget probability", "forget_probability"),
    ("forget ROUGE", "forget_rouge"),
    ("forget quality, log10 p", "log10_forget_quality"),
    ("retain probability kept", "retain_kept"),
    ("retain ROUGE", "retain_rouge"),
    ("retain utility", "retain_utility"),
)
FRONT, METHOD, REFERENCE = "#009E73", "#0072B2", "#D55E00"
FONT, DPI = 8, 150


@dataclass(frozen=True)
class Axis:
    """One side of the trade-off: a column of the CSV, its label, and whether more is better (1) or less (-1)."""

    column: str
    label: str
    sign: int


PANELS = (
    (Axis("forget_rouge", "forget ROUGE (less is better)", -1), Axis("retain_kept", "retain probability, share kept", 1)),
    (
        Axis("log10_forget_quality", "forget quality, log10 p (more is better)", 1),
        Axis("retain_utility", "retain utility", 1),
    ),
)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of means, with the sample standard deviation over seeds where there are several; one line a method and base."""
    lines = ["| method | base | rates | seeds | " + " | ".join(title for title, _ in TABLE) + " |"]
    lines.append("| --- | --- | --- | ---: |" + " ---: |" * len(TABLE))
    for (method, base), members in grouped(rows).items():
        rates = ", ".join(dict.fromkeys(_rate(row["learning_rate"]) for row in members))
        cells = (_mean_and_spread([row[column] for row in members]) for _, column in TABLE)
        lines.append(f"| {method} | {base} | {rates} | {len(members)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def pareto_front(points: Mapping[Any, tuple[float, float]]) -> list[Any]:
    """Names of the points that no other one dominates, where more is better in both, from the first coordinate's best on.

    A point dominates another if it is at least as good in both and better in one.
    """
    front = [
        name for name, (x, y) in points.items() if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    ]
    return sorted(front, key=lambda name: points[name], reverse=True)


def picture(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Utility against forgetting, a dot a method: means over seeds with their range, the Pareto front as a line."""
    bases = sorted({row["base"] for row in rows if row["base"]})
    figure = Figure(figsize=(11, 5.2 * len(bases)), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(bases), len(PANELS), squeeze=False)
    for base, row_of_axes in zip(bases, axes, strict=True):
        members = grouped([row for row in rows if row["base"] in ("", base)])
        for axes_of_panel, (x, y) in zip(row_of_axes, PANELS, strict=True):
            _panel(figure, axes_of_panel, x, y, {method: found for (method, _), found in members.items()})
            axes_of_panel.set_title(base, loc="left")
    return figure


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Rows by method and base, in the order of their first one."""
    result: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        result.setdefault((row["method"], row["base"]), []).append(row)
    return result


def _panel(figure: Figure, axes: Axes, x: Axis, y: Axis, members: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    values = {
        method: tuple([row[axis.column] for row in rows] for axis in (x, y))
        for method, rows in members.items()
        if all(row[axis.column] is not None for row in rows for axis in (x, y))
    }
    means = {method: (fmean(xs), fmean(ys)) for method, (xs, ys) in values.items()}
    methods = {name: mean for name, mean in means.items() if members[name][0]["base"]}
    for name, (xs, ys) in values.items():
        colour = METHOD if name in methods else REFERENCE
        (a, b), spans = means[name], [(min(v), max(v)) for v in (xs, ys)]
        axes.plot(spans[0], [b, b], color=colour, alpha=0.35, linewidth=1)
        axes.plot([a, a], spans[1], color=colour, alpha=0.35, linewidth=1)
        axes.plot([a], [b], "o" if name in methods else "*", color=colour, markersize=6 if name in methods else 11, zorder=3)
    front = pareto_front({name: (x.sign * a, y.sign * b) for name, (a, b) in methods.items()})
    axes.plot(*zip(*(means[name] for name in front), strict=True), color=FRONT, linewidth=2, alpha=0.6, label="Pareto front")
    axes.set(xlabel=x.label, ylabel=y.label)
    axes.margins(0.08)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    _label(figure, axes, means)


def _label(figure: Figure, axes: Axes, means: Mapping[str, tuple[float, float]]) -> None:
    figure.draw_without_rendering()  # the layout moves the axes, and labels are placed in pixels
    to_points = 72 / figure.dpi
    points = [tuple(axes.transData.transform(mean) * to_points) for mean in means.values()]
    area = axes.get_window_extent()
    widths = [0.62 * FONT * len(name) for name in means]
    bounds = (area.x0 * to_points, area.y0 * to_points, area.x1 * to_points, area.y1 * to_points)
    for (name, mean), centre, point in zip(means.items(), place(points, widths, 1.3 * FONT, bounds), points, strict=True):
        axes.annotate(
            name,
            mean,
            (centre[0] - point[0], centre[1] - point[1]),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=FONT,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
        )


def _mean_and_spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{fmean(known):.2g}" + (f" ± {stdev(known):.1g}" if len(known) > 1 else "")


def _rate(value: Any) -> str:
    return "" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)
