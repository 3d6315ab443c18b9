"""T6. Automatic learning rate.

In short: three losses give eta* = g_R.d / d'H_R d: exactly for quadratics, else within C h^2

Statement: the minimiser of the second-order expansion of L_R along d is eta* = g_R.d / (d'H_R d), half of T5's limit. From
the losses at theta - h d, theta and theta + h d the library's parabola finds it exactly if L_R is quadratic, at any h, and
otherwise within h^2 (M3 / 6 + |eta*| M4 / 12) / (a - h^2 M4 / 12), with a = d'H_R d and M3, M4 bounds of the third and fourth
derivative between the probes [ours].

Hypotheses: d'H_R d > 0; a quadratic loss (for exactness); h^2 M4 / 12 < a (otherwise).

Source: arXiv 2407.02772 (GeN) and 2410.22086 (learning rate); the constant [ours].

Tight: in h^2, where the third and fourth derivative reach their bounds: the error is h^2 |f3 / 6 - eta* f4 / 12| / a to first
order, with f3, f4 the derivatives along d. Its order, fitted, is 2.

Proof: central differences: the slope is off by h^2 f3(xi) / 6, the curvature by h^2 f4(zeta) / 12; eta_hat - eta* is the
first error less eta* times the second, over the measured curvature.

False variant: the constant without its fourth-derivative term.
"""

from dataclasses import dataclass

import sympy
from flint import arb
from hypothesis import strategies as st

from ngdiff import AutoLearningRate
from theory import library
from theory.claim import Counterexample, Identity, Measurement, count, sign, worst
from theory.claims.t4_first_order import distinct_lines
from theory.claims.t5_second_order import is_quadratic, parabola
from theory.losses import Line, TwoTasks, quadratic, ridge
from theory.orders import NEXT, ladder, negligible, order
from theory.strategies import two_tasks

NOTHING = arb(2) ** -250  # relative size of what ball arithmetic leaves of an exact result


@dataclass(frozen=True)
class Problem:
    """Two losses, a point, and a probe step."""

    tasks: TwoTasks
    h: float


def problems() -> st.SearchStrategy[Problem]:
    """Losses of every kind, the retain loss convex or a sine; h from 1e-8 to 1e+8, or less where a loss asks for it."""
    return st.builds(Problem, two_tasks(negated=(False, True)), st.sampled_from((1.0, 1e-2, 10.0, 1e-8, 1e8)))


def measure(problem: Problem) -> Measurement | None:
    """The library's fit and its search, in ball arithmetic; for quadratics also the optimizer's own, in float64."""
    line = retain_line(problem.tasks)
    if line is None:
        return None
    exact = line.slope / line.curvature
    if not exact > 0:
        return sign(-exact, "-eta*")  # T3 gives its sign
    if is_quadratic(problem.tasks.retain):
        fit = parabola(line, problem.h).minimiser
        parts = [
            Measurement(abs(fit - exact), abs(exact) * NOTHING, "error of eta* for a quadratic"),
            Measurement(abs(search(line, problem.h) - exact), abs(exact) * NOTHING, "error of the search for a quadratic"),
            Measurement(abs(search(line, problem.h, "paper") - exact), abs(exact) * NOTHING, "error of the rate of mode paper"),
            *_optimizer(problem.tasks, exact),
        ]
        return worst(*parts)
    return worst(*(error_and_bound(line, h, line.bound(4)) for h in ladder(short_enough(line, problem.h))), *_order(line))


def false_variant(problem: Problem) -> Measurement | None:
    """The same bound with M4 = 0 in the numerator."""
    line = retain_line(problem.tasks)
    if line is None or is_quadratic(problem.tasks.retain):
        return None
    return error_and_bound(line, short_enough(line, problem.h), arb(0))


def retain_line(tasks: TwoTasks) -> Line | None:
    """The retain loss along d, if it has a minimum ahead."""
    lines = distinct_lines(tasks)
    return lines[0] if lines is not None and lines[0].curvature > 1e-6 * lines[0].bound(2) else None


def search(line: Line, initial: float, mode: str = "robust") -> arb:
    """The rate that the library's first refresh finds from `initial`."""
    rate = AutoLearningRate(initial=initial, mode=mode, unit_roundoff=2.0**-300)
    # Along theta + h d the line's eta is -h.
    return arb(rate.refresh(0, arb(initial), lambda h: line.value(-h)))  # type: ignore[arg-type,return-value]


def short_enough(line: Line, h: float) -> arb:
    """A probe step with h^2 M4 / 12 <= a / 4, at most h and at most one of the scale of the loss."""
    fourth = line.bound(4)
    longest = (3 * line.curvature / fourth).sqrt() if fourth > 0 else arb(1)
    return longest if longest < h else arb(h)


def error_and_bound(line: Line, h: arb, fourth: arb) -> Measurement:
    """|eta_hat - eta*| against the bound of the statement, with `fourth` in the place of M4 in the numerator."""
    exact = line.slope / line.curvature
    constant = (line.bound(3) / 6 + abs(exact) * fourth / 12) / (line.curvature - h**2 * line.bound(4) / 12)
    return Measurement(abs(parabola(line, h).minimiser - exact), constant * h**2, "error of eta* against C h^2")


def _optimizer(tasks: TwoTasks, exact: arb) -> list[Measurement]:
    """What `TwoTaskOptimizer(lr="auto")` finds from near eta*, where losses are exact enough to tell."""
    line = retain_line(tasks)
    assert line is not None
    error = _loss_error(tasks, line, float(exact)) + _direction_error(tasks, line)
    if error > 1e-3:
        return []
    found = library.automatic_rate((tasks.retain, tasks.forget), tasks.point, float(exact) * 0.9)
    return [Measurement(abs(found / float(exact) - 1), error, "relative error of the optimizer's rate")]


def _loss_error(tasks: TwoTasks, line: Line, h: float) -> float:
    """A7, at h = eta*: what the rounding of three losses, and of the places where they are taken, does to eta*, relatively."""
    n, retain = len(tasks.theta), tasks.retain
    terms = zip(retain.weights, retain.offsets, strict=True)
    size = float(abs(retain(tasks.point))) + float(sum(abs(w) * (abs(o) + n**0.5 * 10) ** 2 for w, o in terms))
    place = 2.0**-53 * (float(tasks.point.norm()) + 2 * h)
    steepest = float(tasks.gradients[0].norm()) + 2 * h * max(map(abs, retain.weights))
    # Each loss is off by (2 n + 8) u of its terms' sizes; weights 1, 2, 1 in the second difference, half of that in the slope.
    return 8 * ((2 * n + 8) * 2.0**-53 * size + place * steepest) / float(line.curvature * h**2)


def _direction_error(tasks: TwoTasks, line: Line) -> float:
    """What the rounding of the gradients, which autograd computes in another order, does to d and so to slope and curvature."""
    norms = [float(g.norm()) for g in tasks.gradients]
    errors = [loss.gradient_error(tasks.point) for loss in (tasks.retain, tasks.forget)]
    turned = 2 * library.direction_error(len(tasks.theta)) + sum(2 * e / g for e, g in zip(errors, norms, strict=True))
    # d'Hd changes by 2 ||H|| ||d|| times the change of d, and ||d|| <= 2; g_R.d by ||g_R|| times it.
    return turned * (4 * max(map(abs, tasks.retain.weights)) / float(line.curvature) + norms[0] / float(line.slope))


def _order(line: Line) -> list[Measurement]:
    """The fitted order of the error, where its leading term is not lost in the next one."""
    exact = line.slope / line.curvature
    leading = abs(line.derivative(3) / 6 * -1 - exact * line.derivative(4) / 12) / line.curvature
    if negligible(leading, line.bound(3) + abs(exact) * line.bound(4)):
        return []
    # The next terms have h^4 with the fifth and sixth derivative, and the curvature is measured with an error of its own. Every
    # profile's fifth and sixth derivatives are below twice the bounds of its third and fourth.
    speed = max((abs(t) for t in line.steps), key=float)
    following = speed**2 * (line.bound(3) / 60 + abs(exact) * line.bound(4) / 180) / line.curvature / leading
    h = (arb(NEXT) / (following + line.bound(4) / (12 * line.curvature))).sqrt()
    return [order(lambda h: parabola(line, h).minimiser - exact, ladder(h), 2, "order of the error in h")]


def identities() -> list[Identity]:
    """What the differences measure on a quartic, and the error of their quotient."""
    h, x = sympy.symbols("h x", positive=True)
    f = sympy.symbols("f:5", real=True)

    def loss(y: sympy.Expr) -> sympy.Expr:
        return sum(fk * y**k / sympy.factorial(k) for k, fk in enumerate(f))

    slope = (loss(h) - loss(-h)) / (2 * h)
    curvature = (loss(h) - 2 * loss(0) + loss(-h)) / h**2
    exact = f[1] / f[2]
    error = sympy.simplify(slope / curvature - exact)
    quadratic_loss = {f[3]: 0, f[4]: 0}
    limit = sympy.solve((-x * f[1] + x**2 * f[2] / 2) / x, x)[0]
    return [
        Identity("slope = f1 + h^2 f3 / 6", slope - (f[1] + h**2 * f[3] / 6)),
        Identity("curvature = f2 + h^2 f4 / 12", curvature - (f[2] + h**2 * f[4] / 12)),
        Identity("error = h^2 (f3 / 6 - eta* f4 / 12) / curvature", error - h**2 * (f[3] / 6 - exact * f[4] / 12) / curvature),
        Identity("no error for a quadratic", error.subs(quadratic_loss)),
        Identity("eta* is half of T5's limit", limit - 2 * exact),
    ]


def counterexamples() -> list[Counterexample]:
    """A concave retain loss, one that is not quadratic, and a probe that is too long for the bound."""
    concave = TwoTasks(-quadratic([1, 2], [0, 0], [0, 0]), quadratic([1, 1], [0, 0], [3, 0]), (1.0, 1.0))
    lines = distinct_lines(concave)
    assert lines is not None
    eta = lines[0].slope / lines[0].curvature
    text = f"L_R = -(x^2 + 2 y^2)/2 from (1, 1): the parabola's vertex {float(eta):.2f} is a maximum; the library gives NaN"
    fit = parabola(lines[0]).minimiser
    better = lines[0].change(1.0) - lines[0].change(eta)
    found = [Counterexample("d'H_R d > 0", text, count(int(fit != fit and better < 0), "better rates than the vertex"))]
    smooth = TwoTasks(
        ridge("softplus", [1.0], [[3.0]], [1.0]) + quadratic([1], [0], [0]), ridge("square", [1.0], [[1.0]], [9.0]), (1.0,)
    )
    line = retain_line(smooth)
    assert line is not None
    error = abs(parabola(line, 1.0).minimiser - line.slope / line.curvature)
    text = "L_R = log(1 + e^(3 x - 1)) + x^2/2, h = 1"
    found.append(Counterexample("a quadratic loss", text, Measurement(error, abs(line.slope) * NOTHING, "error of eta*")))
    return [*found, _too_long()]


def _too_long() -> Counterexample:
    rippled = ridge("sine", [1.0, 0.2], [[1.0], [3.0]], [0.0, 0.0])
    line, h = retain_line(TwoTasks(rippled, ridge("square", [1.0], [[1.0]], [-9.0]), (1.5,))), 1.0
    assert line is not None
    share = float(h**2 * line.bound(4) / 12 / line.curvature)
    text = f"L_R = sin x + sin(3 x)/5 at 1.5, in a ripple on a hill; h = 1 spans the ripple, h^2 M4 / 12 = {share:.0f} a"
    return Counterexample("h^2 M4 / 12 < a", text, count(int(not parabola(line, h).curvature > 0), "minima ahead not seen"))
