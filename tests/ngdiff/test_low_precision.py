"""Parameters of 16 bits: no update is lost, whether through master weights or through rounding at random."""

import io
from typing import Any

import pytest
import torch
from asserts import assert_bitwise_equal
from ngdiff_kernels.rounding import stochastic_round
from torch import Tensor, nn

from ngdiff import TwoTaskOptimizer

BASES: dict[str, dict[str, Any]] = {
    "sgd": {"base": "sgd"},
    "nesterov": {"base": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "adamw": {"base": "adamw", "weight_decay": 0.1},
}
every_base = pytest.mark.parametrize("base", BASES)
every_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
every_way = pytest.mark.parametrize("way", ["master", "stochastic"])


class Run:
    """Two parameters whose gradients are given, so that a run in 16 bits and one in 32 can have the same ones."""

    def __init__(self, dtype: torch.dtype, base: str, lr: Any = 0.01, **options: Any):
        torch.manual_seed(0)
        start = [torch.randn(7, 5).bfloat16().half(), torch.randn(67).bfloat16().half()]  # exact in all three dtypes
        self.parameters = [nn.Parameter(value.to(dtype)) for value in start]
        self.optimizer = TwoTaskOptimizer(self.parameters, lr=lr, **BASES[base], **options)

    def step(self, number: int) -> None:
        draw = torch.Generator(torch.get_default_device()).manual_seed(number)
        for task in ("retain", "forget"):
            with self.optimizer.task(task):
                for parameter in self.parameters:
                    gradient = torch.randn(parameter.shape, generator=draw).bfloat16().half()
                    (parameter * gradient.to(parameter.dtype)).sum().backward()
        self.optimizer.step()

    def state(self, name: str) -> list[Tensor]:
        return [self.optimizer.state[parameter][name] for parameter in self.parameters]


@every_base
@every_dtype
def test_master_weights_are_those_of_a_run_in_float32(monkeypatch, dtype, base):
    monkeypatch.setenv("NGDIFF_BACKEND", "reference")  # whose arithmetic does not depend on the dtype, to the last bit
    low, full = Run(dtype, base), Run(torch.float32, base)
    for number in range(5):
        low.step(number)
        full.step(number)
        for master, parameter, expected in zip(low.state("master"), low.parameters, full.parameters, strict=True):
            assert_bitwise_equal(master, expected.detach())
            assert_bitwise_equal(parameter.detach(), master.to(dtype))


@every_dtype
def test_random_rounding_is_that_of_the_written_formula(dtype):
    low, full = Run(dtype, "sgd", low_precision="stochastic"), Run(torch.float32, "sgd")
    low.step(0)
    full.step(0)
    flat = torch.cat([p.detach().flatten() for p in low.parameters])
    exact = torch.cat([p.detach().flatten() for p in full.parameters])
    spacing = torch.finfo(dtype).eps * exact.abs()
    assert ((flat.float() - exact).abs() < spacing).all()
    assert not flat.equal(exact.to(dtype))  # 102 elements: some went to the farther neighbour


@every_base
@every_dtype
@every_way
def test_updates_far_below_the_spacing_add_up(dtype, base, way):
    """1000 steps of a hundredth of the spacing at 1; rounding to nearest would not move at all."""
    n, lr, steps = 4096, 1e-2 * torch.finfo(dtype).eps, 1000
    parameter = nn.Parameter(torch.ones(n, dtype=dtype))
    options = BASES[base] | {"weight_decay": 0.0, "momentum": 0.0, "nesterov": False}
    optimizer = TwoTaskOptimizer([parameter], "gdiff-1", lr=lr, low_precision=way, **options)
    for _ in range(steps):
        with optimizer.task("retain"):
            (-parameter).sum().backward()
        with optimizer.task("forget"):
            (0 * parameter).sum().backward()
        optimizer.step()
    moved = (parameter.detach().double() - 1) / torch.finfo(dtype).eps
    # 10 spacings in the mean. Each element walks up with probability 1/100 a step, a standard deviation of 3.1 spacings.
    assert abs(moved.mean().item() - 10) < (0.5 if way == "master" else 4 * 3.15 / n**0.5)


@every_way
@every_base
@pytest.mark.parametrize("optimizer_first", [True, False])
def test_a_resumed_run_goes_on_bit_for_bit(base, way, optimizer_first):
    whole, first = (Run(torch.bfloat16, base, low_precision=way, seed=5) for _ in range(2))
    for number in range(6):
        whole.step(number)
    for number in range(3):
        first.step(number)
    stored = io.BytesIO()
    torch.save((first.parameters, first.optimizer.state_dict()), stored)
    stored.seek(0)
    values, state = torch.load(stored)
    second = Run(torch.bfloat16, base, low_precision=way)
    if optimizer_first:
        second.optimizer.load_state_dict(state)
    with torch.no_grad():
        for parameter, value in zip(second.parameters, values, strict=True):
            parameter.copy_(value)
    if not optimizer_first:
        second.optimizer.load_state_dict(state)
    for number in range(3, 6):
        second.step(number)
    for one, two in zip(whole.parameters, second.parameters, strict=True):
        assert_bitwise_equal(two.detach(), one.detach())
        for name, value in whole.optimizer.state[one].items():
            assert_bitwise_equal(second.optimizer.state[two][name], value)


@every_dtype
def test_weights_that_are_loaded_later_are_not_undone(dtype):
    run = Run(dtype, "sgd", lr=0.0)
    run.step(0)
    kept = run.state("master")[1].clone()
    with torch.no_grad():
        run.parameters[0].fill_(5.0)
    run.step(1)
    assert (run.parameters[0] == 5).all()
    assert (run.state("master")[0] == 5).all()
    assert_bitwise_equal(run.state("master")[1], kept)


def test_edits_that_touch_nothing_leave_the_digits_of_the_master_weights():
    run = Run(torch.bfloat16, "sgd", lr=1e-5)
    run.step(0)
    before = [master.clone() for master in run.state("master")]
    run.optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.copy_(parameter.clone())
    run.step(1)
    for one, two in zip(before, run.state("master"), strict=True):
        assert_bitwise_equal(two, one)
    assert not before[0].equal(before[0].bfloat16().float())


@pytest.mark.parametrize(("saved", "mine"), [
    ({"dtype": torch.float32}, {"dtype": torch.bfloat16}),
    ({"dtype": torch.bfloat16}, {"dtype": torch.float32}),
    ({"dtype": torch.bfloat16, "low_precision": "stochastic"}, {"dtype": torch.bfloat16}),
])  # fmt: skip
def test_the_state_of_another_precision_is_refused(saved, mine):
    one, two = Run(base="adamw", **saved), Run(base="adamw", **mine)
    one.step(0)
    with pytest.raises(ValueError, match="same base, precision and kind of learning rate"):
        two.optimizer.load_state_dict(one.optimizer.state_dict())


def test_the_seed_decides_the_random_bits():
    runs = [Run(torch.bfloat16, "sgd", low_precision="stochastic", seed=seed) for seed in (1, 1, 2)]
    for run in runs:
        for number in range(3):
            run.step(number)
    one, same, other = (torch.cat([p.detach().flatten() for p in run.parameters]) for run in runs)
    assert one.equal(same)
    assert not one.equal(other)


@every_base
@every_dtype
@every_way
def test_a_refused_step_changes_nothing(dtype, base, way):
    run = Run(dtype, base, low_precision=way)
    run.step(0)
    before = [t.detach().clone() for p in run.parameters for t in (p, *run.optimizer.state[p].values())]
    for task, factor in (("retain", float("nan")), ("forget", 1.0)):
        with run.optimizer.task(task):
            (run.parameters[0] * factor).sum().backward()
    run.optimizer.step()
    assert run.optimizer.skipped_steps == 1
    after = [t.detach() for p in run.parameters for t in (p, *run.optimizer.state[p].values())]
    for one, two in zip(before, after, strict=True):
        assert_bitwise_equal(two, one)


@every_dtype
@every_way
def test_the_automatic_rate_is_that_of_float32(dtype, way):
    """Only the probed weights are rounded: 2^-9 of them at most, and less than 2 % of the rate."""
    torch.manual_seed(0)
    target, slope = torch.randn(200), torch.randn(200) * 0.1
    found = []
    for kind in (dtype, torch.float32):
        parameter = nn.Parameter(torch.zeros(200, dtype=kind))
        optimizer = TwoTaskOptimizer([parameter], "ngdiff", "sgd", "auto", low_precision=way)

        def retain(parameter: nn.Parameter = parameter) -> Tensor:
            return (parameter.float() - target).square().sum()

        start = retain().item()
        with optimizer.task("retain"):
            retain().backward()
        with optimizer.task("forget"):
            (parameter.float() @ slope).backward()
        optimizer.step(probe=lambda: retain().detach())
        assert retain().item() < 0.6 * start
        found.append(optimizer.param_groups[0]["lr"])
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_unknown_way_is_refused():
    with pytest.raises(ValueError, match="low_precision = 'nearest': choose one of master, stochastic"):
        Run(torch.bfloat16, "sgd", low_precision="nearest")


# stochastic_round itself


@every_dtype
@pytest.mark.parametrize("exponent", [-24, -16, -14, -3, 0, 9])
def test_rounding_is_unbiased(dtype, exponent):
    """The mean of 1e6 roundings of one number is that number, to 4 standard deviations."""
    n = 1_000_000
    for fraction in (0.1, 0.5, 0.75):
        x = torch.tensor(2.0**exponent) * (1 + (3 + fraction) * torch.finfo(dtype).eps)
        draws = stochastic_round(x.expand(n).contiguous(), dtype, seed=7).double()
        low, high = draws.min(), draws.max()
        assert len(draws.unique()) == 2
        p = (x.double() - low) / (high - low)
        assert abs(draws.mean() - x.double()) <= 4 * (high - low) * (p * (1 - p) / n).sqrt()


@every_dtype
def test_exact_values_are_kept(dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    for seed in range(3):
        assert_bitwise_equal(stochastic_round(every.float(), dtype, seed), every)


@every_dtype
def test_a_nan_stays_one(dtype):
    """Whatever its bits: GPUs make 0x7FFFFFFF, to which nothing can be added."""
    nans = torch.tensor([0x7FFFFFFF, 0x7FC00000, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    assert stochastic_round(nans, dtype, seed=1).isnan().all()


def test_random_bits_do_not_depend_on_how_the_work_is_cut():
    x = torch.randn(1000)
    whole = stochastic_round(x, torch.bfloat16, seed=3)
    parts = [stochastic_round(x[a : a + 136], torch.bfloat16, seed=3, start=a) for a in range(0, 1000, 136)]
    assert_bitwise_equal(torch.cat(parts), whole)


def test_the_generator_is_philox():
    """The published test vectors of Philox 4x32-10 (Random123, kat_vectors) whose counters are reachable: key and counter 0."""
    from ngdiff_kernels.rounding import _philox

    words = [int(word) for word in _philox(0, torch.zeros(1, dtype=torch.int64))]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize(("dtype", "start", "message"), [
    (torch.float32, 0, "dtype = torch.float32: stochastic rounding is for torch.bfloat16 and torch.float16"),
    (torch.bfloat16, 4, "start = 4: must be a multiple of 8"),
])  # fmt: skip
def test_rounding_refuses(dtype, start, message):
    with pytest.raises(ValueError, match=message):
        stochastic_round(torch.ones(8), dtype, 0, start)
