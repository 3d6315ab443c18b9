"""The optimizer on the Triton kernels takes the steps that it takes on the plain reference, in one launch where it can."""

from typing import Any

import pytest
import torch
from asserts import assert_within
from oracle import copy_of, mlp_problem, run_tasks, weights
from torch import nn

from ngdiff import AutoLearningRate, TwoTaskOptimizer, rules

if torch.cuda.is_available() and torch.get_default_device().type != "cuda":
    pytest.skip("this machine has a GPU: NGDIFF_TEST_DEVICE=cuda runs the kernels on it", allow_module_level=True)
launch = pytest.importorskip("ngdiff_kernels.gpu.launch", reason="triton is not installed: it exists for Linux alone")

BASES: dict[str, dict[str, Any]] = {
    "sgd": {"base": "sgd", "weight_decay": 0.1},
    "nesterov": {"base": "sgd", "momentum": 0.9, "nesterov": True},
    "adamw": {"base": "adamw", "eps": 1e-2, "weight_decay": 0.1},
}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every kernel that was started, by name."""
    found: list[str] = []
    monkeypatch.setattr(launch, "ROWS", 8)
    for name in ("gram", "step", "combine", "probe", "fused_step"):
        kernel = getattr(launch.kernels, f"{name}_kernel")
        monkeypatch.setattr(launch.kernels, f"{name}_kernel", _Counted(kernel, name, found))
    return found


class _Counted:
    def __init__(self, kernel: Any, name: str, found: list[str]):
        self.kernel, self.name, self.found = kernel, name, found

    def __getitem__(self, grid: Any) -> Any:
        self.found.append(self.name)
        return self.kernel[grid]


@pytest.mark.parametrize("lr", [0.05, "auto"])
@pytest.mark.parametrize("rule", ["ngdiff", "gdiff-0.9", "ga", "lossnorm"])
@pytest.mark.parametrize("base", BASES)
def test_steps_are_those_of_the_reference(monkeypatch, launches, base, rule, lr):
    problem = mlp_problem(torch.float32)
    results = []
    for backend in ("triton", "reference"):
        monkeypatch.setenv("NGDIFF_BACKEND", backend)
        mine = copy_of(problem)
        rate = AutoLearningRate(initial=0.05, every=2, mode="paper") if lr == "auto" else lr
        optimizer = TwoTaskOptimizer(mine.model.parameters(), rule, lr=rate, **BASES[base])
        for _ in range(3):
            optimizer.step(losses=run_tasks(optimizer, mine), probe=lambda mine=mine: mine.retain(mine.model).detach())
        results.append(weights(mine.model))
    # The bound of the optimizer's own tests for float32 would be 1e7 roundings; the two differ by far fewer.
    assert_within(results[0], results[1], 1e-4 * results[1].abs().max())
    if lr != "auto":
        assert launches == ["fused_step"] * 3
    else:
        assert launches.count("fused_step") == 1  # the step between two refreshes
        assert launches.count("step") == launches.count("combine") == 2


def test_a_rule_without_a_device_form_takes_two_launches(monkeypatch, launches):
    monkeypatch.setenv("NGDIFF_BACKEND", "triton")

    class Own(rules.Rule):
        def __call__(self, gram, losses=None):
            return rules.NGDiff()(gram, losses)

    model = nn.Linear(5, 3)
    start = weights(model)
    optimizer = TwoTaskOptimizer(model.parameters(), Own(), lr=0.1)
    for task in ("retain", "forget"):
        with optimizer.task(task):
            model(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
    assert launches == ["gram", "step"]
    assert not weights(model).equal(start)


def test_a_subclass_that_combines_in_another_way_is_not_taken_for_its_parent(monkeypatch, launches):
    monkeypatch.setenv("NGDIFF_BACKEND", "triton")

    class Nothing(rules.NGDiff):
        def __call__(self, gram, losses=None):
            return rules.GDiff(1.0)(gram, losses)._replace(retain=torch.zeros_like(gram.retain))

    class Renamed(rules.NGDiff):
        """Combines as its parent does."""

    assert rules.device_form(Nothing()) is None
    assert rules.device_form(Renamed()) == ("ngdiff", 0.0)
    model = nn.Linear(5, 3)
    start = weights(model)
    optimizer = TwoTaskOptimizer(model.parameters(), Nothing(), lr=0.1)
    for task in ("retain", "forget"):
        with optimizer.task(task):
            model(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
    assert launches == ["gram", "step"]
    assert weights(model).equal(start)


def test_param_groups_share_one_gram(monkeypatch, launches):
    """Two groups cannot be fused: the coefficients are those of all parameters together."""
    monkeypatch.setenv("NGDIFF_BACKEND", "triton")
    model = nn.Linear(5, 3)
    optimizer = TwoTaskOptimizer([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.01}], lr=0.1)
    for task in ("retain", "forget"):
        with optimizer.task(task):
            model(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
    assert launches == ["gram", "gram", "step", "step"]


def test_a_fused_step_that_is_refused_is_counted(monkeypatch, launches):
    monkeypatch.setenv("NGDIFF_BACKEND", "triton")
    model = nn.Linear(5, 3)
    start = weights(model)
    optimizer = TwoTaskOptimizer(model.parameters(), lr=0.1)
    for loss in (float("nan"), 1.0):
        for task in ("retain", "forget"):
            with optimizer.task(task):
                model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step(losses=(torch.tensor(loss), torch.tensor(1.0)))
        assert optimizer.skipped_steps == 1
        assert weights(model).equal(start) == (loss != 1.0)
    assert launches == ["fused_step"] * 2
