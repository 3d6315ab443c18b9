"""The machinery that examines claims can itself say no."""

import math
from types import ModuleType

import pytest
import sympy
from flint import arb, fmpq
from hypothesis import strategies as st

from theory.claim import Claim, Counterexample, Identity, Measurement, describe, examine, first_failure, search, worst
from theory.exact import rational

DOC = """T9. Squares.

In short: squares are small

Statement: x^2 <= 100 for x from 0 to 10.

Hypotheses: x <= 10 (for x = 10 too).

Source: arithmetic.

Tight: yes.

Proof: monotone.

False variant: x^2 <= 99.
"""


def module(**changes):
    """A true claim about numbers, with some of its functions replaced."""
    made = ModuleType("t9")
    made.__doc__ = DOC
    parts = {
        "problems": lambda: st.integers(0, 10),
        "measure": lambda x: Measurement(float(x * x), 100.0, "square"),
        "false_variant": lambda x: Measurement(float(x * x), 99.0, "square"),
        "identities": lambda: [Identity("(x+1)(x-1)", (X + 1) * (X - 1) - X**2 + 1)],
        "counterexamples": lambda: [Counterexample("x <= 10", "x = 11", Measurement(121.0, 100.0, "square"))],
    }
    for name, value in (parts | changes).items():
        setattr(made, name, value)
    return made


X = sympy.Symbol("x", real=True)


def test_a_true_claim_stands():
    verdict = examine(Claim.of(module()), 50)
    assert verdict.problems == []
    assert verdict.holds.worst == Measurement(100.0, 100.0, "square")
    assert verdict.variant.refuted[0] == 10  # the only one


def test_a_slightly_false_claim_fails_on_the_simplest_problem():
    verdict = examine(Claim.of(module(measure=lambda x: Measurement(float(x * x), 35.9, "square"))), 100)
    assert verdict.holds.refuted[0] == 6
    assert verdict.problems == ["violated: square: 36 against 35.9 for 6"]
    assert first_failure(Claim.of(module(measure=lambda x: Measurement(float(x * x), 35.9, "square"))), 100)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"false_variant": lambda x: Measurement(0.0, 1.0)}, "false variant was not refuted"),
        ({"identities": lambda: [Identity("wrong", X**2 - X)]}, "not proved: wrong"),
        (
            {"counterexamples": lambda: [Counterexample("x <= 10", "x = 1", Measurement(1.0, 2.0))]},
            "no counterexample to x <= 10",
        ),
        ({"counterexamples": list}, "hypothesis without a counterexample: x <= 10"),
        ({"counterexamples": lambda: [Counterexample("y", "", Measurement(2.0, 1.0))]}, "counterexample to no hypothesis: y"),
        ({"runs": lambda: [Measurement(2.0, 1.0, "long run")]}, "run: long run: 2 against 1"),
        ({"measure": lambda x: Measurement(math.nan, 1.0, "nan")}, "violated: nan"),
        ({"measure": lambda x: 1 / 0}, "ZeroDivisionError"),
        ({"problems": lambda: st.integers(0, 10).filter(lambda x: False)}, "Unsatisfiable"),
    ],
)
def test_every_part_can_fail(change, reason):
    problems = examine(Claim.of(module(**change)), 30).problems
    assert any(reason in problem for problem in problems), problems


def test_problems_of_which_the_claim_says_nothing_are_replaced_and_counted_apart():
    drawn = st.integers(0, 10**6)
    found = search(drawn, lambda x: Measurement(0.0, 1.0) if x % 3 == 0 else None, 60)
    assert found.tried == 60
    assert found.silent > 60
    silent = examine(Claim.of(module(measure=lambda x: None)), 30)
    assert any("Unsatisfiable" in problem for problem in silent.problems)
    assert silent.as_dict()["examples"] == 0


def test_a_result_that_is_no_number_violates_a_claim():
    found = search(st.integers(0, 10), lambda x: Measurement(rational(math.nan), 1.0), 5)
    assert "nan is no number" in found.refuted[1].what


def test_a_crash_is_a_problem_but_no_failure_of_the_claim():
    crashing = Claim.of(module(measure=lambda x: 1 / 0))
    assert any("ZeroDivisionError" in problem for problem in examine(crashing, 5).problems)
    with pytest.raises(ZeroDivisionError):
        first_failure(crashing, 5)


def test_equal_looking_numbers_are_told_apart():
    assert describe(Measurement(1.0000001, 1.0, "x")) == "x: 1.0000001 against 1"
    assert describe(Measurement(2.0, 1.0, "x")) == "x: 2 against 1"


def test_a_docstring_without_a_field_is_refused():
    broken = module()
    broken.__doc__ = DOC.replace("Source:", "Origin:")
    with pytest.raises(ValueError, match=r"without \['Source'\]"):
        Claim.of(broken)


def test_balls_hold_only_where_certain():
    third = arb(1) / 3
    assert not Measurement(third * 3, 1.0).holds  # overlap
    assert Measurement(third * 3, 1.0 + 1e-15).holds
    assert Measurement(fmpq(1, 3) * 3, fmpq(1)).holds  # rationals are exact
    assert not Measurement(arb(2), arb(1)).holds
    assert not Measurement(math.inf, 1.0).holds


def test_ratio():
    assert Measurement(1.0, 4.0).ratio == 0.25
    assert Measurement(-1.0, 0.0).ratio == 0
    assert Measurement(1.0, 0.0).ratio == math.inf


def test_worst_prefers_what_fails():
    fails, tight, loose = Measurement(2.0, 1.0, "fails"), Measurement(1.0, 1.0, "tight"), Measurement(0.0, 1.0, "loose")
    assert worst(loose, tight).what == "tight"
    assert worst(tight, fails, loose).what == "fails"


def test_search_draws_the_same_problems_again():
    seen = [[], []]
    for drawn in seen:
        search(st.integers(0, 10**6), lambda x, drawn=drawn: drawn.append(x) or Measurement(0.0, 1.0), 40)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 20
