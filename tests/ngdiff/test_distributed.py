"""A step of several processes is the step of one process with all their batches."""

import functools
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed_cases as cases
import pytest
import torch
from accelerate.utils import DistributedType
from asserts import assert_bitwise_equal, assert_within

from ngdiff import StoppingCriteria, checkpoints
from ngdiff.distributed import refuse_deepspeed

every_kind = pytest.mark.parametrize("kind", ["ddp", "fsdp"])
LR = 0.5
BASES: dict[str, dict[str, Any]] = {
    "sgd": {"base": "sgd", "weight_decay": 0.1, "lr": LR},
    "momentum": {"base": "sgd", "momentum": 0.9, "lr": LR},
    # eps is not small, so that AdamW is a smooth function of d, as in test_optimizer.py; it magnifies by 1 / eps.
    "adamw": {"base": "adamw", "eps": 1e-2, "weight_decay": 0.1, "lr": LR / 10},
}
# Gradients are means of 4 + 4 instead of 8 terms: off by a few u = 6e-8 of the largest, which a step of LR makes smaller.
BOUND = 1e-6


alone = functools.cache(lambda **options: cases.train("alone", **options))


def assert_same_run(found: list[dict[str, Any]], expected: dict[str, Any], bound: float = BOUND) -> None:
    """On each rank the weights, inner products and coefficients of `expected`, relative to the largest of their kind."""
    for rank in found:
        for name, value in expected["weights"].items():
            assert_within(rank["weights"][name], value, bound * value.abs().max())
        assert_within(rank["reports"], expected["reports"], bound * expected["reports"].abs().amax(0))
        assert rank["skipped"] == expected["skipped"]
    for name, value in found[0]["weights"].items():
        assert_bitwise_equal(found[1]["weights"][name], value)
    assert_bitwise_equal(found[1]["reports"], found[0]["reports"])


@every_kind
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("rule", ["ngdiff", "gdiff-0.5", "lossnorm", "mgda"])
def test_steps_are_those_of_one_process(pool, kind, base, rule):
    options = {"rule": rule, **BASES[base]}
    expected = alone(**options)
    assert_same_run(pool.run(cases.train, kind, **options), expected)
    start = cases.weights(cases.fresh_model(torch.float32))
    for name, value in expected["weights"].items():  # they did move, but for those that cannot
        assert "frozen" in name or name == "unused" or (value - start[name]).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["accelerate ddp", "accelerate fsdp"])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_accelerate_prepares_the_optimizer_before_it_has_buffers(pool, kind, base):
    expected = alone(**BASES[base])
    assert_same_run(pool.run(cases.train, kind, **BASES[base]), expected)


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


def test_shards_that_fsdp_moves_at_the_first_forward_are_followed(pool):
    options = {"lr": LR, "rule": "ga", "tasks": ("forget",)}
    assert_same_run(pool.run(cases.train, "fsdp", repad=True, **options), alone(**options))


@pytest.mark.parametrize("kind", ["copied", "beside"])
def test_parameters_of_which_there_are_copies_count_once(pool, kind):
    options = {"lr": LR, "rule": "lossnorm"}
    found = pool.run(cases.train, kind, **options)
    assert_same_run(found, alone(**options))
    assert found[0]["collectives"] == [[("allreduce_", 5)]] * 3


@pytest.mark.parametrize(("kind", "losses", "expected"), [
    ("ddp", False, []), ("ddp", True, [("allreduce_", 2)]),
    ("fsdp", False, [("allreduce_", 3)]), ("fsdp", True, [("allreduce_", 5)]),
])  # fmt: skip
def test_what_a_step_exchanges(pool, kind, losses, expected):
    for rank in pool.run(cases.train, kind, losses=losses, lr=LR):
        assert rank["collectives"] == [expected] * 3


def test_the_example_of_the_readme_trains_a_llama_as_one_process_would(pool):
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```py\n(.*?)```", text, re.DOTALL)
    # Llama computes losses in float32, and the second differences of those leave few digits to an automatic rate.
    fixed = code.replace('base="adamw", lr="auto"', "lr=0.1")
    assert fixed != code
    expected = cases.llama("optimizer = ngdiff.TwoTaskOptimizer(model.parameters(), lr=0.1)")
    for found in pool.run(cases.llama, fixed):
        assert_within(found, expected, BOUND)
    one, other = pool.run(cases.llama, code)
    assert_bitwise_equal(one, other)
    assert (one - expected).abs().max() > 0.01


# Refused steps


@pytest.mark.parametrize(("kind", "what", "lr"), [
    ("ddp", "loss", LR), ("ddp", "retain", "auto"), ("fsdp", "loss", "auto"), ("fsdp", "forget", LR), ("fsdp", "shard", "auto"),
])  # fmt: skip
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
@pytest.mark.parametrize(("base", "here"), [("sgd", False), ("momentum", True), ("adamw", False), ("adamw", True)])
def test_all_ranks_choose_the_rate_of_one_process(pool, kind, here, base):
    options = {"lr": "auto", "dtype": torch.float64, "here": here, "steps": 5}
    options = BASES[base] | options
    expected = alone(**options)
    one, other = found = pool.run(cases.train, kind, **options)
    assert_same_run(found, expected)
    assert one["trace"] == other["trace"]
    assert one["known"] is other["known"] is expected["known"]
    assert [(entry[0], entry[3]) for entry in one["trace"]] == [(entry[0], entry[3]) for entry in expected["trace"]]
    for mine, theirs in zip(one["trace"], expected["trace"], strict=True):
        # The rate is a quotient of differences of losses, which float64 gives with 1e-16 L and which here are 1e-4 L or more.
        assert mine[2] == pytest.approx(theirs[2], rel=1e-11)


@pytest.mark.parametrize("lr", [LR, "auto"])
def test_weights_that_were_gathered_for_a_look_are_gathered_anew(pool, lr):
    """FSDP2 keeps those of the root after a forward without a backward."""
    options = {"lr": lr, "dtype": torch.float64, "steps": 4}
    assert_same_run(pool.run(cases.train, "fsdp", look=True, **options), alone(**options), 1e-11)


def test_a_search_exchanges_one_number_a_probe(pool):
    (one, _) = pool.run(cases.train, "ddp", lr="auto", steps=1)
    probes = 1 + 2 * len(one["trace"])
    assert one["collectives"] == [[("allreduce_", 2)] + [("allreduce_", 1)] * probes]


# State


@pytest.mark.parametrize(("base", "lr", "how", "kind"), [
    ("momentum", LR, "file", "ddp"), ("momentum", LR, "file", "fsdp"), ("momentum", LR, "checkpoint", "fsdp"),
    ("adamw", "auto", "file", "fsdp"), ("adamw", "auto", "parts", "ddp"), ("adamw", "auto", "parts", "fsdp"),
    ("adamw", "auto", "whole", "ddp"), ("adamw", "auto", "whole", "fsdp"),
    ("adamw", "auto", "checkpoint", "ddp"), ("adamw", "auto", "checkpoint", "fsdp"),
    ("adamw", "auto", "accelerate", "accelerate ddp"), ("adamw", "auto", "accelerate", "accelerate fsdp"),
])  # fmt: skip
def test_a_resumed_run_goes_on_bit_for_bit(pool, tmp_path, kind, how, base, lr):
    for run, resumed in pool.run(cases.resume, kind, how, str(tmp_path), **BASES[base] | {"lr": lr}):
        for name, value in run["weights"].items():
            assert_bitwise_equal(resumed["weights"][name], value)
        assert_bitwise_equal(resumed["reports"], run["reports"])
        assert resumed["trace"] == run["trace"]


@pytest.mark.parametrize("base", ["momentum", "adamw"])
def test_the_whole_state_is_that_of_one_process(pool, base):
    expected = cases.whole_state("alone", **BASES[base])
    for rank in pool.run(cases.whole_state, "fsdp", **BASES[base]):
        assert rank.keys() == expected.keys()
        for name, entries in expected.items():
            for entry, value in entries.items():
                assert_within(rank[name][entry], value, BOUND * value.abs().max())


def test_state_is_placed_as_the_parameters_are(pool):
    assert pool.run(cases.placements_of_state, **BASES["adamw"]) == [[True] * 14] * 2


@every_kind
def test_master_weights_keep_small_steps_and_follow_edits(pool, kind):
    options = {"lr": 1e-3, "dtype": torch.bfloat16}
    expected = cases.masters("alone", **options)
    for rank in pool.run(cases.masters, kind, **options):
        for rounded, parameter in zip(rank["rounded"], rank["parameters"], strict=True):
            assert_bitwise_equal(rounded, parameter)
        steps = [moved - start for moved, start in zip(rank["moved"], rank["start"], strict=True)]
        assert sum(step.abs().max().item() > 0 for step in steps) == 6  # all but the unused one
        for step, moved, start in zip(steps, expected["moved"], expected["start"], strict=True):
            # Gradients of bfloat16: a handful of roundings of 2^-9, before and after the means of 4 + 4 terms.
            assert_within(step, moved - start, 16 * 2.0**-9 * (moved - start).abs().max())


def test_random_rounding_is_equal_on_copies_and_not_on_shards(pool):
    assert len({tuple(seeds) for seeds in pool.run(cases.seeds, "ddp")}) == 1
    assert len({tuple(seeds) for seeds in pool.run(cases.seeds, "copied")}) == 1
    one, other = pool.run(cases.seeds, "fsdp")
    assert len({*one, *other}) == 14


# Groups, and what is refused


def test_a_group_of_one_exchanges_nothing(pool):
    for rank in pool.run(cases.alone_in_its_group):
        assert rank["collectives"] == []
        assert rank["error"] <= 1e-15


@pytest.mark.parametrize(("kind", "options", "expected"), [
    ("ddp", {"gram_during_backward": True}, "ValueError: gram_during_backward = True: .* over 2 ranks; leave it out"),
    ("fsdp", {"gram_during_backward": True}, "ValueError: gram_during_backward = True: .* over 2 ranks; leave it out"),
    ("ddp", {"gradient_dtype": torch.bfloat16}, "ValueError: gradient_dtype = torch.bfloat16: rounds .* over 2 ranks; leave"),
    ("fsdp", {"gradient_dtype": torch.bfloat16}, "ValueError: gradient_dtype = torch.bfloat16: rounds .* over 2 ranks; leave"),
    ("views", {}, "RuntimeError: .* was replaced inside task 'retain'; .* gradient_as_bucket_view=True"),
    ("first", {}, "ValueError: params: a parameter of shape .* is in FullyShardedDataParallel, .*; use FSDP2"),
    ("first, original", {}, "ValueError: params: a parameter of shape .* is in FullyShardedDataParallel, .*; use FSDP2"),
    ("strided", {}, r"ValueError: params: the shard of a parameter of shape \(4, 5\) has strides \(1, 2\); shard it along"),
    ("fsdp", {"move": True}, "RuntimeError: a parameter of shape .* was moved or replaced after the optimizer was first"),
    ("fsdp", {"group": True}, "ValueError: process_group: a parameter is on a mesh of 2 ranks and the group has 1; pass"),
])  # fmt: skip
def test_what_cannot_be_right_is_refused(pool, kind, options, expected):
    for text in pool.run(cases.message, kind, **options):
        assert re.match(expected, text)
        assert "\n" not in text


@pytest.mark.parametrize(("kind", "version", "reason"), [
    ("DEEPSPEED", 2, "DeepSpeed steps inside backward"), ("MEGATRON_LM", 2, "Megatron-LM"), ("FSDP", 1, "fsdp_version = 1"),
    ("FSDP", 2, None), ("MULTI_GPU", 1, None), ("MULTI_CPU", 1, None), ("NO", 1, None),
])  # fmt: skip
def test_engines_that_keep_their_gradients_are_refused(kind, version, reason):
    accelerator = SimpleNamespace(distributed_type=DistributedType(kind), is_fsdp2=kind == "FSDP" and version == 2)
    if reason is None:
        refuse_deepspeed(accelerator)
    else:
        with pytest.raises(ValueError, match=rf"^accelerate: {reason}.*; use FSDP2 \(fsdp_version: 2\) or DDP$"):
            refuse_deepspeed(accelerator)


# The Trainer


@pytest.mark.parametrize("options", [
    {"rule": "gdiff-0.5", "base": "sgd", "lr": 0.1}, {"rule": "lossnorm", "base": "sgd", "lr": 0.1}, {"base": "sgd", "lr": 0.1},
    {"rule": "gdiff-0.5", "base": "sgd", "lr": 0.01, "forget": "rmu", "retain": "activations"},
], ids=["gdiff", "lossnorm", "ngdiff", "activations"])  # fmt: skip
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_on_two_ranks_takes_the_steps_of_one(pool, tmp_path, options, accumulate):
    """Rows differ in length, so that a mean of the ranks' means would be another one."""
    expected = cases.by_trainer(str(tmp_path / "alone"), 4 * accumulate, 1, **options)
    for rank in pool.run(cases.by_trainer, str(tmp_path / "ranks"), 2, accumulate, **options):
        for name, value in expected["weights"].items():
            assert_within(rank["weights"][name], value, BOUND * value.abs().max())
        for mine, theirs in zip(rank["logs"], expected["logs"], strict=True):
            # Activations are at no distance from themselves at first: there the cosine is one of rounding errors.
            for name in ("retain_loss", "forget_loss", "retain_weight", *(() if "retain" in options else ("cosine",))):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name  # sums in float32


FULL, PIECES = "FULL_STATE_DICT", "SHARDED_STATE_DICT"  # the default of transformers, and of accelerate
SHARDED: dict[str, dict[str, Any]] = {
    "gdiff": {"rule": "gdiff-0.5", "base": "sgd", "lr": 0.1},
    "ngdiff": {"base": "sgd", "lr": 0.1},
    "automatic": {"base": "sgd", "lr": "auto"},
    "references": {"rule": "gdiff-0.5", "base": "sgd", "lr": 0.1, "forget": "npo", "retain": "kl"},
    "activations": {"rule": "gdiff-0.5", "base": "sgd", "lr": 0.01, "forget": "rmu", "retain": "activations"},
}


@pytest.mark.parametrize("name", SHARDED)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_under_fsdp_takes_the_steps_of_one_process(pool, tmp_path, name, accumulate):
    expected = cases.by_trainer(str(tmp_path / "alone"), 4 * accumulate, 1, **SHARDED[name])
    for rank in pool.run(cases.by_trainer, str(tmp_path / "ranks"), 2, accumulate, sharded=PIECES, **SHARDED[name]):
        assert rank["split"] and not expected["split"]
        # An automatic rate divides differences of losses, which are sums in float32 in another order.
        bound = 1e-2 if name == "automatic" else BOUND
        assert rank["rate"] == pytest.approx(expected["rate"], rel=bound)
        for key, value in expected["weights"].items():
            assert_within(rank["weights"][key], value, bound * value.abs().max())
        for mine, theirs in zip(rank["logs"], expected["logs"], strict=True):
            for task in ("retain_loss", "forget_loss"):  # a model is at no distance from itself, but for roundings
                assert mine[task] == pytest.approx(theirs[task], rel=max(bound, 1e-4), abs=1e-6)


def test_a_stopping_criterion_under_fsdp_sees_what_it_sees_in_one_process(pool, tmp_path):
    options = {"rule": "ga", "base": "sgd", "lr": 0.1, "check_every": 1}
    start = cases.by_trainer(str(tmp_path / "start"), 4, 1, **options, stopping=StoppingCriteria(forget_target=0.0))
    target = start["checks"][2][1]  # after two of four steps
    options["stopping"] = StoppingCriteria(forget_target=target * (1 + 1e-3))
    for rank in pool.run(cases.by_trainer, str(tmp_path / "ranks"), 2, 1, sharded=PIECES, **options):
        assert rank["split"]
        assert [step for step, _, _ in rank["checks"]] == [0, 1, 2]
        for mine, theirs in zip(rank["checks"], start["checks"], strict=False):
            assert mine == pytest.approx(theirs, rel=1e-4)  # sums in float32


def over_budget() -> dict[str, Any]:
    """Ascent with a budget of the retain loss that is exceeded after some steps."""
    return {"rule": "ga", "base": "sgd", "lr": 0.1, "check_every": 1, "stopping": StoppingCriteria(retain_budget=4.85)}


def test_a_retain_budget_under_fsdp_brings_the_best_weights_back(pool, tmp_path):
    expected = cases.by_trainer(str(tmp_path / "alone"), 4, 1, **over_budget())
    whole = pool.run(cases.by_trainer, str(tmp_path / "ranks"), 2, 1, sharded=PIECES, **over_budget())
    assert 1 < len(expected["seen"]) < 4 and expected["restored"] == len(expected["seen"]) - 1
    shutil.rmtree(tmp_path / "ranks" / f"checkpoint-{len(expected['seen'])}")
    resumed = pool.run(cases.by_trainer, str(tmp_path / "ranks"), 2, 1, sharded=PIECES, resume=True, **over_budget())
    for rank, again in zip(whole, resumed, strict=True):
        assert rank["split"]
        assert rank["restored"] == again["restored"] == expected["restored"]
        assert (len(rank["seen"]), len(again["seen"])) == (len(expected["seen"]), 1)
        for name, value in expected["weights"].items():
            assert_within(rank["weights"][name], value, BOUND * value.abs().max())
            assert_bitwise_equal(again["weights"][name], rank["weights"][name])
    with pytest.raises(checkpoints.CheckpointError, match=r"stopping\.pt: missing, for .* another number of processes"):
        cases.by_trainer(str(tmp_path / "ranks"), 4, 1, resume=True, **over_budget())


@pytest.mark.parametrize(
    ("base", "momentum", "saved"),  # SGD without momentum is refused with the full state, see test_trainer.py
    [("sgd", 0.0, PIECES), ("sgd", 0.9, PIECES), ("adamw", 0.0, PIECES), ("sgd", 0.9, FULL), ("adamw", 0.0, FULL)],
)
def test_a_run_under_fsdp_goes_on_from_its_checkpoint(pool, tmp_path, base, momentum, saved):
    """With the weights of a run that was not interrupted."""
    options = {"base": base, "momentum": momentum, "lr": 0.01, "sharded": saved}
    whole, _ = pool.run(cases.by_trainer, str(tmp_path), 2, 1, **options)
    shutil.rmtree(tmp_path / "checkpoint-4")
    for rank in pool.run(cases.by_trainer, str(tmp_path), 2, 1, resume=True, **options):
        assert rank["split"] and len(rank["seen"]) == 1
        for name, value in whole["weights"].items():
            assert_bitwise_equal(rank["weights"][name], value)


def test_the_best_weights_are_loaded_on_every_rank(pool, tmp_path):
    """Ascent alone, so that the first step's checkpoint is the best."""
    one, other = pool.run(cases.by_trainer, str(tmp_path), 2, 1, best=True, rule="ga", base="sgd", lr=0.3)
    last, _ = pool.run(cases.by_trainer, str(tmp_path / "last"), 2, 1, rule="ga", base="sgd", lr=0.3)
    for name, value in one["weights"].items():
        assert_bitwise_equal(other["weights"][name], value)
    assert any((value - last["weights"][name]).abs().max() > 1e-3 for name, value in one["weights"].items())


def test_ranks_of_the_trainer_draw_different_rows_and_agree_on_the_rate(pool, tmp_path):
    one, other = pool.run(cases.by_trainer, str(tmp_path), 2, 1, base="sgd", lr="auto")
    assert one["rate"] == other["rate"] != 1e-2
    for name, value in one["weights"].items():
        assert_bitwise_equal(other["weights"][name], value)
    for task in ("forget", "retain"):
        mine, theirs = ({tuple(row) for batch in rank["seen"] for row in batch[task].tolist()} for rank in (one, other))
        assert mine and theirs and not mine & theirs


@pytest.mark.parametrize(("name", "rank"), [("publish", 0), ("save_model", 0), ("save_model", 1)])
def test_a_checkpoint_that_one_rank_cannot_write_ends_the_run_on_all(pool, tmp_path, name, rank):
    """At once, and with the reason; none waits for one that has left."""
    errors = pool.run(cases.refused_trainer, str(tmp_path), rank, name, base="sgd", best=name == "save_model")
    for i, error in enumerate(errors):
        reason = "no space left" if i == rank else f"rank {rank}: [Errno 28] No space left on device"
        assert error.startswith("CheckpointError: ") and f"checkpoint-1: cannot be written ({reason})" in error
    assert not list(tmp_path.glob("checkpoint-*"))


def test_what_one_rank_cannot_prepare_ends_the_run_on_all(pool, tmp_path):
    mine, theirs = pool.run(cases.refused_trainer, str(tmp_path), 1, "before_training", base="sgd")
    assert mine == "RankError: rank 1: [Errno 28] No space left on device"
    assert theirs == "OSError: [Errno 28] No space left on device"


def test_a_folder_that_another_run_holds_is_refused_on_all_ranks(pool, tmp_path):
    with checkpoints.locked(tmp_path):
        mine, theirs = pool.run(cases.refused_trainer, str(tmp_path), base="sgd")
    assert re.fullmatch(r"CheckpointError: .*: another run \(process \d+\) writes there; .*", mine)
    assert theirs == mine.replace("CheckpointError: ", "CheckpointError: rank 0: ")


def test_a_folder_with_checkpoints_of_another_run_is_refused_on_all_ranks(pool, tmp_path):
    pool.run(cases.by_trainer, str(tmp_path), 2, 1, base="sgd")
    mine, theirs = pool.run(cases.refused_trainer, str(tmp_path), base="sgd")
    assert re.fullmatch(r"CheckpointError: .*checkpoint-4: of a run before; .*", mine)
    assert theirs == mine.replace("CheckpointError: ", "CheckpointError: rank 0: ")


@pytest.mark.parametrize("unseen", [False, True])
def test_all_ranks_go_on_from_the_checkpoint_that_rank_0_has_chosen(pool, tmp_path, unseen):
    pool.run(cases.by_trainer, str(tmp_path), 2, 1, base="sgd")
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert pool.run(cases.resumed_trainer, str(tmp_path), unseen, base="sgd") == [1, 1]  # from checkpoint-3
