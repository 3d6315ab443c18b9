"""Pareto optimality decided without the method under test: closed forms, one-dimensional root finding and a convex program."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize, minimize_scalar
from torch import Tensor

from theory.losses import Loss, TwoTasks

Array = NDArray[np.floating[Any]]


def quadratic_gain(tasks: TwoTasks, theta: Tensor) -> tuple[float, float]:
    """How much L_R can fall without L_F falling, for L_R and -L_F quadratics: 0 at a Pareto optimum.

    The best point that keeps L_F minimises L_R + t (-L_F) for the t >= 0 at which L_F is just kept; it is found by bisection.

    Returns:
        The gain, and how far rounding may have moved it.
    """
    h_r, a = quadratic_form(tasks.retain)
    h_f, b = quadratic_form(-tasks.forget)
    x = theta.numpy()
    kept = _value(h_f, b, x)

    def best(t: float) -> Array:
        # In s = t / (1 + t) from 0 to 1, so that t = infinity is a number too.
        return np.linalg.solve((1 - t) * h_r + t * h_f, (1 - t) * h_r @ a + t * h_f @ b)

    def excess(t: float) -> float:
        return _value(h_f, b, best(t)) - kept

    t = 0.0 if excess(0.0) <= 0 else 1.0 if excess(1.0) >= 0 else float(brentq(excess, 0.0, 1.0, xtol=1e-16, rtol=1e-15))
    gain = _value(h_r, a, x) - _value(h_r, a, best(t))
    return gain, _rounding(h_r, a, x) + _rounding(h_r, a, best(t)) + _rounding(h_f, b, x) + _rounding(h_f, b, best(t))


def minimiser(loss: Loss) -> Array:
    """Where a strongly convex loss, or the negative of one, has its only stationary point."""
    if set(loss.profiles) != {"square"}:
        return _newton(loss if loss.weights[-1] > 0 else -loss)
    found: Array = np.linalg.solve(np.array(loss.directions), np.array(loss.offsets))
    return found


def distance_to_pareto_set(tasks: TwoTasks, theta: Tensor, guess: float = 0.5) -> float:
    """Distance from theta to the minimisers of c L_R - (1 - c) L_F, 0 <= c <= 1: the Pareto set if L_R, -L_F are convex.

    In closed form for quadratics, by Newton's method otherwise. The minimum over a grid of c and a guess, refined; never below
    the true distance, but for rounding.
    """
    x, quadratics = theta.numpy(), set(tasks.retain.profiles + tasks.forget.profiles) == {"square"}
    ends = minimiser(tasks.retain), minimiser(tasks.forget)
    if quadratics:
        (h_r, a), (h_f, b) = quadratic_form(tasks.retain), quadratic_form(-tasks.forget)

    def optimum(c: float, rest: float) -> Array:
        if not quadratics:
            return _newton(tasks.retain.times(c) + (-tasks.forget).times(rest), ends[0] if c > rest else ends[1])
        found: Array = np.linalg.solve(c * h_r + rest * h_f, c * h_r @ a + rest * h_f @ b)
        return found

    def distance(s: float) -> float:
        # The set is densest in c near the ends if H_R and H_F differ much, so c = 1 / (1 + e^-s) runs from 1e-17 to 1 - 1e-17.
        return float(np.linalg.norm(x - optimum(1 / (1 + np.exp(-s)), 1 / (1 + np.exp(s)))))

    logit = np.log(max(guess, 1e-17) / max(1 - guess, 1e-17))
    # Logistic losses here have conditions of a hundred at most, and their set no ends to resolve.
    grid = np.sort(np.append(np.linspace(-40, 40, 65) if quadratics else np.linspace(-8, 8, 9), logit))
    i = int(np.argmin([distance(s) for s in grid]))
    refined = minimize_scalar(
        distance, bounds=(grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]), method="bounded", options={"xatol": 1e-10}
    )
    return min(float(refined.fun), distance(grid[i]), *(float(np.linalg.norm(x - end)) for end in ends))


def _newton(loss: Loss, start: Array | None = None) -> Array:
    """The minimiser of a strongly convex loss, by steps that are halved until the loss falls."""
    x = torch.zeros(len(loss.directions[0]), dtype=torch.float64) if start is None else torch.from_numpy(start)
    for _ in range(100):
        value, step = float(loss(x)), torch.linalg.solve(loss.hessian(x), loss.gradient(x))
        near = 1e-8 * (1 + float(x.norm()))
        if step.norm() <= near:  # the next step would be of the order of its square
            return (x - step).numpy()
        while not float(loss(x - step)) < value and step.norm() > near:
            step = step / 2
        x = x - step
    raise RuntimeError(f"no minimiser within 100 Newton steps, last of length {float(step.norm()):.1e}: {loss}")


def convex_gain(tasks: TwoTasks, theta: Tensor, price: float) -> float:
    """As `quadratic_gain` for any convex L_R and -L_F, by sequential quadratic programming from theta.

    A lower bound: the program may stop early, but what it returns can be had once it has paid for violating the constraint.

    Args:
        tasks: the losses.
        theta: where.
        price: how much L_R falls if L_F may fall by one; the ratio of their weights where theta minimises an LSP.
    """
    kept = float(tasks.forget(theta))

    def value(loss: Loss, x: Array) -> float:
        return float(loss(torch.from_numpy(x)))

    def gradient(loss: Loss, x: Array) -> Array:
        return loss.gradient(torch.from_numpy(x)).numpy()

    constraint = {
        "type": "ineq",
        "fun": lambda x: value(tasks.forget, x) - kept,
        "jac": lambda x: gradient(tasks.forget, x),
    }
    found = minimize(
        lambda x: value(tasks.retain, x),
        theta.numpy(),
        jac=lambda x: gradient(tasks.retain, x),
        constraints=[constraint],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 200},
    )
    violation = max(0.0, kept - value(tasks.forget, found.x))
    return float(tasks.retain(theta)) - float(found.fun) - price * violation


def dominators(points: list[tuple[int, int]], i: int) -> int:
    """How many points (L_R, L_F) dominate the i-th: no higher L_R, no lower L_F, one of them better."""
    r, f = points[i]
    return sum(other != (r, f) and other[0] <= r and other[1] >= f for other in points)


def supported(points: list[tuple[int, int]], i: int) -> bool:
    """Whether the i-th point minimises c L_R - (1 - c) L_F over all points for some c in (0, 1), decided in integers.

    Every other point asks c dr >= (1 - c) df with dr, df the differences of L_R and L_F, which bounds c from one side.
    """
    r, f = points[i]
    low, high = (0, 1), (1, 1)  # c as a fraction: numerator, denominator > 0
    open_low = open_high = True
    for other in points:
        dr, df = other[0] - r, other[1] - f
        weight = dr + df  # c (dr + df) >= df
        if weight == 0:
            if df > 0:
                return False
        elif weight > 0:
            if df * low[1] > low[0] * weight:
                low, open_low = (df, weight), False
        elif df * high[1] * -1 < high[0] * -weight:
            high, open_high = (-df, -weight), False
    left, right = low[0] * high[1], high[0] * low[1]
    return left < right or (left == right and not open_low and not open_high)


def quadratic_form(loss: Loss) -> tuple[Array, Array]:
    """H and the minimiser of (x - a)'H(x - a)/2."""
    directions = np.array(loss.directions)
    return directions.T @ (np.array(loss.weights)[:, None] * directions), minimiser(loss)


def _value(h: Array, a: Array, x: Array) -> float:
    return float((x - a) @ h @ (x - a)) / 2


def _rounding(h: Array, a: Array, x: Array) -> float:
    # n terms of n terms, and x - a itself, which cancels: each is a few units of the largest of what is summed.
    n, size = len(x), np.linalg.norm(x - a) + 2.0**-53 * (np.linalg.norm(x) + np.linalg.norm(a))
    return float((2 * n + 8) * 2.0**-53 * np.linalg.norm(h, 2) * size * (size + np.linalg.norm(a) + np.linalg.norm(x)))
