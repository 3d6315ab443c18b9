"""The reference is what faster backends are compared with, so it is compared with exact arithmetic and with torch.optim."""

import pytest
import strategies
import torch
from asserts import U32, U64, assert_bitwise_equal, assert_within
from hypothesis import given
from hypothesis import strategies as st
from ngdiff_kernels import reference, state_shapes
from oracle import exact_products
from strategies import Pair, pairs

UNIT = {torch.float32: U32, torch.float64: U64}
SHAPES = (0, 1, 2, 61, strategies.CHUNK, 2 * strategies.CHUNK + 1)
TRUE, FALSE = torch.tensor(True), torch.tensor(False)
NONFINITE = [float("nan"), float("inf"), float("-inf")]

PLAIN = {"base": "sgd", "momentum": 0.0, "nesterov": False, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
HYPERS = {
    "sgd": PLAIN,
    "sgd, weight decay": PLAIN | {"weight_decay": 0.1},
    "momentum": PLAIN | {"momentum": 0.9},
    "momentum, weight decay": PLAIN | {"momentum": 0.5, "weight_decay": 0.1},
    "nesterov": PLAIN | {"momentum": 0.9, "nesterov": True},
    "nesterov, weight decay": PLAIN | {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
    "adamw": PLAIN | {"base": "adamw"},
    "adamw, weight decay": PLAIN | {"base": "adamw", "betas": (0.8, 0.95), "weight_decay": 0.1},
    "adamw, eps": PLAIN | {"base": "adamw", "eps": 0.5},
}
every_hyper = pytest.mark.parametrize("hyper", HYPERS.values(), ids=HYPERS)
both_dtypes = pytest.mark.parametrize("dtype", UNIT, ids=["float32", "float64"])


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(reference, "CHUNK", strategies.CHUNK)
        yield


def fresh_state(theta, hyper):
    flat, scalar = torch.zeros_like(theta), torch.zeros((), device=theta.device)
    return {name: (flat if shape == "flat" else scalar).clone() for name, shape in state_shapes(hyper).items()}


def make_torch_optimizer(parameter, hyper, lr):
    if hyper["base"] == "adamw":
        options = {name: hyper[name] for name in ("betas", "eps", "weight_decay")}
        return torch.optim.AdamW([parameter], lr=lr, **options)
    options = {name: hyper[name] for name in ("momentum", "nesterov", "weight_decay")}
    return torch.optim.SGD([parameter], lr=lr, **options)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def check_gram(pair: Pair):
    measured = reference.gram(pair.retain, pair.forget)
    assert (measured.dtype, measured.shape) == (torch.float64, (3,))
    both = [(pair.retain, pair.retain), (pair.forget, pair.forget), (pair.retain, pair.forget)]
    for value, (a, b) in zip(measured.tolist(), both, strict=True):
        exact, size = exact_products(a, b)
        # n products (exact for 32 bits and fewer, one rounding for 64) and n additions, in any order: (n + 1) u sum |a_i b_i|.
        assert abs(exact - value if size else value) <= (len(a) + 1) * U64 * float(size)


# gram


@both_dtypes
@given(data=st.data())
def test_gram_against_exact_arithmetic(dtype, data):
    check_gram(data.draw(pairs(dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 7, 127, 300])
def test_gram_of_low_precision_gradients_is_as_exact(dtype, n):
    check_gram(Pair(torch.randn(n).to(dtype), torch.randn(n).to(dtype), "general"))


def test_gram_of_subnormal_float32_is_exact():
    retain, forget = torch.tensor([1.0, 2.0, -5.0]) * 2.0**-149, torch.tensor([3.0, 0.0, 1.0]) * 2.0**-149
    assert retain.all()
    assert reference.gram(retain, forget).tolist() == [30 * 2.0**-298, 10 * 2.0**-298, -2 * 2.0**-298]


def test_gram_of_the_largest_float32_is_finite():
    largest = torch.finfo(torch.float32).max
    expected = 3 * largest**2  # exact: a square has 48 bits
    assert reference.gram(torch.full((3,), largest), torch.full((3,), -largest)).tolist() == [expected, expected, -expected]


def test_gram_of_nothing_is_zero():
    assert reference.gram(torch.zeros(0), torch.zeros(0)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("n", [61, 1000, 100_003])
def test_gram_is_the_same_bit_for_bit_at_every_call(monkeypatch, n):
    monkeypatch.setattr(reference, "CHUNK", 1 << 14)  # long enough for torch to use several threads on a chunk
    retain, forget = torch.randn(n), torch.randn(n)
    first = reference.gram(retain, forget)
    for _ in range(20):
        assert_bitwise_equal(reference.gram(retain.clone(), forget.clone()), first)


@given(pair=pairs(("general",)), data=st.data())
def test_gram_is_finite_exactly_where_the_gradients_are(pair, data):
    assert reference.gram(pair.retain, pair.forget).isfinite().all()
    position = data.draw(st.integers(0, len(pair.retain) - 1))
    for bad in NONFINITE:
        for task in ("retain", "forget"):
            broken = pair._replace(**{task: getattr(pair, task).clone()})
            getattr(broken, task)[position] = bad
            assert not reference.gram(broken.retain, broken.forget).isfinite().all()


def test_infinities_do_not_cancel():
    infinite = torch.tensor([float("inf"), 1.0, float("-inf")])
    assert not reference.gram(infinite, torch.zeros(3)).isfinite().all()
    assert not reference.gram(torch.zeros(3), infinite).isfinite().all()


# The combination


@both_dtypes
@given(data=st.data(), c_r=st.floats(0, 2), c_f=st.floats(0, 2))
def test_combine_is_its_formula(dtype, data, c_r, c_f):
    pair = data.draw(pairs(dtype=dtype))
    retain, forget = pair.retain.clone(), pair.forget.clone()
    reference.combine_(retain, forget, doubles(c_r, c_f))
    terms = c_r * pair.retain.double(), c_f * pair.forget.double()
    # Two products and a subtraction in float64, then one rounding to the dtype, which is absolute among its subnormals.
    bound = UNIT[dtype] * (terms[0] - terms[1]).abs() + 3 * U64 * (terms[0].abs() + terms[1].abs())
    assert_within(retain, terms[0] - terms[1], bound + torch.finfo(dtype).smallest_normal * UNIT[dtype])
    assert_bitwise_equal(forget, pair.forget)


def test_coefficients_beyond_float32_are_kept():
    """The inverse norm of a float32 gradient near 1e-42 is larger than every float32."""
    retain, forget = torch.tensor([2.0**-140, 0.0]), torch.tensor([0.0, 2.0**-145])
    reference.combine_(retain, forget, doubles(2.0**140, 2.0**145))
    assert retain.tolist() == [1.0, -1.0]


# The base optimizers


@every_hyper
@both_dtypes
@pytest.mark.parametrize("n", SHAPES)
def test_steps_are_those_of_torch_optim(hyper, dtype, n):
    lr, steps = 0.05, 6
    theta = torch.randn(n, dtype=dtype)
    parameter = torch.nn.Parameter(theta.clone())
    state, theirs = fresh_state(theta, hyper), make_torch_optimizer(parameter, hyper, lr)
    for _ in range(steps):
        gradient, other = torch.randn(n, dtype=dtype), torch.randn(n, dtype=dtype)
        parameter.grad = gradient.clone()
        theirs.step()
        reference.step_(theta, gradient, other, doubles(1.0, 0.0), TRUE, state, hyper, lr)
        # At most 20 roundings a step, of terms no larger than 8: |theta| < 6, |d| < 6, lr |direction| < 1.
        assert_within(theta, parameter.detach(), steps * 20 * UNIT[dtype] * 8)
    for name, buffer in state.items():
        expected = theirs.state[parameter][name]
        # Moments: 6 steps of 3 roundings, of terms no larger than 6 (momentum 6 / (1 - 0.9), squares 36).
        assert_within(buffer, expected, steps * 3 * UNIT[dtype] * 60)
        assert name != "step" or buffer.item() == steps


@every_hyper
@both_dtypes
def test_combine_then_base_step_is_step(hyper, dtype):
    theta, lr = torch.randn(130, dtype=dtype), 0.05
    one, two = theta.clone(), theta.clone()
    state_one, state_two = fresh_state(theta, hyper), fresh_state(theta, hyper)
    for _ in range(3):
        retain, forget, coefficients = torch.randn_like(theta), torch.randn_like(theta), doubles(0.7, 0.2)
        reference.step_(one, retain.clone(), forget, coefficients, TRUE, state_one, hyper, lr)
        reference.combine_(retain, forget, coefficients)
        d = retain.clone()
        reference.base_step_(two, d, TRUE, state_two, hyper, lr)
        assert_bitwise_equal(d, retain)
        assert not one.equal(theta)
        assert_bitwise_equal(one, two)
        for name in state_one:
            assert_bitwise_equal(state_one[name], state_two[name])


@pytest.mark.parametrize("lr", [0.25, torch.tensor(0.25)], ids=["number", "tensor"])
def test_the_rate_may_be_a_tensor(lr):
    theta = torch.tensor([1.0, -2.0, 3.0])
    reference.base_step_(theta, torch.tensor([4.0, 0.0, -8.0]), TRUE, {}, PLAIN, lr)
    assert theta.tolist() == [0.0, -2.0, 5.0]


# A refused step


@every_hyper
@both_dtypes
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("bad", NONFINITE)
def test_refused_step_writes_nothing(hyper, dtype, steps_before, bad):
    theta = torch.randn(66, dtype=dtype)
    state = fresh_state(theta, hyper)
    for _ in range(steps_before):
        reference.step_(theta, torch.randn_like(theta), torch.zeros_like(theta), doubles(1, 0), TRUE, state, hyper, 0.0)
    assert all(buffer.any() for buffer in state.values()) or steps_before == 0
    for buffer in [theta, *(buffer for buffer in state.values() if buffer.dim())]:
        buffer[:3] = torch.tensor([-0.0, 0.0, 1e-40])  # signed zeros and a subnormal
    before, state_before = theta.clone(), {name: buffer.clone() for name, buffer in state.items()}
    retain, forget = torch.randn_like(theta), torch.randn_like(theta)
    retain[5] = forget[7] = bad
    reference.step_(theta, retain, forget, doubles(bad, 1.0), FALSE, state, hyper, 0.1)
    assert_bitwise_equal(theta, before)
    for name, buffer in state.items():
        assert_bitwise_equal(buffer, state_before[name])


@every_hyper
def test_refused_steps_leave_no_mark_on_later_ones(hyper):
    theta = torch.randn(66)
    one, two = theta.clone(), theta.clone()
    state_one, state_two = fresh_state(theta, hyper), fresh_state(theta, hyper)
    for i in range(4):
        gradient, zero = torch.randn(66), torch.zeros(66)
        reference.step_(one, gradient.clone(), zero, doubles(1, 0), TRUE, state_one, hyper, 0.1)
        if i % 2 == 0:
            reference.step_(two, gradient / 0, zero.clone(), doubles(1, 0), FALSE, state_two, hyper, 0.1)
        reference.step_(two, gradient.clone(), zero.clone(), doubles(1, 0), TRUE, state_two, hyper, 0.1)
    assert_bitwise_equal(one, two)


# probe_


@every_hyper
@both_dtypes
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("n", SHAPES)
def test_probe_looks_where_the_step_would_go_and_writes_elsewhere(hyper, dtype, steps_before, n):
    theta = torch.randn(n, dtype=dtype)
    state = fresh_state(theta, hyper)
    for _ in range(steps_before):
        reference.base_step_(theta, torch.randn_like(theta), TRUE, state, hyper, 0.05)
    d, out = torch.randn_like(theta), torch.full_like(theta, 7.0)
    before = [tensor.clone() for tensor in (theta, d, *state.values())]
    for h in (0.0, 0.3, -0.3, 1e-8, 1e8):
        reference.probe_(out, theta, d, state, hyper, h)
        for tensor, value in zip((theta, d, *state.values()), before, strict=True):
            assert_bitwise_equal(tensor, value)
        arrived = theta.clone()
        reference.base_step_(arrived, d, TRUE, {name: buffer.clone() for name, buffer in state.items()}, hyper, -h)
        assert out.equal(arrived)
        assert n == 0 or abs(h) < 0.1 or not out.equal(theta)
