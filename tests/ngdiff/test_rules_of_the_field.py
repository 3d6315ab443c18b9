"""The two-task rules of the multi-task field: by what defines each of them, and against TorchJD on the matrix [g_R; -g_F]."""

import warnings
from collections.abc import Callable

import pytest
import torch
from asserts import (
    U64,
    assert_batch_equals_one_by_one,
    assert_finite,
    assert_forget_ascent,
    assert_retain_descent,
    direction,
    unit_error,
)
from hypothesis import given
from hypothesis import strategies as st
from ngdiff_kernels import reference
from oracle import unit
from strategies import GEOMETRIES, NONZERO, Pair, pairs

from ngdiff import rules
from ngdiff.gram import Gram, Losses

FIELD = ["retain", "mgda", "pcgrad", "upgrad", "gru", "imtl-g", "nash-mtl", "config", "aligned-mtl", "cagrad", "cagrad-0.9"]
KIN = ["imtl-g", "nash-mtl", "munba", "config"]  # of NGDiff's direction
HELP_BOTH = ["mgda", "pcgrad", "upgrad", *KIN]
NO_LOSSES = Losses(torch.tensor(1.0).double(), torch.tensor(1.0).double())
APART = tuple(name for name in NONZERO if name != "aligned")


def gram_of(pair: Pair) -> Gram:
    return Gram.from_vector(reference.gram(pair.retain, pair.forget))


def tasks(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """What the multi-task field calls the gradients: of L_R and of -L_F."""
    return pair.retain.double(), -pair.forget.double()


def size(rule: rules.Rule, pair: Pair) -> float:
    """Of the two terms of d: what its rounding error is relative to."""
    c_r, c_f = rule(gram_of(pair))
    return float(c_r.abs() * pair.retain.double().norm() + c_f.abs() * pair.forget.double().norm())


# Every rule


@pytest.mark.parametrize("name", [name for name in FIELD if name != "aligned-mtl"])
@given(pair=pairs(dtype=torch.float64))
def test_coefficients_are_finite_and_not_negative(name, pair):
    assert_finite(rules.get(name), pair, NO_LOSSES)


@given(pair=pairs(dtype=torch.float64))
def test_coefficients_of_aligned_mtl_are_finite(pair):
    """The mean of orthogonalised gradients may take away from a long one that the other is nearly parallel to."""
    assert all(c.isfinite() for c in rules.get("aligned-mtl")(gram_of(pair)))


@pytest.mark.parametrize("name", [*FIELD, "ngdiff-0.3"])
@pytest.mark.parametrize("k", [1, 2, 64])
def test_batch_equals_one_by_one(name, k):
    gradients = torch.randn(k, 2, 5).double() * 10.0 ** torch.randint(-30, 15, (k, 2, 1))
    gradients[k // 2, 1] = gradients[k // 2, 0]
    vectors = torch.stack([reference.gram(*pair) for pair in gradients])
    vectors[-1:] = 0 if k > 1 else vectors
    assert_batch_equals_one_by_one(rules.get(name), vectors, Losses(*torch.rand(2, k).double()))


@pytest.mark.parametrize(("name", "degree"), [(name, -1 if name in ("nash-mtl", "munba") else 0) for name in FIELD])
@given(pair=pairs(dtype=torch.float64), k=st.sampled_from((1, -7, 40)))
def test_a_common_scale_of_both_losses_is_harmless(name, degree, pair, k):
    """Powers of two: the coefficients are multiplied by 2^(k degree), to the last bit, and d points the same way."""
    rule = rules.get(name)
    before, after = rule(gram_of(pair)), rule(gram_of(Pair(pair.retain * 2.0**k, pair.forget * 2.0**k, pair.geometry)))
    for c, scaled in zip(before, after, strict=True):
        assert scaled == c * 2.0 ** (k * degree)


@pytest.mark.parametrize("name", HELP_BOTH)
@given(pair=pairs())
def test_neither_task_gets_worse(name, pair):
    assert_retain_descent(rules.get(name), pair)
    assert_forget_ascent(rules.get(name), pair)


@given(pair=pairs())
def test_gru_does_not_raise_the_retain_loss(pair):
    assert_retain_descent(rules.get("gru"), pair)


@pytest.mark.parametrize("name", FIELD)
def test_both_gradients_zero(name):
    zero = torch.zeros(3)
    assert not direction(rules.get(name), Pair(zero, zero, "both zero")).any()


# What one zero gradient leaves of d, in units of the other: 0 where the worse-off task cannot be helped.
ONE_ZERO = {
    "mgda": 0.0,
    "imtl-g": 0.0,
    "pcgrad": 1.0,
    "config": 1.0,
    "upgrad": 0.5,
    "cagrad": 0.5,
    "aligned-mtl": 0.5,
    "nash-mtl": 0.2,  # unit vectors, of g with norm 5
    "ngdiff-0.5": 0.2,
}


def test_gru_with_one_gradient_zero():
    """Without a retain gradient it is plain ascent; without a forget gradient nothing is to be done."""
    g, zero, rule = torch.tensor([3.0, -4.0]), torch.zeros(2), rules.get("gru")
    assert torch.equal(direction(rule, Pair(zero, g, "")), -g.double())
    assert not direction(rule, Pair(g, zero, "")).any()


@pytest.mark.parametrize(("name", "share"), ONE_ZERO.items())
def test_one_gradient_zero(name, share):
    g, zero, rule = torch.tensor([3.0, -4.0]), torch.zeros(2), rules.get(name)
    assert torch.allclose(direction(rule, Pair(g, zero, "")), share * g.double(), rtol=4 * U64, atol=0)
    assert torch.allclose(direction(rule, Pair(zero, g, "")), -share * g.double(), rtol=4 * U64, atol=0)


# What defines each


@given(pair=pairs(NONZERO), w=st.floats(0, 1))
def test_mgda_is_the_shortest(pair, w):
    first, second = tasks(pair)
    found, other = direction(rules.get("mgda"), pair).norm(), (w * first + (1 - w) * second).norm()
    assert float(found - other) <= 4 * unit_error(len(first)) ** 0.5 * float(
        torch.minimum(first.norm(), second.norm())
    ) + 4 * U64 * size(rules.get("mgda"), pair)


@given(pair=pairs(NONZERO))
def test_pcgrad_projects_each_gradient_off_the_other(pair):
    first, second = tasks(pair)

    def without(g: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return g - (g @ unit(other)).clamp(max=0) * unit(other)

    expected = without(first, second) + without(second, first)
    rule = rules.get("pcgrad")
    assert float((direction(rule, pair) - expected).norm()) <= 4 * unit_error(len(first)) * size(rule, pair)


@given(pair=pairs())
def test_upgrad_is_half_of_pcgrad(pair):
    assert torch.equal(2 * direction(rules.get("upgrad"), pair), direction(rules.get("pcgrad"), pair))


@given(pair=pairs(NONZERO))
def test_gru_is_the_nearest_to_ascent_that_keeps_retain(pair):
    r, f = pair.retain.double(), pair.forget.double()
    d, error = direction(rules.get("gru"), pair), 4 * unit_error(len(r)) * size(rules.get("gru"), pair)
    removed = d + f  # what was added to -g_F: along g_R, and only what brings g_R.d to 0
    assert float((removed - (removed @ unit(r)) * unit(r)).norm()) <= error
    assert abs(float(d @ unit(r))) <= error or float(removed.norm()) <= error


@pytest.mark.parametrize("name", KIN)
@given(pair=pairs(APART))
def test_these_go_ngdiffs_way_at_a_length_of_their_own(name, pair):
    """One direction under four names: what differs is what a learning rate can absorb, but for its change along a run."""
    rule, ngdiff = rules.get(name), direction(rules.get("ngdiff"), pair)
    r, f = float(pair.retain.double().norm()), float(pair.forget.double().norm())
    gain = 1 - float(gram_of(pair).cosine)
    if name in ("nash-mtl", "munba") and gain <= 1e-13:
        assert not direction(rule, pair).any()  # nothing to bargain for, up to rounding
        return
    length = {"imtl-g": r * f / (r + f), "config": (r + f) / 2}.get(name, (1 / gain) ** 0.5 if gain else 0)
    # Both directions are off by unit_error of their terms, Nash's length also by the cosine's error over the gain.
    error = 4 * unit_error(len(ngdiff)) * (1 + (1 / gain if name in ("nash-mtl", "munba") and gain else 0))
    assert float((direction(rule, pair) - length * ngdiff).norm()) <= error * size(rule, pair)


@pytest.mark.parametrize("scale", [3.0, 0.3, 1e-20])
def test_nash_has_nothing_to_bargain_for_in_rounding(scale):
    """Float32 gradients of one direction, whose unit vectors differ by rounding."""
    torch.manual_seed(0)
    g = torch.randn(10_000)
    assert not direction(rules.get("nash-mtl"), Pair(g, scale * g, "aligned")).any()


@given(n=st.sampled_from((2, 61)), bits=st.integers(20, 53), seed=st.integers(0, 1000))
def test_weights_of_mgda_add_up_to_one_for_nearly_opposed_gradients(n, bits, seed):
    torch.manual_seed(seed)
    g = torch.randn(n).double()
    c = rules.get("mgda")(gram_of(Pair(g, -g + 2.0**-bits * torch.randn(n).double(), "")))
    assert abs(float(c.retain + c.forget) - 1) <= 4 * U64


@given(pair=pairs(APART).filter(lambda pair: len(pair.retain) > 1))
def test_nash_is_a_bargain(pair):
    """c_R g_R.d = c_F (-g_F).d = 1: the equation of Nash-MTL, alpha_i (G alpha)_i = 1."""
    rule, (first, second) = rules.get("nash-mtl"), tasks(pair)
    d, (c_r, c_f) = direction(rule, pair), rule(gram_of(pair))
    gain = 1 - float(gram_of(pair).cosine)
    for c, g in ((c_r, first), (c_f, second)):
        assert abs(float(c * (g @ d)) - 1) <= 8 * unit_error(len(g)) / gain


@given(pair=pairs(APART).filter(lambda pair: len(pair.retain) > 1))
def test_imtl_g_is_impartial(pair):
    rule, (first, second) = rules.get("imtl-g"), tasks(pair)
    d = direction(rule, pair)
    assert abs(float(d @ unit(first) - d @ unit(second))) <= 4 * unit_error(len(d)) * size(rule, pair)


@given(pair=pairs(("general", "orthogonal", "nearly parallel")).filter(lambda pair: len(pair.retain) > 2))
def test_aligned_mtl_is_the_mean_of_aligned_gradients(pair):
    """By the singular value decomposition of [g_R; -g_F]: all singular values replaced by the smallest."""
    rule, matrix = rules.get("aligned-mtl"), torch.stack(tasks(pair))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    if s[1] < 1e-7 * s[0]:
        return  # near the rank's limit, where a rounding decides between the two forms
    expected = (s[-1] * u @ v).mean(0)
    # The determinant is off by eps a b, so lambda_min by that over lambda_max, and its root by the condition of the matrix.
    error = 16 * unit_error(len(expected)) * float(s[0] / s[1]) * float(s[0])
    assert float((direction(rule, pair) - expected).norm()) <= error


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@given(pair=pairs(NONZERO), seed=st.integers(0, 1000))
def test_cagrad_is_the_best_in_its_ball(c, pair, seed):
    """No other point of the ball around the mean gradient does more for the worse-off task, to first order."""
    first, second = tasks(pair)
    rule, mean = rules.CAGrad(c), (first + second) / 2
    d, radius = direction(rule, pair), c * float(mean.norm())
    scale = float(torch.maximum(first.norm(), second.norm()))
    # g_w is a root of a difference of squares, so it may be off by the root of their rounding.
    error = 8 * unit_error(len(d)) ** 0.5 * scale
    assert abs(float((d - mean).norm()) - radius) <= error or radius <= error or float(d.norm()) <= error

    def worse_off(v: torch.Tensor) -> float:
        return min(float(first @ v), float(second @ v))

    torch.manual_seed(seed)
    rivals = [mean + radius * unit(torch.randn_like(d)) for _ in range(4)]
    rivals += [mean + radius * unit(w * first + (1 - w) * second) for w in torch.linspace(0, 1, 41, dtype=torch.float64)]
    rivals += [d + 0.05 * radius * unit(torch.randn_like(d)) for _ in range(4)]
    inside = [v for v in rivals if float((v - mean).norm()) <= radius]
    assert all(worse_off(v) <= worse_off(d) + error * scale for v in inside)


@pytest.mark.parametrize("c", [1.0, -0.1, float("nan")])
def test_cagrad_refuses_a_radius_outside_the_unit_interval(c):
    with pytest.raises(ValueError, match=rf"cagrad: c = {c} is outside \[0, 1\)"):
        rules.CAGrad(c)


# NGDiff's trade-off


@given(pair=pairs())
def test_half_is_the_rule_of_the_paper(pair):
    assert torch.equal(direction(rules.NGDiff(0.5), pair), direction(rules.get("ngdiff"), pair))
    assert rules.device_form(rules.NGDiff(0.5)) == ("ngdiff", 0.0)
    assert rules.device_form(rules.NGDiff(0.25)) is None


@given(pair=pairs(NONZERO), c=st.floats(0, 1))
def test_trade_off_weighs_unit_gradients(pair, c):
    expected = 2 * (c * unit(pair.retain) - (1 - c) * unit(pair.forget))
    assert float((direction(rules.NGDiff(c), pair) - expected).norm()) <= 2 * unit_error(len(expected))


@pytest.mark.parametrize("c", [0.2, 0.4, 0.6, 0.9])
def test_the_lighter_task_gets_worse_above_an_angle(c):
    """Its slope changes its sign where cos phi = min(c, 1 - c) / max(c, 1 - c)."""
    limit = min(c, 1 - c) / max(c, 1 - c)
    for cosine, sign in ((limit - 1e-6, 1), (limit + 1e-6, -1)):
        r = torch.tensor([1.0, 0.0], dtype=torch.float64)
        f = torch.tensor([cosine, (1 - cosine**2) ** 0.5], dtype=torch.float64)
        d = direction(rules.NGDiff(c), Pair(r, f, ""))
        lighter = r @ d if c < 0.5 else -(f @ d)
        assert float(lighter) * sign > 0


@pytest.mark.parametrize("c", [1.5, -0.1, float("nan")])
def test_ngdiff_refuses_a_weight_outside_the_unit_interval(c):
    with pytest.raises(ValueError, match=rf"ngdiff: c = {c} is outside \[0, 1\]"):
        rules.NGDiff(c)


# TorchJD

ONCE = (-100, -10, 0, 50)  # common exponents of both gradients


@st.composite
def matrices(draw: st.DrawFn, geometries: tuple[str, ...], apart: int, smallest: int = 1) -> Pair:
    """A pair of a common scale, with norms up to 2^apart from each other."""
    pair = draw(pairs(geometries, dtype=torch.float64).filter(lambda pair: len(pair.retain) >= smallest))
    r, f = (g / g.abs().max() if g.any() else g for g in (pair.retain, pair.forget))
    k = draw(st.sampled_from(ONCE))
    return Pair(r * 2.0 ** (k + draw(st.integers(-apart, apart))), f * 2.0**k, pair.geometry)


def assert_torchjd_agrees(name: str, pair: Pair, make: Callable[[], torch.nn.Module], tolerance: float = 1e-6) -> None:
    """The same d, relative to its terms, or to the shorter gradient where they are nothing."""
    rule = rules.get(name)
    found, expected = direction(rule, pair), make()(torch.stack(tasks(pair)))
    shorter = min(float(g.norm()) for g in tasks(pair))
    assert float((found - expected).norm()) <= tolerance * max(size(rule, pair), shorter)


@given(pair=matrices(NONZERO, apart=40))
def test_torchjd_mgda(pair):
    from torchjd.aggregation import MGDA

    assert_torchjd_agrees("mgda", pair, lambda: MGDA(epsilon=1e-12))  # stops at a step of 0.001 by default


@given(pair=matrices(GEOMETRIES, apart=40))
def test_torchjd_pcgrad(pair):
    from torchjd.aggregation import PCGrad

    assert_torchjd_agrees("pcgrad", pair, PCGrad)


@given(pair=matrices(("general", "opposed", "orthogonal"), apart=2, smallest=2))
def test_torchjd_upgrad(pair):
    """Its projection adds 1e-4 to the diagonal of the normalised matrix, and has no answer to a norm below 0.01; both are
    turned off. Where the gradients are nearly parallel, or one of them far shorter, its quadratic program then is singular.
    """
    from torchjd.aggregation import UPGrad
    from torchjd.linalg import QuadprogProjector

    assert_torchjd_agrees("upgrad", pair, lambda: UPGrad(projector=QuadprogProjector(norm_eps=0.0, reg_eps=1e-13)))


@given(pair=matrices(("general", "orthogonal"), apart=4, smallest=61))
def test_torchjd_imtl_g(pair):
    """At norms about 1. Its sum of weights is 1 / ||g||-sized, and below 1e-12 it returns 0: an absolute threshold, which the
    last lines show. On parallel gradients its pseudo-inverse extends the method in another way.
    """
    from torchjd.aggregation import IMTLG

    shrunk = Pair(*(g / pair.retain.norm() for g in (pair.retain, pair.forget)), pair.geometry)
    assert_torchjd_agrees("imtl-g", shrunk, IMTLG)
    large = torch.stack(tasks(shrunk)) * 1e15
    assert not IMTLG()(large).any()
    assert direction(rules.get("imtl-g"), Pair(large[0], -large[1], "")).any()


@given(pair=matrices(GEOMETRIES, apart=20))
def test_torchjd_config(pair):
    from torchjd.aggregation import ConFIG

    assert_torchjd_agrees("config", pair, ConFIG)


@given(pair=matrices(GEOMETRIES, apart=20))
def test_torchjd_aligned_mtl(pair):
    from torchjd.aggregation import AlignedMTL

    assert_torchjd_agrees("aligned-mtl", pair, AlignedMTL)


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@given(pair=matrices(("general", "orthogonal"), apart=2, smallest=61))
def test_torchjd_cagrad(c, pair):
    """Its conic solver stops at a gap of 1e-8, which leaves w, at a flat minimum, within 1e-4. So d is compared to 1e-3, and to
    1e-6 what it does for the worse-off task. Its norm_eps of 1e-4, below which it returns 0, is turned off.
    """
    from torchjd.aggregation import CAGrad

    first, second = tasks(pair)
    mean = (first + second) / 2
    radius = c * float(mean.norm())

    def objective(d: torch.Tensor) -> float:
        """Of the dual at the w that made this d."""
        g_w = (d - mean) / radius
        return float(g_w @ mean) + radius

    found = direction(rules.CAGrad(c), pair)
    expected = CAGrad(c, norm_eps=0.0)(torch.stack([first, second]))
    scale = max(float(first.norm()), float(second.norm()))
    assert float((found - expected).norm()) <= 1e-3 * scale
    assert (
        min(float(first @ found), float(second @ found))
        >= min(float(first @ expected), float(second @ expected)) - 1e-6 * scale**2
    )
    assert abs(objective(found) - objective(expected)) <= 1e-3 * scale


@pytest.mark.parametrize("seed", range(8))
def test_torchjd_nash_mtl(seed):
    """Its iteration stops at a residual of 1e-3, the length of its d depends on where, and at norms of 1e-31 it returns
    anything. So compared is the ratio of the weights, to 1e-3, at norms about 8; that ours solves the equations to rounding
    is `test_nash_is_a_bargain`.
    """
    from torchjd.aggregation import NashMTL

    torch.manual_seed(seed)
    matrix = torch.randn(2, 61, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy's: a slow way to state the problem, an inaccurate solution
        theirs = NashMTL(n_tasks=2, max_norm=0.0, update_weights_every=1, optim_niter=50).weighting(matrix)
    ours = torch.stack(rules.get("nash-mtl")(gram_of(Pair(matrix[0], -matrix[1], ""))))
    assert (unit(ours) - unit(theirs)).norm() <= 1e-3
