"""A5. Convergence.

In short: strongly convex L_R, -L_F: converges to the Pareto set for constant eta < mu D / 2L, with rates

Statement: let f = L_R and g = -L_F be mu-strongly convex and L-smooth with minimisers D > 0 apart, h = f + g, G_t = ||g_R|| +
||g_F|| >= mu D and m = ||g_R|| ||g_F|| / G_t. (i) The distance of theta to the Pareto set is at most m ||d|| / mu. (ii) sum
eta_t (G_t / 2 - L eta_t) ||d_t||^2 <= h(theta_0) - h(theta_T). (iii) Wherever G_t < 4 L eta_t, theta_t is within 2 L eta_t /
mu of a minimiser; and with a constant eta it stays within eta sqrt(8 (L/mu)^2 + 4 L/mu) of one from then on. (iv) Along the
flow, as soon as ||d|| < 2 mu / L, -d/dt log ||d|| >= (1/||g_R|| + 1/||g_F||) (mu - L ||d|| / 2). Therefore: with a constant
eta < mu D / (2 L), and with rates that tend to 0 with sum eta = inf, the iterates converge to the Pareto set itself, with min
||d_t||^2 = O(1/T) for the constant one; with any constant eta they do, or end in the neighbourhood of (iii).

Hypotheses: strong convexity; smoothness (for (iv) two derivatives); different minimisers; eta < mu D / 2L (for constant
rates); sum eta = inf.

Source: ours, with proof.

Tight: (ii) is an equality where both Hessians are L times the identity; (i) is one there for the distance to the minimiser of
LSP(.; c_t), which is not the nearest Pareto point. The threshold mu D / (2 L) cannot be raised for any L / mu: with f, g =
(mu (x -+ D/2)^2 + L y^2) / 2 a run above it jumps to and fro between y = +-sqrt(eta^2 - (mu D / 2 L)^2) for ever.

Proof: (i) m d is the gradient of LSP(.; c_t), which is mu-strongly convex with a Pareto optimal minimiser. (ii) By smoothness
and T3, which gives g_R.d = ||g_R|| ||d||^2 / 2, f falls by eta ||g_R|| ||d||^2 / 2 - L eta^2 ||d||^2 / 2 at least, and g
likewise; add and sum up. G >= mu (||theta - theta_f|| + ||theta - theta_g||) >= mu D. (iii) The nearer minimiser is within G
/ (2 mu). m ||d|| is Lipschitz on bounded sets, because G is bounded away from 0, so sum eta_t (m ||d_t||)^2 < inf with sum
eta = inf leaves no other limit than 0. Where G < 4 L eta, h - min f - min g <= G^2 / (2 mu) < 8 L^2 eta^2 / mu, and a step
adds 4 L eta^2 at most; elsewhere h does not rise, and h - min f - min g >= mu r^2 with r the distance to the nearer
minimiser. (iv) The derivative of a unit gradient u_f along d is (1 - u_f u_f') H d / ||g_R||, and d'(1 - u_f u_f') H d = d'Hd
- ||d||^2 / 2 u_f'H d.

False variant: (ii) with 1.01 G_t / 2.
"""

from dataclasses import dataclass

import numpy as np
import sympy
import torch
from flint import arb
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

from theory import library, pareto
from theory.claim import Counterexample, Identity, Measurement, worst
from theory.exact import U
from theory.losses import Line, TwoTasks, curvature_bounds, quadratic
from theory.pareto import Array
from theory.strategies import opposing_logistics, opposing_quadratics

SMALLEST = (1.0, 0.1, 30.0)  # curvatures, of either task


@dataclass(frozen=True)
class Problem:
    """Two strongly convex tasks; the first rate in units of mu D / (2 L), how fast rates fall, and the number of steps."""

    tasks: TwoTasks
    rate: float
    power: float
    steps: int


@dataclass(frozen=True)
class Constants:
    """mu, L and D of a pair of strongly convex losses."""

    mu: float
    smooth: float
    apart: float

    @classmethod
    def of(cls, tasks: TwoTasks) -> "Constants":
        """From bounds of the curvature and the minimisers."""
        low, high = zip(*(curvature_bounds(loss) for loss in (tasks.retain, tasks.forget)), strict=True)
        first, second = (pareto.minimiser(loss) for loss in (tasks.retain, tasks.forget))
        return cls(min(low), max(high), float(np.linalg.norm(first - second)))

    @property
    def threshold(self) -> float:
        """mu D / (2 L), the constant rate below which the iterates converge."""
        return self.mu * self.apart / (2 * self.smooth)

    def radius(self, rate: float) -> float:
        """eta sqrt(8 (L/mu)^2 + 4 L/mu): how far from a minimiser a run of constant rate ends that does not converge."""
        condition = self.smooth / self.mu
        return rate * (8 * condition**2 + 4 * condition) ** 0.5


def problems() -> st.SearchStrategy[Problem]:
    """Quadratics of condition up to 1e8 in 1 to 50 dimensions, and logistic losses; rates far below to far above the threshold.

    The smallest curvature is 1/10, 1 or 30 for either task.
    """
    rate, power = st.sampled_from((0.5, 0.01, 0.95, 4.0, 50.0)), st.sampled_from((0.0, 0.75))
    tasks = st.one_of(opposing_quadratics(smallest=SMALLEST), opposing_logistics(smallest=SMALLEST))
    return st.builds(Problem, tasks, rate, power, st.integers(1, 12))


def measure(problem: Problem) -> Measurement:
    """(i) at the end of a run of the optimizer, (ii) over all of it, (iii) at every step."""
    constants, steps = Constants.of(problem.tasks), run(problem)
    parts = [_telescope(problem.tasks, constants, steps, 1.0), _distance(problem.tasks, constants, steps[-1])]
    return worst(*parts, *_near(problem, constants, steps))


def _near(problem: Problem, constants: Constants, steps: list[library.Step]) -> list[Measurement]:
    """(iii): the distance to the nearer minimiser where the rate is too large, and from there on if it is constant."""
    ends = [pareto.minimiser(loss) for loss in (problem.tasks.retain, problem.tasks.forget)]
    parts, entered = [], False
    for step in steps:
        nearest = min(float(np.linalg.norm(step.theta.numpy() - end)) for end in ends)
        if entered and not problem.power:
            parts.append(Measurement(nearest, constants.radius(steps[0].rate), "distance after the rate was too large"))
        if total_slope(step) < 4 * constants.smooth * step.rate:
            entered = True
            bound = 2 * constants.smooth * step.rate / constants.mu
            parts.append(Measurement(nearest, bound, "distance where the rate is too large"))
    return parts


def false_variant(problem: Problem) -> Measurement:
    """(ii) with the slope larger by a hundredth."""
    return _telescope(problem.tasks, Constants.of(problem.tasks), run(problem), 1.01)


def run(problem: Problem) -> list[library.Step]:
    """The steps of the optimizer."""
    first = problem.rate * Constants.of(problem.tasks).threshold
    rates = [first / (t + 1) ** problem.power for t in range(problem.steps)]
    return list(library.descend((problem.tasks.retain, problem.tasks.forget), problem.tasks.theta, rates))


def total_slope(step: library.Step) -> float:
    """G = ||g_R|| + ||g_F||."""
    return float(step.retain.norm() + step.forget.norm())


def _telescope(tasks: TwoTasks, constants: Constants, steps: list[library.Step], factor: float) -> Measurement:
    """sum eta (factor G / 2 - L eta) ||d||^2 against the fall of h, whose two values are exact."""
    total = sum(s.rate * (factor * total_slope(s) / 2 - constants.smooth * s.rate) * float(s.d @ s.d) for s in steps[:-1])
    fall = joint_loss(tasks, steps[0].theta) - joint_loss(tasks, steps[-1].theta)
    # G, ||d|| and theta + eta d are rounded: each step's share of the sum by a few n u, its place by u |theta|.
    n = len(steps[0].d)
    rounding = sum(
        _step_error(tasks, constants, s) + 4 * (n + 8) * U * s.rate * (total_slope(s) + constants.smooth * s.rate) * 4
        for s in steps[:-1]
    )
    return Measurement(total, fall + rounding, "sum eta (G/2 - L eta) ||d||^2 against the fall of h")


def _step_error(tasks: TwoTasks, constants: Constants, step: library.Step) -> float:
    """How much h can change because a step is not exactly -eta d of the true gradients."""
    error = library.direction_error(len(step.d))
    for loss, gradient in ((tasks.retain, step.retain), (tasks.forget, step.forget)):
        size = float(gradient.norm())
        # A gradient that drowns in its own rounding may point anywhere: its unit vector is off by 2 at most.
        error += min(2.0, 2 * loss.gradient_error(step.theta) / size) if size else 2.0
    moved = step.rate * error + U * float(step.theta.norm() + 2 * step.rate)
    return moved * (total_slope(step) + 4 * step.rate * constants.smooth)


def _distance(tasks: TwoTasks, constants: Constants, step: library.Step) -> Measurement:
    """The distance to the Pareto set, in closed form, against m ||d|| / mu."""
    a, b = float(step.retain.norm()), float(step.forget.norm())
    residual = float(step.d.norm()) * (a * b / (a + b) if a and b else 0.0)
    n, condition = len(step.d), constants.smooth / constants.mu
    rounding = (
        tasks.retain.gradient_error(step.theta)
        + tasks.forget.gradient_error(step.theta)
        + library.direction_error(n) * min(a, b)
    )
    # The closed form solves a linear system of this condition.
    solved = (
        8
        * n
        * U
        * condition
        * (float(step.theta.norm()) + 1 + sum(np.linalg.norm(pareto.minimiser(x)) for x in (tasks.retain, tasks.forget)))
    )
    weight = b / (a + b) if a + b else 0.5
    return Measurement(
        pareto.distance_to_pareto_set(tasks, step.theta, weight),
        (residual + 2 * rounding) / constants.mu + float(solved),
        "distance against m ||d|| / mu",
    )


def joint_loss(tasks: TwoTasks, theta: Tensor) -> arb:
    """h = L_R - L_F, in ball arithmetic."""
    nowhere = torch.zeros_like(theta)
    return Line(tasks.retain, theta, nowhere).value(0.0) - Line(tasks.forget, theta, nowhere).value(0.0)


def identities() -> list[Identity]:
    """The sum of both descents; the slope by the length of d; the derivative of a unit gradient."""
    eta, smooth, a, b, p, q = sympy.symbols("eta L a b p q", positive=True)
    y, square = sympy.symbols("cos_psi square", real=True)
    descent = [-eta * size * square / 2 + smooth * eta**2 * square / 2 for size in (a, b)]
    u, v = sympy.Matrix([sympy.cos(p), sympy.sin(p)]), sympy.Matrix([sympy.cos(q), sympy.sin(q)])
    h = sympy.Matrix(2, 2, lambda i, j: sympy.Symbol(f"h{min(i, j)}{max(i, j)}", real=True))
    d = u + v
    projected = (d.T * (sympy.eye(2) - u * u.T) * h * d)[0]
    return [
        Identity("both descents: -eta ||d||^2 (G / 2 - L eta)", sum(descent) + eta * square * ((a + b) / 2 - smooth * eta)),
        Identity("g_R.d = ||g_R|| ||d||^2 / 2", a * (1 + y) - a * (2 + 2 * y) / 2),
        Identity("u.d = ||d||^2 / 2", sympy.simplify((u.T * d)[0] - (d.T * d)[0] / 2)),
        Identity(
            "d'(1 - uu')Hd = d'Hd - ||d||^2 / 2 u'Hd",
            sympy.simplify(projected - (d.T * h * d)[0] + (d.T * d)[0] / 2 * (u.T * h * d)[0]),
        ),
    ]


def counterexamples() -> list[Counterexample]:
    """Equal minimisers, a rate above the threshold, one that falls too fast, no strong convexity, no smoothness."""
    return [_same_minimiser(), _above(), _summable(), _flat(), _kinked()]


def crosswise(condition: float) -> TwoTasks:
    """(mu (x -+ 1/2)^2 + y^2) / 2 with mu = 1 / condition, L = D = 1: the Pareto set is y = 0 between both centres."""
    spectrum = [1 / condition, 1.0]
    retain, forget = (quadratic(spectrum, [0, 0], [x, 0]) for x in (0.5, -0.5))
    return TwoTasks(retain, -forget, (0.02, 0.5))


def jumping(condition: float, factor: float, steps: int = 2000) -> tuple[float, float]:
    """The largest |y| among the last 50 steps at `factor` times the threshold, and the |y| of the cycle."""
    tasks = crosswise(condition)
    threshold = Constants.of(tasks).threshold
    run = library.descend((tasks.retain, tasks.forget), tasks.theta, [factor * threshold] * steps)
    return max(abs(float(step.theta[1])) for step in list(run)[-50:]), threshold * max(factor**2 - 1, 0.0) ** 0.5


def _above() -> Counterexample:
    found, expected = jumping(10.0, 1.02)
    text = f"(x -+ 1/2)^2/20 + y^2/2, eta = 1.02 mu D / (2 L): jumps between y = +-{found:.4f}, predicted {expected:.4f}"
    return Counterexample("eta < mu D / 2L", text, Measurement(found, 1e-6, "distance to the Pareto set"))


def _same_minimiser() -> Counterexample:
    loss = quadratic([1.0], [0.0], [0.0])
    *_, end = library.descend((loss, lambda t: -loss(t)), [0.55], [0.1] * 200)
    text = "L_R = -L_F = theta^2/2, eta = 0.1: 200 steps end at distance"
    distance = abs(float(end.theta))
    return Counterexample(
        "different minimisers", f"{text} {distance:.2g}", Measurement(distance, 1e-3, "distance to the Pareto set")
    )


def _summable() -> Counterexample:
    tasks = sample_problem()
    *_, end = library.descend((tasks.retain, tasks.forget), tasks.theta, [0.1 / 2**t for t in range(50)])
    distance = pareto.distance_to_pareto_set(tasks, end.theta)
    text = "rates 0.1, 0.05, 0.025, ...: the run stops short of the Pareto set"
    return Counterexample("sum eta = inf", text, Measurement(distance, 1e-3, "distance to the Pareto set"))


def _flat() -> Counterexample:
    retain, forget = quadratic([1.0, 0.0], [0, 0], [0, 0]), lambda t: -torch.nn.functional.softplus(-t[1])
    *_, end = library.descend((retain, forget), [0.05, 0.0], [0.1] * 200)
    text = f"L_R = x^2/2, -L_F = log(1 + e^-y): y = {float(end.theta[1]):.1f} after 200 steps of 0.1 and growing (A6)"
    return Counterexample("strong convexity", text, Measurement(float(end.theta[1]), 10.0, "distance from the start"))


def _kinked() -> Counterexample:
    def retain(t: Tensor) -> Tensor:
        return t[0].abs() + 0.5 * t @ t

    def forget(t: Tensor) -> Tensor:
        return -(t[0].abs() + 0.5 * (t[1] - 1) ** 2 + 0.5 * t[0] ** 2)

    *_, end = library.descend((retain, forget), [0.55, 0.5], [0.1] * 400)
    text = f"|x| in both losses, whose Pareto set lies in x = 0, eta = 0.1: x is {float(end.theta[0]):.2g} after 400 steps"
    return Counterexample("smoothness", text, Measurement(abs(float(end.theta[0])), 1e-3, "distance to x = 0"))


def sample_problem() -> TwoTasks:
    """Two quadratics in the plane of condition 10, with axes turned against each other: the problem of the figures too."""
    return TwoTasks(quadratic([1, 10], [0, 0], [-2, 0]), -quadratic([1, 10], [1, 2.5], [2, 1]), (-1.0, 3.0))


def runs() -> list[Measurement]:
    """Long runs: rates of convergence against those proven or predicted, and where rates above the threshold end."""
    tasks = sample_problem()
    return [*_constant_rate(tasks), _falling_rate(tasks), *_threshold(), _flow(tasks)]


def _constant_rate(tasks: TwoTasks) -> list[Measurement]:
    """O(1/T) as proven; and the linear rate at the end, |1 - eta lambda| a step by the derivative of d there."""
    constants = Constants.of(tasks)
    rate = 0.5 * constants.threshold
    steps = list(library.descend((tasks.retain, tasks.forget), tasks.theta, [rate] * 2000))
    lengths = np.array([float(s.d.norm()) for s in steps])
    near = np.flatnonzero((lengths < 1e-4) & (lengths > 1e-8))
    fitted = -np.polyfit(near, np.log(lengths[near]), 1)[0] if len(near) > 1 else 0.0
    predicted = -float(np.log(abs(1 - rate * _sideways(tasks, steps[-1]))))
    fall = float(joint_loss(tasks, steps[0].theta) - joint_loss(tasks, steps[-1].theta))
    proven = fall / (2000 * rate * (constants.mu * constants.apart / 2 - constants.smooth * rate))
    return [
        Measurement(float(lengths.min() ** 2), proven, "constant eta: min ||d||^2 against O(1/T)"),
        # Where ||d|| < 1e-4 the derivative of d has changed by about as much, and the steps still differ by it.
        Measurement(
            abs(fitted / predicted - 1), 1e-3, f"constant eta: log ||d|| falls by {fitted:.4f} a step; off from predicted"
        ),
    ]


def _sideways(tasks: TwoTasks, end: library.Step) -> float:
    """How fast d changes across the Pareto set of two parameters: v'(H_R / ||g_R|| - H_F / ||g_F||) v, v orthogonal to g_R."""
    v = torch.stack([-end.retain[1], end.retain[0]]) / end.retain.norm()
    hessians = tasks.retain.hessian(end.theta) / end.retain.norm() - tasks.forget.hessian(end.theta) / end.forget.norm()
    return float(v @ hessians @ v)


def _falling_rate(tasks: TwoTasks) -> Measurement:
    rates = [Constants.of(tasks).threshold / (t + 1) ** 0.75 for t in range(2000)]
    steps = list(library.descend((tasks.retain, tasks.forget), tasks.theta, rates))
    squares = np.array([float(s.d @ s.d) for s in steps[:-1]])
    power = np.polyfit(np.log(np.cumsum(rates)[20:]), np.log(np.minimum.accumulate(squares)[20:]), 1)[0]
    return Measurement(1.0, -power, f"eta ~ t^-0.75: min ||d||^2 falls as (sum eta)^{power:.1f}; power proven against fitted")


def _threshold() -> list[Measurement]:
    """Just below the threshold runs converge; above it they jump at the distance predicted, inside the radius of (iii)."""
    parts = []
    for condition in (1.0, 10.0):
        found, _ = jumping(condition, 0.9)
        parts.append(
            Measurement(found, 1e-12, f"L/mu = {condition:.0f}, eta = 0.9 of the threshold: distance from the Pareto set")
        )
        found, expected = jumping(condition, 1.5)
        parts.append(
            Measurement(
                abs(found / expected - 1), 1e-9, f"L/mu = {condition:.0f}, eta = 1.5 of it: {found:.4g}, off from predicted"
            )
        )
        constants = Constants.of(crosswise(condition))
        radius = constants.radius(1.5 * constants.threshold)
        parts.append(Measurement(found, radius, f"L/mu = {condition:.0f}, eta = 1.5 of it: distance for ever, against (iii)"))
    return parts


def _flow(tasks: TwoTasks) -> Measurement:
    """(iv), integrated along the flow from where ||d|| < mu / L."""
    constants = Constants.of(tasks)

    def at(x: Array) -> tuple[Array, float, float]:
        theta = torch.from_numpy(np.ascontiguousarray(x))
        r, f = tasks.retain.gradient(theta), tasks.forget.gradient(theta)
        d = library.combine("ngdiff", r, f).d
        length = float(d.norm())
        return d.numpy(), length, float(1 / r.norm() + 1 / f.norm()) * (constants.mu - constants.smooth * length / 2)

    times = np.linspace(0, 30, 600)
    path = solve_ivp(lambda t, x: -at(x)[0], (0, 30), tasks.point.numpy(), "LSODA", rtol=1e-11, atol=1e-13, t_eval=times)
    lengths, rates = zip(*(at(x)[1:] for x in path.y.T), strict=True)
    near = [i for i, length in enumerate(lengths) if 1e-6 < length < constants.mu / constants.smooth]
    first, last = near[0], near[-1]
    proven = float(np.trapezoid(rates[first : last + 1], times[first : last + 1]))
    fitted = float(np.log(lengths[first] / lengths[last]))
    return Measurement(proven, fitted, "flow: proven fall of log ||d|| against measured")
