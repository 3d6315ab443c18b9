"""T1. Static scalarization.

In short: every global minimiser of c L_R - (1 - c) L_F, 0 < c < 1, is Pareto optimal

Statement: for 0 < c < 1 every global minimiser of LSP(theta; c) = c L_R - (1 - c) L_F is Pareto optimal.

Hypotheses: c > 0; c < 1; a global, not a local minimiser; convex losses (for the converse alone).

Source: arXiv 2410.22086 (static linear scalarization). The converse, that every Pareto point minimises some LSP, needs
convexity.

Tight: yes, there is no constant in it. The gain that is left at an approximate minimiser is at most r^2 / (2 mu c), with r
the gradient norm of LSP and mu its strong convexity [ours].

Proof: a point that dominates theta has L_R lower by p >= 0 and L_F higher by q >= 0, not both 0, so its LSP is lower by c p +
(1 - c) q > 0, and theta was no minimiser.

False variant: the converse, that every Pareto optimal point minimises LSP for some c in (0, 1).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch
from hypothesis import strategies as st
from torch import Tensor

from ngdiff.gram import Gram
from ngdiff.rules import GDiff
from theory import library, pareto
from theory.claim import Counterexample, Identity, Measurement, count, worst
from theory.exact import U, rational
from theory.losses import TwoTasks, curvature_bounds, quadratic, ridge
from theory.strategies import opposing_logistics, opposing_quadratics, two_centres

Points = list[tuple[int, int]]


@dataclass(frozen=True)
class Table:
    """Losses (L_R, L_F) of finitely many points: whatever the losses are, a problem of this kind shows what they do there."""

    points: tuple[tuple[int, int], ...]
    c: float


@dataclass(frozen=True)
class Convex:
    """L_R and -L_F strongly convex."""

    tasks: TwoTasks
    c: float


def problems() -> st.SearchStrategy[Table | Convex]:
    """Tables, concave fronts, quadratics of condition up to 1e8, logistic losses; c a multiple of 1/16, so 1 - c is exact."""
    weight = st.integers(1, 15).map(lambda k: k / 16)
    value = st.integers(-9, 9)
    tables = st.builds(Table, st.lists(st.tuples(value, value), min_size=2, max_size=12).map(tuple), weight)
    convex = st.one_of(opposing_quadratics(), opposing_logistics())
    not_convex = st.builds(Table, st.one_of(fronts(), wells()), weight)
    return st.one_of(tables, not_convex, st.builds(Convex, convex, weight))


@st.composite
def fronts(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """Points of which none dominates another: both losses grow from one to the next. Most of them minimise no scalarization."""
    steps = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=8))
    return tuple(zip(*(itertools.accumulate(part) for part in zip(*steps, strict=True)), strict=True))


@st.composite
def wells(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """A non-convex pair whose front has a concave part, on a grid of the plane: `bells` with drawn centres."""
    a, b = (torch.tensor(centre, dtype=torch.float64) for centre in draw(two_centres(2)))
    retain, forget = bells(a / 4, b / 4)
    side = torch.linspace(-2, 2, 7, dtype=torch.float64)
    return in_millionths([(float(retain(x)), float(forget(x))) for x in torch.cartesian_prod(side, side)])


def measure(problem: Table | Convex) -> Measurement:
    """Dominated minimisers of a table, or what L_R can gain at the minimiser of two convex losses."""
    if isinstance(problem, Table):
        points = list(problem.points)
        return count(sum(pareto.dominators(points, i) > 0 for i in minimisers(points, problem.c)), "minimisers dominated")
    theta = minimise(problem)
    return worst(_stationary(problem, theta), left_to_gain(problem.tasks, theta, problem.c))


def _stationary(problem: Convex, theta: Tensor) -> Measurement:
    """That a minimiser was found: what is left of LSP's gradient is rounding."""
    tasks, c = problem.tasks, problem.c
    residual = float(library.combine(GDiff(c), tasks.retain.gradient(theta), tasks.forget.gradient(theta)).d.norm())
    # Both gradients are rounded; theta is too, which moves LSP's gradient by its largest curvature times u |theta|.
    steepest = sum(share * curvature_bounds(loss)[1] for share, loss in ((c, tasks.retain), (1 - c, tasks.forget)))
    rounding = c * tasks.retain.gradient_error(theta) + (1 - c) * tasks.forget.gradient_error(theta)
    return Measurement(residual, 4 * rounding + 4 * U * steepest * (1 + float(theta.norm())), "||grad LSP|| at the minimiser")


def false_variant(problem: Table | Convex) -> Measurement | None:
    """Pareto points of a table that minimise no LSP."""
    if isinstance(problem, Convex):
        return None
    return count(len(unreachable(list(problem.points))), "Pareto points that minimise no LSP")


def minimisers(points: Points, c: float) -> list[int]:
    """Which points minimise c_R L_R - c_F L_F with the coefficients of the library's rule, exactly."""
    c_r, c_f = (rational(float(x)) for x in GDiff(c)(Gram.from_vector(torch.ones(3, dtype=torch.float64))))
    values = [c_r * r - c_f * f for r, f in points]
    return [i for i, value in enumerate(values) if value == min(values)]


def unreachable(points: Points) -> list[int]:
    """Pareto optimal points that minimise LSP for no c in (0, 1)."""
    return [i for i in range(len(points)) if not pareto.dominators(points, i) and not pareto.supported(points, i)]


def minimise(problem: Convex) -> Tensor:
    """Newton's method on LSP, whose gradient is the library's direction for GDiff-c; steps are halved until LSP falls."""
    tasks, c = problem.tasks, problem.c

    def lsp(theta: Tensor) -> float:
        return float(c * tasks.retain(theta) - (1 - c) * tasks.forget(theta))

    theta = tasks.point.clone()
    for _ in range(100):
        d = library.combine(GDiff(c), tasks.retain.gradient(theta), tasks.forget.gradient(theta)).d
        step = torch.linalg.solve(c * tasks.retain.hessian(theta) - (1 - c) * tasks.forget.hessian(theta), d)
        near = 1e-8 * (1 + float(theta.norm()))  # from here on a full step leaves nothing but rounding
        while not lsp(theta - step) < lsp(theta) and step.norm() > near:
            step = step / 2
        theta = theta - step
        if step.norm() <= 1e-15 * (1 + theta.norm()):
            break
    return theta


def left_to_gain(tasks: TwoTasks, theta: Tensor, c: float) -> Measurement:
    """What L_R can gain at theta without loss of L_F, against r^2 / (2 mu c) with mu = 1."""
    residual = library.combine(GDiff(c), tasks.retain.gradient(theta), tasks.forget.gradient(theta)).d.norm()
    # The residual itself is known only up to the rounding of both gradients.
    residual = float(residual) + tasks.retain.gradient_error(theta) + tasks.forget.gradient_error(theta)
    bound = residual**2 / (2 * c)
    if set(tasks.retain.profiles + tasks.forget.profiles) == {"square"}:
        gain, rounding = pareto.quadratic_gain(tasks, theta)
    else:
        # A few roundings in each of both losses, each a sum of a dozen terms.
        price = (1 - c) / c
        rounding = 32 * U * (1 + abs(float(tasks.retain(theta))) + price * (1 + abs(float(tasks.forget(theta)))))
        gain = pareto.convex_gain(tasks, theta, price)
    return Measurement(gain, bound + rounding, "what L_R can gain")


def identities() -> list[Identity]:
    """The one line of the proof."""
    c, p, q, retain, forget = sympy.symbols("c p q L_R L_F", real=True)

    def lsp(r: sympy.Expr, f: sympy.Expr) -> sympy.Expr:
        return c * r - (1 - c) * f

    return [Identity("LSP falls by c p + (1 - c) q", lsp(retain, forget) - lsp(retain - p, forget + q) - (c * p + (1 - c) * q))]


def counterexamples() -> list[Counterexample]:
    """A weight at either end, a local minimiser; and, for the converse, a concave front."""
    ends = {"c < 1": ([(0, 0), (0, 1)], 1.0), "c > 0": ([(0, 0), (1, 0)], 0.0)}
    found = [
        Counterexample(name, f"two points (L_R, L_F) = {points}, c = {c}", measure(Table(tuple(points), c)))
        for name, (points, c) in ends.items()
    ]
    tasks = double_well()
    end = [step.theta for step in library.descend((tasks.retain, tasks.forget), tasks.theta, [0.1] * 200, "gdiff-0.5")][-1]
    better = torch.tensor([-1.2], dtype=torch.float64)
    dominated = float(tasks.retain(better)) < float(tasks.retain(end)) and float(tasks.forget(better)) > float(
        tasks.forget(end)
    )
    text = f"L_R = -L_F = theta^2/20 + sin theta: GDiff-0.5 ends at {float(end):.3f}, dominated by -1.2"
    found.append(Counterexample("a global, not a local minimiser", text, count(int(dominated), "dominated")))
    hidden = unreachable(list(in_millionths(concave_front(41))))
    text = "L_R = 1 - exp(-(x-1)^2), L_F = exp(-(x+1)^2) - 1 on 41 points of [-1, 1]"
    found.append(Counterexample("convex losses", text, count(len(hidden), "Pareto points that minimise no LSP")))
    return found


def double_well() -> TwoTasks:
    """One loss in two roles, so that lower dominates: theta^2/20 + sin theta has minima near -1.4 and 4.1."""
    loss = ridge("sine", [1.0], [[1.0]], [0.0]) + quadratic([0.1], [0.0], [0.0])
    return TwoTasks(loss, -loss, (5.0,))


def bells(a: Tensor, b: Tensor) -> library.LossPair:
    """L_R = 1 - exp(-|x - a|^2) and L_F = exp(-|x - b|^2) - 1, whose Pareto set is the segment from a to b.

    Where a and b are more than sqrt(2) apart the front has a concave part. Source: Fonseca and Fleming, 1995.
    """
    return (lambda x: 1 - (-(x - a).square().sum()).exp()), (lambda x: (-(x - b).square().sum()).exp() - 1)


def concave_front(points: int) -> list[tuple[float, float]]:
    """(L_R, L_F) along the Pareto set [-1, 1] of such a pair in one dimension."""
    one = torch.ones(1, dtype=torch.float64)
    retain, forget = bells(one, -one)
    return [(float(retain(x)), float(forget(x))) for x in torch.linspace(-1, 1, points, dtype=torch.float64)[:, None]]


def in_millionths(points: Sequence[tuple[float, float]]) -> tuple[tuple[int, int], ...]:
    """Losses as integers, so that they are compared exactly."""
    return tuple((round(1e6 * r), round(1e6 * f)) for r, f in points)
