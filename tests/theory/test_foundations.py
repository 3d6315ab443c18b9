"""What the claims stand on: exact numbers, losses and their derivatives, independent Pareto checks, fitted orders."""

import pytest
import sympy
import torch
from flint import arb, fmpq
from hypothesis import given
from hypothesis import strategies as st

from theory import pareto
from theory.exact import ExactPair, rational, rationals
from theory.losses import PROFILES, Line, TwoTasks, curvature_bounds, quadratic
from theory.orders import ladder, longest_step, order
from theory.strategies import opposing_logistics, opposing_quadratics, two_tasks, vectors

X = sympy.Symbol("x", real=True)
FORMULAS = {"square": X**2 / 2, "softplus": sympy.log(1 + sympy.exp(X)), "sine": sympy.sin(X)}
POINTS = [k / 8 for k in range(-80, 81)]


def test_rationals_are_exact():
    assert rational(0.1) == fmpq(3602879701896397, 36028797018963968)
    assert rationals(torch.tensor([0.5, -2.0])) == [fmpq(1, 2), fmpq(-2)]
    with pytest.raises(ValueError, match="nan is no number"):
        rational(float("nan"))


def test_nearly_parallel_gradients_are_told_apart():
    r = torch.tensor([1.0, 0.0], dtype=torch.float64)
    near = ExactPair(r, torch.tensor([1.0, 1e-20], dtype=torch.float64))
    assert not near.same_way
    assert float(near.one_minus_cosine) == pytest.approx(5e-41)  # float64 would say 0
    same = ExactPair(r, 3 * r)
    assert same.same_way
    assert same.one_minus_cosine == 0
    assert not ExactPair(r, -r).same_way


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_derivatives_of_one_another(name):
    """Each function, in balls and on tensors, against sympy's derivative of the formula."""
    for k, function in enumerate(PROFILES[name].derivatives):
        expected = sympy.lambdify(X, sympy.diff(FORMULAS[name], X, k), "mpmath")
        for x in POINTS[::10]:
            assert float(function(arb(x))) == pytest.approx(float(expected(x)), rel=1e-12, abs=1e-13)
    x = torch.tensor(POINTS, dtype=torch.float64)
    tensors = (PROFILES[name].torch, PROFILES[name].slope, PROFILES[name].curvature)
    for function, exact in zip(tensors, PROFILES[name].derivatives, strict=False):
        assert function(x).tolist() == pytest.approx([float(exact(arb(p))) for p in POINTS], rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("name", PROFILES)
def test_bounds_of_derivatives(name):
    """Nowhere exceeded, and reached to a percent by the second to fourth; the fifth and sixth as T6 says."""
    bounds = [float(b) for b in PROFILES[name].bounds]
    for k, bound in zip((2, 3, 4, 5, 6), (*bounds, 2 * bounds[1], 2 * bounds[2]), strict=True):
        derivative = sympy.lambdify(X, sympy.diff(FORMULAS[name], X, k), "mpmath")
        largest = max(abs(float(derivative(x))) for x in POINTS)
        assert largest <= bound * (1 + 1e-12)
        assert k > 4 or largest >= 0.98 * bound


@given(two_tasks())
def test_gradient_and_hessian(tasks):
    theta = tasks.point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(tasks.retain(theta), theta)
    error = 2 * tasks.retain.gradient_error(tasks.point)
    assert float((gradient - tasks.retain.gradient(tasks.point)).norm()) <= error
    hessian = torch.autograd.functional.hessian(tasks.retain, tasks.point)
    assert torch.allclose(hessian, tasks.retain.hessian(tasks.point), rtol=1e-10, atol=1e-10 * float(hessian.abs().max()))


@given(two_tasks(dimensions=(1, 3)), st.sampled_from((1.0, 1e-3, 7.0)))
def test_line(tasks, eta):
    """A loss along a step, its derivatives, and that no derivative exceeds its bound."""
    d = torch.linspace(-1, 2, len(tasks.theta), dtype=torch.float64)
    line, loss = Line(tasks.retain, tasks.point, d), tasks.retain
    size = max(1.0, float(abs(loss(tasks.point))), float(abs(loss(tasks.point - eta * d))))
    assert float(line.value(eta)) == pytest.approx(float(loss(tasks.point - eta * d)), abs=1e-12 * size)
    assert float(line.change(eta)) == pytest.approx(float(loss(tasks.point - eta * d) - loss(tasks.point)), abs=1e-12 * size)
    scale = max(1.0, *(abs(w) for w in loss.weights))
    assert float(line.slope) == pytest.approx(float(loss.gradient(tasks.point) @ d), abs=1e-11 * scale)
    assert float(line.curvature) == pytest.approx(float(d @ loss.hessian(tasks.point) @ d), abs=1e-11 * scale)
    # Up to the last of 400 bits: a quadratic reaches its bound.
    assert all(abs(line.derivative(k)) <= line.bound(k) * (1 + arb(2) ** -300) + arb(2) ** -300 for k in (2, 3, 4))


@given(opposing_quadratics(dimensions=(1, 2, 3), conditions=(1, 10)))
def test_two_ways_to_find_the_gain_agree(tasks):
    exact, rounding = pareto.quadratic_gain(tasks, tasks.point)
    found = pareto.convex_gain(tasks, tasks.point, price=0.0)
    assert found <= exact + rounding + 1e-6 * (1 + exact)
    assert found >= exact - 1e-4 * (1 + exact)


@given(opposing_logistics(smallest=(1.0, 0.1)), st.sampled_from((0.1, 0.5, 0.9)))
def test_pareto_set_of_logistic_losses(tasks, c):
    """A minimiser of c f + (1 - c) g, found by gradient descent in float64, is in the set; beside it the distance is seen."""
    joint = tasks.retain.times(c) + (-tasks.forget).times(1 - c)
    assert joint.gradient(torch.from_numpy(pareto._newton(joint))).norm() <= 1e-9
    x = torch.zeros_like(tasks.point)
    rate = 1 / curvature_bounds(joint)[1]
    for _ in range(20_000):
        step = rate * joint.gradient(x)
        x = x - step
        if step.norm() < 1e-13:
            break
    assert pareto.distance_to_pareto_set(tasks, x, c) <= 1e-6
    centre = torch.tensor([100.0] * len(x), dtype=torch.float64)
    ends = [torch.from_numpy(pareto.minimiser(loss)) for loss in (tasks.retain, tasks.forget)]
    far = pareto.distance_to_pareto_set(tasks, centre, c)
    assert far <= min(float((centre - end).norm()) for end in ends)


@given(opposing_logistics(smallest=(1.0, 0.1)))
def test_curvature_bounds(tasks):
    low, high = curvature_bounds(tasks.retain)
    found = torch.linalg.eigvalsh(tasks.retain.hessian(tasks.point))
    assert low <= float(found[0]) * (1 + 1e-12)
    assert float(found[-1]) <= high


def test_gain_is_zero_on_the_pareto_set_alone():
    tasks = TwoTasks(quadratic([1, 1], [0, 0], [0, 0]), -quadratic([1, 1], [0, 0], [2, 0]), (0.0, 0.0))
    on, off = torch.tensor([[0.5, 0.0], [0.5, 0.3]], dtype=torch.float64)
    assert pareto.quadratic_gain(tasks, on)[0] == pytest.approx(0, abs=1e-12)
    assert pareto.quadratic_gain(tasks, off)[0] > 0.01
    assert pareto.distance_to_pareto_set(tasks, off) == pytest.approx(0.3, abs=1e-6)


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=6))
def test_supported_points_are_those_that_minimise_for_some_weight(points):
    """Points of [-4, 4]^2 differ by 8 at most, so a range of slopes that is not empty contains one with terms up to 17."""
    weights = [(k, m) for k in range(1, 18) for m in range(1, 18)]

    def minimises(i):
        values = lambda k, m: [k * r - m * f for r, f in points]  # noqa: E731
        return any(values(k, m)[i] == min(values(k, m)) for k, m in weights)

    for i in range(len(points)):
        assert pareto.supported(points, i) == minimises(i)


@pytest.mark.parametrize(("power", "accepted"), [(1, False), (2, True), (3, False)])
def test_order_tells_powers_apart(power, accepted):
    steps = ladder(longest_step(arb(1), arb(1), 2))
    measured = order(lambda eta: eta**power + eta ** (power + 1) / 3, steps, 2, "order")
    assert measured.holds is accepted


@given(st.data())
def test_vectors_shrink_to_something_that_can_be_read(data):
    assert all(x == int(x) and abs(x) <= 9 for x in data.draw(vectors(5)))
