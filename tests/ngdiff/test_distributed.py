"""A step of several processes is the step of one process with all their batches."""

import functools
from typing import Any

import distributed_cases as cases
import pytest
import torch
from asserts import assert_bitwise_equal, assert_within

every_kind = pytest.mark.parametrize("kind", ["ddp", "fsdp"])
LR = 0.5
BASES: dict[str, dict[str, Any]] = {
    "sgd": {"base": "sgd", "weight_decay": 0.1},
    "momentum": {"base": "sgd", "momentum": 0.9},
    # eps is not small, so that AdamW is a smooth function of d, as in test_optimizer.py.
    "adamw": {"base": "adamw", "eps": 1e-2, "weight_decay": 0.1},
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    pool = cases.Pool(tmp_path_factory.mktemp("distributed"))
    yield pool
    pool.close()


alone = functools.cache(lambda **options: cases.train("alone", **options))


def assert_same_run(found: list[dict[str, Any]], expected: dict[str, Any], bound: float = 1e-6) -> None:
    """On each rank the weights, inner products and coefficients of `expected`, relative to the largest of their kind."""
    for rank in found:
        for name, value in expected["weights"].items():
            print((rank["weights"][name]-value).abs().max()/value.abs().max())
            assert_within(rank["weights"][name], value, bound * value.abs().max())
        print((rank["reports"]-expected["reports"]).div(expected["reports"].abs().amax(0)).abs().max())
        assert_within(rank["reports"], expected["reports"], bound * expected["reports"].abs().amax(0))
        assert rank["skipped"] == expected["skipped"]
    for name, value in found[0]["weights"].items():
        assert_bitwise_equal(found[1]["weights"][name], value)
    assert_bitwise_equal(found[1]["reports"], found[0]["reports"])


@every_kind
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("rule", ["ngdiff", "gdiff-0.5", "lossnorm", "mgda"])
def test_steps_are_those_of_one_process(pool, kind, base, rule):
    options = {"rule": rule, "lr": LR, **BASES[base]}
    assert_same_run(pool.run(cases.train, kind, **options), alone(**options))


@every_kind
@pytest.mark.parametrize("sync", ["last", "every"])
def test_backwards_of_a_task_add_up(pool, kind, sync):
    options = {"lr": LR, "rule": "gdiff-0.5"}
    assert_same_run(pool.run(cases.train, kind, parts=2, sync=sync, **options), alone(**options))


@every_kind
@pytest.mark.parametrize("parts", [1, 2])
def test_param_groups(pool, kind, parts):
    options = {"lr": LR, "groups": 2}
    assert_same_run(pool.run(cases.train, kind, parts=parts, **options), alone(**options))


@pytest.mark.parametrize("kind", ["copied", "beside"])
def test_parameters_of_which_there_are_copies_count_once(pool, kind):
    options = {"lr": LR, "rule": "lossnorm"}
    found = pool.run(cases.train, kind, **options)
    assert_same_run(found, alone(**options))
    assert found[0]["collectives"] == [[("allreduce_", 5)]] * 3


@pytest.mark.parametrize(("kind", "losses", "expected"), [
    ("ddp", False, []), ("ddp", True, [("allreduce_", 2)]), ("fsdp", False, [("allreduce_", 3)]), ("fsdp", True, [("allreduce_", 5)]),
])  # fmt: skip
def test_what_a_step_exchanges(pool, kind, losses, expected):
    for rank in pool.run(cases.train, kind, losses=losses, lr=LR):
        assert rank["collectives"] == [expected] * 3


# Refused steps


@pytest.mark.parametrize(("kind", "what"), [
    ("ddp", "loss"), ("ddp", "retain"), ("fsdp", "loss"), ("fsdp", "forget"), ("fsdp", "shard"),
])  # fmt: skip
@pytest.mark.parametrize("lr", [LR, "auto"])
def test_what_is_not_finite_on_one_rank_refuses_the_step_on_all(pool, kind, what, lr):
    one, other = pool.run(cases.train, kind, spoil={1: what}, lr=lr)
    for rank in (one, other):
        assert rank["reports"][:, -1].tolist() == [1, 0, 1]
        assert rank["skipped"] == 1
        assert rank["rate"] == one["rate"]
        assert all(value.isfinite().all() for value in rank["weights"].values())
    for name, value in one["weights"].items():
        assert_bitwise_equal(other["weights"][name], value)


# The automatic rate


@every_kind
@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_all_ranks_choose_the_rate_of_one_process(pool, kind, here, base):
    options = {"lr": "auto", "dtype": torch.float64, "here": here, "steps": 5, **BASES[base]}
    expected = alone(**options)
    one, other = found = pool.run(cases.train, kind, **options)
    assert_same_run(found, expected)
    assert one["trace"] == other["trace"]
    assert one["known"] is other["known"] is expected["known"]
    assert [(entry[0], entry[3]) for entry in one["trace"]] == [(entry[0], entry[3]) for entry in expected["trace"]]
    for mine, theirs in zip(one["trace"], expected["trace"], strict=True):
        print(mine[2]/theirs[2]-1)
