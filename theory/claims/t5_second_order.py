"""T5. Second order.

In short: both losses improve for 0 < eta < 2 g_R.d / d'H_R d, exactly so for quadratics, else up to O(eta^3)

Statement: if d'H_R d > 0 and d'H_F d > 0, both tasks improve for every 0 < eta < 2 g_R.d / (d'H_R d), up to O(eta^3), and
exactly so if the losses are quadratic. Where d'H_F d < 0, eta must also stay below 2 g_F.d / (d'H_F d) (both negative)
[ours].

Hypotheses: quadratic losses, or a small eta; d'H_F d > 0, or the extra limit; eta below the limit (where d'H_R d <= 0 there
is none, because no eta is too long for the retain loss).

Source: arXiv 2410.22086 (second-order analysis); the extra limit, and |remainder| <= M3 eta^3 / 6 with M3 a bound of the
third derivative along the step [ours].

Tight: yes: just above the limit the retain loss rises. The order of the remainder, fitted, is 3.

Proof: the change of a quadratic is -eta g.d + eta^2 d'Hd / 2 = eta (eta d'Hd / 2 - g.d), negative between its roots. For the
forget loss -g_F.d > 0 by T3, and the other term is positive, or smaller up to the extra limit.

False variant: the limit is larger by a thousandth.
"""

import sympy
from flint import arb
from hypothesis import strategies as st

from ngdiff.learning_rate import Parabola, fit_parabola
from theory.claim import Counterexample, Identity, Measurement, sign, worst
from theory.claims.t4_first_order import distinct_lines
from theory.exact import ball
from theory.losses import Line, Loss, TwoTasks, quadratic, ridge
from theory.orders import ladder, longest_step, negligible, order
from theory.strategies import opposing_quadratics, two_tasks

SHARES = (1e-6, 0.1, 0.5, 0.9, 1 - 2.0**-30)  # of the limit


def problems() -> st.SearchStrategy[TwoTasks]:
    """Quadratics of condition up to 1e8 of either sign, logistic losses and sines, in 1 to 50 dimensions."""
    return st.one_of(two_tasks(), two_tasks(kinds=("quadratic",)), opposing_quadratics())


def measure(tasks: TwoTasks) -> Measurement | None:
    """The limit at quadratics, from below and above; the remainder and its order elsewhere."""
    lines = distinct_lines(tasks)
    if lines is None:
        return None
    parts = [part for line in lines for part in _remainder(line)]
    if is_quadratic(tasks.retain) and is_quadratic(tasks.forget):
        parts += _limit(*lines)
    return worst(*parts)


def false_variant(tasks: TwoTasks) -> Measurement | None:
    """The retain loss falls at 1.001 times the limit."""
    lines = distinct_lines(tasks)
    if lines is None or not is_quadratic(tasks.retain) or not lines[0].curvature > 0:
        return None
    return sign(lines[0].change(limit(lines[0]) * 1.001), "change of the retain loss")


def is_quadratic(loss: Loss) -> bool:
    """Whether no remainder is left."""
    return set(loss.profiles) == {"square"}


def parabola(line: Line, h: arb | float = 1.0) -> Parabola:
    """The library's fit through three losses, run in ball arithmetic: exact for quadratics."""
    # theta - eta d: the library's minus is at theta - h d, where eta = h.
    return fit_parabola(line.value(h), line.value(0.0), line.value(-h), ball(h), unit_roundoff=2.0**-300)  # type: ignore[arg-type]


def limit(line: Line) -> arb:
    """2 g.d / (d'Hd): twice the minimiser of the library's parabola."""
    return arb(2) * parabola(line).minimiser


def _limit(retain: Line, forget: Line) -> list[Measurement]:
    """Signs of both changes below the limit, and of the retain loss just above."""
    stop = limit(retain) if retain.curvature > 0 else arb(1)
    parts = [sign(retain.change(stop * share), "retain: change below the limit") for share in SHARES]
    if retain.curvature > 0:
        parts.append(sign(-retain.change(stop * (1 + 2.0**-30)), "retain: -change above the limit"))
    if forget.curvature < 0:
        extra = limit_of_concave(forget)
        parts.append(sign(forget.change(extra * (1 + 2.0**-30)), "forget: change above the extra limit"))
        stop = min(extra, stop)
    parts += [sign(-forget.change(stop * share), "forget: -change below the limits") for share in SHARES]
    return parts


def limit_by_derivatives(line: Line) -> arb:
    """2 g.d / (d'Hd) of a loss that the parabola does not fit exactly."""
    return 2 * line.slope / line.curvature


def limit_of_concave(line: Line) -> arb:
    """The same limit where slope and curvature are both negative, from the library's parabola of the negated loss."""
    fit = parabola(line)
    return arb(2) * Parabola(-fit.loss, -fit.slope, -fit.curvature, fit.resolved).minimiser


def _remainder(line: Line) -> list[Measurement]:
    leading, following, last = line.bound(3), abs(line.derivative(3)), line.bound(4)

    def remainder(eta: arb) -> arb:
        return line.change(eta) + eta * line.slope - eta**2 * line.curvature / 2

    parts = []
    for eta in ladder(arb(1)):
        room = (abs(line.value(0.0)) + eta * abs(line.slope) + eta**2 * abs(line.curvature)) * arb(2) ** -300
        parts.append(Measurement(abs(remainder(eta)), leading * eta**3 / 6 + room, "remainder"))
    if not negligible(following, last):
        parts.append(order(remainder, ladder(longest_step(following, last, 3)), 3, "order of the remainder"))
    return parts


def identities() -> list[Identity]:
    """The change of a quadratic of three variables, and its roots."""
    x, d, g = (sympy.Matrix(sympy.symbols(f"{name}:3", real=True)) for name in "xdg")
    h = sympy.Matrix(3, 3, lambda i, j: sympy.Symbol(f"h{min(i, j)}{max(i, j)}", real=True))
    eta, b = sympy.symbols("eta b", real=True)
    a = sympy.symbols("a", nonzero=True)

    def loss(y: sympy.Matrix) -> sympy.Expr:
        return (g.T * y)[0] + (y.T * h * y)[0] / 2

    gradient = g + h * x
    change = loss(x - eta * d) - loss(x)
    predicted = -eta * (gradient.T * d)[0] + eta**2 * (d.T * h * d)[0] / 2
    parabola_at = -eta * b + eta**2 * a / 2
    return [
        Identity("change of a quadratic = -eta g.d + eta^2 d'Hd / 2", change - predicted),
        Identity("it vanishes at eta = 2 g.d / (d'Hd)", parabola_at.subs(eta, 2 * b / a)),
        Identity("between the roots: eta (eta d'Hd / 2 - g.d)", parabola_at - eta * (eta * a / 2 - b)),
    ]


def counterexamples() -> list[Counterexample]:
    """A concave forget loss, a loss that is not quadratic, and a step just above the limit."""
    concave = TwoTasks(quadratic([1, 1], [0, 0], [0, 0]), -quadratic([1, 100], [0, 0], [0, 0.1]), (10.0, 0.0))
    lines = _lines(concave)
    eta = limit(lines[0]) * 0.9
    text = "L_R = (x^2 + y^2)/2, L_F = -(x^2 + 100 (y - 0.1)^2)/2 from (10, 0), eta = 0.9 of T5's limit"
    found = [Counterexample("d'H_F d > 0, or the extra limit", text, sign(-lines[1].change(eta), "-change of the forget loss"))]

    bent = _lines(TwoTasks(ridge("sine", [1.0], [[1.0]], [0.0]), quadratic([1], [0], [0]), (3.3,)))
    text = "L_R = sin x, L_F = x^2/2 from 3.3, eta = 0.9 of the limit: the curvature grows along the step"
    change = bent[0].change(limit_by_derivatives(bent[0]) * 0.9)
    found.append(Counterexample("quadratic losses, or a small eta", text, sign(change, "change of the retain loss")))

    above = _lines(TwoTasks(quadratic([1, 1], [0, 0], [0, 0]), quadratic([1, 1], [0, 0], [0, 1]), (1.0, 0.0)))
    text = "L_R = (x^2 + y^2)/2, L_F = (x^2 + (y-1)^2)/2 from (1, 0), eta = 1.001 of the limit"
    found.append(Counterexample("eta below the limit", text, sign(above[0].change(limit(above[0]) * 1.001), "change of L_R")))
    return found


def _lines(tasks: TwoTasks) -> tuple[Line, Line]:
    lines = distinct_lines(tasks)
    assert lines is not None
    return lines
