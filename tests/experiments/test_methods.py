"""Methods by name: what the command line takes apart, and what it builds."""

import pytest
from torch import nn

from experiments.lm.methods import ALL, NAMED, Method, parse, split_rate
from ngdiff import rules
from ngdiff.errors import UserError
from ngdiff.lm.objectives import FORGET, RETAIN


@pytest.mark.parametrize(
    ("spec", "forget", "retain", "rule", "rate"),
    [
        ("ngdiff", "nll", "nll", "ngdiff", None),
        ("gdiff-1e-1@1e-4", "nll", "nll", "gdiff-1e-1", 1e-4),
        ("npo:ngdiff", "npo", "nll", "ngdiff", None),
        ("idk-dpo+kl:gdiff-0.9@auto", "idk-dpo", "kl", "gdiff-0.9", "auto"),
        ("ngdiff@auto:1e-5", "nll", "nll", "ngdiff", "auto:1e-5"),
        ("ngdiff@paper", "nll", "nll", "ngdiff", "paper"),
        ("ngdiff@gen:0.1", "nll", "nll", "ngdiff", "gen:0.1"),
        ("npo", "npo", "nll", "gdiff-0.5", None),
        ("kl@3e-4", "nll", "kl", "gdiff-0.5", 3e-4),
        ("undial", "undial", "nll", "ga", None),
        ("rmu", "rmu", "activations", "gdiff-0.5", None),
    ],
)
def test_a_method_is_taken_apart(spec, forget, retain, rule, rate):
    assert parse(spec) == ({"forget": forget, "retain": retain, "rule": rule}, rate)


@pytest.mark.parametrize(("spec", "base", "rate"), [("satimp:ngdiff/sgd", "sgd", None), ("npo/momentum@0.1", "momentum", 0.1)])
def test_a_method_may_name_its_base(spec, base, rate):
    parts, found = parse(spec)
    assert (parts.pop("base"), found) == (base, rate)
    assert parts == parse(spec.split("/")[0])[0]


@pytest.mark.parametrize(("name", "gamma", "alpha"), [("simnpo", 0.125, 1.0), ("satimp", 0.1, 1.0), ("npo", 1.0, 1.0)])
def test_published_weights(name, gamma, alpha):
    """c g_R - (1 - c) g_F is a multiple of alpha g_R - gamma g_F."""
    c = rules.get(parse(name)[0]["rule"]).c
    assert (1 - c) / c == pytest.approx(gamma / alpha, rel=1e-14)


def test_names_are_told_apart():
    """A published method hides no rule, every objective has a place, and all parse."""
    assert set(NAMED).isdisjoint(rules.names())
    parsed = [parse(spec)[0] for spec in ALL]
    assert len({tuple(parts.items()) for parts in parsed}) == len(ALL)
    assert {parts["forget"] for parts in parsed} == set(FORGET)
    assert {parts["retain"] for parts in parsed} == set(RETAIN)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "unknown name ''"),
        ("npo:", "unknown name ''"),
        ("ga@", "'' where a learning rate"),
        ("ngdiff@auto:", "'auto:' where a learning rate"),
        ("ngdiff@nan", "'nan' where a learning rate"),
        ("ngdiff@auto:-1", "'auto:-1' where"),
        ("ngdiff@1e-4:auto", "'1e-4:auto' where"),
        ("ngdiff/lion", "'lion' as base optimizer; choose one of sgd"),
        ("ngdiff/@auto", "'' as base optimizer"),
    ],
)
def test_bad_methods_are_one_line(spec, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lr", "mode", "first"), [("auto", "robust", 1e-2), ("auto:1e-5", "robust", 1e-5), ("paper:0.1", "paper", 0.1)]
)
def test_automatic_rates_are_built(lr, mode, first):
    optimizer = Method("ngdiff", "momentum", lr).optimizer(nn.Linear(2, 1))
    assert (optimizer.auto.mode, optimizer.auto.initial) == (mode, first)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_rates_are_split():
    assert split_rate("auto") == ("auto", None)
    assert split_rate("gen:1e-3") == ("gen", 1e-3)
