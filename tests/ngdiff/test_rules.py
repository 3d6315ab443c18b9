from dataclasses import dataclass

import pytest
import torch
from asserts import (
    U64,
    assert_batch_equals_one_by_one,
    assert_fails_forget_ascent,
    assert_fails_retain_descent,
    assert_finite,
    assert_follows_formula,
    assert_forget_ascent,
    assert_ignores_zero_gradients,
    assert_max_min_fair,
    assert_norm_at_most_two,
    assert_norm_from_angle,
    assert_not_scale_invariant,
    assert_retain_descent,
    assert_scale_invariant,
    assert_slopes_from_angle,
    assert_zero_iff_unit_gradients_coincide,
    direction,
)
from hypothesis import given
from hypothesis import strategies as st
from ngdiff_kernels import reference
from strategies import NONZERO, Pair, losses, pairs, positive_losses

from ngdiff import rules
from ngdiff.gram import Coefficients, Gram, Losses, inverse_norm
from ngdiff.rules import _registry

NAMES = ["ga", "gdiff-0.9", "gdiff-0.1", "lossnorm", "ngdiff"]  # of the paper; the others: test_rules_of_the_field.py
EVERY = [
    *("aligned-mtl", "cagrad", "config", "ga", "gdiff", "gru", "imtl-g", "lossnorm", "mgda", "munba", "nash-mtl", "ngdiff"),
    *("pcgrad", "retain", "upgrad"),
]
ONES = Losses(torch.tensor(1.0).double(), torch.tensor(1.0).double())


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def registry(monkeypatch):
    """A registry of its own for the test, so that what it registers is gone afterwards."""
    monkeypatch.setattr(_registry, "_RULES", dict(_registry._RULES))


# Every rule


@pytest.mark.parametrize("name", NAMES)
@given(pair=pairs(), retain_loss=positive_losses(), forget_loss=positive_losses())
def test_rule_follows_formula(name, pair, retain_loss, forget_loss):
    assert_follows_formula(rules.get(name), name, pair, Losses(*doubles(retain_loss, forget_loss)))


@pytest.mark.parametrize("name", NAMES)
@given(pair=pairs(dtype=torch.float64), retain_loss=losses(), forget_loss=losses())
def test_coefficients_are_finite(name, pair, retain_loss, forget_loss):
    assert_finite(rules.get(name), pair, Losses(*doubles(retain_loss, forget_loss)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 2, 7, 64])
def test_batch_equals_one_by_one(name, k):
    pairs_of_gradients = torch.randn(k, 2, 5).double() * 10.0 ** torch.randint(-30, 15, (k, 2, 1))
    vectors = torch.stack([reference.gram(*pair) for pair in pairs_of_gradients])
    vectors[0] = 0  # a batch may hold the zero case beside others
    batch_losses = torch.rand(2, k).double()
    batch_losses[0, 0] = 0
    assert_batch_equals_one_by_one(rules.get(name), vectors, Losses(*batch_losses))


# NGDiff


@given(pair=pairs(NONZERO))
def test_ngdiff_keeps_its_theory(pair):
    rule = rules.get("ngdiff")
    assert_norm_from_angle(rule, pair)
    assert_norm_at_most_two(rule, pair)
    assert_retain_descent(rule, pair)
    assert_forget_ascent(rule, pair)
    assert_slopes_from_angle(rule, pair)
    assert_zero_iff_unit_gradients_coincide(rule, pair)


@given(pair=pairs())
def test_ngdiff_is_scale_invariant(pair):
    assert_scale_invariant(rules.get("ngdiff"), pair)


@given(pair=pairs(("general", "opposed", "orthogonal", "nearly parallel")).filter(lambda pair: len(pair.retain) > 1))
def test_ngdiff_is_max_min_fair(pair):
    assert_max_min_fair(rules.get("ngdiff"), pair)


@given(pair=pairs(NONZERO))
def test_ngdiff_ignores_zero_gradients(pair):
    assert_ignores_zero_gradients(rules.get("ngdiff"), pair)


@given(pair=pairs(("retain zero", "forget zero", "both zero")))
def test_ngdiff_bounds_hold_for_zero_gradients(pair):
    rule = rules.get("ngdiff")
    assert_norm_at_most_two(rule, pair)
    assert_retain_descent(rule, pair)
    assert_forget_ascent(rule, pair)


@pytest.mark.parametrize("exponent", [-149, -140, -126, 0, 127])
def test_ngdiff_is_unit_at_the_ends_of_float32(exponent):
    retain, forget = torch.tensor([2.0**exponent, 0.0]), torch.tensor([0.0, 2.0**-exponent if exponent > -127 else 1.0])
    d = direction(rules.get("ngdiff"), Pair(retain, forget, "orthogonal"))
    assert d.tolist() == [1.0, -1.0]  # norms that are powers of two have exact inverses


def test_inverse_norm_of_zero_is_zero_and_relative_to_the_dtype():
    for dtype in (torch.float32, torch.float64):
        tiny = torch.finfo(dtype).tiny
        squares = torch.tensor([0.0, tiny / 2, tiny, 4.0, 2.0**100], dtype=dtype)
        assert inverse_norm(squares).tolist() == [0.0, 0.0, tiny**-0.5, 0.5, 2.0**-50]


# GDiff, GA, LossNorm: what NGDiff has and they have not


@pytest.mark.parametrize("name", ["gdiff-0.9", "gdiff-0.1"])
@given(pair=pairs(("orthogonal",)))
def test_gdiff_is_not_scale_invariant(name, pair):
    # At norms that are far apart one gradient is all that float64 sees of d: bring them together first.
    retain, forget = pair.retain.double(), pair.forget.double()
    assert_not_scale_invariant(rules.get(name), Pair(retain / retain.norm(), 2 * forget / forget.norm(), pair.geometry))


@given(c=st.floats(0.001, 0.999), seed=st.integers(0, 100))
def test_gdiff_fails_to_descend_for_some_pair_at_every_c(c, seed):
    rule = rules.GDiff(c)
    torch.manual_seed(seed)
    g = torch.randn(7).double()
    # T3 fails for aligned gradients as soon as (1 - c) ||g_F|| > c ||g_R||, or the other way round.
    forget_dominates = Pair(g, g * 2 * c / (1 - c), "aligned")
    assert_fails_retain_descent(rule, forget_dominates)
    assert_forget_ascent(rule, forget_dominates)
    retain_dominates = Pair(g * 2 * (1 - c) / c, g, "aligned")
    assert_fails_forget_ascent(rule, retain_dominates)
    assert_retain_descent(rule, retain_dominates)


@pytest.mark.parametrize(("c", "fails"), [(0.0, assert_fails_retain_descent), (1.0, assert_fails_forget_ascent)])
def test_gdiff_with_one_task_fails_for_the_other(c, fails):
    g = torch.randn(7)
    fails(rules.GDiff(c), Pair(g, g + 0.1 * torch.randn(7), "nearly parallel"))


@given(c=st.floats(0, 1))
def test_gdiff_keeps_both_inequalities_for_opposed_gradients(c):
    g = torch.randn(7)
    assert_retain_descent(rules.GDiff(c), Pair(g, -3 * g, "opposed"))
    assert_forget_ascent(rules.GDiff(c), Pair(g, -3 * g, "opposed"))


@given(pair=pairs(NONZERO))
def test_ga_ascends_forget_whatever_retain_says(pair):
    rule = rules.get("ga")
    assert_forget_ascent(rule, pair)
    assert direction(rule, pair).equal(-pair.forget.double())
    assert rule.tasks == ("forget",)


def test_ga_has_no_bound_on_its_norm():
    with pytest.raises(AssertionError):
        assert_norm_at_most_two(rules.get("ga"), Pair(torch.ones(3), torch.ones(3) * 5, "aligned"))


def test_lossnorm_takes_a_zero_loss_as_no_task():
    c = rules.get("lossnorm")(Gram(*doubles(0.0, 4.0, 0.0)), Losses(*doubles(0.0, 0.5)))
    assert (c.retain.item(), c.forget.item()) == (0.0, 2.0)
    c = rules.get("lossnorm")(Gram(*doubles(4.0, 0.0, 0.0)), Losses(*doubles(0.25, 0.0)))
    assert (c.retain.item(), c.forget.item()) == (4.0, 0.0)


def test_lossnorm_raises_a_negative_forget_loss_too():
    """Its coefficient stays positive, so that the step still ascends."""
    c = rules.get("lossnorm")(Gram(*doubles(4.0, 4.0, 0.0)), Losses(*doubles(0.25, -0.5)))
    assert (c.retain.item(), c.forget.item()) == (4.0, 2.0)


def test_lossnorm_asks_for_losses():
    rule = rules.get("lossnorm")
    assert rule.needs_losses
    with pytest.raises(ValueError, match=r"losses are missing; call step\(losses="):
        rule(Gram(*doubles(1.0, 1.0, 0.0)))


# Gram


@given(pair=pairs(NONZERO))
def test_cosine(pair):
    cosine = Gram.from_vector(reference.gram(pair.retain, pair.forget)).cosine.item()
    # The product of unit vectors, each off by less than (n + 8) u.
    expected = (pair.retain.double() / pair.retain.double().norm()) @ (pair.forget.double() / pair.forget.double().norm())
    assert abs(cosine - expected.item()) <= 2 * (len(pair.retain) + 8) * U64
    assert -1 <= cosine <= 1


@given(pair=pairs(("retain zero", "forget zero", "both zero")))
def test_cosine_with_a_zero_gradient_is_zero(pair):
    assert Gram.from_vector(reference.gram(pair.retain, pair.forget)).cosine.item() == 0


def test_gram_from_vector_keeps_the_order():
    gram = Gram.from_vector(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert [x.tolist() for x in (gram.retain, gram.forget, gram.cross)] == [[1, 4], [2, 5], [3, 6]]


# Registry


def test_names_are_sorted_and_complete():
    assert rules.names() == EVERY


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("ga", rules.GA()),
        ("gdiff", rules.GDiff(0.5)),
        ("gdiff-0.9", rules.GDiff(0.9)),
        ("gdiff-1", rules.GDiff(1.0)),
        ("lossnorm", rules.LossNorm()),
        ("ngdiff", rules.NGDiff()),
        ("ngdiff-0.3", rules.NGDiff(0.3)),
        ("imtl-g", rules.IMTLG()),
        ("munba", rules.NashMTL()),
        ("cagrad-0.2", rules.CAGrad(0.2)),
        ("gdiff-1e-1", rules.GDiff(0.1)),
    ],
)
def test_get(spec, rule):
    assert rules.get(spec) == rule


@pytest.mark.parametrize("spec", ["", "nope", "nope-0.5", "NGDiff", "imtl-g-0.5", "ga-1"])
def test_get_lists_the_names_when_it_knows_none(spec):
    with pytest.raises(ValueError, match=f"rule: unknown name '{spec}'; choose one of {', '.join(EVERY)}"):
        rules.get(spec)


def test_a_rule_without_parameters_need_not_be_a_dataclass(registry):
    @rules.register("plain")
    class Plain(rules.Rule):
        pass

    assert isinstance(rules.get("plain"), Plain)
    with pytest.raises(ValueError, match="unknown name 'plain-2'"):
        rules.get("plain-2")


@pytest.mark.parametrize(("spec", "text"), [("gdiff-", ""), ("gdiff-high", "high"), ("gdiff-0,9", "0,9")])
def test_get_says_where_a_number_belongs(spec, text):
    with pytest.raises(ValueError, match=f"'{spec}' has '{text}' where a number belongs; write e.g. 'gdiff-0.5'"):
        rules.get(spec)


@pytest.mark.parametrize("c", [1.5, -0.1, float("nan"), float("inf")])
def test_gdiff_refuses_a_weight_outside_the_unit_interval(c):
    with pytest.raises(ValueError, match=rf"gdiff: c = {c} is outside \[0, 1\]; give the weight of the retain task"):
        rules.GDiff(c)


def test_get_refuses_what_the_rule_refuses():
    with pytest.raises(ValueError, match=r"c = 1.5 is outside \[0, 1\]"):
        rules.get("gdiff-1.5")


def test_register_makes_a_rule_of_the_user_available(registry):
    @rules.register("sum")
    @dataclass(frozen=True)
    class Sum(rules.Rule):
        weight: float = 1.0

        def __call__(self, gram, losses=None):
            return Coefficients(self.weight * torch.ones_like(gram.retain), -torch.ones_like(gram.forget))

    assert rules.get("sum") == Sum(1.0)
    assert rules.get("sum-0.25") == Sum(0.25)
    assert "sum" in rules.names()
    pair = Pair(torch.ones(2), torch.full((2,), 3.0), "aligned")
    assert direction(rules.get("sum-0.5"), pair, ONES).tolist() == [3.5, 3.5]


def test_the_registry_of_the_test_before_is_gone():
    assert "sum" not in rules.names()


@pytest.mark.parametrize("tasks", ["retain", (), ("retain", "keep")])
def test_register_refuses_a_rule_that_reads_no_task_there_is(registry, tasks):
    """With a string each letter would be a task: the optimizer would wait for none, and combine nothing."""

    class Odd(rules.GA):
        pass

    Odd.tasks = tasks
    with pytest.raises(
        ValueError, match=r"register: Odd\.tasks = .*; name the tasks that it reads, e\.g\. \('retain', 'forget'\)"
    ):
        rules.register("odd")(Odd)
    assert "odd" not in rules.names()


def test_register_refuses_a_taken_name(registry):
    with pytest.raises(ValueError, match="rule name 'ngdiff' is taken by NGDiff; choose another"):
        rules.register("ngdiff")(rules.GA)
    assert rules.get("ngdiff") == rules.NGDiff()


@pytest.mark.parametrize("name", ["", "Mine", "a/b", "a b", "-a", "a--b"])
def test_register_refuses_a_name_that_no_file_could_have(registry, name):
    with pytest.raises(ValueError, match="take small letters, digits and hyphens"):
        rules.register(name)(rules.GA)


def test_a_rule_without_call_says_so():
    class Empty(rules.Rule):
        pass

    with pytest.raises(TypeError, match=r"Empty defines no __call__\(gram, losses\)"):
        Empty()(Gram(*doubles(1.0, 1.0, 0.0)))
