"""T2. Dynamic scalarization.

In short: where c_t and the flow converge, the limit is stationary for the limit of the weights; Pareto optimal if convex

Statement: if the weight c_t of c_t L_R - (1 - c_t) L_F converges to c in (0, 1) and the gradient flow to theta*, then theta*
is stationary for LSP(.; c), and Pareto optimal where LSP(.; c) is convex. NGDiff is such a flow, with c_t = ||g_F|| /
(||g_R|| + ||g_F||). It is attracted by a Pareto stationary point, with unit gradient u, if the Hessian of LSP(.; c) is
positive definite across u; along u nothing is asked. So it also ends on the concave part of a front, at Pareto optimal points
that are maxima of LSP(.; c) along the front, from which a static weight moves away from almost every start [ours].

Hypotheses: c_t converges; the flow converges; 0 < c < 1; convex LSP (for Pareto optimality).

Source: arXiv 2410.22086 (dynamic scalarization).

Tight: quantitative form [ours]: at every theta, r = ||grad LSP(theta; c_t)|| = m ||d|| with m = ||g_R|| ||g_F|| / (||g_R|| +
||g_F||); where LSP is mu-strongly convex, theta is within r / mu of its minimiser, and L_R can gain r^2 / (2 mu c) at most.
For isotropic quadratics the distance is r / mu exactly.

Proof: NGDiff's d is (1/||g_R|| + 1/||g_F||) grad LSP(theta; c_t), and the factor does not fall below a positive number while
the gradients are bounded. If theta and c_t converged and the gradient's limit were not 0, the flow would go on at a speed
bounded away from 0 in a fixed direction. The rest is T1. At a Pareto stationary point the derivative of d is P (H_R / ||g_R||
- H_F / ||g_F||) with P = 1 - uu', whose eigenvalues are 0 and, up to the factor 1 / m, those of LSP's Hessian across u.

False variant: theta* minimises LSP(.; 1/2), whatever c is.
"""

import warnings
from collections.abc import Callable

import numpy as np
import sympy
import torch
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

from ngdiff.gram import Losses
from ngdiff.rules import GDiff
from theory import library
from theory.claim import Counterexample, Identity, Measurement, count, worst
from theory.claims.t1_static_scalarization import bells, double_well, left_to_gain
from theory.exact import U
from theory.losses import TwoTasks, quadratic, ridge
from theory.pareto import Array
from theory.strategies import opposing_logistics, opposing_quadratics, opposing_ridges

STILL = 1e-5  # ||d|| at which the flow counts as converged; the integrator is exact to 1e-9
AT_MINIMUM = 1e-6  # ratio of the gradients' norms at which the flow has run into a minimiser
INSIDE = 1e-3  # the limit of c_t counts as inside (0, 1) from here to 1 - INSIDE


def problems() -> st.SearchStrategy[TwoTasks]:
    """Strongly convex pairs, and others with waves on them, in 2 to 5 dimensions.

    (In one dimension d jumps from 2 to 0 and the flow stops at the jump.)
    """
    convex = st.one_of(opposing_quadratics(dimensions=(2, 3, 5), conditions=(1, 10)), opposing_logistics(dimensions=(2, 3)))
    return st.one_of(convex, opposing_ridges("sine", dimensions=(2, 3)))


def measure(tasks: TwoTasks) -> Measurement | None:
    """Follow NGDiff's flow to its limit; compare the limit with the minimiser of LSP for the last c_t."""
    theta = flow(tasks)
    retain, forget = tasks.retain.gradient(theta), tasks.forget.gradient(theta)
    combined = library.combine("ngdiff", retain, forget)
    c, still = float(combined.coefficients.weight), float(combined.d.norm())
    if not INSIDE < c < 1 - INSIDE:
        return None  # the flow ran into a minimiser
    # Both losses are bounded on the side that the flow drives them to, so it comes to rest wherever it does not run into one of
    # their stationary points; that it does is part of what is measured.
    parts = [
        Measurement(still, 10 * STILL, "||d|| at the end of the flow"),
        _weighted_gradient(retain, forget, c, still),
        weights_follow_their_formulas(*tasks.gradients),
    ]
    return worst(*parts, *([left_to_gain(tasks, theta, c)] if "sine" not in tasks.retain.profiles else []))


def _weighted_gradient(retain: Tensor, forget: Tensor, c: float, still: float) -> Measurement:
    """The gradient of LSP(.; c), by the library's GDiff-c, against m ||d||: two rules of the library against each other."""
    a, b, n = float(retain.norm()), float(forget.norm()), len(retain)
    found = float(library.combine(GDiff(c), retain, forget).d.norm())
    # m ||d|| and the gradient differ by the rounding of d and of c, each of which weighs a gradient; m <= min(a, b) <= c_t a.
    rounding = 2 * (library.direction_error(n) + (n + 8) * U) * (c * a + (1 - c) * b)
    return Measurement(found, a * b / (a + b) * still + rounding, "||grad LSP(theta*; c)|| against m ||d||")


def false_variant(tasks: TwoTasks) -> Measurement | None:
    """The gradient of LSP(.; 1/2) at the limit."""
    theta = flow(tasks)
    if "sine" in tasks.retain.profiles:
        return None
    d = library.combine("gdiff-0.5", tasks.retain.gradient(theta), tasks.forget.gradient(theta)).d
    return Measurement(float(d.norm()), 1e-3, "||grad LSP(theta*; 1/2)||")


def flow(tasks: TwoTasks, rule: str = "ngdiff", duration: float = 1e4) -> Tensor:
    """Where theta' = -d leads, with the library's d; or the place where it runs into a minimiser and d jumps."""
    return follow(lambda theta: (tasks.retain.gradient(theta), tasks.forget.gradient(theta)), tasks.point, rule, duration)


def follow(gradients_at: Callable[[Tensor], tuple[Tensor, Tensor]], point: Tensor, rule: str, duration: float = 1e4) -> Tensor:
    """`flow` for any two gradients, from a point of shape (n,)."""

    def gradients(x: Array) -> tuple[Tensor, Tensor]:
        return gradients_at(torch.from_numpy(x))

    def velocity(_: float, x: Array) -> Array:
        d: Array = -library.combine(rule, *gradients(x)).d.numpy()
        return d

    def moving(t: float, x: Array) -> float:
        return float(np.linalg.norm(velocity(t, x))) - STILL

    def apart(_: float, x: Array) -> float:
        r, f = (float(g.norm()) for g in gradients(x))
        return min(r, f) - AT_MINIMUM * max(r, f)

    moving.terminal = apart.terminal = True  # type: ignore[attr-defined]
    start = point.numpy()
    if apart(0, start) <= 0:
        return point
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # LSODA says so where it ends at a jump of d
        path = solve_ivp(velocity, (0, duration), start, "LSODA", events=(moving, apart), rtol=1e-8, atol=1e-9)
    return torch.from_numpy(path.y[:, -1].copy())


def weights_follow_their_formulas(retain: Tensor, forget: Tensor) -> Measurement:
    """The weight c_t of every rule, from the library's coefficients, against its formula."""
    a, b = float(retain.norm()), float(forget.norm())
    if not a or not b:
        return Measurement(0.0, 0.0, "weights")
    losses = Losses(torch.tensor(1 + a, dtype=torch.float64), torch.tensor(3 + b, dtype=torch.float64))
    expected = {"ngdiff": b / (a + b), "gdiff-0.25": 0.25, "lossnorm": (3 + b) / (4 + a + b), "ga": 0.0}
    found = {rule: float(library.combine(rule, retain, forget, losses).coefficients.weight) for rule in expected}
    # Two norms, each off by (n/2 + 2) u in the library and as much here, and a few operations on them.
    bound = (2 * len(retain) + 16) * U
    return worst(*(Measurement(abs(found[rule] - c), bound, f"weight of {rule}") for rule, c in expected.items()))


def identities() -> list[Identity]:
    """NGDiff's coefficients as a multiple of c_t and 1 - c_t, and the multiple."""
    a, b = sympy.symbols("a b", positive=True)  # ||g_R||, ||g_F||
    c, speed = b / (a + b), 1 / a + 1 / b
    return [
        Identity("c_R = (1/||g_R|| + 1/||g_F||) c_t", speed * c - 1 / a),
        Identity("c_F = (1/||g_R|| + 1/||g_F||) (1 - c_t)", speed * (1 - c) - 1 / b),
        Identity("m = ||g_R|| ||g_F|| / (||g_R|| + ||g_F||)", 1 / speed - a * b / (a + b)),
        Identity("LSP along a concave front has curvature < 0 at its stationary point", _curvature_of_bells()),
    ]


def _curvature_of_bells() -> sympy.Expr:
    """T1's bells s apart, at t from the first: the curvature of LSP where it is stationary, less a formula.

    Over c g_R it is 1/t + 1/(s - t) - 2 s, so it is negative where t (s - t) > 1/2.
    """
    s, t = sympy.symbols("s t", positive=True)
    retain, forget = 1 - sympy.exp(-(t**2)), sympy.exp(-((s - t) ** 2)) - 1
    first, second = sympy.diff(retain, t), sympy.diff(forget, t)
    c = second / (first + second)
    curvature = c * sympy.diff(retain, t, 2) - (1 - c) * sympy.diff(forget, t, 2)
    return sympy.simplify(curvature / (c * first)) - (1 / t + 1 / (s - t) - 2 * s)


def counterexamples() -> list[Counterexample]:
    """Weights that alternate, a flow without limit, c = 1, a dominated stationary point."""
    return [_alternating(), _endless(), _weight_one(), _wrong_well()]


CENTRES = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)  # of the bells below
# Not at x = 0: by symmetry GDiff-0.5 stays on that line and ends at (0, 0), a saddle of its LSP that it leaves from elsewhere.
STARTS = [(0.05 + x / 5, 0.4) for x in range(-3, 4)]


def across_the_front(rule: str) -> list[Tensor]:
    """Where the flow of a rule leads on a pair with a concave front, from starts beside it."""
    retain, forget = bells(*CENTRES)

    def gradients(theta: Tensor) -> tuple[Tensor, Tensor]:
        return library.value_and_gradient(retain, theta)[1], library.value_and_gradient(forget, theta)[1]

    return [follow(gradients, torch.tensor(start, dtype=torch.float64), rule) for start in STARTS]


def on_concave_part(theta: Tensor) -> bool:
    """Whether a static scalarization that is stationary at this point of the front has a maximum there (see `identities`)."""
    t, s = float((theta - CENTRES[0]).norm()), 2.0
    return t < s and t * (s - t) > 0.5


def runs() -> list[Measurement]:
    """NGDiff ends on the concave part of a front, at points that minimise no static scalarization; GDiff nowhere on it."""
    ends = across_the_front("ngdiff")
    # ||d|| is the angle between the gradients, about 2 y / (1 - x^2) at (x, y) near the front.
    away = max(float(abs(y)) for _, y in ends)
    elsewhere = sum(not on_concave_part(end) for end in ends)
    static = sum(on_concave_part(end) for c in (0.25, 0.5, 0.75) for end in across_the_front(f"gdiff-{c}"))
    return [
        Measurement(away, 10 * STILL, f"concave front: distance of {len(ends)} ends of NGDiff from the Pareto set"),
        count(elsewhere, f"concave front: ends of NGDiff, of {len(ends)}, elsewhere than on its concave part"),
        count(static, f"concave front: ends of GDiff-0.25, -0.5 and -0.75, of {3 * len(STARTS)}, on its concave part"),
        worst(*(_attraction(end) for end in ends)),
    ]


def _attraction(end: Tensor) -> Measurement:
    """The derivative of the library's d at an end, by central differences, against P (H_R / ||g_R|| - H_F / ||g_F||)."""
    losses, step = bells(*CENTRES), 1e-5

    def d(theta: Tensor) -> Tensor:
        retain, forget = (library.value_and_gradient(loss, theta)[1] for loss in losses)
        return library.combine("ngdiff", retain, forget).d

    found = torch.stack([(d(end + step * e) - d(end - step * e)) / (2 * step) for e in torch.eye(2, dtype=torch.float64)], 1)
    (g_r, h_r), (g_f, h_f) = (
        (library.value_and_gradient(loss, end)[1], torch.autograd.functional.hessian(loss, end)) for loss in losses
    )
    across = torch.eye(2, dtype=torch.float64) - torch.outer(g_r, g_r) / g_r.square().sum()
    expected = across @ (h_r / g_r.norm() - h_f / g_f.norm())
    # The formula is for d = 0 and the end has ||d|| = STILL, with second derivatives of d below 100 here.
    return Measurement(
        float((found - expected).norm()), 100 * STILL, "concave front: derivative of d at the ends, off from its formula"
    )


def _alternating() -> Counterexample:
    theta = torch.zeros(1, dtype=torch.float64)
    for t in range(400):
        theta = theta - library.combine(GDiff((0.25, 0.75)[t % 2]), theta, 1 - theta).d / (t + 1)
    residuals = [float(library.combine(GDiff(c), theta, 1 - theta).d.norm()) for c in (0.25, 0.75)]
    text = f"L_R = theta^2/2, L_F = -(theta-1)^2/2, c_t = 1/4, 3/4, 1/4, ...: theta_t converges to {float(theta):.3f}"
    return Counterexample("c_t converges", text, Measurement(min(residuals), 1e-2, "||grad LSP|| for both limits"))


def _endless() -> Counterexample:
    tasks = TwoTasks(ridge("square", [1.0], [[1.0, 0.0]], [0.0]), ridge("softplus", [1.0], [[0.0, 1.0]], [0.0]), (1.0, 0.0))
    theta = flow(tasks, "gdiff-0.5", 100.0)
    d = library.combine("gdiff-0.5", tasks.retain.gradient(theta), tasks.forget.gradient(theta)).d
    text = f"L_R = x^2/2, L_F = log(1 + e^y), c = 1/2: y = {float(theta[1]):.0f} when x has vanished, and growing"
    return Counterexample("the flow converges", text, Measurement(float(d.norm()), 1e-3, "||grad LSP||"))


def _weight_one() -> Counterexample:
    tasks = TwoTasks(ridge("square", [1.0], [[1.0, 0.0]], [0.0]), -quadratic([1, 1], [0, 0], [0, 1]), (1.0, 0.0))
    theta = flow(tasks, "gdiff-1.0")
    better = torch.tensor([0.0, 1.0], dtype=torch.float64)
    gain = float(tasks.forget(better) - tasks.forget(theta))
    text = "L_R = x^2/2, L_F = -(x^2 + (y-1)^2)/2, c = 1 from (1, 0): ends at (0, 0), dominated by (0, 1)"
    return Counterexample("0 < c < 1", text, Measurement(gain, 1e-6, "what L_F can gain for nothing"))


def _wrong_well() -> Counterexample:
    tasks = double_well()
    rates = [0.1 / (t + 1) ** 0.5 for t in range(400)]
    end = [step.theta for step in library.descend((tasks.retain, tasks.forget), tasks.theta, rates)][-1]
    gain = float(tasks.retain(end) - tasks.retain(torch.tensor([-1.4], dtype=torch.float64)))
    text = f"L_R = -L_F = theta^2/20 + sin theta, c_t = 1/2: NGDiff ends at {float(end):.2f}, a local minimum"
    return Counterexample("convex LSP", text, Measurement(gain, 1e-2, "what both can gain at -1.4"))
