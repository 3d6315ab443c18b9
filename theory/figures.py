"""The figures of the report. Every curve comes from the code that the claims are checked with."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from theory import library, pareto
from theory.claims import a3_bounded_steps as a3
from theory.claims import a5_convergence as a5
from theory.claims import a6_no_convergence as a6
from theory.claims import a7_rounding as a7
from theory.claims import t1_static_scalarization as t1
from theory.claims import t2_dynamic_scalarization as t2
from theory.claims.t4_first_order import distinct_lines
from theory.claims.t5_second_order import parabola
from theory.losses import Line, TwoTasks, quadratic, ridge

# Okabe and Ito's colours.
BLUE, RED, GREEN, PINK, ORANGE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#777777"
RULES = {"ngdiff": BLUE, "gdiff-0.9": GREEN, "gdiff-0.5": ORANGE, "gdiff-0.1": PINK, "ga": RED}
NAMES = {"ngdiff": "NGDiff", "gdiff-0.9": "GDiff-0.9", "gdiff-0.5": "GDiff-0.5", "gdiff-0.1": "GDiff-0.1", "ga": "GA"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def draw_all(folder: Path) -> list[str]:
    """Write every figure as PNG; returns the file names."""
    written = []
    for name, draw in FIGURES.items():
        with rc_context(STYLE):
            figure = draw()
            figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
        written.append(f"{name}.png")
    return written


def cone() -> Figure:
    """T3: directions of all rules for gradients 50 degrees apart, one 8 times as long, and the cone that helps both tasks."""
    r, f = torch.tensor([1.0, 0.0], dtype=torch.float64), 8 * torch.tensor([0.643, 0.766], dtype=torch.float64)
    figure, (axes,) = _canvas(5.2, 4.2)
    # g_R.v >= 0 >= g_F.v: between the normals of both gradients.
    low, high = -90.0, math.degrees(math.atan2(float(f[1]), float(f[0]))) - 90
    angles = np.radians(np.linspace(low, high, 60))
    axes.fill([0, *np.cos(angles)], [0, *np.sin(angles)], color=BLUE, alpha=0.12, lw=0, label="both tasks improve along $-v$")
    for name, g in (("$g_R/||g_R||$", r), ("$g_F/||g_F||$", f)):
        x, y = _arrow(axes, g / g.norm(), "black")
        axes.annotate(name, (x, y), (6, 6), textcoords="offset points")
    for i, (rule, colour) in enumerate(RULES.items()):
        d = library.combine(rule, r, f).d
        _arrow(axes, (0.95 - 0.1 * i) * d / d.norm(), colour)  # of lengths that tell arrows apart where directions do not
        axes.plot([], [], color=colour, label=NAMES[rule])
    axes.set(
        xlim=(-1.25, 1.5), ylim=(-1.2, 1.1), xlabel="first coordinate of $v$", ylabel="second coordinate of $v$", aspect="equal"
    )
    axes.set_title("T3: directions of $d$, $||g_F|| = 8 ||g_R||$, angle 50° (lengths mean nothing)", loc="left", fontsize=9)
    axes.legend(loc="upper left", fontsize=8)
    return figure


def trajectories() -> Figure:
    """T1, T2, A5: runs of all rules on two quadratics in the plane, and the same runs in the plane of the losses."""
    tasks = a5.sample_problem()
    figure, (left, right) = _canvas(9.6, 4.2, 2)
    front = np.array([_pareto_point(tasks, c) for c in np.linspace(0, 1, 200)])
    left.plot(*front.T, color="black", lw=3, alpha=0.35, label="Pareto set")
    right.plot(*_losses(tasks, front).T, color="black", lw=3, alpha=0.35, label="Pareto front")
    for rule, colour in RULES.items():
        steps = list(library.descend((tasks.retain, tasks.forget), tasks.theta, [0.02] * 400, rule))
        path = np.array([s.theta.numpy() for s in steps])
        left.plot(*path.T, color=colour, lw=1.2, label=NAMES[rule])
        right.plot(*_losses(tasks, path).T, color=colour, lw=1.2)
        left.plot(*path[-1], "o", color=colour, ms=4)
        right.plot(*_losses(tasks, path[-1:]).T, "o", color=colour, ms=4)
    left.plot(*tasks.theta, "k*", ms=8)
    right.plot(*_losses(tasks, np.array([tasks.theta])).T, "k*", ms=8)
    left.set(xlabel="first parameter", ylabel="second parameter")
    left.set_title("400 steps of 0.02 from the star; dots: ends", loc="left", fontsize=9)
    right.set(xlabel="retain loss (less is better)", ylabel="forget loss (more is better)")
    right.set_title("the same runs in the plane of the losses", loc="left", fontsize=9)
    left.legend(fontsize=8)
    return figure


def unreachable() -> Figure:
    """T1: which points of a concave front minimise a static scalarization. T2: where flows from seven starts beside it end."""
    front = t1.concave_front(81)
    hidden = set(t1.unreachable(list(t1.in_millionths(front))))
    figure, (axes,) = _canvas(5.2, 3.8)
    for members, colour, name in (
        (hidden, RED, "minimises no $c L_R - (1 - c) L_F$"),
        (set(range(81)) - hidden, BLUE, "minimises one"),
    ):
        axes.plot(*zip(*(front[i] for i in sorted(members)), strict=True), "o", ms=3, color=colour, label=name)
    retain, forget = t1.bells(*t2.CENTRES)
    for rule, marker in (("ngdiff", "D"), ("gdiff-0.5", "s")):
        ends = [(float(retain(x)), float(forget(x))) for x in t2.across_the_front(rule)]
        axes.plot(*zip(*ends, strict=True), marker, ms=8, mfc="none", color="black", label=f"7 ends of {NAMES[rule]}")
    axes.set(xlabel="retain loss (less is better)", ylabel="forget loss (more is better)")
    axes.set_title("T1 and T2: Pareto optimal points of a concave front", loc="left", fontsize=9)
    axes.legend(loc="upper left", fontsize=8)
    return figure


def fitted_parabola() -> Figure:
    """T6: the retain loss along the step, the parabola through three losses, its minimiser and T5's limit."""
    line = _sample_line()
    h = 0.9
    fit = parabola(line, h)
    eta, zero = float(fit.minimiser), float(line.value(0.0))
    figure, (axes,) = _canvas(5.2, 3.8)
    x = np.linspace(-1.3, 2.4 * eta, 200)
    axes.plot(x, [float(line.value(float(v))) for v in x], color=BLUE, label=r"$L_R(\theta - \eta d)$")
    curve = zero - float(fit.slope) * x + float(fit.curvature) * x**2 / 2
    axes.plot(x, curve, "--", color=RED, label="the library's parabola")
    axes.plot(
        [-h, 0, h], [float(line.value(v)) for v in (-h, 0.0, h)], "ko", ms=5, label=r"probes at $\theta \pm h d$ and $\theta$"
    )
    for value, name in ((eta, r"$\eta^*$"), (2 * eta, r"$2\eta^*$ (T5)")):
        axes.axvline(value, color=GREY, lw=0.8, ls=":")
        axes.annotate(name, (value, curve.max()), (3, -10), textcoords="offset points")
    axes.axhline(zero, color=GREY, lw=0.8, ls=":")
    axes.set(xlabel=r"$\eta$", ylabel="retain loss")
    axes.set_title("T6: learning rate from three losses, h = 0.9", loc="left", fontsize=9)
    axes.legend(fontsize=8)
    return figure


def probe_error() -> Figure:
    """T6 and A7: error of the fitted rate against the probe step, without rounding and with rounded losses."""
    line = _sample_line()
    exact = line.slope / line.curvature
    steps = np.logspace(-4, 0.3, 40)
    figure, (axes,) = _canvas(7.4, 4.0)
    axes.loglog(
        steps, [_relative(parabola(line, float(h)).minimiser, exact) for h in steps], color="black", label="exact losses"
    )
    constant = float((line.bound(3) / 6 + abs(exact) * line.bound(4) / 12) / line.curvature / exact)
    axes.loglog(steps, constant * steps**2, ":", color="black", label="bound $C h^2$, to first order")
    zero, curvature = float(line.value(0.0)), float(line.curvature)
    for (dtype, u), colour in zip(a7.ROUNDOFF.items(), (BLUE, RED), strict=True):
        name = str(dtype).removeprefix("torch.")
        axes.loglog(
            steps, [_rounded_error(line, float(h), dtype) for h in steps], ".", color=colour, ms=4, label=f"losses in {name}"
        )
        axes.loglog(steps, u * zero / (curvature * steps**2), ":", color=colour, label=r"$u L_0 / (a h^2)$")
    axes.set(xlabel="probe step $h$", ylabel=r"relative error of $\hat\eta$", ylim=(1e-9, 1e2))
    axes.set_title("T6 and A7: too long a probe bends, too short a probe drowns", loc="left", fontsize=9)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def bounded_steps() -> Figure:
    """A3: distance from the start where GA runs away."""
    figure, (axes,) = _canvas(5.2, 3.8)
    rate = 0.1
    for rule, steps, colour in (("ngdiff", 60, BLUE), ("gdiff-0.5", 16, ORANGE), ("ga", 15, RED)):
        distances = np.array(a3.escape(rule, steps, rate)[1:])
        shown = distances < 1e6
        axes.semilogy(np.arange(1, steps + 1)[shown], distances[shown], ".-", color=colour, label=NAMES[rule], ms=4)
    axes.semilogy(np.arange(1, 61), 2 * rate * np.arange(1, 61), "--", color=GREY, label=r"bound $2 \sum \eta_t$ of NGDiff")
    axes.set(xlabel="step", ylabel=r"$||\theta_t - \theta_0||$", ylim=(1e-2, 1e6))
    axes.set_title(r"A3: $L_R = ||\theta - a||^2/2$, $L_F = ||\theta||^4/4$, $\eta = 0.1$", loc="left", fontsize=9)
    axes.legend(fontsize=8)
    return figure


def no_convergence() -> Figure:
    """A6: both losses of a trained softmax model while it unlearns."""
    (retain, forget), start, _ = a6.memorised()
    steps = list(library.descend((retain, forget), start, [a6.RATE] * a6.STEPS))
    figure, (axes,) = _canvas(5.2, 3.8)
    for name, loss, colour in (("forget loss", forget, RED), ("retain loss", retain, BLUE)):
        axes.semilogy([float(loss(s.theta)) for s in steps], color=colour, label=name)
    axes.set(xlabel=f"step of {a6.RATE}", ylabel="cross-entropy, nats")
    axes.set_title("A6: an over-parameterised softmax model never stops forgetting", loc="left", fontsize=9)
    axes.legend(fontsize=8)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "cone": cone,
    "trajectories": trajectories,
    "unreachable": unreachable,
    "parabola": fitted_parabola,
    "probe_error": probe_error,
    "bounded_steps": bounded_steps,
    "no_convergence": no_convergence,
}


def _canvas(width: float, height: float, columns: int = 1) -> tuple[Figure, Sequence[Any]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, columns))  # type: ignore[return-value]


def _arrow(axes: Any, v: torch.Tensor, colour: str) -> tuple[float, float]:
    """From the origin to v; returns its end."""
    x, y = v.tolist()
    axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0})
    return x, y


def _pareto_point(tasks: TwoTasks, c: float) -> pareto.Array:
    """The minimiser of LSP(.; c)."""
    (h_r, a), (h_f, b) = pareto.quadratic_form(tasks.retain), pareto.quadratic_form(-tasks.forget)
    found: pareto.Array = np.linalg.solve(c * h_r + (1 - c) * h_f, c * h_r @ a + (1 - c) * h_f @ b)
    return found


def _losses(tasks: TwoTasks, points: pareto.Array) -> pareto.Array:
    theta = torch.from_numpy(np.ascontiguousarray(points))
    return np.array([[float(tasks.retain(t)), float(tasks.forget(t))] for t in theta])


def _sample_line() -> Line:
    """A logistic loss with some curvature of its own, along NGDiff's d."""
    retain = ridge("softplus", [1.0, 2.0], [[2.0, 0.0], [-1.0, 1.0]], [0.0, 1.0]) + quadratic([0.3, 0.3], [0, 0], [0, 0])
    lines = distinct_lines(TwoTasks(retain, ridge("softplus", [1.0], [[1.0, 1.0]], [0.0]), (1.5, 1.0)))
    assert lines is not None
    return lines[0]


def _relative(found: Any, exact: Any) -> float:
    return float(abs(found / exact - 1))


def _rounded_error(line: Line, h: float, dtype: torch.dtype) -> float:
    minus, zero, plus = (a7.rounded(float(line.value(eta)), dtype) for eta in (h, 0.0, -h))
    fit = a7.fit_parabola(minus, zero, plus, h, a7.ROUNDOFF[dtype])
    return _relative(fit.slope / fit.curvature, float(line.slope / line.curvature)) if fit.curvature else np.nan
