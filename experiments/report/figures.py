"""The report's figures: inline SVG that takes its inks from the page's style sheet.

Every figure is drawn small and the page lays several side by side, so that on a narrow screen they stack and stay readable.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import count
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.report.labels import place
from ngdiff.text import number, rate, visible

# Okabe and Ito's colours without black and yellow. Five shapes and six colours repeat only after 30 methods.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SHAPES = (("o", "●"), ("^", "▲"), ("D", "◆"), ("s", "■"), ("v", "▼"))

# Written by matplotlib, then replaced by the page's variables, which differ between the light and the dark scheme.
PAPER, INK, MUTED, GRID = "#fffffe", "#101112", "#606162", "#d0d1d2"
VARIABLES = {PAPER: "var(--paper)", INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--rule)"}

FONT = 10.5  # in units of the viewBox, as all sizes below
HEADROOM = 22  # above the axes of a scatter plot, for labels of points at the upper end
NAMED = 10  # with more methods, points carry the method's number and not its name

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # for the measures alone; the page's style sheet sets the font that is seen
    "font.size": FONT,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
}
_PLAIN = {"Date": None, "Creator": None, "Format": None, "Type": None}  # no metadata: equal input, equal bytes


@dataclass(frozen=True)
class Mark:
    """How one model looks in every figure and beside its name; `number` is None for what is no method."""

    colour: str
    shape: str
    glyph: str
    number: int | None = None


@dataclass(frozen=True)
class Line:
    """One curve; its name stands at its right end, unless empty."""

    name: str
    colour: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Axis:
    """What a scatter plot shows along one axis, and its two ends."""

    label: str
    values: Sequence[float | None]
    ends: tuple[float, float]


def marks(models: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """One mark a model: inks for start and reference, a colour and a shape for each method."""
    numbers = count()
    fixed = {"start": Mark(INK, "o", "○"), "reference": Mark(INK, "*", "★")}
    return [fixed.get(model["kind"]) or _method_mark(next(numbers)) for model in models]


def _method_mark(i: int) -> Mark:
    shape, glyph = SHAPES[i % len(SHAPES)]
    return Mark(COLOURS[i % len(COLOURS)], shape, glyph, i + 1)


def finite(value: object) -> float | None:
    """A number that can be drawn, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def scatter(names: Sequence[str], looks: Sequence[Mark], x: Axis, y: Axis) -> Markup | None:
    """Labelled points, with dotted lines through the reference; None where no model has both numbers."""
    known = [i for i, pair in enumerate(zip(x.values, y.values, strict=True)) if None not in pair]
    if not known:
        return None
    with rc_context(_STYLE):
        figure, axes = _canvas(width=350, height=300, left=42, bottom=42, right=10, top=HEADROOM)
        axes.set(xlim=_padded(x.ends), ylim=_padded(y.ends), xlabel=x.label, ylabel=y.label)
        axes.grid(True)
        for i in known:
            _point(axes, x.values[i], y.values[i], looks[i])
        texts = _short_names([names[i] for i in known], [looks[i] for i in known])
        _label_points(axes, [(x.values[i], y.values[i]) for i in known], texts)
        points = (f"{names[i]} ({number(x.values[i])}, {number(y.values[i])})" for i in known)
        return _inline(figure, f"{y.label} against {x.label}: {', '.join(points)}")


def curves(name: str, label: str, steps: Sequence[int], lines: Sequence[Line], bounds: tuple[float, float]) -> Markup:
    """Lines over the steps on a logarithmic axis; a missing value is a gap.

    Args:
        name: of the method, for the description.
        label: what the axis shows, with its unit.
        bounds: the ends of the axis, from `log_bounds`, equal in figures that are to be compared.
    """
    with rc_context(_STYLE):
        figure, axes = _canvas(width=270, height=176, left=44, bottom=34, right=44, top=22)
        axes.set(xlim=_padded((steps[0], max(steps[-1], steps[0] + 1))), ylim=bounds, xlabel="step", yscale="log")
        axes.set_title(label, loc="left", fontsize=FONT, color=MUTED)
        axes.grid(True, axis="y")
        _log_ticks(axes, bounds)
        for line in lines:
            clipped = [math.nan if value is None else min(max(value, bounds[0]), bounds[1]) for value in line.values]
            axes.plot(steps, clipped, color=line.colour, linewidth=1.4, marker="." if len(steps) == 1 else "")
        _label_ends(axes, lines, bounds)
        return _inline(figure, f"{name}, {label}: {', '.join(f'{line.name} {_span(line.values)}'.strip() for line in lines)}")


def series(x: str, label: str, lines: Sequence[tuple[str, Mark, Sequence[tuple[float, float | None]]]]) -> Markup:
    """Points joined by lines, a line a model, its name at the right end; missing values are gaps.

    Args:
        x: what the horizontal axis shows.
        label: what the vertical one shows, from 0 to 1.
        lines: of each its name, its mark and its (x, y).
    """
    with rc_context(_STYLE):
        figure, axes = _canvas(width=330, height=236, left=44, bottom=42, right=92, top=22)
        low, high = (end(point[0] for _, _, points in lines for point in points) for end in (min, max))
        axes.set(xlim=_padded((low, high if high > low else low + 1)), ylim=_padded((0, 1)), xlabel=x)
        axes.set_title(label, loc="left", fontsize=FONT, color=MUTED)
        axes.grid(True, axis="y")
        for _, look, points in lines:
            values = [math.nan if y is None else y for _, y in points]
            axes.plot([x for x, _ in points], values, look.shape + "-", color=look.colour, linewidth=1.4, markersize=5)
        # More names than fit side by side are left to the legend that the table is: colours and shapes are the same there.
        if len(lines) <= NAMED:
            _spread_labels(axes, [((0.05 + (points[-1][1] or 0.0)) / 1.1, name) for name, _, points in lines], 0.09)
        spans = (f"{name} {_span([y for _, y in points])}" for name, _, points in lines)
        return _inline(figure, f"{label} against {x}: {', '.join(spans)}")


def log_bounds(values: Iterable[float | None]) -> tuple[float, float]:
    """Ends of a logarithmic axis for the positive values: at least a decade, and at most twelve below the largest."""
    positive = [value for value in values if value is not None and value > 0] or [1.0]
    low, high = max(min(positive), max(positive) * 1e-12) / 1.3, max(positive) * 1.3
    widening = max(1.0, math.sqrt(10 * low / high))
    return low / widening, high * widening


def _canvas(width: float, height: float, left: float, bottom: float, right: float, top: float) -> tuple[Figure, Any]:
    """A figure and its axes, in units of the viewBox (matplotlib's SVG has 72 an inch)."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
    box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    axes = figure.add_axes(box, facecolor="none")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.tick_params(length=3)
    return figure, axes


def _padded(ends: tuple[float, float]) -> tuple[float, float]:
    """Room for the markers at both ends."""
    margin = 0.05 * (ends[1] - ends[0])
    return ends[0] - margin, ends[1] + margin


def _point(axes: Any, x: float | None, y: float | None, look: Mark) -> None:
    """One marker. The reference lies below the others and is larger, so that a method that reaches it hides neither."""
    reference, hollow = look.shape == "*", look.glyph == "○"
    if reference:
        axes.axvline(x, color=MUTED, linewidth=0.8, linestyle=":")
        axes.axhline(y, color=MUTED, linewidth=0.8, linestyle=":")
    face, edge = (PAPER, look.colour) if hollow else (look.colour, PAPER)
    size, width = 15 if reference else 6.5, 1.4 if hollow else 0.8
    axes.plot([x], [y], look.shape, markersize=size, color=face, mec=edge, mew=width, zorder=2.5 if reference else 3)


def _short_names(names: Sequence[str], looks: Sequence[Mark]) -> list[str]:
    """Text for the points: ASCII, because matplotlib warns about what its font lacks, and short."""
    numbered = sum(look.number is not None for look in looks) > NAMED
    texts = [_short(name) for name in names]
    return [str(look.number) if numbered and look.number else text for text, look in zip(texts, looks, strict=True)]


def _short(name: str) -> str:
    text = " ".join(visible(name).encode("ascii", "replace").decode().split())
    return text if len(text) <= 20 else text[:18] + "..."


def _label_points(axes: Any, points: Sequence[tuple[Any, Any]], texts: Sequence[str]) -> None:
    pixels = [tuple(axes.transData.transform(point)) for point in points]
    widths = [0.6 * FONT * len(text) for text in texts]  # no letter of a usual sans serif is much wider on average
    area = axes.get_window_extent()
    centres = place(pixels, widths, 1.15 * FONT, (area.x0, area.y0, area.x1, area.y1 + HEADROOM))
    for point, centre, text, pixel, width in zip(points, centres, texts, pixels, widths, strict=True):
        offset = (centre[0] - pixel[0], centre[1] - pixel[1])
        far = abs(offset[0]) > width / 2 + FONT or abs(offset[1]) > 1.5 * FONT
        axes.annotate(
            text,
            point,
            offset,
            textcoords="offset pixels",
            ha="center",
            va="center",
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3} if far else None,
        )


def _log_ticks(axes: Any, bounds: tuple[float, float]) -> None:
    narrow = bounds[1] / bounds[0] < 50
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rate(float(value))))


def _label_ends(axes: Any, lines: Sequence[Line], bounds: tuple[float, float]) -> None:
    """The lines' names at their right ends, pushed apart where they meet."""
    ends = []
    for line in lines:
        last = next((value for value in reversed(line.values) if value is not None), None)
        if last is not None and line.name:
            height = math.log(max(last, bounds[0]) / bounds[0]) / math.log(bounds[1] / bounds[0])
            ends.append((height, line.name))
    _spread_labels(axes, ends)


def _spread_labels(axes: Any, ends: Sequence[tuple[float, str]], gap: float = 0.12) -> None:
    """Names beside the axes at these heights (0 to 1), pushed apart where they would meet."""
    lowest = 0.0
    for i, (height, name) in enumerate(sorted(ends)):
        lowest = max(min(height, 0.98 - gap * (len(ends) - 1 - i)), lowest)
        axes.text(1.03, lowest, _short(name), transform=axes.transAxes, va="center", fontsize=FONT, parse_math=False)
        lowest += gap


def _span(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"from {number(known[0])} to {number(known[-1])}" if known else "unknown"


def _inline(figure: Figure, description: str) -> Markup:
    """The figure as an SVG element for the inside of a page.

    Rewritten as a tree, not as text, so that no label can be mistaken for markup.
    """
    description = visible(description)
    # The salt makes the ids of clip paths and markers those of this figure alone: many figures share the page.
    with rc_context({"svg.hashsalt": description}):
        file = StringIO()
        figure.savefig(file, format="svg", metadata=_PLAIN, transparent=True)
    root = ElementTree.fromstring(file.getvalue())
    view = root.get("viewBox", "")
    for element in root.iter():
        _localise(element)
    root.attrib = {"viewBox": view, "role": "img", "aria-label": description}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _localise(element: ElementTree.Element) -> None:
    """Drop namespaces, ids that nothing refers to and the global style; use the page's variables for inks."""
    element.tag = element.tag.rpartition("}")[2]
    for child in list(element):
        if child.tag.endswith(("}style", "}metadata")):
            element.remove(child)
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    if element.tag == "g":
        attributes.pop("id", None)
    for colour, variable in VARIABLES.items():
        if "style" in attributes:
            attributes["style"] = attributes["style"].replace(colour, variable)
    element.attrib = attributes
