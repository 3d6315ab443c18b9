"""T3 to T6 along an unlearning run of a small Llama."""

import math

import pytest
import torch

from theory import examination, language_model
from theory.language_model import _order


@pytest.fixture(scope="module")
def verdict():
    return examination.model("tiny")


def test_all_claims_hold_along_the_run(verdict):
    assert verdict["problems"] == []
    assert verdict["stands"]
    places = verdict["places"]
    assert [place["step"] for place in places] == list(language_model.RUNS["tiny"]["at"])
    for place in places:
        names = {check["what"] for check in place["checks"]}
        assert {"T3: signs of the slopes", "T4: order, retain", "T5: order, forget"} <= names
        assert ("T6: order of eta_hat - eta*" in names) == (place["curvatures"][0] > 0)


def test_the_model_memorised_and_then_forgot(verdict):
    first, *_, last = verdict["places"]
    assert first["retain_loss"] < 0.1
    assert first["forget_loss"] < 0.1
    assert last["forget_loss"] > 1
    assert last["retain_loss"] < last["forget_loss"] / 5


def rounding(eta):
    return 1e-16


@pytest.mark.parametrize("power", [1, 2, 3])
def test_order(power):
    measured = _order(lambda eta: eta**power * (1 + 5 * eta), rounding, 1.0, 2, "order")
    assert measured.holds is (power == 2)
    assert not _order(lambda eta: 0.0, rounding, 1.0, 2, "order").holds


def test_a_slightly_wrong_curvature_is_seen():
    """A thousandth of a quadratic term under a cubic one: order 3 on the longest rungs, order 2 on the shortest."""
    assert not _order(lambda eta: 1e-3 * eta**2 + eta**3, rounding, 1.0, 3, "order").holds


@pytest.mark.parametrize(("lower", "holds"), [(0.0, True), (1e-2, False)])
def test_a_next_order_that_rounding_hides_late_is_told_from_a_wrong_lower_one(lower, holds):
    """Where the next order still shows on the shortest rungs that are clear of rounding: a plain fit gives 3.10."""

    def error(eta):
        return lower * eta**2 + eta**3 * (1 + 3 * eta)

    assert _order(error, lambda eta: 1e-10, 1.0, 3, "order").holds is holds


def test_hessian_vector_product():
    """Against the Hessian of x^3/6 + x y^2, by hand."""
    x, y = (torch.nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in (2.0, 3.0))
    loss = (x**3 / 6 + x * y**2).sum()
    v = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert language_model._product(loss, [x, y], v).tolist() == [2 - 6, 6 - 4]


def test_crossing_of_a_parabola():
    assert language_model._crossing(lambda eta: eta * (eta - 0.6), 0.0, 0.3) == pytest.approx(0.6, rel=1e-3)
    assert math.isfinite(language_model._crossing(lambda eta: -eta, 0.0, 0.3))
