"""Membership attacks and PrivLeak: on cases done by hand, and against pairs counted one by one."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngdiff.lm.membership import Exposure, attacks, auc, priv_leak, zlib_ratio

scores = st.lists(st.sampled_from([-1.5, 0.0, 0.25, 1.0, 1e30]), min_size=1, max_size=12)


def exposure(score: float, **changes: float | None) -> Exposure:
    return Exposure(**{"loss": score, "zlib": score, "min_k": score, "min_k_plus": score, "gradient_norm": score} | changes)


@given(scores, scores)
def test_auc_is_the_share_of_pairs(forget: list[float], holdout: list[float]) -> None:
    pairs = [(f, h) for f in forget for h in holdout]
    expected = sum(1.0 if h > f else 0.5 if h == f else 0.0 for f, h in pairs) / len(pairs)
    assert auc(forget, holdout) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("forget", "holdout", "expected"),
    [([1.0, 2.0], [3.0], 1.0), ([3.0], [1.0, 2.0], 0.0), ([1.0], [1.0], 0.5), ([1.0, 3.0], [2.0], 0.5)],
)
def test_auc_by_hand(forget: list[float], holdout: list[float], expected: float) -> None:
    """1 where every forget text looks more familiar (scores lower) than every holdout text: memorised."""
    assert auc(forget, holdout) == expected


@pytest.mark.parametrize(("forget", "holdout"), [([], [1.0]), ([1.0], [])])
def test_auc_of_nothing_is_refused(forget: list[float], holdout: list[float]) -> None:
    with pytest.raises(ValueError, match="auc: found"):
        auc(forget, holdout)


def test_the_six_attacks_each_read_their_own_score() -> None:
    """Forget and holdout differ in one score at a time, and only its attack sees it."""
    names = ["loss", "zlib", "min_k", "min_k_plus", "gradient_norm"]
    for name in names:
        found = attacks([exposure(0.0)], [exposure(0.0, **{name: 1.0})])
        assert found == {other: 1.0 if other == name else 0.5 for other in names}


def test_the_reference_attack_subtracts_what_another_model_expects() -> None:
    """A forget text that is hard for everybody (3 against 4 nats) is known; a holdout text that is easy (1 and 1) is not."""
    forget, holdout = [exposure(3.0)], [exposure(1.0)]
    found = attacks(forget, holdout, ([exposure(4.0)], [exposure(1.0)]))
    assert (found["loss"], found["reference"]) == (0.0, 1.0)


def test_without_gradient_norms_there_is_no_such_attack() -> None:
    assert "gradient_norm" not in attacks([exposure(0.0, gradient_norm=None)], [exposure(1.0)])


@pytest.mark.parametrize(
    ("own", "reference", "expected"),
    [(1.0, 0.5, -100.0), (0.5, 0.5, 0.0), (0.0, 0.5, 100.0), (0.75, 0.5, -50.0), (0.4, 0.2, -25.0)],
)
def test_priv_leak_by_hand(own: float, reference: float, expected: float) -> None:
    assert priv_leak(own, reference) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_priv_leak_against_a_reference_that_knows_all() -> None:
    assert priv_leak(1.0, 1.0) is None
    assert priv_leak(0.5, 1.0) is None


def test_zlib_ratio_is_by_bytes() -> None:
    text = "naïve café " * 3
    assert zlib_ratio(2.0, text) == 2.0 / len(zlib.compress(text.encode("utf-8")))
