import itertools
import math
import re

import oracle
import pytest
import torch
from asserts import U32, U64, assert_bitwise_equal, assert_within
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle, Problem, copy_of, mlp_problem, quadratic_problem, run_tasks, weights
from torch import nn

from ngdiff import AutoLearningRate, TwoTaskOptimizer, rules
from ngdiff.learning_rate import NOTHING, Refresh, fit_parabola, propose

NAN, INF = float("nan"), float("inf")


def in_float32(x: float) -> float:
    return torch.tensor(x, dtype=torch.float32).item()


# fit_parabola


@given(
    loss=st.floats(-10, 10),
    slope=st.floats(-5, 5),
    curvature=st.floats(0.1, 50),
    h=st.sampled_from([1e-2, 0.3, 1.0, 7.0, 100.0]),
)
def test_the_fit_is_exact_on_quadratics_at_any_probe_step(loss, slope, curvature, h):
    def at(t: float) -> float:  # theta + t d, so eta = -t
        return loss + slope * t + curvature * t * t / 2

    fit = fit_parabola(at(-h), at(0.0), at(h), h)
    # Each of the losses has 5 roundings of terms below `size`, and the differences add 3: 8 u for each of the weights 1, 2, 1.
    size = abs(loss) + abs(slope) * h + curvature * h * h
    assert fit.loss == loss
    assert abs(fit.slope - slope) <= 2 * 8 * U64 * size / (2 * h)
    error = 4 * 8 * U64 * size / h**2
    assert abs(fit.curvature - curvature) <= error
    if error < curvature / 2:
        relative = 2 * (error / curvature) + U64
        assert abs(fit.minimiser - slope / curvature) <= relative * abs(slope / curvature) + 16 * U64 * size / h / curvature


def test_the_error_of_the_fit_is_of_second_order():
    """L(theta + t d) = exp(t): eta* is 1, and the fitted minimiser (h/2) coth(h/2) = 1 + h^2/12 - h^4/720 + ..."""
    steps = [2.0**-k for k in range(1, 6)]
    errors = [fit_parabola(math.exp(-h), 1.0, math.exp(h), h).minimiser - 1 for h in steps]
    for h, error in zip(steps, errors, strict=True):
        # The second difference of losses near 1 is off by 4 u 2 / h^2, as in the test above.
        assert abs(error - h**2 / 12) <= h**4 / 720 + 8 * U64 / h**2
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    # The next term is h^2/60 of the first, so the order is off by (h^2/60) (3/4) / ln 2 <= 0.0046 at h = 1/2.
    assert all(abs(order - 2) <= 0.005 for order in orders)


@given(loss=st.floats(1e-3, 1e3), share=st.floats(0, 0.5), h=st.sampled_from([1e-6, 1e-2, 1.0]))
def test_the_rounding_of_float32_losses_is_never_taken_for_curvature(loss, share, h):
    """Of a loss without curvature, all of the second difference is rounding."""
    change = share * loss
    minus, zero, plus = (in_float32(loss + sign * change) for sign in (-1, 0, 1))
    assert not fit_parabola(minus, zero, plus, h).resolved


@given(loss=st.floats(1e-3, 1e3), factor=st.floats(2.1, 1e3), sign=st.sampled_from([-1, 1]))
def test_curvature_above_the_rounding_is_resolved(loss, factor, sign):
    """With a second difference above twice the floor, rounding (at most the floor) cannot hide it."""
    second_difference = sign * factor * 4 * U32 * loss
    minus, zero, plus = (in_float32(loss + abs(i) * second_difference / 2) for i in (-1, 0, 1))
    assert fit_parabola(minus, zero, plus, 1.0).resolved


def test_the_floor_follows_the_dtype_of_the_losses():
    minus, zero, plus = 1 + 1e-9, 1.0, 1 + 1e-9
    assert not fit_parabola(minus, zero, plus, 1.0).resolved
    assert fit_parabola(minus, zero, plus, 1.0, unit_roundoff=U64).resolved


@pytest.mark.parametrize("losses", [(1.0, 1.0, 2.0), (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0)])
def test_a_parabola_without_minimum_has_none(losses):
    fit = fit_parabola(*losses, 1.0)
    assert math.isnan(fit.minimiser) == (losses[0] - 2 * losses[1] + losses[2] <= 0)


# propose


def quadratic(minimiser: float, curvature: float = 2.0, loss: float = 1.0):
    """L(theta - eta d) with its minimum at eta = minimiser, as a function of t = -eta."""
    return lambda t: loss + curvature * ((t + minimiser) ** 2 - minimiser**2) / 2


@pytest.mark.parametrize("h", [1e-6, 0.25, 8.0])
@pytest.mark.parametrize(
    ("losses", "factor", "outcome"),
    [
        ((NAN, 1.0, 1.0), 0.5, "not finite"),
        ((1.0, INF, 1.0), 0.5, "not finite"),
        ((1.0, 1.0, -INF), 0.5, "not finite"),
        ((INF, 1.0, -INF), 0.5, "not finite"),
        ((1.0, 1.0, 1.0), 2.0, "flat"),
        ((0.5, 1.0, 1.5), 2.0, "flat"),
        ((1.0 + U32, 1.0, 1.0 - U32), 2.0, "flat"),
        ((1.0 + 0.4 * U32**0.5, 1.0, 1.0 + 0.4 * U32**0.5), 2.0, "flat"),  # a second difference of 0.8 sqrt(u)
        ((1.0 + 0.6 * U32**0.5, 1.0, 1.0 + 0.6 * U32**0.5), 0.5, "uphill"),  # of 1.2 sqrt(u), and level
        ((2.0, 1.0, 0.5), 0.5, "uphill"),  # curved up, but d points uphill
        ((2.0, 1.0, -0.5), 0.5, "uphill"),  # curved down, and uphill
        ((1.0, 0.5, 1.0), 0.5, "uphill"),  # at the minimum already
        ((1.1, 1.0, 1.1 + 2.0**-23), 0.5, "level"),  # and a slope of one rounding says no other
        ((0.0, 1.0, 1.5), 1.0, "no minimum"),  # curved down, and downhill
        ((1.0, 1.0, 0.5), 1.0, "no minimum"),  # curved down, and level
    ],
)
def test_proposals_without_a_minimum_ahead(losses, factor, outcome, h):
    assert propose(*losses, h) == (factor * h, outcome)


@pytest.mark.parametrize("h", [1e-3, 0.25, 8.0])
@pytest.mark.parametrize(
    ("ratio", "factor", "outcome"),
    [(0.01, 0.01, "minimum"), (0.5, 0.5, "minimum"), (1.9, 1.9, "minimum"), (2.1, 2.0, "bounded"), (100.0, 2.0, "bounded")],
)
def test_proposals_with_a_minimum_ahead(ratio, factor, outcome, h):
    loss_at = quadratic(ratio * h, curvature=2 / h**2)  # the shape in units of h
    rate, reason = propose(loss_at(-h), loss_at(0.0), loss_at(h), h)
    assert reason == outcome
    # Losses below 250 with 8 roundings each; the second difference is 2, the minimiser (in h) is 100 at most.
    assert abs(rate / h - factor) <= 4 * 8 * U64 * 250 * 100


@given(losses=st.tuples(*[st.one_of(st.floats(-1e6, 1e6), st.sampled_from([NAN, INF, -INF]))] * 3), h=st.floats(1e-20, 1e20))
def test_a_proposal_is_positive_and_at_most_doubles(losses, h):
    rate, _ = propose(*losses, h)
    assert 0 < rate <= 2 * h


# AutoLearningRate


class Counted:
    """loss_at, counting its calls."""

    def __init__(self, loss_at):
        self.loss_at, self.probes = loss_at, []

    def __call__(self, h: float) -> float:
        self.probes.append(h)
        return self.loss_at(h)


@pytest.mark.parametrize("initial", [1e-8, 1e-2, 1e8])
@pytest.mark.parametrize("rounded", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("minimiser", [1e-5, 0.3, 1e3])
def test_the_first_search_settles_wherever_it_starts(initial, rounded, minimiser):
    exact = quadratic(minimiser, curvature=2 / minimiser**2, loss=5.0)
    auto = AutoLearningRate(initial)
    rate = auto.refresh(0, initial, lambda t: in_float32(exact(t)) if rounded else exact(t))
    # It ends with a probe h between eta* / 1.5 and 1.5 eta*, where the second difference is 0.8 at least and each loss, below
    # 20, is rounded by u (by 20 u in Python): the curvature is off by 4 * 20 u / 0.5, the slope by less.
    assert abs(rate / minimiser - 1) <= 2 * 160 * (U32 if rounded else 20 * U64)
    assert auto.trace[-1].outcome == "minimum"


def test_the_first_search_evaluates_the_start_once_and_probes_as_far_as_the_rate():
    loss_at = Counted(quadratic(0.35))
    auto = AutoLearningRate(0.1)
    assert auto.refresh(0, 0.1, loss_at) == pytest.approx(0.35, rel=1e-12)  # about 1e3 roundings of float64
    assert loss_at.probes == [0.0, -0.1, 0.1, *(sign * auto.trace[0].new for sign in (-1, 1))]
    assert [(entry.step, entry.outcome) for entry in auto.trace] == [(0, "minimum"), (0, "minimum")]
    assert [entry.old for entry in auto.trace[1:]] == [entry.new for entry in auto.trace[:-1]]


@given(
    initial=st.sampled_from([1e-6, 0.1, 1e4]),
    losses=st.lists(st.one_of(st.floats(-1e3, 1e3), st.sampled_from([NAN, INF])), min_size=9, max_size=9),
)
def test_later_refreshes_are_single_and_at_most_double(initial, losses):
    auto = AutoLearningRate(initial)
    rate = auto.refresh(0, initial, quadratic(initial, curvature=2 / initial**2))
    assert auto.trace[-1].outcome == "minimum"
    for step in (10, 20, 30):
        left = iter(losses[step // 10 - 1 :: 3])
        loss_at, entries = Counted(lambda _, left=left: next(left)), len(auto.trace)
        old, rate = rate, auto.refresh(step, rate, loss_at)
        assert 0 < rate <= 2 * old
        assert loss_at.probes == [0.0, -old, old]
        assert auto.trace[entries:] == [Refresh(step, old, rate, auto.trace[-1].outcome)]


def test_refreshes_follow_a_minimum_that_moves():
    auto = AutoLearningRate(1.0)
    rate = auto.refresh(0, 1.0, quadratic(1.0))
    rates = [rate := auto.refresh(step, rate, quadratic(5.0)) for step in (10, 20, 30, 40)]
    # A quadratic is fitted to within 1e3 roundings.
    assert rates == pytest.approx([2.0, 4.0, 5.0, 5.0], rel=1e-12)
    assert auto.refresh(50, rates[-1], quadratic(0.02)) == pytest.approx(0.02, rel=1e-10)


def test_a_minimum_farther_away_counts_only_while_the_loss_is_at_its_lowest():
    """A model that is being destroyed has a large slope, and with it a large eta*: following it would destroy more."""
    auto = AutoLearningRate(1.0)
    assert auto.refresh(0, 1.0, quadratic(1.0, loss=1.0)) == pytest.approx(1.0, rel=1e-12)
    assert auto.refresh(10, 1.0, quadratic(5.0, loss=1.5)) == pytest.approx(1.0, rel=1e-12)
    assert auto.trace[-1].outcome == "capped"
    assert auto.refresh(20, 1.0, quadratic(0.25, loss=3.0)) == pytest.approx(0.25, rel=1e-12)  # downwards nothing is capped
    assert auto.refresh(30, 0.25, quadratic(5.0, loss=3.0)) == 0.5  # and back up to the ceiling
    assert auto.refresh(40, 0.5, quadratic(5.0, loss=3.0)) == pytest.approx(1.0, rel=1e-12)
    assert auto.refresh(50, 1.0, quadratic(5.0, loss=0.9)) == 2.0
    assert auto.refresh(60, 2.0, quadratic(5.0, loss=0.95)) == 2.0  # the level is now 0.9


def test_a_flat_loss_never_takes_the_rate_beyond_the_ceiling():
    """As where the two gradients point the same way, and d is nearly 0: the next d may be long again."""
    auto = AutoLearningRate(1.0)
    rate = auto.refresh(0, 1.0, quadratic(1.0))
    for step in range(10, 200, 10):
        rate = auto.refresh(step, rate, lambda t: 1.0)
    assert rate == pytest.approx(1.0, rel=1e-12)


def test_a_search_upon_a_direction_that_is_not_downhill_ends_where_the_loss_begins_to_rise():
    """L = 1 + |t|^1.5: no minimum at any length. The rise is seen from sqrt(u) on, half of the digits of the loss."""
    visible = (U32**0.5 / 2) ** (1 / 1.5)
    for initial in (1e-8, 1.0, 1e8):
        auto = AutoLearningRate(initial)
        rate = auto.refresh(0, initial, lambda t: 1 + abs(t) ** 1.5)
        assert visible / 16 <= rate <= visible  # within the last bracket of the search
        assert auto.trace[-1].outcome == NOTHING
        assert auto.refresh(10, rate, quadratic(0.3)) == pytest.approx(0.3, rel=1e-12)  # searched again


def test_a_search_does_not_swing_between_too_short_and_too_long():
    """L = -eta + eta^4: a short probe sees the minimum far too far away, a long one far too near; it is at 0.63."""
    auto = AutoLearningRate(0.1)
    rate = auto.refresh(0, 0.1, lambda t: 2 + t + t**4)
    assert 0.63 / 1.5 <= rate <= 0.63 * 1.5
    # A leap by 16, back to where the long probe saw the minimum, and on by 2 until both agree.
    steps = [entry.new / entry.old for entry in auto.trace]
    assert steps[0] == pytest.approx(16)
    assert steps[1] < 1
    assert steps[2:-1] == pytest.approx([2, 2])


@given(
    initial=st.floats(-90, 90).map(lambda power: 10**power),
    losses=st.lists(st.one_of(st.floats(0, 1e3), st.sampled_from([NAN, INF])), min_size=101, max_size=101),
)
def test_a_search_ends_at_a_positive_rate_whatever_it_is_told(initial, losses):
    left = iter(losses)
    rate = AutoLearningRate(initial).refresh(0, initial, lambda t: next(left))
    assert 0 < rate < INF


def test_the_mode_of_the_paper_is_the_formula_alone():
    auto = AutoLearningRate(1e-3, mode="paper")
    assert auto.refresh(0, 1e-3, quadratic(5.0)) == pytest.approx(5.0, rel=1e-6)  # 1e3 roundings of losses 1e3 apart, by h^2
    assert auto.refresh(10, 1.0, quadratic(1000.0)) == pytest.approx(1000.0, rel=1e-6)  # no bound
    for losses in ((2.0, 1.0, 0.5), (0.0, 1.0, 1.5), (NAN, 1.0, 1.0), (INF, 1.0, INF)):
        left = iter((losses[1], losses[0], losses[2]))
        assert auto.refresh(20, 7.0, lambda t, left=left: next(left)) == 7.0
    assert [entry.outcome for entry in auto.trace] == ["minimum"] * 2 + ["no minimum"] * 4


def test_refreshes_are_half_as_frequent_while_the_rate_is_steady():
    auto = AutoLearningRate(1.0, every=10)
    auto.refresh(20, auto.refresh(0, 1.0, quadratic(1.0)), quadratic(1.0))
    assert [auto.due(step) for step in (30, 39, 40)] == [False, False, True]
    auto.refresh(40, 1.0, quadratic(0.1))  # a tenth: look again soon
    assert [auto.due(step) for step in (49, 50)] == [False, True]


def test_refreshes_are_frequent_in_the_beginning():
    auto, rate, seen = AutoLearningRate(1.0, every=10), 1.0, []
    for step in range(60):
        if auto.due(step):
            seen.append(step)
            rate = auto.refresh(step, rate, quadratic(1.0))
    assert seen == [0, 1, 2, 4, 8, 16, 32, 52]


@pytest.mark.parametrize("loss", [1.0, 0.0, NAN, INF])
def test_a_search_that_measures_nothing_leaves_the_rate_where_it_was(loss):
    """All losses are equal, as along d = 0, or none is a number: nothing was measured, so nothing is concluded."""
    assert AutoLearningRate(0.1).refresh(0, 0.1, lambda t: loss) == 0.1


@pytest.mark.parametrize("loss", [1.0, NAN])
def test_a_search_that_measured_nothing_is_made_again(loss):
    """`initial` is a place to start looking, so a first step without gradients must not leave the rate there for good."""
    auto = AutoLearningRate(1e-6)
    rate = auto.refresh(0, 1e-6, lambda t: loss)
    assert auto.refresh(10, rate, quadratic(0.3)) == pytest.approx(0.3, rel=1e-12)  # about 1e3 roundings of float64


def test_an_error_in_a_search_leaves_no_trace():
    auto, calls = AutoLearningRate(1e-6), itertools.count(1)

    def loss_at(t: float) -> float:
        return quadratic(0.3)(t) if next(calls) < 8 else 1 / 0

    with pytest.raises(ZeroDivisionError):
        auto.refresh(0, 1e-6, loss_at)
    assert auto.trace == []
    assert auto.refresh(0, 1e-6, quadratic(0.3)) == pytest.approx(0.3, rel=1e-12)  # about 1e3 roundings of float64


@pytest.mark.parametrize("every", [1, 3])
def test_a_refresh_is_due_until_it_is_made_and_then_again_after_some_steps(every):
    auto = AutoLearningRate(every=every, mode="paper")
    assert all(auto.due(step) for step in range(5))
    auto.refresh(5, 1.0, quadratic(1.0))
    assert [step for step in range(6, 12) if auto.due(step)] == list(range(5 + every, 12))
    auto.refresh(9, 1.0, quadratic(1.0))  # one step late
    assert [step for step in range(10, 15) if auto.due(step)] == list(range(9 + every, 15))


def test_state_dict_restores_settings_and_trace():
    auto = AutoLearningRate(0.2, every=4, unit_roundoff=2.0**-8)
    rate = auto.refresh(0, 0.2, quadratic(0.3))
    other = AutoLearningRate()
    other.load_state_dict(auto.state_dict())
    assert other == auto
    assert other.trace is not auto.trace
    for one in (auto, other):  # no second search
        assert one.refresh(4, rate, quadratic(100.0)) == 2 * rate
        assert one.refresh(8, rate, quadratic(100.0, loss=50.0)) == 2 * rate  # the ceiling
    assert other == auto


@pytest.mark.parametrize("initial", [0.0, -1.0, NAN, INF, 1e-101, 1e101])
def test_initial_out_of_range(initial):
    message = f"initial = {initial}: the first learning rate must be from 1e-100 to 1e+100, e.g. 1e-2"
    with pytest.raises(ValueError, match=re.escape(message)):
        AutoLearningRate(initial)


@pytest.mark.parametrize("roundoff", [0.0, -1.0, 1.0, NAN])
def test_unit_roundoff_out_of_range(roundoff):
    with pytest.raises(ValueError, match=rf"unit_roundoff = {roundoff}: must be in \(0, 1\)"):
        AutoLearningRate(unit_roundoff=roundoff)


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"mode = 'bold': unknown; choose one of robust, paper"):
        AutoLearningRate(mode="bold")
    with pytest.raises(ValueError, match=r"lr = 'fast': give a number > 0, or 'auto' or 'paper'"):
        TwoTaskOptimizer(mlp_problem().model.parameters(), lr="fast")
    assert TwoTaskOptimizer(mlp_problem().model.parameters(), lr="paper").auto.mode == "paper"


@pytest.mark.parametrize("every", [0, -3])
def test_every_out_of_range(every):
    with pytest.raises(ValueError, match=rf"every = {every}: the number of steps between refreshes must be >= 1, e.g. 10"):
        AutoLearningRate(every=every)


# In the optimizer

BASES = {
    "sgd": {"base": "sgd"},
    "momentum": {"base": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    "adamw": {"base": "adamw", "eps": 1e-2, "weight_decay": 0.1},
}
every_base = pytest.mark.parametrize("base", BASES)


def take_step(optimizer: TwoTaskOptimizer, problem: Problem, probe=None) -> None:
    run_tasks(optimizer, problem)
    optimizer.step(probe=probe or (lambda: problem.retain(problem.model)))


def test_the_rate_is_slope_over_curvature_on_a_quadratic():
    problem, hessian = quadratic_problem()
    slow = Oracle(problem, "ngdiff", lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    optimizer = TwoTaskOptimizer(problem.model.parameters(), lr=AutoLearningRate(every=1))
    rate = math.inf
    for step in range(4):
        d, (g_r, _) = slow.direction(), slow.gradients()
        best = (g_r @ d / (d @ hessian @ d)).item()
        expected = min(best, 2 * rate)  # after the search the rate at most doubles
        due = optimizer.auto.due(step)
        take_step(optimizer, problem)
        rate, expected = optimizer.param_groups[0]["lr"], expected if due else rate
        # Losses below 100, differences above 1e-3, at most 1e3 roundings: a relative error of 1e3 * 100 / 1e-3 u = 1e-8.
        assert abs(rate / expected - 1) <= 1e-8
        slow.optimizer.param_groups[0]["lr"] = rate
        slow.step()
        assert_within(weights(problem.model), slow.weights(), 1e-8)


@every_base
def test_a_refresh_step_is_a_plain_step_at_the_rate_that_it_chose(base):
    """Probes leave no trace: the same bits as without them."""
    problem = mlp_problem(torch.float32)
    auto = TwoTaskOptimizer(problem.model.parameters(), lr=AutoLearningRate(0.1, every=2), **BASES[base])
    twin = copy_of(problem)
    fixed = TwoTaskOptimizer(twin.model.parameters(), lr=0.1, **BASES[base])
    for _ in range(4):
        take_step(auto, problem)
        fixed.param_groups[0]["lr"] = auto.param_groups[0]["lr"]
        take_step(fixed, twin)
        for mine, theirs in zip(problem.model.parameters(), twin.model.parameters(), strict=True):
            assert_bitwise_equal(mine.detach(), theirs.detach())
            for name, value in fixed.state[theirs].items():
                assert_bitwise_equal(auto.state[mine][name], value)
    assert {entry.step for entry in auto.auto.trace} == {0, 1, 2}  # and not at the fourth


@every_base
def test_probes_look_at_theta_plus_h_times_the_direction(base):
    problem = mlp_problem()
    optimizer = TwoTaskOptimizer(problem.model.parameters(), lr=AutoLearningRate(0.1), **BASES[base])
    take_step(optimizer, problem)  # the search
    optimizer.auto.every = 1
    before, old, seen = weights(problem.model), optimizer.param_groups[0]["lr"], []

    def probe():
        seen.append(weights(problem.model))
        assert not torch.is_grad_enabled()
        return problem.retain(problem.model)

    take_step(optimizer, problem, probe)
    direction = (before - weights(problem.model)) / optimizer.param_groups[0]["lr"]
    # Velocity at its full length: of directions that are all d it has 1 + momentum of 1 / (1 - momentum) at the second step.
    if base == "momentum":
        direction /= 1 - 0.9**2
    assert len(seen) == 3
    # Weights below 10, roundings of each side, and the quotient by a rate above 1e-3.
    bound = 10 * 8 * U64 * (1 + old / 1e-3)
    assert optimizer.param_groups[0]["lr"] > 1e-3
    for weights_seen, h in zip(seen, (0, -old, old), strict=True):
        assert_within(weights_seen, before + h * direction, bound)


@pytest.mark.parametrize("mode", ["robust", "paper"])
@pytest.mark.parametrize(
    "options", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"base": "adamw", "momentum": 0.9}]
)
def test_a_probe_is_as_long_as_momentum_will_make_the_direction(options, mode):
    """Along a constant d every step but for its length is the same: at the first one the probe has the length of the hundredth.

    Also after steps that were refused, which leave the velocity as it was. The paper's formula takes the step as it is.
    """
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    rates = torch.tensor([3.0, 4.0], dtype=torch.float64)
    line = Problem(nn.ParameterList([parameter]), lambda m: m[0] @ rates, lambda m: m[0] @ rates * 1e-9)
    seen = []

    def probe():
        seen.append(parameter.detach().norm().item())
        return parameter.detach() @ rates

    optimizer = TwoTaskOptimizer([parameter], "gdiff-1", lr=AutoLearningRate(1e-3, mode=mode), **options)
    for bad in (NAN, NAN):
        run_tasks(optimizer, line._replace(retain=lambda m, bad=bad: m[0].sum() * bad))
        optimizer.step(probe=probe)
    run_tasks(optimizer, line)
    optimizer.step(probe=probe)
    fixed = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    twin = TwoTaskOptimizer([fixed], "gdiff-1", lr=1e-3, **options)
    for _ in range(1 if mode == "paper" else 400):
        before = fixed.detach().clone()
        run_tasks(twin, line._replace(model=nn.ParameterList([fixed])))
        twin.step()
    assert seen[1] == pytest.approx((fixed.detach() - before).norm().item(), rel=1e-9)


def test_probes_come_at_refresh_steps_only():
    problem, calls = mlp_problem(), []
    optimizer = TwoTaskOptimizer(problem.model.parameters(), lr=AutoLearningRate(0.1, every=3, mode="paper"))

    def probe():
        calls.append(optimizer)
        return problem.retain(problem.model)

    counts = []
    for _ in range(7):
        take_step(optimizer, problem, probe)
        counts.append(len(calls))
    first = counts[0]
    assert first >= 3
    assert counts == [first, first, first, first + 3, first + 3, first + 3, first + 6]


@pytest.mark.parametrize(("factor", "calls"), [(1, [3, 2, 2]), (1 + 2 * U64, [3, 3, 3])])
def test_a_loss_that_is_known_saves_a_probe_where_it_is_the_same_to_the_last_bit(factor, calls):
    problem, counts = mlp_problem(), []
    optimizer = TwoTaskOptimizer(problem.model.parameters(), lr=AutoLearningRate(0.1, every=1, mode="paper"))
    for _ in calls:
        seen = []

        def probe(seen=seen):
            seen.append(weights(problem.model))
            return problem.retain(problem.model)

        run_tasks(optimizer, problem)
        loss = problem.retain(problem.model).detach()
        optimizer.step(probe=probe, probe_here=loss * factor)
        counts.append(len(seen))
    assert counts == calls


def test_the_rate_is_common_to_all_param_groups():
    problem = mlp_problem()
    groups = [{"params": problem.model[0].parameters(), "lr": 5.0}, {"params": problem.model[2].parameters()}]
    optimizer = TwoTaskOptimizer(groups, lr="auto")
    take_step(optimizer, problem)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [optimizer.auto.trace[-1].new] * 2


def test_lr_auto_starts_from_the_default_and_an_instance_from_its_own():
    model = mlp_problem().model
    assert TwoTaskOptimizer(model.parameters(), lr="auto").param_groups[0]["lr"] == AutoLearningRate().initial
    auto = AutoLearningRate(0.3)
    optimizer = TwoTaskOptimizer(mlp_problem().model.parameters(), lr=auto)
    assert optimizer.auto is auto
    assert optimizer.param_groups[0]["lr"] == 0.3


def fail_in_the_probe(optimizer: TwoTaskOptimizer, problem: Problem, call: int) -> None:
    """A step whose probe raises at the given call."""
    calls = itertools.count(1)

    def probe():
        if next(calls) == call:
            raise MemoryError("from the user")
        return problem.retain(problem.model)

    with pytest.raises(MemoryError, match="from the user"):
        take_step(optimizer, problem, probe)


@every_base
@pytest.mark.parametrize("call", [1, 2, 4])
def test_an_error_in_the_probe_leaves_the_weights(base, call):
    problem = mlp_problem()
    optimizer = TwoTaskOptimizer(problem.model.parameters(), lr="auto", **BASES[base])
    assert len(optimizer.state) == 4  # to look at it moves the weights into their buffer
    before = [(p.detach().clone(), p.data_ptr()) for p in problem.model.parameters()]
    fail_in_the_probe(optimizer, problem, call)
    for p, (value, pointer) in zip(problem.model.parameters(), before, strict=True):
        assert p.data_ptr() == pointer
        assert_bitwise_equal(p.detach(), value)


@every_base
@pytest.mark.parametrize("call", [1, 4])  # before anything was probed, and within the search
def test_a_step_after_an_error_in_the_probe_is_as_if_it_had_not_been(base, call):
    """The buffers of the tasks held the direction and the probed weights; none of it may reach the next step."""
    problem = mlp_problem()
    twin = copy_of(problem)
    optimizer = TwoTaskOptimizer(problem.model.parameters(), lr="auto", **BASES[base])
    other = TwoTaskOptimizer(twin.model.parameters(), lr="auto", **BASES[base])
    fail_in_the_probe(optimizer, problem, call)
    take_step(optimizer, problem)
    take_step(other, twin)
    for mine, theirs in zip(problem.model.parameters(), twin.model.parameters(), strict=True):
        assert_bitwise_equal(mine.detach(), theirs.detach())


def test_the_gradients_of_a_step_whose_probe_failed_are_not_used_again():
    problem = mlp_problem()
    optimizer = TwoTaskOptimizer(problem.model.parameters(), lr="auto")
    fail_in_the_probe(optimizer, problem, 3)
    with pytest.raises(RuntimeError, match="no gradient for task"):
        optimizer.step(probe=lambda: problem.retain(problem.model))


def test_probes_of_a_refresh_see_the_same_dropout_mask_and_leave_the_random_state():
    problem = mlp_problem()
    model = nn.Sequential(problem.model, nn.Dropout(0.5))
    problem, masks, draws = problem._replace(model=model), [], []
    optimizer = TwoTaskOptimizer(model.parameters(), lr="auto")

    def probe():
        masks.append(model(torch.ones(50, 3).double()).ne(0))
        draws.append(torch.rand(4))
        return problem.retain(model)

    run_tasks(optimizer, problem)
    state = torch.get_rng_state()
    optimizer.step(probe=probe)
    assert torch.get_rng_state().equal(state)
    assert len(masks) >= 3
    assert all(mask.equal(masks[0]) for mask in masks)
    assert all(draw.equal(draws[0]) for draw in draws)
    assert not masks[0].all()
    # The mask is that of a forward pass that starts from the present random state.
    assert model(torch.ones(50, 3).double()).ne(0).equal(masks[0])


def test_a_refresh_with_two_zero_gradients_is_a_no_op():
    problem = mlp_problem()
    zero = problem._replace(retain=lambda m: 0 * problem.retain(m), forget=lambda m: 0 * problem.forget(m))
    optimizer = TwoTaskOptimizer(problem.model.parameters(), lr="auto")
    before, rate = weights(problem.model), optimizer.param_groups[0]["lr"]
    take_step(optimizer, zero, lambda: problem.retain(problem.model))
    assert_bitwise_equal(weights(problem.model), before)
    assert optimizer.param_groups[0]["lr"] == rate


def test_a_refused_refresh_is_made_up_at_the_next_step():
    """`initial` is where the search starts, so no step is taken at it without having looked."""
    problem = mlp_problem()
    optimizer = TwoTaskOptimizer(problem.model.parameters(), lr=AutoLearningRate(1e-8))
    take_step(optimizer, problem._replace(retain=lambda model: problem.retain(model) * NAN))
    assert optimizer.skipped_steps == 1
    take_step(optimizer, problem)
    assert optimizer.auto.trace
    assert optimizer.param_groups[0]["lr"] > 1e-4


@every_base
@pytest.mark.parametrize("rule", [name for name in rules.names() if name != "munba"])
def test_the_rate_stays_finite_with_every_rule_and_base(rule, base):
    """Also where d ascends the retain loss, as GA's does, and there is no minimum to find."""
    problem = mlp_problem()
    optimizer = TwoTaskOptimizer(problem.model.parameters(), rule, lr="auto", **BASES[base])
    start = problem.retain(problem.model).item()
    for _ in range(12):
        losses = run_tasks(optimizer, problem)
        optimizer.step(losses=losses, probe=lambda: problem.retain(problem.model))
        assert 0 < optimizer.param_groups[0]["lr"] < INF
    assert optimizer.skipped_steps == 0
    assert weights(problem.model).isfinite().all()
    assert {entry.step for entry in optimizer.auto.trace} == {0, 1, 2, 4, 8}
    # In the end the model is no worse than a step beyond the first minimum would make it, and has not been blown up.
    assert problem.retain(problem.model) < 10 * start


def test_gradient_accumulation_changes_no_rate():
    """Two halves of a batch in one task are the whole batch, for gradients, probes and rates."""
    problem = mlp_problem()
    rates = []
    for parts in (1, 2):
        twin = copy_of(problem)
        optimizer = TwoTaskOptimizer(twin.model.parameters(), lr="auto")
        for _ in range(5):
            for task, loss in (("retain", twin.retain), ("forget", twin.forget)):
                for _ in range(parts):
                    with optimizer.task(task):
                        (loss(twin.model) / parts).backward()
            optimizer.step(probe=lambda twin=twin: twin.retain(twin.model))
        rates.append([entry.new for entry in optimizer.auto.trace])
    assert rates[0] == pytest.approx(rates[1], rel=1e-9)  # halves are exact; sums of 1e3 roundings


def test_a_llama_learns_with_the_automatic_rate():
    problem = oracle.llama_problem()
    optimizer = TwoTaskOptimizer(problem.model.parameters(), lr="auto")
    before = problem.retain(problem.model).item(), problem.forget(problem.model).item()
    for _ in range(12):
        take_step(optimizer, problem)
    after = problem.retain(problem.model).item(), problem.forget(problem.model).item()
    assert after[0] < before[0]
    assert after[1] > before[1]


def test_probes_under_autocast_look_at_the_probed_weights():
    """Autocast keeps half-precision copies of the weights it has seen, and would go on using them."""
    torch.manual_seed(0)
    model, inputs = torch.nn.Linear(8, 1), torch.randn(16, 8)
    optimizer = TwoTaskOptimizer(model.parameters(), lr=AutoLearningRate(1.0))
    losses = []

    def probe():
        losses.append(model(inputs).float().square().mean().item())
        return torch.tensor(losses[-1])

    with torch.autocast("cpu", torch.bfloat16):
        for task in ("retain", "forget"):
            with optimizer.task(task):
                (model(inputs) - float(task == "forget")).float().square().mean().backward()
        optimizer.step(probe=probe)
        assert len(set(losses[:3])) == 3
        after = model(inputs).float().square().mean().item()
    with torch.autocast("cpu", torch.bfloat16):
        assert after == model(inputs).float().square().mean().item()  # and not the weights of the last probe


def test_a_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"h = 0\.0: the probe step must be > 0"):
        AutoLearningRate().refresh(0, 0.0, quadratic(1.0))
