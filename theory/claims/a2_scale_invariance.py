"""A2. Scale invariance.

In short: d does not change when a loss is multiplied by a positive constant

Statement: d does not change when either loss is multiplied by a positive constant; not by one bit if the constant is a power
of two and no square of a gradient leaves the range of float64.

Hypotheses: positive constants; the rule is NGDiff; squares stay in range (of float64, those of the gradients).

Source: ours. It is why token sums and token means, loss scaling and unequal set sizes make no difference.

Tight: an equality. For other constants rounding moves d by 2 (n + 8) u + 2 u at most.

Proof: the constant cancels in g / ||g||. A power of two changes exponents alone: those of the sums of squares are even, so
the inverse square roots are scaled by exactly its inverse.

False variant: not one bit changes, whatever the positive constant.
"""

from dataclasses import dataclass

import sympy
import torch
from hypothesis import strategies as st
from torch import Tensor

from theory import library
from theory.claim import Counterexample, Identity, Measurement, count, worst
from theory.strategies import GradientPair, gradient_pairs


@dataclass(frozen=True)
class Problem:
    """Two gradients, the constants that their losses are multiplied by, and the same as powers of two."""

    gradients: GradientPair
    constants: tuple[float, float]
    exponents: tuple[int, int]


def problems() -> st.SearchStrategy[Problem]:
    """Gradients of every geometry; constants from 1e-6 to 1e+6, powers of two from 2^-60 to 2^60."""
    constant = st.sampled_from((1.0, 3.0, 0.7, 1e4 / 3, 1e6, 1e-6))
    exponent = st.sampled_from((0, 1, -1, 3, -10, 60, -60))
    return st.builds(Problem, gradient_pairs(zeros=True), st.tuples(constant, constant), st.tuples(exponent, exponent))


def measure(problem: Problem) -> Measurement:
    """Bits that powers of two change, in d and in a whole step of the optimizer; distance that other constants move d."""
    retain, forget = problem.gradients.tensors
    i, j = (2.0**k for k in problem.exponents)
    a, b = problem.constants
    moved = float((direction(retain * a, forget * b) - direction(retain, forget)).norm())
    bound = 2 * library.direction_error(len(retain)) + 2 * 2.0**-53  # two evaluations, and one rounding of each gradient
    return worst(
        count(
            changed_bits(direction(retain * i, forget * j), direction(retain, forget)), "elements of d changed by powers of two"
        ),
        count(changed_bits(stepped(retain * i, forget * j), stepped(retain, forget)), "weights changed by powers of two"),
        Measurement(moved, bound, "distance that d moved"),
    )


def false_variant(problem: Problem) -> Measurement:
    """Elements of d that the constants change."""
    (retain, forget), (a, b) = problem.gradients.tensors, problem.constants
    return count(changed_bits(direction(retain * a, forget * b), direction(retain, forget)), "elements of d changed")


def direction(retain: Tensor, forget: Tensor) -> Tensor:
    """The library's d."""
    return library.combine("ngdiff", retain, forget).d


def stepped(retain: Tensor, forget: Tensor) -> Tensor:
    """Where one step of the optimizer leads from the origin, along losses with these gradients."""
    steps = library.descend((lambda t: retain @ t, lambda t: forget @ t), torch.zeros_like(retain), [0.1])
    return list(steps)[-1].theta


def changed_bits(a: Tensor, b: Tensor) -> int:
    """How many elements differ in any bit."""
    return int((a.view(torch.int64) != b.view(torch.int64)).sum())


def identities() -> list[Identity]:
    """The constant cancels, in each task's term."""
    s, a = sympy.symbols("s norm", positive=True)
    g = sympy.symbols("g", real=True)
    return [Identity("s g / ||s g|| = g / ||g||", s * g / sympy.sqrt((s * a) ** 2) - g / a)]


def counterexamples() -> list[Counterexample]:
    """A negative constant; GDiff; a gradient whose square underflows."""
    pair = GradientPair((1.0, 2.0), (-2.0, 1.0))
    retain, forget = pair.tensors
    moved = float((direction(-retain, forget) - direction(retain, forget)).norm())
    text = "g_R = (1, 2), g_F = (-2, 1), retain loss times -1"
    found = [Counterexample("positive constants", text, Measurement(moved, 1e-12, "distance that d moved"))]
    before, after = (
        torch.nn.functional.normalize(library.combine("gdiff-0.5", retain * s, forget).d, dim=0) for s in (1.0, 8.0)
    )
    text = "GDiff-0.5, same gradients, retain loss times 8"
    moved = float((before - after).norm())
    found.append(Counterexample("the rule is NGDiff", text, Measurement(moved, 1e-12, "distance that d / ||d|| moved")))
    changed = changed_bits(direction(retain * 2.0**-540, forget), direction(retain, forget))
    text = "retain loss times 2^-540: g_R.g_R is 5 * 2^-1080, which float64 takes for 0 (float32 gradients never get there)"
    return [*found, Counterexample("squares stay in range", text, count(changed, "elements of d changed"))]
