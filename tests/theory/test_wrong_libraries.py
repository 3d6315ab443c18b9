"""The theory can fail: each wrong version of the library makes at least one claim fail."""

import pytest

from theory import mutations


@pytest.fixture(scope="module")
def outcomes():
    return {outcome.mutation: outcome for outcome in mutations.run_all()}


def test_there_are_enough():
    assert len(mutations.MUTATIONS) >= 12


@pytest.mark.parametrize("name", [mutation.name for mutation in mutations.MUTATIONS])
def test_a_wrong_library_is_caught(outcomes, name):
    assert outcomes[name].caught_by, name


def test_the_library_itself_is_not():
    """The same examination of an unchanged copy finds nothing, so what is caught is the mutation."""
    same = mutations.Mutation("none", "ngdiff/gram.py", ".rsqrt() * nonzero", ".rsqrt() * nonzero")
    outcome = mutations.run(same)
    assert outcome.caught_by == outcome.crashed == {}


def test_a_library_that_only_crashes_is_not_caught():
    outcome = mutations.run(
        mutations.Mutation("crash", mutations.RULE, mutations.NGDIFF, "raise TypeError('broken')"), examples=5
    )
    assert outcome.caught_by == {}
    assert set(outcome.crashed) >= {"T3", "A4"}


def test_a_line_that_is_gone_is_reported():
    with pytest.raises(ValueError, match=r"is not in ngdiff/gram\.py"):
        mutations.run(mutations.Mutation("stale", "ngdiff/gram.py", "no such line", ""))
