"""The Triton kernels against float64 and against the plain reference: under Triton's interpreter, or compiled for a GPU.

On a machine with a GPU `NGDIFF_TEST_DEVICE=cuda make test` runs them there.
"""

from collections.abc import Iterator
from operator import neg
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import strategies
import torch
from asserts import U32, assert_bitwise_equal, assert_within
from hypothesis import given
from hypothesis import strategies as st
from ngdiff_kernels import reference, state_shapes
from ngdiff_kernels.rounding import stochastic_round
from strategies import pairs
from test_reference import HYPERS, NONFINITE, PLAIN, doubles, make_torch_optimizer
from torch import Tensor

from ngdiff import rules
from ngdiff.gram import Gram, Losses

if torch.cuda.is_available() and torch.get_default_device().type != "cuda":
    pytest.skip("this machine has a GPU: NGDIFF_TEST_DEVICE=cuda runs the kernels on it", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed: it exists for Linux alone")

from interpreted import at_the_same_time, only
from ngdiff_kernels.gpu import launch

ROWS, PROCESSORS = launch.ROWS, launch._processors  # before the tests make them small
TILE = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (0, 1, 7, 61, TILE - 1, TILE, TILE + 1, 127, 3 * TILE, 4 * TILE + 13)
LOW_PRECISION = ("nearest", "master", "stochastic")
SEED = 0x123456789ABCDEF
TRUE, FALSE = torch.tensor(True), torch.tensor(False)
every_hyper = pytest.mark.parametrize("hyper", HYPERS.values(), ids=HYPERS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True, scope="module")
def small_tiles() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "ROWS", TILE // 8)
        patch.setattr(launch, "_processors", lambda device: 1)
        patch.setattr(launch, "PROGRAMS_A_PROCESSOR", 3)
        yield


@pytest.fixture(autouse=True)
def no_unfinished_meeting() -> None:
    """A test that failed inside a kernel must not keep the next one waiting."""
    launch._MEETINGS.clear()


needs_interpreter = pytest.mark.skipif(
    not launch.INTERPRETED, reason="looks into Triton's interpreter; here kernels are compiled"
)
# numpy, in which the interpreter computes, warns of what these tests ask for.
no_warnings = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def room(x: Tensor, by: int = 0) -> Tensor:
    """A buffer that holds x from position `by` on, between sevens."""
    buffer = torch.full((by + len(x) + TILE,), 7.0, dtype=x.dtype)
    buffer[by : by + len(x)] = x
    return buffer


def shifted(x: Tensor, by: int) -> Tensor:
    """The same values at an address that is not a multiple of 16 bytes, with something else before and behind them."""
    return room(x, by)[by : by + len(x)]


def fresh_state(theta: Tensor, hyper: dict[str, Any], low_precision: str = "nearest") -> dict[str, Tensor]:
    shapes = state_shapes(hyper | {"low_precision": low_precision}, theta.dtype)
    zeros = {"flat": torch.zeros(len(theta)), "scalar": torch.zeros(())}
    return {name: theta.float() if name == "master" else zeros[shape].clone() for name, shape in shapes.items()}


def gram_bound(a: Tensor, b: Tensor) -> float:
    """How far a product may be off: 8 u of sum |a_i b_i| (see `products`), and what underflows in rows scaled to near 1."""
    a, b = a.double(), b.double()
    scale = float(a.abs().max() * b.abs().max()) if len(a) else 0.0
    return 8.01 * U32 * float((a * b).abs().sum()) + len(a) * 2.0**-147 * scale


def check_gram(retain: Tensor, forget: Tensor) -> Tensor:
    measured = launch.gram(retain, forget)
    for value, (a, b) in zip(measured.tolist(), [(retain, retain), (forget, forget), (retain, forget)], strict=True):
        assert abs(value - float(a.double() @ b.double())) <= gram_bound(a, b)
    return measured


# gram


@every_dtype
@given(data=st.data(), shift=st.integers(0, 3))
def test_gram(dtype, data, shift):
    pair = data.draw(pairs())
    fits = pair.retain.abs().max() < 6e4 and pair.forget.abs().max() < 6e4
    if dtype == torch.float16 and not fits:
        return
    check_gram(shifted(pair.retain.to(dtype), shift), shifted(pair.forget.to(dtype), shift))


@every_dtype
@pytest.mark.parametrize("n", SIZES)
def test_gram_of_every_size(dtype, n):
    check_gram(torch.randn(n).to(dtype), torch.randn(n).to(dtype))


@pytest.mark.parametrize("exponent", [-149, -140, -126, -100, 50, 100, 127])
def test_gram_neither_overflows_nor_underflows(exponent):
    unit = torch.ones(100)
    unit[::3] = 0.0
    measured = launch.gram(unit * 2.0**exponent, unit)
    assert measured.tolist() == [66 * 2.0 ** (2 * exponent), 66.0, 66 * 2.0**exponent]


def test_gram_of_rows_of_all_scales():
    retain = torch.randn(20 * TILE) * 2.0 ** torch.randint(-60, 60, (20 * TILE,)).float()
    check_gram(retain, torch.randn(20 * TILE))


@no_warnings
@pytest.mark.parametrize("bad", NONFINITE)
@pytest.mark.parametrize("position", [0, TILE, 2 * TILE + 5])
def test_gram_is_not_finite_where_a_gradient_is_not(bad, position):
    retain, forget = torch.randn(2 * TILE + 6), torch.randn(2 * TILE + 6)
    retain[position] = bad
    assert not launch.gram(retain, forget)[0].isfinite()
    assert not launch.gram(forget, retain)[1].isfinite()


@pytest.mark.parametrize("programs", [1, 2, 3, 4, 5, 9])
def test_gram_with_any_number_of_programs(monkeypatch, programs):
    monkeypatch.setattr(launch, "PROGRAMS_A_PROCESSOR", programs)
    for n in SIZES:
        retain, forget = torch.randn(n), torch.randn(n)
        first = check_gram(retain, forget)
        assert_bitwise_equal(launch.gram(retain.clone(), forget.clone()), first)


# combine_


@every_dtype
@given(data=st.data(), c_r=st.floats(0, 2), c_f=st.floats(0, 2))
def test_combine(dtype, data, c_r, c_f):
    pair = data.draw(pairs(("general", "nearly parallel", "opposed")))
    retain, forget = (g.clamp(-1e4, 1e4).to(dtype) for g in pair[:2])
    r, f = c_r * retain.double(), c_f * forget.double()
    measured = retain.clone()
    launch.combine_(measured, forget, doubles(c_r, c_f))
    u = torch.finfo(dtype).eps / 2
    # Each term: its coefficient rounded to float32 and one product. Then the difference, and the rounding to the dtype.
    bound = 4 * U32 * (r.abs() + f.abs()) + u * (r - f).abs() * (1 + 4 * U32) + torch.finfo(dtype).smallest_normal * 2 * u
    assert_within(measured, r - f, bound + 2.0**-148)


def test_combine_takes_coefficients_beyond_float32():
    retain, forget = torch.tensor([2.0**-140, 0.0]), torch.tensor([0.0, 2.0**-149])
    launch.combine_(retain, forget, doubles(2.0**140, 2.0**149))
    assert retain.tolist() == [1.0, -1.0]


def test_combine_takes_tiny_coefficients():
    retain, forget = torch.tensor([2.0**100, 1.0]), torch.tensor([0.0, 2.0**120])
    launch.combine_(retain, forget, doubles(2.0**-140, 2.0**-126))
    assert retain.tolist() == [2.0**-40, 2.0**-140 - 2.0**-6]


# step_ and base_step_


@every_hyper
@pytest.mark.parametrize("n", SIZES)
def test_steps_are_those_of_torch_optim(hyper, n):
    lr, steps = 0.05, 6
    theta = torch.randn(n)
    parameter = torch.nn.Parameter(theta.clone())
    state, theirs = fresh_state(theta, hyper), make_torch_optimizer(parameter, hyper, lr)
    for _ in range(steps):
        gradient, other = torch.randn(n), torch.randn(n)
        parameter.grad = gradient.clone()
        theirs.step()
        launch.step_(theta, gradient, other, doubles(1.0, 0.0), TRUE, state, hyper, lr)
        assert_bitwise_equal(gradient, parameter.grad)
        # As for the reference: at most 20 roundings a step, of terms no larger than 8.
        assert_within(theta, parameter.detach(), steps * 20 * U32 * 8)
    for name, buffer in state.items():
        assert_within(buffer, theirs.state[parameter][name], steps * 3 * U32 * 60)
        assert name != "step" or buffer.item() == steps


@every_hyper
@every_dtype
@pytest.mark.parametrize("low_precision", LOW_PRECISION)
@pytest.mark.parametrize("combined", [False, True])
def test_steps_are_those_of_the_reference(hyper, dtype, low_precision, combined):
    hyper, n = hyper | {"eps": max(hyper["eps"], 1e-2)}, 4 * TILE + 13
    seed = SEED if low_precision == "stochastic" else None
    theta = torch.randn(n).to(dtype)
    mine, theirs = shifted(theta, 1), theta.clone()
    state, expected = fresh_state(theta, hyper, low_precision), fresh_state(theta, hyper, low_precision)
    for _ in range(3):
        retain, forget = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
        for backend, values, kept in ((launch, mine, state), (reference, theirs, expected)):
            if combined:
                backend.base_step_(values, retain, TRUE, kept, hyper, 0.05, seed)
            else:
                backend.step_(values, retain, forget, doubles(0.7, 0.3), TRUE, kept, hyper, 0.05, seed)
        for name, buffer in state.items():
            # 20 roundings of terms below 8, and AdamW magnifies those of d by 1 / eps = 100.
            assert_within(buffer, expected[name], 20 * U32 * 8 * 10)
        # Values that differ that little may round to different neighbours, at most one spacing of the dtype apart.
        spacing = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps * theirs.abs()
        assert_within(mine, theirs, 20 * U32 * 800 * 0.05 + 20 * U32 * 8 + spacing)
        mine.copy_(theirs)
        for name, buffer in state.items():
            buffer.copy_(expected[name])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("low_precision", LOW_PRECISION)
def test_gradients_may_be_wider_than_the_weights(dtype, low_precision):
    """As after accumulation in float32."""
    hyper, n = HYPERS["nesterov, weight decay"], 4 * TILE + 13
    seed = SEED if low_precision == "stochastic" else None
    theta, retain, forget = torch.randn(n).to(dtype), torch.randn(n), torch.randn(n)
    check_gram(retain, forget)
    mine, theirs = theta.clone(), theta.clone()
    state, expected = fresh_state(theta, hyper, low_precision), fresh_state(theta, hyper, low_precision)
    launch.step_(mine, retain, forget, doubles(0.7, 0.3), TRUE, state, hyper, 0.05, seed)
    reference.step_(theirs, retain, forget, doubles(0.7, 0.3), TRUE, expected, hyper, 0.05, seed)
    assert_within(mine, theirs, 20 * U32 * 8 + torch.finfo(dtype).eps * theirs.abs())
    for name, buffer in state.items():
        assert_within(buffer, expected[name], 20 * U32 * 8)


@every_hyper
@pytest.mark.parametrize("shift", [0, 1])
def test_gradients_may_be_narrower_than_the_weights(hyper, shift):
    """As the same gradients in float32, which hold them exactly; a probe and d too."""
    n = 4 * TILE + 13
    theta, pair = torch.randn(n), [torch.randn(n).bfloat16() for _ in range(2)]
    check_gram(*(shifted(g, shift) for g in pair))
    found = []
    for retain, forget in ([shifted(g, shift) for g in pair], [g.float() for g in pair]):
        values, out, state = theta.clone(), torch.empty(n), fresh_state(theta, hyper)
        report = fused(rules.NGDiff(), values, (retain, forget), doubles(0, 0), state=state, hyper=hyper)
        launch.step_(values, retain, forget, doubles(0.7, 0.3), TRUE, state, hyper, 0.05)
        launch.base_step_(values, forget, TRUE, state, hyper, 0.05)
        launch.probe_(out, values, retain, state, hyper, 0.3)
        found.append([report, values, out, *state.values()])
    for one, two in zip(*found, strict=True):
        assert_bitwise_equal(one, two)


@every_hyper
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_low_precision_weights_are_the_rounded_master_weights(hyper, dtype):
    theta = torch.randn(4 * TILE + 13).to(dtype)
    state = fresh_state(theta, hyper, "master")
    at_random, kept = theta.clone(), fresh_state(theta, hyper)
    retain, forget = torch.randn_like(theta), torch.randn_like(theta)
    launch.step_(theta, retain, forget, doubles(0.7, 0.3), TRUE, state, hyper, 0.05)
    launch.step_(at_random, retain, forget, doubles(0.7, 0.3), TRUE, kept, hyper, 0.05, SEED)
    assert_bitwise_equal(theta, state["master"].to(dtype))
    assert_bitwise_equal(at_random, stochastic_round(state["master"], dtype, SEED))
    assert not theta.equal(at_random)


@pytest.mark.parametrize("programs", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 8, 16])
def test_random_bits_do_not_depend_on_the_grid(monkeypatch, programs, rows):
    theta, gradient = torch.linspace(-2, 2, 4 * TILE + 13).bfloat16(), torch.ones(4 * TILE + 13).bfloat16()
    expected = stochastic_round(theta.float() - 2.0**-10, torch.bfloat16, SEED)
    monkeypatch.setattr(launch, "PROGRAMS_A_PROCESSOR", programs)
    monkeypatch.setattr(launch, "ROWS", rows)
    launch.step_(theta, gradient, gradient, doubles(1.0, 0.0), TRUE, {}, PLAIN, 2.0**-10, SEED)
    assert_bitwise_equal(theta, expected)


@pytest.mark.parametrize("lr", [0.25, torch.tensor(0.25)], ids=["number", "tensor"])
def test_the_rate_may_be_a_tensor(lr):
    theta = torch.tensor([1.0, -2.0, 3.0])
    launch.base_step_(theta, torch.tensor([4.0, 0.0, -8.0]), TRUE, {}, PLAIN, lr)
    assert theta.tolist() == [0.0, -2.0, 5.0]


@no_warnings
@every_hyper
@every_dtype
@pytest.mark.parametrize("bad", NONFINITE)
def test_refused_step_writes_nothing(hyper, dtype, bad):
    theta = torch.randn(TILE + 2).to(dtype)
    theta[:3] = torch.tensor([-0.0, 0.0, 1e-40])
    state = fresh_state(theta, hyper, "master")
    launch.step_(theta, torch.randn_like(theta), torch.randn_like(theta), doubles(1, 0), TRUE, state, hyper, 0.0)
    before, state_before = theta.clone(), {name: buffer.clone() for name, buffer in state.items()}
    launch.step_(theta, torch.full_like(theta, bad), theta, doubles(bad, 1.0), FALSE, state, hyper, 0.1)
    assert_bitwise_equal(theta, before)
    for name, buffer in state.items():
        assert_bitwise_equal(buffer, state_before[name])


# probe_


@every_hyper
@every_dtype
@pytest.mark.parametrize("n", SIZES)
def test_probe_is_that_of_the_reference_and_writes_elsewhere(hyper, dtype, n):
    hyper = hyper | {"eps": max(hyper["eps"], 1e-2)}
    theta, d = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    state = fresh_state(theta, hyper, "master")
    reference.base_step_(theta, d, TRUE, state, hyper, 0.05)
    before = [tensor.clone() for tensor in (theta, d, *state.values())]
    for h in (0.0, 0.3, -0.3):
        out, expected = torch.full_like(theta, 7.0), torch.empty_like(theta)
        launch.probe_(out, theta, d, state, hyper, h)
        reference.probe_(expected, theta, d, state, hyper, h)
        spacing = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps * expected.abs()
        assert_within(out, expected, 20 * U32 * 8 + spacing)
    for tensor, value in zip((theta, d, *state.values()), before, strict=True):
        assert_bitwise_equal(tensor, value)


# fused_step_


def fused(rule: rules.Rule, theta: Tensor, pair: tuple[Tensor, Tensor], losses: Tensor, **options: Any) -> Tensor:
    arguments = {"state": {}, "hyper": PLAIN, "lr": 0.05, "limit": 1e38} | options
    name, parameter = rule.kernel
    return launch.fused_step_(theta, *pair, rule=name, parameter=parameter, losses=losses, **arguments)


every_rule = pytest.mark.parametrize("rule", ["ngdiff", "gdiff-0.9", "gdiff-0.1", "ga", "lossnorm", "retain"])


@every_rule
@given(pair=pairs(), losses=st.tuples(strategies.losses(), st.one_of(strategies.losses(), strategies.losses().map(neg))))
def test_device_rules_are_those_of_the_library(rule, pair, losses):
    library, values = rules.get(rule), doubles(*losses)
    report = fused(library, torch.zeros(len(pair.retain)), pair[:2], values)
    check_gram(*pair[:2])
    expected = library(Gram.from_vector(report[:3]), Losses(*values))
    # Inverse square root and reciprocal, each correctly rounded or off by a unit.
    torch.testing.assert_close(report[3:5], torch.stack(expected), rtol=4 * 2.0**-53, atol=0)


def test_every_rule_with_a_device_form_is_tested_here():
    forms = {rules.get(name).kernel for name in rules.names()}
    tested = {rules.get(name).kernel for name in ("ngdiff", "gdiff", "ga", "lossnorm", "retain")}
    assert forms - {None} == tested
    assert {name for name, _ in tested} == set(launch.RULES)


@every_hyper
@every_dtype
@pytest.mark.parametrize("low_precision", LOW_PRECISION)
def test_fused_step_is_gram_then_rule_then_step(hyper, dtype, low_precision):
    n, seed = 4 * TILE + 13, SEED if low_precision == "stochastic" else None
    theta = torch.randn(n).to(dtype)
    one, two = theta.clone(), theta.clone()
    state, expected = fresh_state(theta, hyper, low_precision), fresh_state(theta, hyper, low_precision)
    for _ in range(3):
        pair = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
        report = fused(rules.NGDiff(), one, pair, doubles(0, 0), state=state, hyper=hyper, seed=seed)
        assert_bitwise_equal(report[:3], launch.gram(*pair))
        launch.step_(two, *pair, report[3:5].clone(), TRUE, expected, hyper, 0.05, seed)
        assert_bitwise_equal(one, two)
        assert not one.equal(theta)
        for name, buffer in state.items():
            assert_bitwise_equal(buffer, expected[name])


@given(
    pair=pairs(),
    name=st.sampled_from(["sgd, weight decay", "nesterov", "adamw, weight decay"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    shift=st.integers(0, 3),
)
def test_fused_step_against_float64(pair, name, dtype, shift):
    hyper, lr = HYPERS[name] | {"eps": 1e-2}, 0.05
    theta, r, f = torch.randn(len(pair.retain)).to(dtype), pair.retain.to(dtype), pair.forget.to(dtype)
    state = fresh_state(theta, hyper, "master")
    zeros = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in state.items() if name != "master"}
    mine = shifted(theta, shift)
    fused(rules.NGDiff(), mine, (shifted(r, shift), shifted(f, shift)), doubles(0, 0), state=state, hyper=hyper, lr=lr)
    units = [g.double() / g.double().norm().clamp(min=1e-300) for g in (r, f)]
    expected = theta.double()
    expected = expected - lr * reference.DIRECTIONS[hyper["base"]](expected, units[0] - units[1], zeros, hyper)[0]
    # A norm is off by 4 u and d by 8 u of its two terms, which AdamW magnifies by 1 / eps = 100; 40 roundings of the rest.
    bound = 40 * U32 * (1 + theta.double().abs()) + lr * 100 * 8 * U32 * (units[0].abs() + units[1].abs())
    assert_within(state["master"] if dtype == torch.bfloat16 else mine, expected, bound)


@every_dtype
@pytest.mark.parametrize("n", SIZES)
def test_fused_step_of_every_size(dtype, n):
    theta = torch.randn(n).to(dtype)
    pair = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    expected = theta.clone()
    report = fused(rules.NGDiff(), theta, pair, doubles(0, 0))
    reference.step_(expected, *pair, report[3:5], TRUE, {}, PLAIN, 0.05)
    spacing = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps * expected.abs()
    assert_within(theta, expected, 20 * U32 * 8 + spacing)


@needs_interpreter
@pytest.mark.parametrize("programs", [2, 3, 5, 8])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_programs_of_a_fused_step_meet(programs, base):
    """With real concurrency: several meetings in a row, and the result of a single program."""
    hyper, n = HYPERS[base], 7 * TILE + 13
    theta = torch.randn(n)
    one, two = theta.clone(), theta.clone()
    state, expected = fresh_state(theta, hyper), fresh_state(theta, hyper)
    for _ in range(4):
        pair = torch.randn(n), torch.randn(n)
        with at_the_same_time(programs):
            report = fused(rules.NGDiff(), one, pair, doubles(0, 0), state=state, hyper=hyper)
        # The sums of rows have 24 bits each, so their sums in float64 are exact in any order.
        assert_bitwise_equal(report, fused(rules.NGDiff(), two, pair, doubles(0, 0), state=expected, hyper=hyper))
        assert_bitwise_equal(one, two)
    assert all(buffer.equal(expected[name]) for name, buffer in state.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_step_with_tiles_of_full_size(dtype):
    """As it runs outside of tests: on a GPU with as many programs as it holds."""
    n = 200_003
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "ROWS", ROWS)
        if not launch.INTERPRETED:
            patch.setattr(launch, "_processors", PROCESSORS)
            patch.setattr(launch, "PROGRAMS_A_PROCESSOR", 16)
        theta = torch.randn(n).to(dtype)
        pair = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
        expected = theta.clone()
        report = fused(rules.NGDiff(), theta, pair, doubles(0, 0))
    for value, (a, b) in zip(report[:3].tolist(), [(pair[0], pair[0]), (pair[1], pair[1]), pair], strict=True):
        assert abs(value - float(a.double() @ b.double())) <= gram_bound(a, b)
    reference.step_(expected, *pair, report[3:5], TRUE, {}, PLAIN, 0.05)
    spacing = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps * expected.abs()
    assert_within(theta, expected, 20 * U32 * 8 + spacing)


@no_warnings
@every_hyper
@pytest.mark.parametrize("where", ["retain", "forget", "retain loss", "forget loss", "limit"])
def test_refused_fused_step_writes_nothing_but_the_report(hyper, where):
    theta = torch.randn(TILE + 2).bfloat16()
    state = fresh_state(theta, hyper, "master")
    pair, losses, limit = [torch.randn_like(theta), torch.randn_like(theta)], doubles(1, 2), 1e38
    fused(rules.NGDiff(), theta, tuple(pair), losses, state=state, hyper=hyper)
    before, state_before = theta.clone(), {name: buffer.clone() for name, buffer in state.items()}
    for bad in NONFINITE:
        if where in ("retain", "forget"):
            pair[int(where == "forget")][5] = bad
        elif where == "limit":
            limit = 0.5
        else:
            losses[int(where == "forget loss")] = bad
        report = fused(rules.NGDiff(), theta, tuple(pair), losses, state=state, hyper=hyper, limit=limit)
        assert report[5] == 0
        assert_bitwise_equal(theta, before)
        for name, buffer in state.items():
            assert_bitwise_equal(buffer, state_before[name])


# The ends of buffers


@every_dtype
@pytest.mark.parametrize("n", SIZES[1:])
@pytest.mark.parametrize("base", ["sgd", "nesterov", "adamw"])
def test_nothing_outside_the_buffers_is_read_or_written(dtype, n, base):
    hyper, by = HYPERS[base], 3
    names = ["theta", "retain", "forget", "out", *state_shapes(hyper | {"low_precision": "master"}, dtype)]
    kinds = {name: torch.float32 if name in ("master", "exp_avg", "exp_avg_sq", "momentum_buffer") else dtype for name in names}
    rooms = {name: room(torch.randn(n).abs().to(kind), by) for name, kind in kinds.items() if name != "step"}
    view = {name: buffer[by : by + n] for name, buffer in rooms.items()}
    state = {name: value for name, value in view.items() if name not in ("theta", "retain", "forget", "out")}
    state |= {"step": torch.zeros(())} if base == "adamw" else {}
    check_gram(view["retain"], view["forget"])
    launch.probe_(view["out"], view["theta"], view["retain"], state, hyper, 0.1)
    report = fused(rules.NGDiff(), view["theta"], (view["retain"], view["forget"]), doubles(0, 0), state=state, hyper=hyper)
    assert abs(report[0] - view["retain"].double().square().sum()) <= gram_bound(view["retain"], view["retain"])
    launch.step_(view["theta"], view["retain"], view["forget"], doubles(1, 1), TRUE, state, hyper, 0.1)
    launch.combine_(view["retain"], view["forget"], doubles(1, 1))
    for name, buffer in rooms.items():
        assert (buffer[:by] == 7).all(), name
        assert (buffer[by + n :] == 7).all(), name


# Beyond 2^31 elements


def sparse(n: int) -> Tensor:
    """n zeros of bfloat16 that take no memory until they are written."""
    return torch.from_numpy(np.zeros(n, dtype=np.int16)).view(torch.bfloat16)


@needs_interpreter
def test_positions_beyond_31_bits(monkeypatch):
    n = 2**31 + 3 * TILE + 5
    theta, gradient = sparse(n), sparse(n)
    last = torch.arange(1, 6).bfloat16()
    gradient[-5:] = last
    monkeypatch.setattr(launch, "_programs", lambda buffer: 1)
    programs = n // TILE + 1
    with only(programs - 1, programs):  # the one that has the unfinished tile alone
        launch.step_(theta, gradient, gradient, doubles(1.0, 0.0), TRUE, {}, PLAIN, 1.0)
    assert theta[-5:].tolist() == (-last).tolist()
    assert not theta[:TILE].any()
    with only(programs - 2, programs):
        gradient[n - 5 - TILE] = 3.0
        launch.step_(theta, gradient, gradient, doubles(1.0, 0.0), TRUE, {}, PLAIN, 1.0)
    assert theta[n - 5 - TILE] == -3.0


@needs_interpreter
def test_products_and_probes_beyond_31_bits(monkeypatch):
    n = 2**31 + 3 * TILE + 5
    big, other, out = sparse(n), sparse(n), sparse(n)
    programs = n // TILE + 1
    monkeypatch.setattr(launch, "_tiles", lambda buffer: 1)
    monkeypatch.setattr(launch, "_programs", lambda buffer: 1)
    monkeypatch.setattr(launch, "PARTS", programs)
    big[-5:], other[-5:] = 2.0, 3.0
    big[n - 5 - TILE] = 4.0
    for program, expected in ((programs - 1, [20.0, 45.0, 30.0]), (programs - 2, [16.0, 0.0, 0.0])):
        with only(program, programs):
            launch.gram(big, other)
            launch.combine_(big, other, doubles(1.0, 0.0))
            launch.probe_(out, big, other, {}, PLAIN, 1.0)
        parts, barrier = launch._meeting(big.device)
        assert parts[3 * program : 3 * program + 3].tolist() == expected
        barrier.zero_()  # all the other programs never arrive
    assert out[-5:].tolist() == [5.0] * 5
    assert out[n - 5 - TILE] == 4.0
    assert not out[: 2**20].any()


def test_a_nan_in_the_weights_stays_one():
    nans = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1] * 5, dtype=torch.int32).view(torch.float32)
    for low_precision in ("nearest", "stochastic"):
        theta = torch.zeros(15, dtype=torch.bfloat16)
        launch.probe_(theta, nans, torch.zeros(15).bfloat16(), {}, PLAIN, 0.0)
        assert theta.isnan().all()
        launch.step_(theta, theta, theta, doubles(0, 0), TRUE, {}, PLAIN, 0.1, SEED if low_precision == "stochastic" else None)
        assert theta.isnan().all()


@pytest.mark.parametrize(("registers", "hip", "expected"), [
    (56, None, 9), (57, None, 8), (110, None, 4), (255, None, 2), (16, None, 16),
    (84, "6.4", 10), (96, "6.4", 10), (128, "6.4", 8), (16, "6.4", 16),
])  # fmt: skip
def test_programs_that_a_processor_holds(monkeypatch, registers, hip, expected):
    """H200: 65536 registers and 2048 threads. MI300: four units of 512 registers a lane, handed out by eights, 8 waves each."""
    kernel = SimpleNamespace(n_regs=registers, metadata=SimpleNamespace(shared=1024))
    h200 = SimpleNamespace(
        regs_per_multiprocessor=65536, shared_memory_per_multiprocessor=233472, max_threads_per_multi_processor=2048
    )
    monkeypatch.setattr(launch, "PROGRAMS_A_PROCESSOR", 16)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert launch.programs_a_processor(kernel, h200) == expected
