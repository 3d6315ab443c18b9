"""Orders of convergence, fitted to a ladder of step lengths and not judged by eye."""

import math
from collections.abc import Callable

from flint import arb

from theory.claim import Measurement
from theory.exact import largest

RUNGS = 6  # step lengths, each half of the one before
NEXT = 2.0**-7  # share of the next order at the longest step


def ladder(longest: arb) -> list[arb]:
    """RUNGS step lengths from `longest` down."""
    return [longest / 2**i for i in range(RUNGS)]


def longest_step(leading: arb, following: arb, power: int) -> arb:
    """The step length at which the next order is NEXT of the leading one.

    Args:
        leading: absolute value of the derivative that gives the leading term eta^power / power!.
        following: upper bound of the next derivative.
        power: the order that is expected.
    """
    return leading * (power + 1) * NEXT / following if following > 0 else arb(1)


def order(error: Callable[[arb], arb], steps: list[arb], expected: int, what: str) -> Measurement:
    """How far the slope of log |error| against log step, by least squares, is from the expected order.

    The bound follows from `longest_step`: each |error| is within 1 +- NEXT of its leading term, so its logarithm within
    NEXT + NEXT^2, and the slope moves by no more than the weights of the fit allow.
    """
    x = [float(step.log()) for step in steps]
    y = [float(abs(error(step)).log()) for step in steps]
    mean = sum(x) / len(x)
    weights = [(xi - mean) / sum((xj - mean) ** 2 for xj in x) for xi in x]
    slope = math.fsum(w * yi for w, yi in zip(weights, y, strict=True))
    # Logarithms of up to 1000 are rounded to float64, by 1e-13 at most.
    return Measurement(abs(slope - expected), sum(map(abs, weights)) * (NEXT + NEXT**2 + 1e-12), what)


def negligible(leading: arb, following: arb) -> bool:
    """Whether the leading derivative is so small beside the next one that no step short enough is long enough to measure."""
    return not leading > 1e-6 * following or largest(leading) < 1e-30
