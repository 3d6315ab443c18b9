"""Inner products taken during backward are those of the finished gradients, in whatever order and pieces these came."""

import gc
import weakref

import pytest
import torch
from asserts import U64, assert_within
from oracle import copy_of, llama_problem, mlp_problem, run_tasks, weights
from torch import Tensor, nn

from ngdiff import TwoTaskOptimizer


class Net(nn.Module):
    """A tied weight, a parameter that only the retain task reaches, one that only forget reaches, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.tied = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.tied.weight
        self.only_retain, self.only_forget, self.unused = (nn.Parameter(torch.randn(5)) for _ in range(3))

    def loss(self, task: str) -> Tensor:
        x = self.tied(self.second(self.first(torch.randn(3, 6, dtype=torch.float64)))).square().mean()
        return x + (self.only_retain if task == "retain" else self.only_forget).square().sum()


@pytest.fixture
def net() -> tuple[Net, TwoTaskOptimizer]:
    model = Net().double()
    return model, TwoTaskOptimizer(model.parameters(), lr=0.01, gram_during_backward=True)


def run(model: Net, optimizer: TwoTaskOptimizer, tasks: str) -> None:
    """One backward a letter: r or f."""
    for letter in tasks:
        task = {"r": "retain", "f": "forget"}[letter]
        with optimizer.task(task):
            model.loss(task).backward()


def assert_gram_is_that_of_the_buffers(optimizer: TwoTaskOptimizer, retain_is_zero: bool = False) -> None:
    ((segment,),) = optimizer._segments
    r, f = segment.gradients["retain"].clone(), segment.gradients["forget"].clone()
    if retain_is_zero:
        r = torch.zeros_like(f)
    optimizer.step()
    measured = torch.stack(optimizer.last_step.gram)
    expected = torch.stack([r @ r, f @ f, r @ f])
    assert_within(measured, expected, 2 * (len(r) + 1) * U64 * torch.stack([r @ r, f @ f, r.abs() @ f.abs()]))


@pytest.mark.parametrize("tasks", ["rf", "fr", "rrff", "rfrf", "frrf", "rfffr"])
def test_gram(net, tasks):
    model, optimizer = net
    for _ in range(3):
        run(model, optimizer, tasks)
        assert_gram_is_that_of_the_buffers(optimizer)


def test_gradients_of_the_step_before_leave_nothing(net):
    model, optimizer = net
    run(model, optimizer, "rf")
    optimizer.step()
    with optimizer.task("retain"):
        model.only_retain.sum().backward()  # the others are reached in this step by nothing
    with optimizer.task("forget"):
        model.only_forget.sum().backward()
    assert_gram_is_that_of_the_buffers(optimizer)
    assert optimizer.last_step.gram.cross == 0


def test_a_task_that_failed_is_taken_again(net):
    model, optimizer = net
    run(model, optimizer, "rf")
    with pytest.raises(ZeroDivisionError), optimizer.task("forget"):
        model.loss("forget").backward()
        raise ZeroDivisionError
    run(model, optimizer, "f")
    assert_gram_is_that_of_the_buffers(optimizer)


def test_a_discarded_task_that_the_rule_does_not_read_leaves_nothing(net):
    model = net[0]
    optimizer = TwoTaskOptimizer(model.parameters(), "ga", lr=0.01, gram_during_backward=True)
    run(model, optimizer, "f")
    with pytest.raises(ZeroDivisionError), optimizer.task("retain"):
        (model.loss("retain") * float("nan")).backward()
        raise ZeroDivisionError
    assert_gram_is_that_of_the_buffers(optimizer, retain_is_zero=True)
    assert optimizer.skipped_steps == 0


def test_hooks_keep_nothing_alive():
    model = Net().double()
    optimizer = TwoTaskOptimizer(model.parameters(), lr=0.01, gram_during_backward=True)
    run(model, optimizer, "rf")
    ((segment,),) = optimizer._segments
    buffer = weakref.ref(segment.gradients["retain"])
    del optimizer, segment
    gc.collect()
    assert buffer() is None
    model.loss("retain").backward()


def test_zero_grad_discards(net):
    model, optimizer = net
    run(model, optimizer, "rf")
    optimizer.zero_grad()
    run(model, optimizer, "fr")
    assert_gram_is_that_of_the_buffers(optimizer)


@pytest.mark.parametrize("make", [mlp_problem, llama_problem])
@pytest.mark.parametrize("rule", ["ngdiff", "ga"])
def test_steps_are_those_without_it(make, rule):
    problem = make()
    results = []
    for during in (False, True):
        mine = copy_of(problem)
        optimizer = TwoTaskOptimizer(mine.model.parameters(), rule, "adamw", 0.01, eps=1e-2, gram_during_backward=during)
        for _ in range(4):
            optimizer.step(losses=run_tasks(optimizer, mine))
        results.append(weights(mine.model))
    assert_within(results[0], results[1], 1e-11)  # sums of fewer than 1e4 float64 terms, in another order


def test_nothing_is_taken_as_long_as_one_task_has_no_gradient(net, monkeypatch):
    model, optimizer = net
    run(model, optimizer, "r")
    taken = []
    (products,) = optimizer._products.values()
    monkeypatch.setattr(products, "_take", taken.append)
    run(model, optimizer, "rr")
    assert taken == []
    run(model, optimizer, "f")
    assert len(taken) == len(list(model.parameters())) - 2  # all but only_retain and unused
    model.loss("retain").backward()  # outside of a task
    assert len(taken) == len(list(model.parameters())) - 2
