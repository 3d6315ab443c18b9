"""The theory as named assertions. A rule's test is a list of calls to these."""

import itertools

import oracle
import torch
from ngdiff_kernels import reference
from strategies import Pair
from torch import Tensor

from ngdiff.gram import Gram, Losses
from ngdiff.rules import Rule

U32, U64 = 2.0**-24, 2.0**-53  # unit roundoffs


def unit_error(n: int) -> float:
    """How far d of unit gradients may be from its formula, in Euclidean norm, when computed in float64.

    A sum of n squares is off by n u relatively, its inverse square root by n/2 + 2 units, the product by one more: n/2 + 3 for
    each unit vector, twice that for their difference, and 2 u for the subtraction.
    """
    return (n + 8) * U64


def direction(rule: Rule, pair: Pair, losses: Losses | None = None) -> Tensor:
    """d = c_R g_R - c_F g_F in float64, with the library's Gram and rule."""
    gram = Gram.from_vector(reference.gram(pair.retain, pair.forget))
    c_r, c_f = rule(gram, losses)
    return c_r * pair.retain.double() - c_f * pair.forget.double()


def assert_within(measured: Tensor, expected: Tensor, bound: float | Tensor) -> None:
    """|measured - expected| <= bound, element by element, with nothing but finite numbers."""
    measured, expected = measured.double(), expected.double()
    assert measured.shape == expected.shape
    excess = ((measured - expected).abs() - bound).max().item() if measured.numel() else 0.0
    assert excess <= 0, f"off by {excess:.3g} more than allowed; measured {measured}, expected {expected}"


def assert_bitwise_equal(measured: Tensor, expected: Tensor) -> None:
    """The same bits: tells 0.0 from -0.0, and holds for NaN."""
    assert (measured.dtype, measured.shape) == (expected.dtype, expected.shape)
    assert measured.contiguous().flatten().view(torch.uint8).equal(expected.contiguous().flatten().view(torch.uint8))


def assert_follows_formula(rule: Rule, name: str, pair: Pair, losses: Losses) -> None:
    """d is what the table of methods says."""
    expected = oracle.FORMULAS[name](pair.retain.double(), pair.forget.double(), float(losses.retain), float(losses.forget))
    c_r, c_f = rule(Gram.from_vector(reference.gram(pair.retain, pair.forget)), losses)
    # Each term is off by unit_error relative to its own size, and the subtraction by no more.
    size = c_r * pair.retain.double().norm() + c_f * pair.forget.double().norm()
    assert_within(direction(rule, pair, losses), expected, unit_error(len(pair.retain)) * size)


def assert_batch_equals_one_by_one(rule: Rule, vectors: Tensor, losses: Losses) -> None:
    """`vectors`, shape (k, 3), as one batch, as a batch of two dimensions, and one at a time."""
    batch = torch.stack(rule(Gram.from_vector(vectors), losses))
    assert batch.shape == (2, len(vectors))
    folded = torch.stack(rule(Gram.from_vector(vectors[None]), Losses(losses.retain[None], losses.forget[None])))
    assert_bitwise_equal(folded, batch[:, None])
    for i, vector in enumerate(vectors):
        one = torch.stack(rule(Gram.from_vector(vector), Losses(losses.retain[i], losses.forget[i])))
        assert_bitwise_equal(one, batch[:, i])


def assert_scale_invariant(rule: Rule, pair: Pair) -> None:
    """A2: multiplying either loss by a positive constant changes nothing, and not one bit if it is a power of two."""
    before = direction(rule, pair)
    for i, j in ((3, 0), (0, -5), (8, 11)):
        # Scaled in float64: a gradient of 1e15 would leave float32 otherwise, and one near 1e-38 would be rounded.
        scaled = Pair(pair.retain.double() * 2.0**i, pair.forget.double() * 2.0**j, pair.geometry)
        assert_bitwise_equal(direction(rule, scaled), before)
    scaled = Pair(pair.retain.double() * 1e4 / 3, pair.forget.double() * 0.7, pair.geometry)
    # Two evaluations, each within unit_error, and one rounding of each gradient.
    assert float((direction(rule, scaled) - before).norm()) <= 2 * unit_error(len(before)) + 2 * U64


def assert_not_scale_invariant(rule: Rule, pair: Pair) -> None:
    """A2, negated: scaling one loss turns the direction, so that no learning rate makes up for it."""
    turned = direction(rule, Pair(pair.retain * 8, pair.forget, pair.geometry))
    cosine = oracle.unit(turned) @ oracle.unit(direction(rule, pair))
    assert cosine < 1 - 1e-6  # far above the rounding of float64


def assert_norm_at_most_two(rule: Rule, pair: Pair) -> None:
    """A3: ||d|| <= 2, whatever the losses do."""
    assert float(direction(rule, pair).norm()) <= 2 + unit_error(len(pair.retain))


def assert_norm_from_angle(rule: Rule, pair: Pair) -> None:
    """A3: ||d||^2 = 2 (1 - cos phi), both gradients non-zero."""
    cosine = float(oracle.unit(pair.retain) @ oracle.unit(pair.forget))
    # d is off by e = unit_error and ||d|| <= 2, so ||d||^2 by 4 e + e^2; the oracle's cosine by e.
    assert abs(float(direction(rule, pair).square().sum()) - 2 * (1 - cosine)) <= 7 * unit_error(len(pair.retain))


def assert_retain_descent(rule: Rule, pair: Pair, losses: Losses | None = None) -> None:
    """T3: g_R.d >= 0, so the retain loss falls to first order."""
    slope, error = _slope(pair.retain, rule, pair, losses)
    assert slope >= -error


def assert_forget_ascent(rule: Rule, pair: Pair, losses: Losses | None = None) -> None:
    """T3: g_F.d <= 0, so the forget loss rises to first order."""
    slope, error = _slope(pair.forget, rule, pair, losses)
    assert slope <= error


def assert_slopes_from_angle(rule: Rule, pair: Pair) -> None:
    """T3: g_R.d = ||g_R|| (1 - cos phi) and g_F.d = -||g_F|| (1 - cos phi), both gradients non-zero."""
    expected = 1 - float(oracle.unit(pair.retain) @ oracle.unit(pair.forget))
    for g, sign in ((pair.retain, 1), (pair.forget, -1)):
        slope, error = _slope(g, rule, pair, None)
        assert abs(slope - sign * expected) <= 2 * error  # the cosine of the oracle is off by less than the slope


def assert_fails_retain_descent(rule: Rule, pair: Pair, losses: Losses | None = None) -> None:
    """T3, negated: the retain loss rises to first order."""
    slope, error = _slope(pair.retain, rule, pair, losses)
    assert slope < -error


def assert_fails_forget_ascent(rule: Rule, pair: Pair, losses: Losses | None = None) -> None:
    """T3, negated: the forget loss falls to first order."""
    slope, error = _slope(pair.forget, rule, pair, losses)
    assert slope > error


def assert_max_min_fair(rule: Rule, pair: Pair) -> None:
    """A1: d/||d|| maximises min(u.g_R/||g_R||, -u.g_F/||g_F||) over unit u, with value sqrt((1 - cos phi) / 2)."""
    r, f = oracle.unit(pair.retain), oracle.unit(pair.forget)

    def value(u: Tensor) -> float:
        return min(float(u @ r), -float(u @ f))

    best = oracle.unit(direction(rule, pair))
    # Products of unit vectors are off by unit_error, and d/||d|| by unit_error / ||d|| where ||d|| > 2^-10 / 2.
    error = (1 + 2**11) * 2 * unit_error(len(r))
    assert abs(value(best) - ((1 - float(r @ f)) / 2) ** 0.5) <= error
    rivals = [oracle.unit(best + scale * torch.randn_like(best)) for scale in (1e-3, 1e-1, 10)]
    assert all(value(rival) <= value(best) + error for rival in [*rivals, r, -f])


def assert_zero_iff_unit_gradients_coincide(rule: Rule, pair: Pair) -> None:
    """A4: d = 0 iff g_R and g_F point the same way, both non-zero."""
    apart = float((oracle.unit(pair.retain) - oracle.unit(pair.forget)).norm())
    error = unit_error(len(pair.retain))
    assert (float(direction(rule, pair).norm()) <= error) == (apart <= error)


def assert_ignores_zero_gradients(rule: Rule, pair: Pair) -> None:
    """A zero gradient has a zero unit vector; the direction is that of the other one, and zero if both vanish."""
    d = direction(rule, pair)
    zero = torch.zeros_like(pair.retain)
    assert_within(direction(rule, Pair(zero, pair.forget, "")), -oracle.unit(pair.forget), unit_error(len(d)))
    assert_within(direction(rule, Pair(pair.retain, zero, "")), oracle.unit(pair.retain), unit_error(len(d)))
    assert not direction(rule, Pair(zero, zero, "")).any()


def assert_finite(rule: Rule, pair: Pair, losses: Losses) -> None:
    """Coefficients are finite for every finite input, and none is negative."""
    for c in itertools.chain(rule(Gram.from_vector(reference.gram(pair.retain, pair.forget)), losses)):
        assert c.isfinite()
        assert c >= 0


def _slope(g: Tensor, rule: Rule, pair: Pair, losses: Losses | None) -> tuple[float, float]:
    """g.d / ||g||, and its rounding error."""
    d = direction(rule, pair, losses)
    # d is off by unit_error of the two terms that are subtracted; the product with a unit vector by as much again.
    c_r, c_f = rule(Gram.from_vector(reference.gram(pair.retain, pair.forget)), losses)
    size = float(c_r * pair.retain.double().norm() + c_f * pair.forget.double().norm())
    return float(oracle.unit(g) @ d), 2 * unit_error(len(d)) * size
