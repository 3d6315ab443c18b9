"""A1. Fairest direction.

In short: d / ||d|| is the unique maximiser of min(u.g_R / ||g_R||, -u.g_F / ||g_F||)

Statement: d / ||d|| is the unique unit vector u that maximises min(u.g_R / ||g_R||, -u.g_F / ||g_F||), and the maximum is
sqrt((1 - cos phi) / 2). A unit vector at distance delta from it does worse by at least delta^2 / 2 times the maximum.

Hypotheses: the rule is NGDiff; both gradients are non-zero; they do not point the same way (for uniqueness).

Source: ours.

Tight: yes, an equality; the loss of delta^2 / 2 is attained by u orthogonal to the plane of the gradients.

Proof: with unit gradients r, f the minimum of two numbers is at most their mean u.(r - f)/2 = u.d/2 = ||d||/2 (1 - |u -
d/||d|||^2 / 2), and at u = d / ||d|| both numbers are equal by T3.

False variant: the maximum is larger by a millionth.
"""

import numpy as np
import sympy
import torch
from flint import arb
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from theory import library
from theory.claim import Counterexample, Identity, Measurement, worst
from theory.exact import ExactPair, U
from theory.strategies import GradientPair, gradient_pairs

# SLSQP sees no further than the square root of u: gradients 1e-8 apart are one to it, and it stays at u = 0, where the value is
# within 0.5e-8 of the maximum.
CONVERGED = 2.0**-26

ANGLES = torch.linspace(0, 2 * torch.pi, 1441, dtype=torch.float64)[:-1]  # a quarter of a degree apart


def problems() -> st.SearchStrategy[GradientPair]:
    """Gradients in general position, 1e-8 apart and opposed, of ratio 1e-60 to 1e+60, in 1 to 50 dimensions."""
    return gradient_pairs(("general", "near", "opposed"))


def measure(pair: GradientPair) -> Measurement | None:
    """The fairness of the library's d against the formula, both against two optimisers, and rivals against both."""
    found = fairest(pair)
    if found is None:
        return None
    u, error = found
    r, f = (unit(g) for g in pair.tensors)
    best = (ExactPair(*pair.tensors).one_minus_cosine / 2).sqrt()
    parts = [
        Measurement(abs(fairness(u, r, f) - best), error, "fairness of d/||d|| against the formula"),
        # Any mean of r and -f bounds the optimum from above: the convex program's dual, on a grid and with our weight.
        Measurement(best, float(dual(r, f)) + error, "formula against the dual"),
        Measurement(grid_best(r, f), best + error, "best of a grid of angles"),
        # The grid's nearest angle to d's is an eighth of a degree away at most, and fairness falls by a slope of 1 at most.
        Measurement(best, grid_best(r, f) + error + np.pi / 1440, "maximum against the grid"),
    ]
    parts.append(Measurement(abs(best - convex_program(r, f)), error + CONVERGED, "maximum against a convex program"))
    for rival in (r, -f, unit(r + 0.1), unit(u + 0.01 * r), unit(torch.flip(u, (0,)))):
        # Both fairness and distance are off by a few errors of u.
        shortfall = float((rival - u).norm()) ** 2 / 2 * best * (1 - 4 * error) - 4 * error
        parts.append(Measurement(fairness(rival, r, f) + shortfall, best, "rival, plus its proven shortfall"))
    return worst(*parts)


def false_variant(pair: GradientPair) -> Measurement | None:
    """The maximum, plus a millionth, is reached by d / ||d||."""
    found = fairest(pair)
    if found is None:
        return None
    u, error = found
    best = (ExactPair(*pair.tensors).one_minus_cosine / 2).sqrt()
    return Measurement(best * (1 + arb(10) ** -6), fairness(u, *(unit(g) for g in pair.tensors)) + error, "the maximum, larger")


def fairest(pair: GradientPair) -> tuple[Tensor, float] | None:
    """The library's d / ||d|| and how far it may be off; None where rounding leaves nothing of d."""
    d = library.combine("ngdiff", *pair.tensors).d
    # d is off by direction_error, so its unit vector by twice that over ||d||; the norm, r and f are rounded here.
    length, n = float(d.norm()), len(d)
    error = 2 * library.direction_error(n) / length + 4 * (n + 8) * U if length else 1.0
    return (unit(d), error) if error < 1e-3 else None


def unit(v: Tensor) -> Tensor:
    """v / ||v||, without overflow, and 0 for 0."""
    scaled = v / v.abs().max() if v.any() else v
    return torch.nn.functional.normalize(scaled, dim=0)


def fairness(u: Tensor, r: Tensor, f: Tensor) -> float:
    """min(u.r, -u.f), for unit vectors."""
    return min(float(u @ r), -float(u @ f))


def dual(r: Tensor, f: Tensor) -> Tensor:
    """The smallest ||s r - (1 - s) f|| on a grid of s."""
    s = torch.linspace(0, 1, 201, dtype=torch.float64)[:, None]
    return (s * r - (1 - s) * f).norm(dim=1).min()


def grid_best(r: Tensor, f: Tensor) -> float:
    """The fairest unit vector of the plane of r and f, on a grid of angles."""
    basis, _ = torch.linalg.qr(torch.stack([r, f], dim=1))  # orthonormal whatever the angle; a single column in one dimension
    u = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)[:, : basis.shape[1]] @ basis.T
    return float(torch.minimum(u @ r, -(u @ f)).max())


def convex_program(r: Tensor, f: Tensor) -> float:
    """The fairness that sequential quadratic programming finds: max t with u.r >= t, -u.f >= t, ||u|| <= 1, from u = 0."""
    n, a, b = len(r), r.numpy(), f.numpy()
    constraints = [
        {"type": "ineq", "fun": lambda x: x[:n] @ a - x[n], "jac": lambda x: np.append(a, -1)},
        {"type": "ineq", "fun": lambda x: -(x[:n] @ b) - x[n], "jac": lambda x: np.append(-b, -1)},
        {"type": "ineq", "fun": lambda x: 1 - x[:n] @ x[:n], "jac": lambda x: np.append(-2 * x[:n], 0)},
    ]
    objective = np.append(np.zeros(n), -1.0)
    found = minimize(
        lambda x: objective @ x,
        np.zeros(n + 1),
        jac=lambda x: objective,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-15},
    )
    u = torch.from_numpy(found.x[:n])
    return fairness(u / max(1.0, float(u.norm())), r, f)


def identities() -> list[Identity]:
    """The value at d / ||d||, and the bound of every other one."""
    x = sympy.symbols("cos_phi", real=True)
    p, q = sympy.symbols("p q", real=True)
    u, v = (sympy.Matrix([sympy.cos(angle), sympy.sin(angle)]) for angle in (p, q))
    length_of_d = sympy.sqrt(2 * (1 - x))
    distance = u - v
    return [
        Identity("u.r = (1 - cos phi) / ||d|| is the value", ((1 - x) / length_of_d) ** 2 - (1 - x) / 2),
        Identity("||d|| / 2 is the value", (length_of_d / 2) ** 2 - (1 - x) / 2),
        Identity("u.v = 1 - |u - v|^2 / 2 for unit vectors", (u.T * v)[0] - 1 + (distance.T * distance)[0] / 2),
    ]


def counterexamples() -> list[Counterexample]:
    """Gradients of the same way have many optima; other rules are less fair."""
    r = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    optima = [torch.tensor(u, dtype=torch.float64) for u in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0])]
    equal = sum(fairness(u, r, r) == 0.0 for u in optima)
    text = "g_R = g_F = (1, 0, 0): (0, 1, 0) and (0, 0, 1) both reach the maximum 0"
    found = [Counterexample("they do not point the same way", text, Measurement(float(equal), 1.0, "maximisers"))]
    pair = GradientPair((1.0, 0.0), (3.0, 4.0))
    best = (ExactPair(*pair.tensors).one_minus_cosine / 2).sqrt()
    for rule in ("gdiff-0.5", "ga"):
        u = unit(library.combine(rule, *pair.tensors).d)
        value = fairness(u, *(unit(g) for g in pair.tensors))
        text = f"{rule} with g_R = (1, 0), g_F = (3, 4): fairness {value:.3f}"
        found.append(
            Counterexample("the rule is NGDiff", text, Measurement(best, value + 1e-12, "maximum against the rule's fairness"))
        )
    zero = GradientPair((1.0, 0.0), (0.0, 0.0))
    u = unit(library.combine("ngdiff", *zero.tensors).d)
    value = fairness(u, unit(zero.tensors[0]), zero.tensors[1])
    formula = 0.5**0.5  # with cos phi = 0 by convention
    text = "g_F = 0: the forget task gains nothing along any direction"
    found.append(
        Counterexample("both gradients are non-zero", text, Measurement(formula, value + 1e-12, "formula against fairness"))
    )
    return found
