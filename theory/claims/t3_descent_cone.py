"""T3. Descent cone.

In short: g_R.d = ||g_R|| (1 - cos phi) >= 0 >= -||g_F|| (1 - cos phi) = g_F.d

Statement: for NGDiff's d, g_R.d = ||g_R|| (1 - cos phi) >= 0 >= -||g_F|| (1 - cos phi) = g_F.d, with phi the angle between
g_R and g_F. For GDiff-c the two inequalities hold if and only if c ||g_R||^2 >= (1 - c) g_R.g_F and (1 - c) ||g_F||^2 >= c
g_R.g_F, that is for c in [p / (||g_R||^2 + p), ||g_F||^2 / (||g_F||^2 + p)] with p = max(g_R.g_F, 0). NGDiff's weight c_t =
||g_F|| / (||g_R|| + ||g_F||) is always inside, and the only one that is inside at every angle; for every fixed c there are
gradients for which it is outside.

Hypotheses: the rule is NGDiff; the step is -eta d (and not what AdamW makes of it).

Source: arXiv 2410.22086 (the descent lemma of NGDiff); the region of GDiff [ours].

Tight: equalities. In float64 d is off by (n + 8) u, so the computed d has the right signs wherever 1 - cos phi exceeds that:
for angles above about 1.5e-8 sqrt(n + 8). Of the drawn pairs those 1e-8 apart are below that: there the slopes are checked,
but not their signs.

Proof: with unit gradients r and f, d = r - f and g_R.d = ||g_R|| (r.r - r.f). The sign is Cauchy and Schwarz's inequality,
here decided in rational arithmetic. The ends of the interval are b x / (a + b x) and b / (b + a x) with a = ||g_R||, b =
||g_F||, x = max(cos phi, 0): both tend to c_t = b / (a + b), the first from below and the second from above, as x tends to 1.

False variant: the slopes are larger than the formula by a thousandth.
"""

from dataclasses import dataclass

import sympy
import torch
from flint import arb, fmpq
from hypothesis import strategies as st

from ngdiff.rules import GDiff
from theory import library
from theory.claim import Counterexample, Identity, Measurement, count, sign, worst
from theory.exact import ExactPair, U, dot, rational, rationals
from theory.strategies import GradientPair, gradient_pairs


@dataclass(frozen=True)
class Problem:
    """Two gradients and a weight for GDiff, a multiple of 1/16 so that 1 - c is exact."""

    gradients: GradientPair
    c: float


def problems() -> st.SearchStrategy[Problem]:
    """Gradients in general position, 1e-8 apart, opposed and the same way, of ratio 1e-60 to 1e+60; c from 0 to 1."""
    return st.builds(Problem, gradient_pairs(), st.integers(0, 16).map(lambda k: k / 16))


def measure(problem: Problem) -> Measurement:
    """Slopes of the library's d and their signs, exactly; the cosine; GDiff's region and NGDiff's place in it."""
    pair = problem.gradients
    return worst(*_slopes(pair), _cosine(pair), *_region(problem), *_weight(pair))


def false_variant(problem: Problem) -> Measurement:
    """||g_R|| (1 - cos phi) (1 + 1/1000) <= g_R.d + error."""
    retain, forget = problem.gradients.tensors
    exact = ExactPair(retain, forget)
    d = rationals(library.combine("ngdiff", retain, forget).d)
    slope = arb(dot(exact.r, d)) / exact.r_norm
    return Measurement(exact.one_minus_cosine * 1.001, slope + library.direction_error(len(retain)), "slope, plus a thousandth")


def _slopes(pair: GradientPair) -> list[Measurement]:
    """g.d of the library's d, evaluated exactly, against the formula, in units of ||g||."""
    retain, forget = pair.tensors
    exact = ExactPair(retain, forget)
    d = rationals(library.combine("ngdiff", retain, forget).d)
    bound = library.direction_error(len(retain))
    descent = abs(arb(dot(exact.r, d)) / exact.r_norm - exact.one_minus_cosine)
    ascent = abs(arb(dot(exact.f, d)) / exact.f_norm + exact.one_minus_cosine)
    parts = [Measurement(descent, bound, "error of g_R.d / ||g_R||"), Measurement(ascent, bound, "error of g_F.d / ||g_F||")]
    if exact.one_minus_cosine > bound:  # nearer than that, rounding decides the signs of the computed d
        parts += [sign(-dot(exact.r, d), "-g_R.d, exactly"), sign(dot(exact.f, d), "g_F.d, exactly")]
    return parts


def _cosine(pair: GradientPair) -> Measurement:
    retain, forget = pair.tensors
    found = float(library.combine("ngdiff", retain, forget).gram.cosine)
    # The product of g_R.g_F, off by n u ||g_R|| ||g_F||, with two inverse norms, each off by (n/2 + 2) u, and two products.
    return Measurement(
        abs(1 - rational(found) - ExactPair(retain, forget).one_minus_cosine), (2 * len(retain) + 8) * U, "cosine"
    )


def _region(problem: Problem) -> list[Measurement]:
    """Where GDiff-c descends and ascends: the slopes of the library's d, evaluated exactly, against the interval.

    A slope within its rounding error decides nothing: d's elements are off by 2 u of both terms.
    """
    retain, forget = problem.gradients.tensors
    exact, c = ExactPair(retain, forget), rational(problem.c)
    d = rationals(library.combine(GDiff(problem.c), retain, forget).d)
    size = c * exact.r_norm + (1 - c) * exact.f_norm
    low, high = interval(exact)
    parts = []
    for name, slope, norm, inside in (
        ("raises the retain loss", dot(exact.r, d), exact.r_norm, c >= low),
        ("lowers the forget loss", -dot(exact.f, d), exact.f_norm, c <= high),
    ):
        if abs(slope) > 2 * U * norm * size:
            parts.append(count(int((slope > 0) != inside), f"GDiff-{problem.c}: where it {name} against the interval"))
    return [
        *parts,
        count(int(all(gdiff_cone(failing_pair(problem.c), problem.c))), f"pairs that GDiff-{problem.c} does not fail"),
    ]


def interval(exact: ExactPair) -> tuple[fmpq, fmpq]:
    """The weights c for which GDiff-c neither raises the retain loss nor lowers the forget loss, to first order."""
    p = max(exact.rf, fmpq(0))
    return p / (exact.rr + p), exact.ff / (exact.ff + p)


def _weight(pair: GradientPair) -> list[Measurement]:
    """NGDiff's own weight, as the library computes it, against both ends of the interval."""
    exact, combined = ExactPair(*pair.tensors), library.combine("ngdiff", *pair.tensors)
    c, (low, high) = rational(float(combined.coefficients.weight)), interval(exact)
    # c_t from two inverse norms, each off by (n/2 + 2) u, and two operations.
    error = (len(pair.retain) + 8) * U
    return [Measurement(low - c, error, "lower end - c_t"), Measurement(c - high, error, "c_t - upper end")]


def gdiff(c: float) -> tuple[fmpq, fmpq]:
    """The coefficients of the library's GDiff-c, exactly."""
    one = torch.ones(1, dtype=torch.float64)
    c_r, c_f = (rational(float(x)) for x in library.combine(GDiff(c), one, one).coefficients)
    return c_r, c_f


def gdiff_cone(pair: GradientPair, c: float) -> tuple[bool, bool]:
    """Whether GDiff-c descends the retain loss, and ascends the forget loss: to first order, exactly."""
    exact, (c_r, c_f) = ExactPair(*pair.tensors), gdiff(c)
    return bool(c_r * exact.rr - c_f * exact.rf >= 0), bool(c_r * exact.rf - c_f * exact.ff <= 0)


def failing_pair(c: float) -> GradientPair:
    """Gradients 45 degrees apart for which GDiff-c fails one task: the other task's gradient is long enough."""
    if c < 1:
        return GradientPair((1.0, 0.0), (2 / (1 - c), 2 / (1 - c)))
    return GradientPair((2.0, 2.0), (1.0, 0.0))


def identities() -> list[Identity]:
    """Slopes from the Gram matrix, the region of GDiff, and Cauchy-Schwarz as a sum of squares."""
    a, b = sympy.symbols("a b", positive=True)  # ||g_R||, ||g_F||
    x = sympy.symbols("cos_phi", real=True)
    rr, ff, rf = a**2, b**2, a * b * x
    found = [
        Identity("g_R.d = ||g_R|| (1 - cos phi)", rr / a - rf / b - a * (1 - x)),
        Identity("g_F.d = -||g_F|| (1 - cos phi)", rf / a - ff / b + b * (1 - x)),
        Identity("||d||^2 = 2 (1 - cos phi)", rr / a**2 - 2 * rf / (a * b) + ff / b**2 - 2 * (1 - x)),
        # For 0 <= cos phi <= 1 both are products of factors >= 0, and 0 only at cos phi = 1.
        Identity("c_t - lower end", b / (a + b) - rf / (rr + rf) - a * b * (1 - x) / ((a + b) * (a + b * x))),
        Identity("upper end - c_t", ff / (ff + rf) - b / (a + b) - a * b * (1 - x) / ((a + b) * (b + a * x))),
    ]
    for n in (2, 3, 5):
        u, v = sympy.symbols(f"u:{n}"), sympy.symbols(f"v:{n}")
        squares = sum((u[i] * v[j] - u[j] * v[i]) ** 2 for i in range(n) for j in range(i))
        gap = sum(p * p for p in u) * sum(q * q for q in v) - sum(p * q for p, q in zip(u, v, strict=True)) ** 2
        found.append(Identity(f"Lagrange: ||u||^2 ||v||^2 - (u.v)^2 is a sum of squares, n = {n}", gap - squares))
    return found


def counterexamples() -> list[Counterexample]:
    """The rule: every fixed c. The base: AdamW, whose first step is close to the signs of d."""
    found = []
    for c in (0.0, 0.1, 0.5, 0.9, 1.0):
        pair = failing_pair(c)
        text = f"GDiff-{c:g} with g_R = {pair.retain}, g_F = {pair.forget}"
        found.append(Counterexample("the rule is NGDiff", text, count(2 - sum(gdiff_cone(pair, c)), "tasks made worse")))
    retain, forget = torch.tensor([[3.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    steps = list(library.descend((lambda t: retain @ t, lambda t: forget @ t), [0.0, 0.0], [1e-3], base="adamw"))
    rise = float(retain @ (steps[1].theta - steps[0].theta))
    text = f"g_R = {tuple(retain.tolist())}, g_F = {tuple(forget.tolist())}, first step of AdamW"
    found.append(Counterexample("the step is -eta d", text, sign(rise, "change of the retain loss")))
    return found
