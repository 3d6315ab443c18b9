"""Numbers without rounding error, or with a proven one: rationals and balls (Arb, through python-flint).

A float64 is a rational number, so what the library computed can be judged exactly. A comparison of balls is true only where it
is certain: `a <= b` is False both where a > b and where the balls overlap.
"""

from collections.abc import Iterable, Sequence

from flint import arb, ctx, fmpq
from torch import Tensor

# 400 bits: products of float64 vectors keep all their digits over 45 orders of magnitude, and differences of losses at steps of
# 1e-30 still have 60 digits.
ctx.prec = 400

U = 2.0**-53  # unit roundoff of float64

Number = float | arb | fmpq


class NotANumber(ValueError):
    """Something was computed that is NaN or infinite."""


def rational(x: float) -> fmpq:
    """The float as a fraction, exactly.

    Raises:
        NotANumber: x is not finite.
    """
    try:
        return fmpq(*float(x).as_integer_ratio())
    except (OverflowError, ValueError):
        raise NotANumber(f"rational: {x} is no number; a computation before this one overflowed or divided 0 by 0") from None


def rationals(vector: Tensor | Iterable[float]) -> list[fmpq]:
    """The elements of a vector, exactly."""
    return [rational(x) for x in (vector.tolist() if isinstance(vector, Tensor) else vector)]


def dot(a: Sequence[fmpq], b: Sequence[fmpq]) -> fmpq:
    """a.b, exactly."""
    return sum((x * y for x, y in zip(a, b, strict=True)), fmpq(0))


def ball(x: Number) -> arb:
    """The number as a ball: exact for floats, within 2^-400 relatively for rationals."""
    return arb(x)


def root(x: fmpq) -> arb:
    """The square root of a rational >= 0."""
    return arb(x).sqrt()


def largest(x: Number) -> float:
    """An upper bound, rounded to float64 by at most one unit."""
    return float(x.upper()) if isinstance(x, arb) else float(fraction(x))


def fraction(x: fmpq | float) -> float:
    """A rational as float64."""
    return int(x.p) / int(x.q) if isinstance(x, fmpq) else x


class ExactPair:
    """Inner products of two gradients, and what follows from them.

    Args:
        retain, forget: g_R and g_F, shape (n,), float64.

    Attributes:
        rr, ff, rf: g_R.g_R, g_F.g_F, g_R.g_F, exactly.
        r_norm, f_norm: ||g_R||, ||g_F||.
    """

    def __init__(self, retain: Tensor, forget: Tensor):
        self.r, self.f = rationals(retain), rationals(forget)
        self.rr, self.ff, self.rf = dot(self.r, self.r), dot(self.f, self.f), dot(self.r, self.f)
        self.r_norm, self.f_norm = root(self.rr), root(self.ff)

    @property
    def same_way(self) -> bool:
        """Whether both are non-zero and g_R = s g_F with s > 0: by Cauchy-Schwarz, decided in rationals."""
        return self.rf > 0 and self.rf * self.rf == self.rr * self.ff

    @property
    def one_minus_cosine(self) -> arb:
        """1 - cos phi, both gradients non-zero. Exactly 0 where they point the same way.

        As (rr ff - rf^2) / (rr ff + rf sqrt(rr ff)) where cos phi > 0, because 1 - cos phi would cancel there.
        """
        product = self.rr * self.ff
        if self.rf <= 0:
            return 1 - arb(self.rf) / root(product)
        return arb(product - self.rf * self.rf) / (arb(product) + arb(self.rf) * root(product))
