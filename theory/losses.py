"""Losses whose every derivative is known: sums of one-dimensional functions along given directions.

A quadratic, a logistic and a non-convex loss are all of this kind. On the line theta - eta d such a loss is a sum of functions
of eta alone, so its change over a step can be computed with a hundred digits, and its derivatives are bounded on the line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import torch
from flint import arb
from torch import Tensor

from theory.exact import ball, dot, rational, rationals


class Profile(NamedTuple):
    """A function of one variable.

    Attributes:
        torch, slope, curvature: itself, its first and its second derivative, on tensors.
        derivatives: itself and its first four derivatives, in ball arithmetic.
        bounds: of the absolute values of the second, third and fourth derivative, everywhere.
    """

    torch: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]
    derivatives: tuple[Callable[[arb], arb], ...]
    bounds: tuple[arb, arb, arb]


def _logistic(s: arb) -> arb:
    return 1 / (1 + (-s).exp())


def _logistic_second(s: arb) -> arb:
    p = _logistic(s)
    return p * (1 - p)


PROFILES = {
    "square": Profile(
        lambda s: 0.5 * s * s,
        lambda s: s,
        torch.ones_like,
        (lambda s: s * s / 2, lambda s: s, lambda s: arb(1), lambda s: arb(0), lambda s: arb(0)),
        (arb(1), arb(0), arb(0)),
    ),
    # log(1 + e^s), the loss of logistic regression. With p its first derivative and q = p (1 - p) <= 1/4 the others are q,
    # q (1 - 2 p), largest at p = (1 - 1/sqrt 3)/2, and q (1 - 6 q), largest at q = 1/4.
    "softplus": Profile(
        lambda s: -torch.nn.functional.logsigmoid(-s),
        torch.sigmoid,
        lambda s: torch.sigmoid(s) * torch.sigmoid(-s),
        (
            lambda s: s.exp().log1p(),
            _logistic,
            _logistic_second,
            lambda s: _logistic_second(s) * (1 - 2 * _logistic(s)),
            lambda s: _logistic_second(s) * (1 - 6 * _logistic_second(s)),
        ),
        (arb(1) / 4, 1 / (6 * arb(3).sqrt()), arb(1) / 8),
    ),
    "sine": Profile(
        torch.sin,
        torch.cos,
        lambda s: -torch.sin(s),
        (arb.sin, arb.cos, lambda s: -s.sin(), lambda s: -s.cos(), arb.sin),
        (arb(1), arb(1), arb(1)),
    ),
}


@dataclass(frozen=True)
class Loss:
    """L(theta) = sum_i w_i phi_i(a_i . theta - o_i).

    Attributes:
        profiles: names of the phi_i.
        weights: w_i, shape (m,).
        directions: a_i, shape (m, n).
        offsets: o_i, shape (m,).
    """

    profiles: tuple[str, ...]
    weights: tuple[float, ...]
    directions: tuple[tuple[float, ...], ...]
    offsets: tuple[float, ...]

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(
            self.profiles + other.profiles,
            self.weights + other.weights,
            self.directions + other.directions,
            self.offsets + other.offsets,
        )

    def __neg__(self) -> "Loss":
        return self.times(-1.0)

    def times(self, factor: float) -> "Loss":
        """The loss multiplied by a number."""
        return Loss(self.profiles, tuple(factor * w for w in self.weights), self.directions, self.offsets)

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        arrays = (self.weights, self.directions, self.offsets)
        return tuple(torch.tensor(a, dtype=torch.float64) for a in arrays)  # type: ignore[return-value]

    @cached_property
    def _runs(self) -> list[str]:
        """The profiles, each run of equal ones once."""
        return [name for name, _ in groupby(self.profiles)]

    @cached_property
    def _lengths(self) -> list[int]:
        return [len(list(members)) for _, members in groupby(self.profiles)]

    def __call__(self, theta: Tensor) -> Tensor:
        """Its value, shape (), float64; autograd can go through it."""
        w, a, o = self._tensors
        return w @ self._each(lambda profile: profile.torch, a @ theta - o)

    def gradient(self, theta: Tensor) -> Tensor:
        """Shape (n,)."""
        w, a, o = self._tensors
        return (w * self._each(lambda profile: profile.slope, a @ theta - o)) @ a

    def hessian(self, theta: Tensor) -> Tensor:
        """Shape (n, n)."""
        w, a, o = self._tensors
        return a.T @ ((w * self._each(lambda profile: profile.curvature, a @ theta - o))[:, None] * a)

    def _each(self, function: Callable[[Profile], Callable[[Tensor], Tensor]], s: Tensor) -> Tensor:
        """One function of every term's profile, at s, shape (m,)."""
        if len(self._runs) == 1:
            return function(PROFILES[self.profiles[0]])(s)
        return torch.cat(
            [function(PROFILES[name])(part) for name, part in zip(self._runs, s.split(self._lengths), strict=True)]
        )

    def gradient_error(self, theta: Tensor) -> float:
        """How far `gradient` may be from the gradient, in Euclidean norm.

        Each s_i is a sum of n + 1 terms, each phi'(s_i) moves by its slope (at most 1 here) times the error of s_i and by a few
        units of its own, and the gradient is a sum of m such terms.
        """
        w, a, o = (x.abs() for x in self._tensors)
        n, m = a.shape[1], len(w)
        size = a @ theta.abs() + o
        return float((w * a.norm(dim=1) * ((n + 2) * size + (m + 6) * (size + 1))).sum()) * 2.0**-53


class Line:
    """A loss along theta - eta d, as a function of eta, in ball arithmetic.

    Args:
        loss: the loss.
        theta, d: shape (n,), taken as exact.

    Attributes:
        steps: a_i.d, how fast the argument of each profile moves.
    """

    def __init__(self, loss: Loss, theta: Tensor, d: Tensor):
        position, step = rationals(theta), rationals(d)
        rows = [rationals(row) for row in loss.directions]
        self._profiles = [PROFILES[name] for name in loss.profiles]
        self._weights = [ball(w) for w in loss.weights]
        self._s = [ball(dot(row, position) - rational(o)) for row, o in zip(rows, loss.offsets, strict=True)]
        self.steps = [ball(dot(row, step)) for row in rows]

    def value(self, eta: arb | float) -> arb:
        """L(theta - eta d)."""
        terms = zip(self._weights, self._profiles, self._s, self.steps, strict=True)
        return sum((w * phi.derivatives[0](s - ball(eta) * t) for w, phi, s, t in terms), arb(0))

    def change(self, eta: arb | float) -> arb:
        """L(theta - eta d) - L(theta)."""
        return self.value(eta) - self.value(0.0)

    def derivative(self, k: int) -> arb:
        """The k-th derivative by eta at 0: -g.d for k = 1, d'Hd for k = 2."""
        terms = zip(self._weights, self._profiles, self._s, self.steps, strict=True)
        return sum((w * phi.derivatives[k](s) * (-t) ** k for w, phi, s, t in terms), arb(0))

    def bound(self, k: int) -> arb:
        """An upper bound of the absolute k-th derivative by eta, for k from 2 to 4 and every eta."""
        terms = zip(self._weights, self._profiles, self.steps, strict=True)
        return sum((abs(w) * phi.bounds[k - 2] * abs(t) ** k for w, phi, t in terms), arb(0))

    @property
    def slope(self) -> arb:
        """g.d: how fast the loss falls along -d."""
        return -self.derivative(1)

    @property
    def curvature(self) -> arb:
        """d'Hd."""
        return self.derivative(2)


def quadratic(spectrum: Sequence[float], reflection: Sequence[float], centre: Sequence[float]) -> Loss:
    """(theta - centre)' H (theta - centre) / 2 with the given eigenvalues.

    The eigenvectors are the unit vectors, reflected at the hyperplane normal to `reflection` unless that is zero.
    """
    n = len(spectrum)
    v = torch.tensor(reflection, dtype=torch.float64)
    q = torch.eye(n, dtype=torch.float64)
    if v.any():
        q -= 2 * torch.outer(v, v) / v.dot(v)
    rows = tuple(tuple(row) for row in q.tolist())
    offsets = tuple(float(x) for x in q @ torch.tensor(centre, dtype=torch.float64))
    return Loss(("square",) * n, tuple(spectrum), rows, offsets)


def ridge(profile: str, weights: Sequence[float], directions: Sequence[Sequence[float]], offsets: Sequence[float]) -> Loss:
    """A loss with one profile for all its terms."""
    return Loss((profile,) * len(weights), tuple(weights), tuple(map(tuple, directions)), tuple(offsets))


@dataclass(frozen=True)
class TwoTasks:
    """Two losses and a point."""

    retain: Loss
    forget: Loss
    theta: tuple[float, ...]

    @cached_property
    def point(self) -> Tensor:
        """theta, shape (n,), float64."""
        return torch.tensor(self.theta, dtype=torch.float64)

    @cached_property
    def gradients(self) -> tuple[Tensor, Tensor]:
        """g_R and g_F at theta."""
        return self.retain.gradient(self.point), self.forget.gradient(self.point)


def curvature_bounds(loss: Loss) -> tuple[float, float]:
    """The smallest and largest curvature of a quadratic plus convex ridges, or of the negative of that.

    The quadratic's are its weights, since its directions are orthonormal; a ridge adds w |a|^2 max phi'' at most, 0 at least.
    The directions are rounded, to about 10 u each, which moves eigenvalues by 20 u relatively (Ostrowski); 1e-12 covers that.
    """
    terms = list(zip(loss.profiles, loss.weights, loss.directions, strict=True))
    sizes = [abs(w) for name, w, _ in terms if name == "square"]
    ridges = sum(abs(w) * sum(x * x for x in a) * float(PROFILES[name].bounds[0]) for name, w, a in terms if name != "square")
    return min(sizes) * (1 - 1e-12), (max(sizes) + ridges) * (1 + 1e-12)
