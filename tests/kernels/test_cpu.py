"""The compiled CPU backend against exact arithmetic, torch.optim and the reference, and its ways back to the reference."""

import shutil

import pytest
import torch
from asserts import U32, assert_bitwise_equal, assert_within
from hypothesis import given, settings
from hypothesis import strategies as st
from ngdiff_kernels import cpu, reference
from strategies import pairs
from test_reference import HYPERS, NONFINITE, PLAIN, doubles, fresh_state, make_torch_optimizer

if torch.get_default_device().type != "cpu":
    pytest.skip("this backend is for CPUs", allow_module_level=True)
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler: install g++"
)
TRUE, FALSE = torch.tensor(True), torch.tensor(False)
# Compiling takes seconds each, so one of each kind.
every_hyper = pytest.mark.parametrize("name", ["sgd", "nesterov, weight decay", "adamw, weight decay"])
N = 5 * cpu.ROW + 61
BOUND = 68 * U32  # a row of 512 in lanes of 8: one product, 64 additions a lane, and 3 to sum the lanes


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(cpu, "SHORT", cpu.ROW)


def products(retain, forget):
    r, f = retain.double(), forget.double()
    return torch.stack([r @ r, f @ f, r @ f]), torch.stack([r @ r, f @ f, r.abs() @ f.abs()])


@needs_compiler
@settings(max_examples=100)
@given(pair=pairs(), repeat=st.integers(1, 5))
def test_gram(pair, repeat):
    retain, forget = pair.retain.repeat(repeat * 40), pair.forget.repeat(repeat * 40)
    exact, size = products(retain, forget)
    assert_within(cpu.gram(retain, forget), exact, BOUND * size)


@needs_compiler
@pytest.mark.parametrize("n", [cpu.ROW, cpu.ROW + 1, N])
def test_gram_of_every_size(n):
    retain, forget = torch.randn(n), torch.randn(n)
    exact, size = products(retain, forget)
    assert_within(cpu.gram(retain, forget), exact, BOUND * size)
    assert_bitwise_equal(cpu.gram(retain.clone(), forget.clone()), cpu.gram(retain, forget))


@needs_compiler
def test_gram_of_constants_whose_roundings_add_up():
    for mantissa in torch.linspace(1, 2, 101).tolist():
        retain, forget = torch.full((64 * cpu.ROW,), mantissa), torch.rand(64 * cpu.ROW) + 0.5
        exact, size = products(retain, forget)
        assert_within(cpu.gram(retain, forget), exact, 1e-6 * size)  # what is promised of every backend


@needs_compiler
@pytest.mark.parametrize("scale", [2.0**-149, 1e-30, 1e-20, 1e15, 1e25, 3e38])
def test_gram_outside_the_range_of_float32(scale):
    retain, forget = torch.randn(N).sign() * scale, torch.randn(N)
    exact, size = products(retain, forget)
    assert_within(cpu.gram(retain, forget), exact, BOUND * size)


@needs_compiler
@pytest.mark.parametrize("bad", NONFINITE)
def test_gram_is_not_finite_where_a_gradient_is_not(bad):
    retain = torch.randn(N)
    retain[200] = bad
    assert not cpu.gram(retain, torch.randn(N)).isfinite().all()


@needs_compiler
@every_hyper
def test_steps_are_those_of_torch_optim(name):
    hyper, lr, steps = HYPERS[name], 0.05, 6
    theta = torch.randn(N)
    parameter = torch.nn.Parameter(theta.clone())
    state, theirs = fresh_state(theta, hyper), make_torch_optimizer(parameter, hyper, lr)
    for number in range(steps):
        gradient, other = torch.randn(N), torch.randn(N)
        parameter.grad = gradient.clone()
        theirs.step()
        if number % 2:
            cpu.base_step_(theta, gradient, TRUE, state, hyper, lr)
        else:
            cpu.step_(theta, gradient, other, doubles(1.0, 0.0), TRUE, state, hyper, lr)
        # As for the reference: at most 20 roundings a step, of terms no larger than 8.
        assert_within(theta, parameter.detach(), steps * 20 * U32 * 8)
    for entry, buffer in state.items():
        assert_within(buffer, theirs.state[parameter][entry], steps * 3 * U32 * 60)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
@every_hyper
def test_a_probe_looks_where_the_step_would_go_and_writes_elsewhere(name, compiled, monkeypatch):
    monkeypatch.setattr(cpu, "SHORT", cpu.ROW if compiled else 2 * N)
    hyper = HYPERS[name]
    theta, d, out = torch.randn(N), torch.randn(N), torch.full((N,), float("nan"))
    state = fresh_state(theta, hyper)
    for _ in range(2):  # so that moments and the count of steps are not those of the beginning
        cpu.base_step_(theta, torch.randn(N), TRUE, state, hyper, 0.05)
    before = [tensor.clone() for tensor in (theta, d, *state.values())]
    cpu.probe_(out, theta, d, state, hyper, 0.3)
    for tensor, value in zip((theta, d, *state.values()), before, strict=True):
        assert_bitwise_equal(tensor, value)
    cpu.base_step_(theta, d, TRUE, state, hyper, -0.3)
    assert_within(out, theta, 20 * U32 * 8)  # at most 20 roundings, of terms no larger than 8, as a step has


@needs_compiler
@given(c_r=st.floats(0, 2**90), c_f=st.floats(0, 2**90))
def test_the_combination(c_r, c_f):
    theta, retain, forget = torch.zeros(N), torch.randn(N) * 2.0**-10, torch.randn(N)
    cpu.step_(theta, retain, forget, doubles(c_r, c_f), TRUE, {}, PLAIN, 1.0)
    r, f = c_r * retain.double(), c_f * forget.double()
    assert_within(theta, f - r, 4 * U32 * (r.abs() + f.abs()) + 2.0**-148)


@needs_compiler
@every_hyper
def test_refused_step_writes_nothing(name):
    theta, state = torch.randn(N), fresh_state(torch.randn(N), HYPERS[name])
    before = [tensor.clone() for tensor in (theta, *state.values())]
    bad = torch.full((N,), float("nan"))
    cpu.step_(theta, bad, bad, doubles(1.0, 1.0), FALSE, state, HYPERS[name], 0.1)
    cpu.base_step_(theta, bad, FALSE, state, HYPERS[name], 0.1)
    for tensor, value in zip((theta, *state.values()), before, strict=True):
        assert_bitwise_equal(tensor, value)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
@every_hyper
def test_gradients_of_bfloat16_beside_weights_of_float32(name, compiled, monkeypatch):
    """As the same gradients in float32, which hold them exactly."""
    monkeypatch.setattr(cpu, "SHORT", cpu.ROW if compiled else 2 * N)
    hyper, pair = HYPERS[name], (torch.randn(N).bfloat16(), torch.randn(N).bfloat16())
    wide = tuple(g.float() for g in pair)
    exact, size = products(*pair)
    assert_within(cpu.gram(*pair), exact, BOUND * size)
    theta = torch.randn(N)
    found = []
    for retain, forget in (pair, wide):
        values, out, state = theta.clone(), torch.empty(N), fresh_state(theta, hyper)
        cpu.step_(values, retain, forget, doubles(0.7, 0.3), TRUE, state, hyper, 0.05)
        cpu.base_step_(values, forget, TRUE, state, hyper, 0.05)
        cpu.probe_(out, values, retain, state, hyper, 0.3)
        found.append([values, out, *state.values()])
    for one, two in zip(*found, strict=True):
        assert_within(one, two, 20 * U32 * 8)  # a compiler may fuse other pairs of operations
    d, expected = pair[0].clone(), (0.7 * wide[0].double() - 0.3 * wide[1].double())
    cpu.combine_(d, pair[1], doubles(0.7, 0.3))
    assert d.dtype == torch.bfloat16
    assert_within(d, expected, torch.finfo(torch.bfloat16).eps / 2 * expected.abs() + 4 * U32 * 8)


# Without the compiler


@pytest.fixture
def never_compiled(monkeypatch):
    monkeypatch.setattr(cpu, "_compiled", lambda function: pytest.fail(f"{function.__name__} was compiled"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_gradients_of_other_dtypes_are_left_to_the_reference(never_compiled, dtype):
    pair = torch.randn(N).to(dtype), torch.randn(N).to(dtype)
    assert_bitwise_equal(cpu.gram(*pair), reference.gram(*pair))
    one, two = pair[0].clone(), pair[0].clone()
    cpu.combine_(one, pair[1], doubles(1.0, 0.5))
    reference.combine_(two, pair[1], doubles(1.0, 0.5))
    assert_bitwise_equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_other_dtypes_are_left_to_the_reference(never_compiled, dtype):
    pair = torch.randn(N).to(dtype), torch.randn(N).to(dtype)
    one, two = torch.randn(N).to(dtype).clone().repeat(2, 1)
    cpu.step_(one, *pair, doubles(1.0, 0.5), TRUE, {}, PLAIN, 0.1, 3)
    reference.step_(two, *pair, doubles(1.0, 0.5), TRUE, {}, PLAIN, 0.1, 3)
    assert_bitwise_equal(one, two)


@pytest.mark.parametrize("n", [0, 1, 60, cpu.ROW, N, 4 * cpu.ROW])
@pytest.mark.parametrize("hyper", HYPERS.values(), ids=HYPERS)
def test_short_buffers_are_taken_a_piece_at_a_time(never_compiled, monkeypatch, hyper, n):
    monkeypatch.setattr(cpu, "SHORT", 10 * N)
    monkeypatch.setattr(cpu, "PIECE", 2 * cpu.ROW)
    exact, size = products(*(pair := (torch.randn(n), torch.randn(n))))
    assert_within(cpu.gram(*pair), exact, BOUND * size)
    theta = torch.randn(n)
    parameter = torch.nn.Parameter(theta.clone())
    state, theirs = fresh_state(theta, hyper), make_torch_optimizer(parameter, hyper, 0.05)
    for _ in range(6):
        parameter.grad = torch.randn(n)
        theirs.step()
        cpu.step_(theta, parameter.grad, torch.randn(n), doubles(1.0, 0.0), TRUE, state, hyper, 0.05)
    assert_within(theta, parameter.detach(), 6 * 20 * U32 * 8)


@pytest.mark.parametrize("c", [2.0**-120, 2.0**140])
def test_coefficients_outside_the_range_are_left_to_the_reference(monkeypatch, c):
    monkeypatch.setattr(cpu, "_compiler_works", lambda: pytest.fail("float32 was tried"))
    one = torch.zeros(N)
    two, retain, forget = one.clone(), torch.randn(N) / c, torch.randn(N)
    cpu.step_(one, retain, forget, doubles(c, 1.0), TRUE, {}, PLAIN, 1.0)
    reference.step_(two, retain, forget, doubles(c, 1.0), TRUE, {}, PLAIN, 1.0)
    assert_bitwise_equal(one, two)


def test_without_a_compiler_there_is_one_warning_and_the_same_result(monkeypatch):
    def broken(function):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cpu, "_compiled", broken)
    cpu._compiler_works.cache_clear()
    pair = torch.randn(N), torch.randn(N)
    exact, size = products(*pair)
    try:
        with pytest.warns(
            UserWarning, match=r"torch.compile does not work here \(RuntimeError\), so steps are slower"
        ) as found:
            first, second = cpu.gram(*pair), cpu.gram(*pair)
    finally:
        cpu._compiler_works.cache_clear()
    assert len(found) == 1
    assert_within(first, exact, BOUND * size)
    assert_bitwise_equal(second, first)
