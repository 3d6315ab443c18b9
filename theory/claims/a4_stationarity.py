"""A4. Stationarity.

In short: d = 0 iff the unit gradients coincide iff Pareto stationary with non-zero gradients

Statement: d = 0 if and only if the unit gradients coincide, if and only if theta is Pareto stationary with both gradients
non-zero, that is s g_R = (1 - s) g_F for some s in (0, 1).

Hypotheses: both gradients non-zero (where one vanishes theta is Pareto stationary and d is the other unit gradient, where
both do d = 0); the rule is NGDiff.

Source: ours.

Tight: an equivalence. In float64 ||d|| is off by (n + 8) u.

Proof: ||d||^2 = 2 (1 - cos phi) vanishes where cos phi = 1, and g_R / ||g_R|| = g_F / ||g_F|| is s g_R = (1 - s) g_F with s =
||g_F|| / (||g_R|| + ||g_F||).

False variant: d = 0 if and only if theta is Pareto stationary, with s in [0, 1] and whatever the gradients.
"""

import sympy
from flint import arb, fmpq
from hypothesis import strategies as st

from theory import library
from theory.claim import Counterexample, Identity, Measurement, count, worst
from theory.exact import ExactPair, dot, rationals, root
from theory.strategies import GradientPair, gradient_pairs


def problems() -> st.SearchStrategy[GradientPair]:
    """Gradients of every geometry, those of the same way and vanishing ones included."""
    return gradient_pairs(("general", "near", "opposed", "same"), zeros=True)


def measure(pair: GradientPair) -> Measurement:
    """Whether the library's d vanishes against Pareto stationarity in rational numbers, and the length of d."""
    exact = ExactPair(*pair.tensors)
    d = rationals(library.combine("ngdiff", *pair.tensors).d)
    length, bound = root(dot(d, d)), library.direction_error(len(d))
    if exact.rr and exact.ff:
        expected = (2 * exact.one_minus_cosine).sqrt()
        parts = [Measurement(abs(length - expected), bound, "error of ||d||")]
        if stationary(exact):
            parts.append(Measurement(length, bound, "||d|| where stationary"))
        elif expected > 2 * bound:  # nearer than that, rounding may leave 0
            parts.append(count(int(not length > bound), "d vanishes where not stationary"))
        return worst(*parts)
    other = exact.r if exact.rr else exact.f
    size = root(dot(other, other))
    if not size > 0:
        return count(sum(x != 0 for x in d), "elements of d, both gradients zero")
    sign = 1 if exact.rr else -1
    apart = [arb(x) - sign * arb(g) / size for x, g in zip(d, other, strict=True)]
    return Measurement(sum((x * x for x in apart), arb(0)).sqrt(), bound, "d against the other unit gradient")


def false_variant(pair: GradientPair) -> Measurement:
    """||d|| at Pareto stationary points, vanishing gradients allowed."""
    exact = ExactPair(*pair.tensors)
    d = library.combine("ngdiff", *pair.tensors).d
    return Measurement(float(d.norm()) if stationary(exact) else 0.0, library.direction_error(len(d)), "||d|| where stationary")


def stationary(exact: ExactPair) -> bool:
    """Whether min over s in [0, 1] of ||s g_R - (1 - s) g_F||^2, a rational number, is 0."""
    # The squared norm is s^2 q - 2 s p + ff with q = ||g_R + g_F||^2 and p = ff + rf.
    q, p = exact.rr + 2 * exact.rf + exact.ff, exact.ff + exact.rf
    s = fmpq(0) if q == 0 else min(max(p / q, fmpq(0)), fmpq(1))
    return bool(s * s * q - 2 * s * p + exact.ff == 0)


def identities() -> list[Identity]:
    """The quadratic in s, and its root."""
    a, b = sympy.symbols("a b", positive=True)
    x, s = sympy.symbols("cos_phi s", real=True)
    rr, ff, rf = a**2, b**2, a * b * x
    square = s**2 * rr - 2 * s * (1 - s) * rf + (1 - s) ** 2 * ff
    return [
        Identity("||s g_R - (1 - s) g_F||^2 as a polynomial", square - (s**2 * (rr + 2 * rf + ff) - 2 * s * (ff + rf) + ff)),
        Identity("0 at s = ||g_F|| / (||g_R|| + ||g_F||), cos phi = 1", square.subs({x: 1, s: b / (a + b)})),
        Identity("||d||^2 = 0 at cos phi = 1", (2 * (1 - x)).subs(x, 1)),
    ]


def counterexamples() -> list[Counterexample]:
    """A vanishing gradient: Pareto stationary, but d moves; and the weights of another rule."""
    pair = GradientPair((0.0, 0.0), (1.0, 0.0))
    text = "g_R = 0, g_F = (1, 0): stationary with s = 1, ||d|| = 1"
    found = [Counterexample("both gradients non-zero", text, false_variant(pair))]
    same = GradientPair((1.0, 2.0), (3.0, 6.0))
    length = float(library.combine("gdiff-0.5", *same.tensors).d.norm())
    text = "GDiff-0.5 with g_F = 3 g_R: stationary, but it moves"
    return [*found, Counterexample("the rule is NGDiff", text, Measurement(length, 1e-12, "||d||"))]
