"""T4. First order.

In short: both losses improve for every small enough eta, with remainder O(eta^2)

Statement: unless g_R and g_F point the same way, L_R(theta - eta d) < L_R(theta) and L_F(theta - eta d) > L_F(theta) for
every eta small enough. With M a bound of |d'Hd| of that task along the step, eta < 2 |g.d| / M is small enough [ours], and
the change is -eta g.d up to M eta^2 / 2.

Hypotheses: the gradients point different ways; neither gradient is zero; the losses are differentiable; eta is small enough;
second derivatives are bounded (for the remainder and the range of eta).

Source: arXiv 2410.22086 (first-order improvement of both tasks); the explicit range of eta [ours].

Tight: yes: for a quadratic M = |d'Hd| and the remainder is M eta^2 / 2 exactly. Its order, fitted, is 2.

Proof: Taylor with the remainder of Lagrange, and T3 for the sign of the first-order term.

False variant: the range of eta is larger by 5 %.
"""

import sympy
import torch
from flint import arb
from hypothesis import strategies as st

from theory import library
from theory.claim import Counterexample, Identity, Measurement, sign, worst
from theory.exact import ExactPair
from theory.losses import Line, Loss, TwoTasks, quadratic, ridge
from theory.orders import ladder, longest_step, negligible, order
from theory.strategies import two_tasks


def problems() -> st.SearchStrategy[TwoTasks]:
    """Quadratics of condition up to 1e8, logistic losses and sines, convex and concave, in 1 to 50 dimensions."""
    return two_tasks()


def measure(tasks: TwoTasks) -> Measurement | None:
    """Signs and sizes of both changes on a ladder of eta, and the order of what the first-order term leaves."""
    lines = distinct_lines(tasks)
    if lines is None:
        return None
    parts = []
    for name, line, direction in zip(("retain", "forget"), lines, (1, -1), strict=True):
        slope, bound = line.slope * direction, line.bound(2)
        parts.append(sign(-slope, f"-(slope of {name})"))
        for eta in ladder(2 * slope / bound * arb(0.999)) if bound > 0 else [arb(1)]:
            change = line.change(eta)
            parts.append(sign(change * direction, f"{name}: change where it must improve"))
            remainder = abs(change + eta * line.slope)
            # A quadratic meets the bound exactly, so the ball around it needs room: 2^-300 of the size of what was subtracted.
            room = (abs(line.value(0.0)) + eta * abs(slope)) * arb(2) ** -300
            parts.append(Measurement(remainder, bound * eta**2 / 2 + room, f"{name}: remainder"))
        parts += _order(name, line)
    return worst(*parts)


def false_variant(tasks: TwoTasks) -> Measurement | None:
    """The retain loss falls at 1.05 times the limit."""
    lines = distinct_lines(tasks)
    if lines is None or not lines[0].bound(2) > 0:
        return None
    return sign(lines[0].change(2.1 * lines[0].slope / lines[0].bound(2)), "change of the retain loss")


def distinct_lines(tasks: TwoTasks) -> tuple[Line, Line] | None:
    """Both losses along the library's d; None where a gradient vanishes or rounding cannot tell the gradients' ways apart."""
    retain, forget = tasks.gradients
    exact = ExactPair(retain, forget)
    if not exact.rr or not exact.ff:
        return None
    # The gradients are off by their own rounding, relative to their norms, and d by direction_error.
    error = (
        tasks.retain.gradient_error(tasks.point) / exact.r_norm + tasks.forget.gradient_error(tasks.point) / exact.f_norm
    ) * 2
    if not exact.one_minus_cosine > 4 * (error + library.direction_error(len(retain))):
        return None
    d = library.combine("ngdiff", retain, forget).d
    return Line(tasks.retain, tasks.point, d), Line(tasks.forget, tasks.point, d)


def _order(name: str, line: Line) -> list[Measurement]:
    leading, following = abs(line.curvature), line.bound(3)
    if negligible(leading, following):
        return []
    steps = ladder(longest_step(leading, following, 2))
    return [order(lambda eta: line.change(eta) + eta * line.slope, steps, 2, f"{name}: order of the remainder")]


def identities() -> list[Identity]:
    """The derivative of any smooth loss of three variables along the step."""
    x = sympy.symbols("x:3", real=True)
    d = sympy.symbols("d:3", real=True)
    eta = sympy.symbols("eta", real=True)
    loss = sympy.Function("L")
    along = loss(*(xi - eta * di for xi, di in zip(x, d, strict=True)))
    slope = sum(di * sympy.diff(loss(*x), xi) for xi, di in zip(x, d, strict=True))
    first = sympy.diff(along, eta).subs(eta, 0).doit()
    return [Identity("dL(theta - eta d)/d eta = -g.d at eta = 0", first + slope)]


def counterexamples() -> list[Counterexample]:
    """Gradients of the same way, a zero gradient, a kink, an unbounded curvature, and a step that is too long."""
    return [_same_way(), _zero(), _kink(), _unbounded_curvature(), _too_long()]


def _same_way() -> Counterexample:
    steps = list(library.descend((lambda t: t.sum(), lambda t: 3 * t.sum()), [0.0, 0.0], [0.1]))
    fall = float((steps[0].theta - steps[1].theta).sum())
    text = "L_R = x + y, L_F = 3 (x + y): d = 0 and nothing moves"
    return Counterexample(
        "the gradients point different ways", text, Measurement(1e-3, fall, "1e-3 <= fall of the retain loss")
    )


def _zero() -> Counterexample:
    steps = list(library.descend((lambda t: t[0], lambda t: -(t[0] ** 2) / 2), [0.0], [1e-3]))
    fall = float(steps[1].theta[0]) ** 2 / 2
    text = "L_R = x, L_F = -x^2/2 at 0, where g_F = 0: d = 1 and the forget loss falls by eta^2/2"
    return Counterexample("neither gradient is zero", text, sign(fall, "fall of the forget loss"))


def _unbounded_curvature() -> Counterexample:
    def retain(t: torch.Tensor) -> torch.Tensor:
        return t[0] + t[0].abs() ** 1.5

    remainders = []
    for eta in (1e-2, 1e-4):
        steps = list(library.descend((retain, lambda t: t[1]), [0.0, 0.0], [eta]))
        remainders.append(float(retain(steps[1].theta)) + eta)
    growth = remainders[0] / remainders[1]
    text = f"L_R = x + |x|^1.5, L_F = y at (0, 0): the remainder falls by {growth:.0f} where eta^2 falls by 10000"
    return Counterexample(
        "second derivatives are bounded", text, Measurement(9999.0, growth, "9999 <= ratio of the remainders")
    )


def _kink() -> Counterexample:
    def retain(t: torch.Tensor) -> torch.Tensor:
        return torch.relu(t[0]) - t[0] / 4 + torch.relu(-t[0])  # |x| - x/4, where autograd's subgradient at 0 is -1/4

    steps = list(library.descend((retain, lambda t: t[1]), [0.0, 0.0], [1e-6]))
    rise = float(retain(steps[1].theta) - retain(steps[0].theta))
    text = "L_R = |x| - x/4, L_F = y at (0, 0), eta = 1e-6, subgradient (-1/4, 0)"
    return Counterexample("the losses are differentiable", text, sign(rise, "change of the retain loss"))


def _too_long() -> Counterexample:
    tasks = TwoTasks(quadratic([1, 1], [0, 0], [0, 0]), _softplus_of((0.0, 1.0)), (1.0, 0.0))
    lines = distinct_lines(tasks)
    assert lines is not None
    text = "L_R = (x^2 + y^2)/2, L_F = softplus of y, from (1, 0), eta = 3"
    return Counterexample("eta is small enough", text, sign(lines[0].change(3.0), "change of the retain loss"))


def _softplus_of(direction: tuple[float, ...]) -> Loss:
    return ridge("softplus", [1.0], [direction], [0.0])
