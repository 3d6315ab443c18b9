"""When a run ends, and with which weights."""

import copy
import math

import pytest
import torch
from asserts import assert_bitwise_equal
from hypothesis import given
from hypothesis import strategies as st
from oracle import mlp_problem, run_tasks
from torch import nn

from ngdiff import StoppingCriteria, TwoTaskOptimizer
from ngdiff.stopping import FORGOTTEN, LOST, OVER_BUDGET, STEPS, forget_target


def model_at(step: float) -> nn.Module:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
    return model


def run(stopping, checks):
    """Feeds checks to a model whose weights are the number of the step; returns the step it ended at and the weights."""
    model = model_at(0)
    for step, (forget, retain) in enumerate(checks):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        if stopping.check(model, step, forget, retain):
            return step, model.weight[0, 0].item()
    return None, model.weight[0, 0].item()


def test_a_run_stops_at_the_target_and_keeps_its_weights():
    stopping = StoppingCriteria(forget_target=0.1)
    assert run(stopping, [(0.9, 0.1), (0.11, 50.0), (0.1, 0.1), (0.0, 0.1)]) == (2, 2.0)
    assert stopping.fired == FORGOTTEN
    assert stopping.restored is None
    assert stopping.checks == [(0, 0.9, 0.1), (1, 0.11, 50.0), (2, 0.1, 0.1)]
    assert stopping.summary(2) == {"reason": FORGOTTEN, "steps": 2, "restored_step": None}


@pytest.mark.parametrize("loss", [0.51, math.inf, math.nan])
def test_a_run_over_its_budget_goes_back_to_the_best_weights(loss):
    """Best is the lowest forget probability within the budget, not the last and not the one that broke it."""
    stopping = StoppingCriteria(retain_budget=0.5)
    assert run(stopping, [(0.9, 0.1), (0.2, 0.4), (0.3, 0.5), (0.0, loss)]) == (3, 1.0)
    assert (stopping.fired, stopping.restored) == (OVER_BUDGET, 1)


def test_weights_that_are_not_trained_are_not_kept():
    """Beside adapters they would be nearly all; what is tied to a trained one, and buffers, are."""
    model = nn.ModuleDict(
        {"frozen": nn.Linear(2, 2), "trained": nn.Linear(2, 2), "tied": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)}
    )
    model["frozen"].requires_grad_(False)
    model["tied"].weight = model["trained"].weight
    stopping = StoppingCriteria(retain_budget=0.5)
    assert not stopping.check(model, 0, 0.9, 0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert stopping.state_dict()["best"][2].keys() == {name for name in before if not name.startswith("frozen")}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    assert stopping.check(model, 1, 0.5, 0.9)
    for name, value in model.state_dict().items():
        assert_bitwise_equal(value, before[name] + (1 if name.startswith("frozen") else 0))


def test_a_run_that_begins_over_its_budget_has_nothing_to_restore():
    stopping = StoppingCriteria(retain_budget=0.5)
    assert run(stopping, [(0.9, 0.6)]) == (0, 0.0)
    assert (stopping.fired, stopping.restored) == (LOST, None)


def test_over_budget_and_forgotten_at_once_is_over_budget():
    stopping = StoppingCriteria(forget_target=0.1, retain_budget=0.5)
    assert run(stopping, [(0.9, 0.1), (0.05, 0.9)]) == (1, 0.0)
    assert stopping.fired == OVER_BUDGET


def test_without_criteria_nothing_fires_and_no_weights_are_kept():
    stopping = StoppingCriteria()
    assert not stopping.active
    assert run(stopping, [(0.0, math.nan), (0.0, 1e9)]) == (None, 1.0)
    assert stopping._best is None
    assert stopping.summary(7) == {"reason": STEPS, "steps": 7, "restored_step": None}


@given(
    target=st.one_of(st.none(), st.floats(0, 1)),
    budget=st.one_of(st.none(), st.floats(0.1, 2)),
    checks=st.lists(
        st.tuples(st.one_of(st.floats(0, 1), st.just(math.nan)), st.one_of(st.floats(0, 3), st.just(math.nan))),
        min_size=1,
        max_size=8,
    ),
)
def test_against_the_definition(target, budget, checks):
    """The first check over the budget or at the target ends the run; one over the budget restores the best before it."""
    ended, weights = run(StoppingCriteria(target, budget), checks)
    over = [i for i, (_, loss) in enumerate(checks) if budget is not None and not loss <= budget]
    done = [i for i, (p, _) in enumerate(checks) if target is not None and p <= target]
    first = min(over + done, default=None)
    assert ended == first
    if first in over and first > 0:
        # The first of the smallest; where all are NaN the last, for none is known to be best.
        best = min(range(first), key=lambda i: math.inf if math.isnan(checks[i][0]) else checks[i][0])
        assert weights == (first - 1 if math.isnan(checks[best][0]) else best)
    else:
        assert weights == (len(checks) - 1 if first is None else first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_weights_are_those_of_the_step_to_the_last_bit_and_the_optimizer_goes_on_from_them(dtype):
    problem = mlp_problem(torch.float32)
    model = problem.model.to(dtype)
    cast = problem._replace(model=model)
    optimizer = TwoTaskOptimizer(model.parameters(), lr=0.1)
    stopping = StoppingCriteria(retain_budget=1.0)
    stopping.check(model, 0, 0.5, 0.5)
    before = copy.deepcopy([p.detach() for p in model.parameters()])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        run_tasks(optimizer, cast)
        optimizer.step()
        assert not torch.equal(before[0], model[0].weight)
        assert stopping.check(model, 1, 0.1, 2.0)
        for parameter, value in zip(model.parameters(), before, strict=True):
            assert_bitwise_equal(parameter.detach(), value)
        run_tasks(optimizer, cast)  # the optimizer takes the restored weights over into its buffers and master weights
        optimizer.step()
    rate = 0.1 * 2 * 1.01  # a step is lr ||d|| <= 2 lr long, and its rounding
    moved = torch.stack([(p - v).float().square().sum() for p, v in zip(model.parameters(), before, strict=True)]).sum().sqrt()
    assert 0 < moved <= rate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forget_target": 1.5}, "forget_target = 1.5: give a probability from 0 to 1, or None for no target"),
        ({"forget_target": math.nan}, "forget_target = nan: give a probability"),
        ({"retain_budget": 0.0}, "retain_budget = 0.0: give a loss > 0 in nats a token, or None for no budget"),
        ({"retain_budget": math.nan}, "retain_budget = nan: give a loss"),
    ],
)
def test_criteria_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        StoppingCriteria(**arguments)


def test_buffers_are_restored_too():
    """As running means of a batch normalisation: the best checkpoint is all of one step, not the weights of one."""
    model, stopping = nn.BatchNorm1d(2), StoppingCriteria(retain_budget=1.0)
    stopping.check(model, 0, 0.5, 0.5)
    model(torch.ones(4, 2))
    assert model.running_mean.tolist() != [0, 0]
    assert stopping.check(model, 1, 0.1, 2.0)
    assert model.running_mean.tolist() == [0, 0]


@pytest.mark.parametrize("value", [-0.1, 3.7])
def test_a_loss_in_the_place_of_a_probability_is_refused(value):
    with pytest.raises(ValueError, match=rf"check: forget_probability = {value}; give exp\(-NLL\), from 0 to 1"):
        StoppingCriteria(forget_target=0.1).check(model_at(0), 0, value, 0.1)


def test_the_default_target_is_the_reference_or_else_the_paraphrases():
    assert forget_target(0.02, 0.3) == 0.02
    assert forget_target(0.0, 0.3) == 0.0
    assert forget_target(None, 0.3) == 0.3
    with pytest.raises(ValueError, match="forget_target: paraphrases = nan; give a probability from 0 to 1"):
        forget_target(None, math.nan)
    with pytest.raises(ValueError, match="forget_target: reference = 2; give a probability"):
        forget_target(2, 0.3)
