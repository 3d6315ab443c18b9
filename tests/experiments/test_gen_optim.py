"""The GeN authors' learning rate, from their own package, on our direction."""

import sys
from typing import Any

import oracle
import pytest
import torch
from oracle import copy_of
from torch import Tensor
from transformers import BatchEncoding

from experiments.lm.gen_optim import EVERY, GenOptimizer
from experiments.lm.methods import parse
from ngdiff.errors import UserError


@pytest.fixture
def problem() -> Any:
    torch.manual_seed(0)
    return oracle.llama_problem()


def steps(problem: Any, base: str, lr: float, count: int, other: Any, **options: Any) -> GenOptimizer:
    optimizer = GenOptimizer(problem.model, "ngdiff", base, lr, **options)
    for _ in range(count):
        losses = []
        for task, loss in (("retain", problem.retain), ("forget", problem.forget)):
            with optimizer.task(task):
                value = loss(problem.model)
                value.backward()
            losses.append(value.detach())
        optimizer.step((losses[0], losses[1]), other)
    return optimizer


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_between_refreshes_it_is_torch_on_ngdiffs_direction(problem: Any, base: str) -> None:
    twin = copy_of(problem)
    kind = torch.optim.SGD if base == "sgd" else torch.optim.AdamW
    slow = oracle.Oracle(twin, "ngdiff", lambda parameters: kind(parameters, lr=1e-2, weight_decay=0.0))
    steps(problem, base, 1e-2, EVERY - 1, lambda: pytest.fail("no refresh is due"))
    for _ in range(EVERY - 1):
        slow.step()
    oracle_weights, mine = slow.weights(), oracle.weights(problem.model)
    assert (mine - oracle_weights).abs().max() <= 1e-9  # float64; AdamW divides by small second moments


@pytest.mark.parametrize("ahead", [True, False])
def test_a_refresh_is_the_packages_formula_by_a_tenth(problem: Any, ahead: bool) -> None:
    """A tenth of the way to b / a, from the losses of another batch at the weights of a step back, here, and a step ahead.

    Where that batch has no minimum ahead, the rate stays.
    """
    lr = 1e-3
    twin = copy_of(problem)
    slow = oracle.Oracle(twin, "ngdiff", lambda parameters: torch.optim.SGD(parameters, lr=lr))
    for _ in range(EVERY - 1):
        slow.step()
    d, start = slow.direction(), slow.weights()

    def fit(ids: Tensor) -> tuple[float, float]:
        losses = []
        for h in (-lr, 0.0, lr):  # h = lr is a step back, for a step ahead is theta - lr d
            torch.nn.utils.vector_to_parameters(start + h * d, twin.model.parameters())
            with torch.no_grad():
                losses.append(float(twin.model(input_ids=ids, labels=ids).loss))
        minus, zero, plus = losses
        return (plus - minus) / (2 * lr), (plus + minus - 2 * zero) / lr**2

    batches = (torch.randint(24, (4, 8)) for _ in range(100))
    ids = next(ids for ids in batches if (min(fit(ids)) > 0) is ahead)
    slope, curvature = fit(ids)
    expected = 0.9 * lr + 0.1 * min(max(slope / curvature, lr / 2), 2 * lr) if ahead else lr
    optimizer = steps(problem, "sgd", lr, EVERY, lambda: BatchEncoding({"input_ids": ids, "labels": ids}))
    found = optimizer.param_groups[0]["lr"]
    assert found == pytest.approx(expected, rel=1e-6)  # scipy fits to about 1e-8
    moved = oracle.weights(problem.model) - start
    torch.testing.assert_close(moved, -found * d, rtol=1e-7, atol=1e-12)


def test_without_the_package_it_is_one_line(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "GeN", None)
    with pytest.raises(UserError, match=r"the rate 'gen' needs gen-optim; run pip install gen-optim"):
        GenOptimizer(problem.model, "ngdiff", "sgd", 1e-3)
    with pytest.raises(UserError, match="run pip install gen-optim"):  # and before anything is begun
        parse("ngdiff@gen:1e-3")


def test_a_step_that_is_not_finite_is_not_taken(problem: Any) -> None:
    spoiled = problem._replace(forget=lambda model: problem.forget(model) * float("nan"))
    before = oracle.weights(problem.model)
    optimizer = steps(spoiled, "sgd", 1e-3, EVERY, lambda: pytest.fail("nothing to look at"))
    assert torch.equal(oracle.weights(problem.model), before)
    assert optimizer.last_step is not None
    assert not optimizer.last_step.finite


def test_what_a_loss_does_not_reach_stays(problem: Any) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)

    model = Two()
    loss = lambda m: m.used(torch.ones(1, 2)).square().sum()  # noqa: E731
    before = model.unused.weight.detach().clone()
    steps(problem._replace(model=model, retain=loss, forget=loss), "sgd", 1e-3, 2, lambda: None)
    assert torch.equal(model.unused.weight, before)
