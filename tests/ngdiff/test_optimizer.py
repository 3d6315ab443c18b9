import copy
import io
from typing import Any

import pytest
import torch
from asserts import U32, U64, assert_bitwise_equal, assert_within
from oracle import FORMULAS, Oracle, Problem, copy_of, llama_problem, mlp_problem, run_tasks, trainable, weights
from torch import nn

from ngdiff import AutoLearningRate, TwoTaskOptimizer, rules
from ngdiff.gram import Coefficients
from ngdiff.rules import Rule

LR = 0.05
# eps is not small, so that AdamW is a smooth function of d: it magnifies a difference in d by 1 / eps = 100 at most.
BASES: dict[str, dict[str, Any]] = {
    "sgd": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "adamw": {"betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.1},
}
# Float64 on both sides. The gradients of the small network are sums of fewer than 100 terms below 100, so off by 1e4 u; d of
# the largest rule is 10 times a gradient, AdamW magnifies by 100, and six steps add up: 6 lr 1e7 u.
BOUND = 6 * LR * 1e7 * U64
NAN, INF = float("nan"), float("inf")

every_base = pytest.mark.parametrize("base", BASES)
every_rule = pytest.mark.parametrize("rule", FORMULAS)


def make(model: nn.Module, base: str = "sgd", rule: str | Rule = "ngdiff", lr: Any = LR) -> TwoTaskOptimizer:
    name = "adamw" if base == "adamw" else "sgd"
    return TwoTaskOptimizer(model.parameters(), rule, name, lr, **BASES[base])


def make_torch(base: str, lr: float = LR):
    kind = torch.optim.AdamW if base == "adamw" else torch.optim.SGD
    return lambda parameters: kind(parameters, lr=lr, **BASES[base])


def take_step(optimizer: TwoTaskOptimizer, problem: Problem, **options: Any) -> None:
    losses = run_tasks(optimizer, problem)
    if optimizer.auto:
        options.setdefault("probe", lambda: problem.retain(problem.model))
    optimizer.step(losses=losses, **options)


def snapshot(optimizer: TwoTaskOptimizer) -> list[torch.Tensor]:
    """Copies of the parameters and of every state tensor."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = [value for p in parameters for value in optimizer.state[p].values()]
    return [t.detach().clone() for t in (*parameters, *state)]


def assert_same(before: list[torch.Tensor], after: list[torch.Tensor]) -> None:
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert_bitwise_equal(a, b)


def assert_next_step_is_clean(optimizer: TwoTaskOptimizer, problem: Problem) -> None:
    """Nothing of what went wrong before is in the gradients of the next step."""
    slow = Oracle(problem, "ngdiff", make_torch("sgd"))
    take_step(optimizer, problem)
    slow.optimizer.param_groups[0]["weight_decay"] = optimizer.param_groups[0]["weight_decay"]
    slow.step()
    assert_within(weights(problem.model), slow.weights(), BOUND)


# Every rule with every base


@every_rule
@every_base
def test_steps_are_those_of_the_oracle(rule, base):
    problem = mlp_problem()
    slow = Oracle(problem, rule, make_torch(base))
    optimizer = make(problem.model, base, rule)
    start = weights(problem.model)
    for _ in range(6):
        take_step(optimizer, problem)
        slow.step()
        assert_within(weights(problem.model), slow.weights(), BOUND)
    assert (weights(problem.model) - start).abs().max() > 0.01  # it did move
    assert optimizer.skipped_steps == 0


@every_rule
@every_base
def test_a_step_in_float32_is_that_of_the_oracle(rule, base):
    problem = mlp_problem(torch.float32)
    slow = Oracle(problem, rule, make_torch(base))
    take_step(make(problem.model, base, rule), problem)
    slow.step()
    # As BOUND, for one step and with the unit roundoff of float32; sums here are of 21 terms below 10, so 2e5 for 1e7.
    assert_within(weights(problem.model), slow.weights(), LR * 2e5 * U32)


@every_rule
@every_base
def test_a_llama_with_tied_embeddings(rule, base):
    problem = llama_problem()
    slow = Oracle(problem, rule, make_torch(base))
    take_step(make(problem.model, base, rule), problem)
    slow.step()
    # One step from the same weights: the same operations on both sides, so less than BOUND.
    assert_within(weights(problem.model), slow.weights(), BOUND)
    assert problem.model.lm_head.weight is problem.model.model.embed_tokens.weight


def test_one_gram_for_parameters_of_two_dtypes():
    model = nn.ParameterList([nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2).double())])
    problem = Problem(
        model,
        lambda model: model[0].double().square().sum() + 2 * model[1].sum(),
        lambda model: model[0].double().sum() * model[1].sum(),
    )
    slow = Oracle(problem, "ngdiff", make_torch("sgd"))
    take_step(make(model), problem)
    slow.step()
    # One rounding to float32 of a gradient, of d and of the weights (all below 4), and two in weight decay and the product.
    assert_within(weights(model), slow.weights(), 5 * 4 * U32)


def test_unused_parameters_have_a_zero_gradient():
    problem = mlp_problem()
    problem.model.register_parameter("unused", nn.Parameter(torch.randn(4).double()))
    problem.model.register_parameter("sometimes", nn.Parameter(torch.randn(4).double()))
    forget = problem.forget
    problem = problem._replace(forget=lambda model: forget(model) + model.sometimes.square().sum())
    for base in BASES:
        mine = copy_of(problem)
        slow, optimizer = Oracle(mine, "ngdiff", make_torch(base)), make(mine.model, base)
        for _ in range(2):
            take_step(optimizer, mine)
            slow.step()
        assert_within(weights(mine.model), slow.weights(), BOUND)


@pytest.mark.parametrize("gram_during_backward", [False, True])
def test_a_parameter_may_be_frozen_between_steps(gram_during_backward):
    problem = mlp_problem()
    frozen, free = (layer.weight for layer in problem.model if isinstance(layer, nn.Linear))
    optimizer = TwoTaskOptimizer(problem.model.parameters(), lr=LR, gram_during_backward=gram_during_backward)
    take_step(optimizer, problem)
    frozen.requires_grad_(False)
    before, moving = frozen.detach().clone(), free.detach().clone()
    take_step(optimizer, problem)
    assert_bitwise_equal(frozen.detach(), before)
    assert not torch.equal(free, moving)


def test_unused_parameters_stay_without_weight_decay():
    problem = mlp_problem()
    problem.model.register_parameter("unused", nn.Parameter(torch.randn(4).double()))
    before = problem.model.unused.detach().clone()
    optimizer = TwoTaskOptimizer(problem.model.parameters(), base="adamw", lr=LR)
    for _ in range(2):
        take_step(optimizer, problem)
    assert_bitwise_equal(problem.model.unused.detach(), before)


# What a step reports


def test_last_step_holds_what_was_seen_as_tensors():
    problem = mlp_problem()
    optimizer = make(problem.model)
    assert optimizer.last_step is None
    g_r, g_f = Oracle(problem, "ngdiff", make_torch("sgd")).gradients()
    take_step(optimizer, problem)
    report = optimizer.last_step
    for value in (*report.gram, *report.coefficients):
        assert isinstance(value, torch.Tensor)
        assert (value.shape, value.dtype) == ((), torch.float64)
    assert (report.finite.shape, report.finite.dtype, report.finite.item()) == ((), torch.bool, True)
    expected = torch.stack([g_r @ g_r, g_f @ g_f, g_r @ g_f])
    # Gradients are off by 1e4 u (see BOUND), and products of 32 of them, each below 10, by 32 * 20 times that.
    assert_within(torch.stack(report.gram), expected, 640 * 1e4 * U64)
    assert_within(torch.stack(report.coefficients), torch.stack([1 / g_r.norm(), 1 / g_f.norm()]), 640 * 1e4 * U64)


def test_the_rule_sees_the_losses_that_were_given():
    seen = []

    class Spy(Rule):
        def __call__(self, gram, losses=None):
            seen.append(losses)
            return Coefficients(gram.retain * 0, gram.forget * 0)

    problem = mlp_problem()
    optimizer = TwoTaskOptimizer(problem.model.parameters(), Spy(), lr=LR)
    losses = run_tasks(optimizer, problem)
    optimizer.step(losses=losses)
    run_tasks(optimizer, problem)
    optimizer.step()
    assert seen[1] is None
    assert_bitwise_equal(seen[0].retain, losses[0])
    assert_bitwise_equal(seen[0].forget, losses[1])


# Param groups, schedulers, closures


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": list(model[0].parameters()), "lr": 0.01, "weight_decay": 0.5},
        {"params": list(model[2].parameters()), "lr": 0.1},
    ]


@every_base
def test_param_groups_have_their_own_settings(base):
    problem = mlp_problem()
    slow = Oracle(problem, "ngdiff", make_torch(base))
    slow.optimizer = make_torch(base)(groups_of(slow.problem.model))
    optimizer = TwoTaskOptimizer(groups_of(problem.model), base="adamw" if base == "adamw" else "sgd", lr=9.0, **BASES[base])
    for _ in range(3):
        take_step(optimizer, problem)
        slow.step()
    assert_within(weights(problem.model), slow.weights(), 2 * BOUND)  # the larger rate is twice LR


def test_a_param_group_added_later_takes_part():
    problem = mlp_problem()
    slow = Oracle(problem, "ngdiff", make_torch("adamw"))
    first, second = groups_of(problem.model)
    slow.optimizer = make_torch("adamw")(groups_of(slow.problem.model))
    optimizer = TwoTaskOptimizer([first], base="adamw", **BASES["adamw"], lr=LR)
    optimizer.add_param_group(second)
    take_step(optimizer, problem)
    slow.step()
    assert_within(weights(problem.model), slow.weights(), 2 * BOUND)


def test_a_refused_param_group_is_not_added():
    problem = mlp_problem()
    first, second = groups_of(problem.model)
    optimizer = TwoTaskOptimizer([first], lr=LR)
    with pytest.raises(ValueError, match="momentum = 2"):
        optimizer.add_param_group(second | {"momentum": 2})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group(second)
    assert len(optimizer.param_groups) == 2


def test_named_parameters():
    problem = mlp_problem()
    slow = Oracle(problem, "ngdiff", make_torch("sgd"))
    optimizer = TwoTaskOptimizer(problem.model.named_parameters(), lr=LR, **BASES["sgd"])
    take_step(optimizer, problem)
    slow.step()
    assert_within(weights(problem.model), slow.weights(), BOUND)


SCHEDULERS = {
    "StepLR": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
    "LambdaLR": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: (i + 1) / 6),
    "CosineAnnealingLR": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6),
    "LinearLR": lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
    "OneCycleLR": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, 10, cycle_momentum=False),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_of_torch(scheduler):
    problem = mlp_problem()
    slow = Oracle(problem, "ngdiff", make_torch("momentum"))
    optimizer = make(problem.model, "momentum")
    mine, theirs = SCHEDULERS[scheduler](optimizer), SCHEDULERS[scheduler](slow.optimizer)
    rates = []
    for _ in range(6):
        take_step(optimizer, problem)
        slow.step()
        mine.step()
        theirs.step()
        rates.append(optimizer.param_groups[0]["lr"])
        assert rates[-1] == slow.optimizer.param_groups[0]["lr"]
        assert_within(weights(problem.model), slow.weights(), BOUND)
    assert len(set(rates)) > 1


def test_a_closure_runs_the_tasks_and_its_value_is_returned():
    problem = mlp_problem()
    slow = Oracle(problem, "ngdiff", make_torch("sgd"))
    optimizer = make(problem.model)
    assert optimizer.step(lambda: run_tasks(optimizer, problem)[0].item()) == problem.retain(slow.problem.model).item()
    slow.step()
    assert_within(weights(problem.model), slow.weights(), BOUND)


def test_a_step_without_closure_returns_nothing():
    problem = mlp_problem()
    optimizer = make(problem.model)
    run_tasks(optimizer, problem)
    assert optimizer.step() is None


# Accumulation


@pytest.mark.parametrize("blocks", [1, 2])
def test_backwards_of_a_task_add_up(blocks):
    problem = mlp_problem()
    slow = Oracle(problem, "gdiff-0.9", make_torch("sgd"))
    optimizer = make(problem.model, rule="gdiff-0.9")
    for task, loss in (("retain", problem.retain), ("forget", problem.forget)):
        shares = [0.25, 0.75]
        for part in [shares] if blocks == 1 else [[share] for share in shares]:
            with optimizer.task(task):
                for share in part:
                    (loss(problem.model) * share).backward()
    optimizer.step()
    slow.step()
    assert_within(weights(problem.model), slow.weights(), BOUND)


def test_tasks_may_alternate_and_come_in_any_order():
    problem = mlp_problem()
    slow = Oracle(problem, "gdiff-0.9", make_torch("sgd"))
    optimizer = make(problem.model, rule="gdiff-0.9")
    for _ in range(2):
        for task, loss in (("forget", problem.forget), ("retain", problem.retain)):
            with optimizer.task(task):
                (loss(problem.model) / 2).backward()
    optimizer.step()
    slow.step()
    assert_within(weights(problem.model), slow.weights(), BOUND)


def test_gradients_do_not_outlive_their_step():
    problem = mlp_problem()
    slow, optimizer = Oracle(problem, "ngdiff", make_torch("sgd")), make(problem.model)
    for _ in range(3):
        take_step(optimizer, problem)
        slow.step()
        assert all(p.grad is None for p in problem.model.parameters())
    assert_within(weights(problem.model), slow.weights(), BOUND)
    with pytest.raises(RuntimeError, match="no gradient for task 'retain'"):
        optimizer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_discards_what_the_tasks_have_accumulated(set_to_none):
    problem = mlp_problem()
    optimizer = make(problem.model)
    run_tasks(optimizer, problem)
    optimizer.zero_grad(set_to_none)
    with pytest.raises(RuntimeError, match="no gradient for task"):
        optimizer.step()
    assert_next_step_is_clean(optimizer, problem)


# GA reads one task


def test_ga_needs_only_forget():
    problem = mlp_problem()
    slow, optimizer = Oracle(problem, "ga", make_torch("adamw")), make(problem.model, "adamw", "ga")
    for _ in range(2):
        with optimizer.task("forget"):
            problem.forget(problem.model).backward()
        optimizer.step()
        slow.step()
        assert optimizer.last_step.gram.retain.item() == optimizer.last_step.gram.cross.item() == 0
    assert_within(weights(problem.model), slow.weights(), BOUND)


@pytest.mark.parametrize("factor", [1.0, NAN])
def test_a_retain_gradient_of_an_earlier_step_does_not_leak_into_ga(factor):
    problem = mlp_problem()
    optimizer = make(problem.model, rule="ga")
    run_tasks(optimizer, problem._replace(retain=lambda model: problem.retain(model) * factor))
    optimizer.step()
    slow = Oracle(problem, "ga", make_torch("sgd"))
    with optimizer.task("forget"):
        problem.forget(problem.model).backward()
    optimizer.step()
    slow.step()
    assert optimizer.last_step.gram.retain.item() == 0
    assert optimizer.last_step.finite
    assert_within(weights(problem.model), slow.weights(), BOUND)


# Refused steps


def spoiled(problem: Problem, where: str, bad: float) -> Problem:
    """The problem with a task whose gradient is not finite in one element of the first parameter."""
    loss = getattr(problem, where)

    def spoil(model: nn.Module) -> torch.Tensor:
        return loss(model) + bad * trainable(model)[0].flatten()[1]

    return problem._replace(**{where: spoil})


@pytest.mark.parametrize("where", ["retain", "forget"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("lr", [LR, "auto"])
@every_base
def test_a_gradient_that_is_not_finite_refuses_the_step(where, bad, steps_before, lr, base):
    problem = mlp_problem()
    # With every = 2 the refused step is a refresh step in both cases.
    optimizer = make(problem.model, base, lr=AutoLearningRate(LR, every=2) if lr == "auto" else lr)
    for _ in range(steps_before):
        take_step(optimizer, problem)
    before, rate = snapshot(optimizer), optimizer.param_groups[0]["lr"]
    run_tasks(optimizer, spoiled(problem, where, bad))
    optimizer.step(probe=lambda: pytest.fail("a refused step has no direction to probe"))
    assert_same(snapshot(optimizer), before)
    assert optimizer.skipped_steps == 1
    assert optimizer.last_step.finite.item() is False
    assert optimizer.param_groups[0]["lr"] == rate
    assert all(p.grad is None for p in problem.model.parameters())
    take_step(optimizer, problem)
    assert optimizer.skipped_steps == 1
    assert optimizer.last_step.finite.item() is True
    assert not problem.model[0].weight.equal(before[0])


@pytest.mark.parametrize("bad", [(NAN, 1.0), (1.0, INF), (-INF, NAN)])
@pytest.mark.parametrize("rule", ["ngdiff", "lossnorm"])
@pytest.mark.parametrize("lr", [LR, "auto"])
def test_a_loss_that_is_not_finite_refuses_the_step(bad, rule, lr):
    problem = mlp_problem()
    optimizer = make(problem.model, "adamw", rule, lr=lr)
    before = snapshot(optimizer)
    for count in (1, 2):
        run_tasks(optimizer, problem)
        optimizer.step(losses=torch.tensor(bad).unbind(), probe=lambda: problem.retain(problem.model))
        assert_same(snapshot(optimizer), before)
        assert optimizer.skipped_steps == count


@every_base
def test_refused_steps_leave_no_mark_on_later_ones(base):
    problem = mlp_problem()
    slow, optimizer = Oracle(problem, "ngdiff", make_torch(base)), make(problem.model, base)
    for i in range(4):
        if i != 1:
            run_tasks(optimizer, spoiled(problem, "retain", NAN))
            optimizer.step()
        take_step(optimizer, problem)
        slow.step()
    assert_within(weights(problem.model), slow.weights(), BOUND)
    assert optimizer.skipped_steps == 3


def test_coefficients_that_are_not_finite_refuse_the_step():
    """As of a user's rule that divides by the cross product of orthogonal gradients."""

    class Bad(Rule):
        def __call__(self, gram, losses=None):
            return Coefficients(gram.retain * NAN, gram.forget)

    problem = mlp_problem()
    optimizer = make(problem.model, rule=Bad())
    before = snapshot(optimizer)
    take_step(optimizer, problem)
    assert_same(snapshot(optimizer), before)
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("lr", [LR, "auto"])
def test_a_direction_that_leaves_the_dtype_refuses_the_step(lr):
    """LossNorm divides by the loss: a loss near zero and an ordinary gradient make a direction beyond float32."""
    problem = mlp_problem(torch.float32)
    optimizer = make(problem.model, rule="lossnorm", lr=lr)
    before = snapshot(optimizer)
    run_tasks(optimizer, problem)
    optimizer.step(losses=(torch.tensor(1e-42), torch.tensor(1.0)), probe=lambda: pytest.fail("there is nothing to probe"))
    assert_same(snapshot(optimizer), before)
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize(("base", "exponent", "taken"), [("adamw", 63, True), ("adamw", 64, False), ("sgd", 64, True)])
def test_adamw_takes_directions_whose_squares_it_can_hold(base, exponent, taken):
    """An infinite second moment never heals. 2^64 is the first power of two whose square is beyond float32."""
    parameter = nn.Parameter(torch.zeros(3))
    problem = Problem(nn.ParameterList([parameter]), lambda model: 2.0**exponent * model[0][0], lambda model: model[0].sum())
    optimizer = TwoTaskOptimizer([parameter], "gdiff-1", base, 1e-30)
    run_tasks(optimizer, problem)
    optimizer.step()
    assert optimizer.skipped_steps == (not taken)
    assert all(tensor.isfinite().all() for tensor in snapshot(optimizer))


# Misuse of tasks and steps


def test_unknown_task():
    optimizer = make(mlp_problem().model)
    with (
        pytest.raises(ValueError, match="unknown task 'forgot'; choose one of retain, forget"),
        optimizer.task("forgot"),
    ):
        pass


def test_nested_tasks_are_refused_and_discarded():
    problem = mlp_problem()
    optimizer = make(problem.model)
    with pytest.raises(RuntimeError, match="'forget' opened inside 'retain'; close that one first"), optimizer.task("retain"):
        problem.retain(problem.model).backward()
        with optimizer.task("forget"):
            pass
    assert all(p.grad is None for p in problem.model.parameters())
    with pytest.raises(RuntimeError, match="no gradient for task 'retain'"):
        optimizer.step()
    assert_next_step_is_clean(optimizer, problem)


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("blocks_before", [0, 1])
def test_an_exception_inside_a_task_discards_the_task(exception, blocks_before):
    problem = mlp_problem()
    optimizer = make(problem.model)
    for _ in range(blocks_before):
        run_tasks(optimizer, problem)
    with pytest.raises(exception, match="from the user"), optimizer.task("retain"):
        problem.retain(problem.model).backward()
        raise exception("from the user")
    assert all(p.grad is None for p in problem.model.parameters())
    with optimizer.task("forget"):
        problem.forget(problem.model).backward()
    with pytest.raises(RuntimeError, match="no gradient for task 'retain'"):
        optimizer.step()
    optimizer.zero_grad()
    assert_next_step_is_clean(optimizer, problem)


def test_zero_grad_inside_a_task_is_reported():
    problem = mlp_problem()
    optimizer = make(problem.model)
    with pytest.raises(RuntimeError, match="replaced inside task 'retain'; do not call zero_grad"), optimizer.task("retain"):
        problem.retain(problem.model).backward()
        optimizer.zero_grad()
        problem.retain(problem.model).backward()
    assert all(p.grad is None for p in problem.model.parameters())
    assert_next_step_is_clean(optimizer, problem)


def test_a_gradient_from_outside_a_task_is_reported():
    problem = mlp_problem()
    optimizer = make(problem.model)
    problem.retain(problem.model).backward()
    with (
        pytest.raises(RuntimeError, match="has a gradient from outside a task; call backward inside"),
        optimizer.task("retain"),
    ):
        pass
    optimizer.zero_grad()
    assert_next_step_is_clean(optimizer, problem)


def test_a_refused_task_attaches_nothing():
    problem = mlp_problem()
    optimizer = make(problem.model)
    stray = problem.model[2].bias
    stray.grad = torch.ones_like(stray)
    with pytest.raises(RuntimeError, match="has a gradient from outside a task"), optimizer.task("retain"):
        pass
    assert all(p.grad is None for p in problem.model.parameters() if p is not stray)
    stray.grad = None
    assert_next_step_is_clean(optimizer, problem)


def test_a_model_that_moved_is_reported():
    problem = mlp_problem(torch.float32)
    optimizer = make(problem.model)
    take_step(optimizer, problem)
    problem.model.double()
    with (
        pytest.raises(RuntimeError, match="was moved or replaced after the optimizer was first used"),
        optimizer.task("retain"),
    ):
        pass


def test_a_model_may_be_moved_and_frozen_before_the_first_task():
    """As accelerate does, which gets a model and its optimizer together."""
    problem = mlp_problem(torch.float32)
    optimizer = make(problem.model)
    optimizer.load_state_dict(optimizer.state_dict())
    problem.model.double()
    problem.model[2].bias.requires_grad_(False)
    before = problem.model[2].bias.clone()
    assert_next_step_is_clean(optimizer, problem)
    assert_bitwise_equal(problem.model[2].bias, before)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: model.requires_grad_(False), "every parameter is frozen; pass at least one"),
        (lambda model: model.to(torch.complex64), r"is torch.complex64; load the model in float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_parameters_are_looked_at_again_when_they_are_first_used(spoil, message):
    model = mlp_problem().model
    optimizer = make(model)
    spoil(model)
    with pytest.raises(ValueError, match=message), optimizer.task("retain"):
        pass


def test_parameters_that_were_replaced_after_the_first_task_are_reported():
    problem = mlp_problem()
    optimizer = make(problem.model)
    take_step(optimizer, problem)
    optimizer.param_groups[0]["params"] = list(mlp_problem().model.parameters())
    with (
        pytest.raises(RuntimeError, match=r"params: .* were replaced after the optimizer was first used"),
        optimizer.task("retain"),
    ):
        pass


def test_parameters_may_be_replaced_before_the_first_task():
    """As accelerate does when it shards a model."""
    problem = mlp_problem()
    optimizer = make(mlp_problem().model)
    optimizer.param_groups[0]["params"] = list(problem.model.parameters())
    assert_next_step_is_clean(optimizer, problem)


@every_base
def test_a_state_from_before_the_first_step_starts_anew(base):
    problem = mlp_problem()
    optimizer = make(problem.model, base)
    state = loaded(optimizer.state_dict(), "through a file")
    assert state["state"] == {}
    slow = Oracle(problem, "ngdiff", make_torch(base))
    start = copy.deepcopy(problem.model.state_dict())
    take_step(optimizer, problem)
    optimizer.load_state_dict(state)
    problem.model.load_state_dict(start)
    for _ in range(2):
        take_step(optimizer, problem)
        slow.step()
    assert_within(weights(problem.model), slow.weights(), BOUND)


@pytest.mark.parametrize("missing", ["retain", "forget"])
def test_a_missing_task_is_named(missing):
    problem = mlp_problem()
    optimizer = make(problem.model)
    before = snapshot(optimizer)
    other = "forget" if missing == "retain" else "retain"
    with optimizer.task(other):
        getattr(problem, other)(problem.model).backward()
    expected = rf"no gradient for task '{missing}'; call backward inside `with optimizer.task\('{missing}'\)`"
    with pytest.raises(RuntimeError, match=expected):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


def test_missing_losses_are_asked_for_and_the_gradients_are_kept():
    problem = mlp_problem()
    slow, optimizer = Oracle(problem, "lossnorm", make_torch("sgd")), make(problem.model, rule="lossnorm")
    losses = run_tasks(optimizer, problem)
    with pytest.raises(ValueError, match=r"rule LossNorm reads the losses; pass losses=\(retain_loss, forget_loss\)"):
        optimizer.step()
    optimizer.step(losses=losses)
    slow.step()
    assert_within(weights(problem.model), slow.weights(), BOUND)


@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_missing_probe_is_asked_for_at_every_step(steps_before):
    problem = mlp_problem()
    optimizer = make(problem.model, lr="auto")
    for _ in range(steps_before):
        take_step(optimizer, problem)
    run_tasks(optimizer, problem)
    with pytest.raises(
        ValueError, match="lr='auto' needs probe=, a function that returns the retain loss; or give lr a number"
    ):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "nope"}, "unknown name 'nope'; choose one of"),
        ({"base": "adam"}, "base = 'adam': unknown; choose one of sgd, adamw"),
        ({"lr": -0.1}, "lr = -0.1: must be finite and >= 0"),
        ({"lr": NAN}, "lr = nan: must be finite and >= 0"),
        ({"lr": INF}, "lr = inf: must be finite and >= 0"),
        ({"lr": "fast"}, "lr = 'fast': give a number > 0, or 'auto'"),
        ({"momentum": 1.0}, r"momentum = 1.0: must be in \[0, 1\)"),
        ({"momentum": -0.1}, r"momentum = -0.1: must be in \[0, 1\)"),
        ({"nesterov": True}, "nesterov = True: needs momentum > 0"),
        ({"betas": (1.0, 0.9)}, r"betas = \(1.0, 0.9\): both must be in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, r"betas = \(0.9, -0.1\): both must be in \[0, 1\)"),
        ({"eps": 0.0}, "eps = 0.0: must be > 0"),
        ({"eps": NAN}, "eps = nan: must be > 0"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1: must be >= 0"),
        ({"weight_decay": NAN}, "weight_decay = nan: must be >= 0"),
    ],
    ids=str,
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message) as info:
        TwoTaskOptimizer(mlp_problem().model.parameters(), **({"lr": LR} | options))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_parameters_of_other_dtypes_are_refused(dtype):
    trained = nn.Parameter(torch.zeros(2, 3).to(dtype))
    message = rf"shape \(2, 3\) is {dtype}; load the model in float32, bfloat16 or float16"
    with pytest.raises(ValueError, match=message):
        TwoTaskOptimizer([trained], lr=0.1)
    TwoTaskOptimizer([trained.requires_grad_(False), nn.Parameter(torch.zeros(2))], lr=0.1)  # frozen ones may have any dtype


# State


def loaded(state: dict[str, Any], how: str) -> dict[str, Any]:
    if how == "as is":
        return state
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_base
@pytest.mark.parametrize("lr", [LR, "auto"])
@pytest.mark.parametrize("how", ["as is", "through a file"])
def test_a_resumed_run_goes_on_bit_for_bit(base, lr, how):
    def optimizer_for(model: nn.Module) -> TwoTaskOptimizer:
        return make(model, base, lr=AutoLearningRate(LR, every=3) if lr == "auto" else lr)

    problem = mlp_problem()
    optimizer = optimizer_for(problem.model)
    for _ in range(2):
        take_step(optimizer, problem)
    run_tasks(optimizer, spoiled(problem, "forget", NAN))
    optimizer.step(probe=lambda: torch.tensor(0.0))
    resumed = mlp_problem()._replace(retain=problem.retain, forget=problem.forget)
    resumed.model.load_state_dict(loaded(problem.model.state_dict(), how))
    other = optimizer_for(resumed.model)
    other.load_state_dict(loaded(optimizer.state_dict(), how))
    assert other.skipped_steps == 1
    for _ in range(5):  # with refreshes before and after the interruption
        take_step(optimizer, problem)
        take_step(other, resumed)
        assert_same(snapshot(other), snapshot(optimizer))
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    if lr == "auto":
        assert other.auto.trace == optimizer.auto.trace
        assert {entry.step for entry in other.auto.trace} == {0, 1, 3, 6}


def test_a_loaded_state_is_a_copy():
    problem = mlp_problem()
    optimizer = make(problem.model, "adamw")
    take_step(optimizer, problem)
    twin = copy_of(problem)
    other = make(twin.model, "adamw")
    other.load_state_dict(optimizer.state_dict())
    before = snapshot(other)
    take_step(optimizer, problem)
    assert_same(snapshot(other), before)


@pytest.mark.parametrize(
    ("base", "names"),
    [("sgd", set()), ("momentum", {"momentum_buffer"}), ("adamw", {"step", "exp_avg", "exp_avg_sq"})],
)
def test_state_is_named_and_shaped_as_in_torch(base, names):
    problem = mlp_problem()
    slow, optimizer = Oracle(problem, "ngdiff", make_torch(base)), make(problem.model, base)
    take_step(optimizer, problem)
    slow.step()
    mine, theirs = optimizer.state_dict()["state"], slow.optimizer.state_dict()["state"]
    assert all(set(state) == names for state in mine.values())
    for key, state in theirs.items():
        for name in names:
            # Moments are averages of d, or of d^2, and |d| <= 2: less than BOUND, which holds for the weights.
            assert_within(mine[key][name], state[name], BOUND)


@every_base
@pytest.mark.parametrize("what", ["state", "all of it"])
def test_torch_goes_on_from_the_state(base, what):
    problem = mlp_problem()
    optimizer = make(problem.model, base)
    for _ in range(2):
        take_step(optimizer, problem)
    slow = Oracle(problem, "ngdiff", make_torch(base))
    state = loaded(optimizer.state_dict(), "through a file")  # torch would share the tensors with this optimizer otherwise
    slow.optimizer.load_state_dict(state if what == "all of it" else slow.optimizer.state_dict() | {"state": state["state"]})
    for _ in range(2):
        slow.step()
    for _ in range(2):
        take_step(optimizer, problem)
    assert_within(weights(problem.model), slow.weights(), BOUND)


def test_the_state_of_a_torch_optimizer_is_refused():
    model = mlp_problem().model
    with pytest.raises(
        ValueError, match=r"not from a TwoTaskOptimizer .*; build this optimizer with the arguments of the saved"
    ):
        make(model, "adamw").load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())


@pytest.mark.parametrize(("saved", "mine"), [(LR, "auto"), ("auto", LR)])
def test_the_state_of_another_kind_of_rate_is_refused(saved, mine):
    model, other = mlp_problem().model, mlp_problem().model
    with pytest.raises(ValueError, match="same base, precision and kind of learning rate"):
        make(model, lr=mine).load_state_dict(make(other, lr=saved).state_dict())


@pytest.mark.parametrize(("saved", "mine"), [("adamw", "sgd"), ("adamw", "momentum"), ("sgd", "adamw"), ("sgd", "momentum")])
def test_the_state_of_another_base_is_refused(saved, mine):
    problem = mlp_problem()
    optimizer = make(problem.model, mine)
    with pytest.raises(ValueError, match="build this optimizer with the arguments of the saved one"):
        optimizer.load_state_dict(make(mlp_problem().model, saved).state_dict())
    slow = Oracle(problem, "ngdiff", make_torch(mine))
    take_step(optimizer, problem)
    slow.step()
    assert_within(weights(problem.model), slow.weights(), BOUND)


def test_a_rule_object_is_used_as_it_is():
    rule = rules.GDiff(0.25)
    assert make(mlp_problem().model, rule=rule).rule is rule


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="every parameter is frozen; pass at least one"):
        TwoTaskOptimizer(torch.nn.Linear(2, 1).requires_grad_(False).parameters(), lr=0.1)
