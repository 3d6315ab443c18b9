"""T2. Dynamic scalarization.

In short: where c_t and the flow converge, the limit is stationary for the limit of the weights; Pareto optimal if convex

Statement: if the weight c_t of c_t L_R - (1 - c_t) L_F converges to c in (0, 1) and the gradient flow to theta*, then theta*
is stationary for LSP(.; c), and Pareto optimal where LSP(.; c) is convex. NGDiff is such a flow, with c_t = ||g_F|| /
(||g_R|| + ||g_F||).

Hypotheses: c_t converges; the flow converges; 0 < c < 1; for Pareto optimality, LSP(.; c) convex.

Source: arXiv 2410.22086 (dynamic scalarization).

Tight: quantitative form [ours]: at every theta, r = ||grad LSP(theta; c_t)|| = m ||d|| with m = ||g_R|| ||g_F|| / (||g_R|| +
||g_F||); where LSP is mu-strongly convex, theta is within r / mu of its minimiser, and L_R can gain r^2 / (2 mu c) at most.
For isotropic quadratics the distance is r / mu exactly.

Proof: the flow's speed is a positive multiple of grad LSP(theta; c_t). If theta and c_t converge and the gradient's limit
were not 0, the flow would go on at a speed bounded away from 0 in a fixed direction. The rest is T1.

False variant: theta* minimises LSP(.; 1/2), whatever c is.
"""

import warnings

import numpy as np
import sympy
import torch
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

from ngdiff.gram import Losses
from ngdiff.rules import GDiff
from theory import library
from theory.claim import Counterexample, Identity, Measurement, worst
from theory.claims.t1_static_scalarization import double_well, left_to_gain
from theory.exact import U
from theory.losses import TwoTasks, quadratic, ridge
from theory.pareto import Array
from theory.strategies import opposing_logistics, opposing_quadratics

STILL = 1e-5  # ||d|| at which the flow counts as converged; the integrator is exact to 1e-9
AT_MINIMUM = 1e-6  # ratio of the gradients' norms at which the flow has run into a minimiser
INSIDE = 1e-3  # the limit of c_t counts as inside (0, 1) from here to 1 - INSIDE


def problems() -> st.SearchStrategy[TwoTasks]:
    """Strongly convex pairs in 2 to 5 dimensions (in one, d jumps from 2 to 0 and the flow stops at the jump)."""
    return st.one_of(opposing_quadratics(dimensions=(2, 3, 5), conditions=(1, 10)), opposing_logistics(dimensions=(2, 3)))


def measure(tasks: TwoTasks) -> Measurement:
    """Follow NGDiff's flow to its limit; compare the limit with the minimiser of LSP for the last c_t."""
    theta = flow(tasks)
    combined = library.combine("ngdiff", tasks.retain.gradient(theta), tasks.forget.gradient(theta))
    c = float(combined.coefficients.weight)
    weights = weights_follow_their_formulas(*tasks.gradients)
    if not INSIDE < c < 1 - INSIDE:
        return weights  # the flow ran into a minimiser: a hypothesis is not met
    still = Measurement(float(combined.d.norm()), 10 * STILL, "||d|| at the end of the flow")
    return worst(weights, still, left_to_gain(tasks, theta, c))


def false_variant(tasks: TwoTasks) -> Measurement:
    """The gradient of LSP(.; 1/2) at the limit."""
    theta = flow(tasks)
    d = library.combine("gdiff-0.5", tasks.retain.gradient(theta), tasks.forget.gradient(theta)).d
    return Measurement(float(d.norm()), 1e-3, "||grad LSP(theta*; 1/2)||")


def flow(tasks: TwoTasks, rule: str = "ngdiff", duration: float = 1e4) -> Tensor:
    """Where theta' = -d leads, with the library's d; or the place where it runs into a minimiser and d jumps."""

    def gradients(x: Array) -> tuple[Tensor, Tensor]:
        theta = torch.from_numpy(x)
        return tasks.retain.gradient(theta), tasks.forget.gradient(theta)

    def velocity(_: float, x: Array) -> Array:
        d: Array = -library.combine(rule, *gradients(x)).d.numpy()
        return d

    def moving(t: float, x: Array) -> float:
        return float(np.linalg.norm(velocity(t, x))) - STILL

    def apart(_: float, x: Array) -> float:
        r, f = (float(g.norm()) for g in gradients(x))
        return min(r, f) - AT_MINIMUM * max(r, f)

    moving.terminal = apart.terminal = True  # type: ignore[attr-defined]
    start = tasks.point.numpy()
    if apart(0, start) <= 0:
        return tasks.point
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
    ]


def counterexamples() -> list[Counterexample]:
    """Weights that alternate, a flow without limit, c = 1, and a dominated stationary point."""
    return [_alternating(), _endless(), _weight_one(), _wrong_well()]


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
    return Counterexample("LSP(.; c) convex", text, Measurement(gain, 1e-2, "what both can gain at -1.4"))
