"""Gradients kept in bfloat16 beside wider parameters."""

from typing import Any

import pytest
import torch
from asserts import U32, assert_bitwise_equal, assert_within
from torch import Tensor, nn

from ngdiff import TwoTaskOptimizer

BF16 = torch.bfloat16
EVERY = [torch.float32, torch.float64, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", EVERY, ids=str)


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(7, 5).to(dtype)), nn.Parameter(torch.randn(67).to(dtype))]


def optimizer_of(trained: list[nn.Parameter], **options: Any) -> TwoTaskOptimizer:
    return TwoTaskOptimizer(trained, **({"lr": 0.1, "gradient_dtype": BF16} | options))


def backward(trained: list[nn.Parameter], gradients: list[Tensor]) -> None:
    sum((p * g.to(p)).sum() for p, g in zip(trained, gradients, strict=True)).backward()


def drawn(trained: list[nn.Parameter]) -> list[Tensor]:
    return [torch.randn(p.shape) for p in trained]


def buffers(optimizer: TwoTaskOptimizer, task: str) -> list[Tensor]:
    """The gradient of a task, a parameter at a time."""
    (segment,) = optimizer._all_segments()
    return segment.views(segment.gradients[task])


@every_dtype
def test_a_gradient_is_rounded_once_and_left_nowhere_else(dtype):
    trained = parameters(dtype)
    optimizer, gradients = optimizer_of(trained), drawn(trained)
    with optimizer.task("retain"):
        backward(trained, gradients)
        assert [p.grad for p in trained] == [None, None]
    for kept, gradient in zip(buffers(optimizer, "retain"), gradients, strict=True):
        assert kept.dtype == BF16
        assert_bitwise_equal(kept, gradient.to(dtype).to(BF16))


def test_the_next_task_begins_from_zero():
    trained = parameters()
    optimizer = optimizer_of(trained)
    for number in range(2):
        gradients = drawn(trained)
        with optimizer.task("retain"):
            backward(trained, gradients)
        with optimizer.task("forget"):
            backward(trained[:1], gradients[:1])
        for kept, gradient in zip(buffers(optimizer, "retain"), gradients, strict=True):
            assert_bitwise_equal(kept, gradient.to(BF16))
        assert number == 0 or buffers(optimizer, "forget")[1].eq(0).all()
        optimizer.step()
        buffers(optimizer, "forget")[1].fill_(3.0)  # what no backward reaches must not stay


@pytest.mark.parametrize("blocks", [1, 2])
def test_every_further_backward_is_added_and_rounded(blocks):
    trained = parameters()
    optimizer, first, second = optimizer_of(trained), drawn(trained), drawn(trained)
    with optimizer.task("retain"):
        backward(trained, first)
        if blocks == 1:
            backward(trained, second)
    if blocks == 2:
        with optimizer.task("retain"):
            backward(trained, second)
    for kept, one, two in zip(buffers(optimizer, "retain"), first, second, strict=True):
        assert_bitwise_equal(kept, (one.to(BF16).float() + two).to(BF16))


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_the_step_is_that_of_the_rounded_gradients(monkeypatch, backend, base):
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is not installed: it exists for Linux alone")
    if backend == "cpu" and torch.get_default_device().type != "cpu":
        pytest.skip("this backend is for CPUs")
    monkeypatch.setenv("NGDIFF_BACKEND", backend)
    trained = parameters()
    rounded = [nn.Parameter(p.detach().clone()) for p in trained]
    mine, theirs = (
        TwoTaskOptimizer(p, "ngdiff", base, 0.1, eps=1e-2, gradient_dtype=kept)
        for p, kept in ((trained, BF16), (rounded, None))
    )
    for _ in range(4):
        for task in ("retain", "forget"):
            gradients = drawn(trained)
            with mine.task(task):
                backward(trained, gradients)
            with theirs.task(task):
                backward(rounded, [g.to(BF16) for g in gradients])
        mine.step()
        theirs.step()
        for one, two in zip(trained, rounded, strict=True):
            # The same sums in the same order, but for AdamW's, of which each backend may fuse a product with another sum.
            assert_within(one.detach(), two.detach(), 20 * U32 * 8 if base == "adamw" else 0.0)


def test_weights_are_probed_in_their_own_dtype():
    """And are themselves again afterwards, to the bit and at their place."""
    trained = parameters()
    optimizer = optimizer_of(trained, lr="auto")
    before = [p.detach().clone() for p in trained]
    seen: list[tuple[Tensor, ...]] = []

    def probe() -> Tensor:
        assert all(p.dtype == torch.float32 for p in trained)
        seen.append(tuple(p.detach().clone() for p in trained))
        return sum((p - 1).square().sum() for p in trained).detach()

    for task, gradients in (("retain", [2 * (p.detach() - 1) for p in trained]), ("forget", drawn(trained))):
        with optimizer.task(task):
            backward(trained, gradients)
    places = [p.data_ptr() for p in trained]  # in the flat buffer
    optimizer.step(probe=probe)
    assert [p.data_ptr() for p in trained] == places
    assert any(all(map(torch.equal, values, before)) for values in seen)  # h = 0 is the weights themselves
    assert optimizer.param_groups[0]["lr"] > 0
    assert all(not p.detach().equal(value) for p, value in zip(trained, before, strict=True))


def test_an_automatic_run_reaches_what_one_in_float32_does():
    found = []
    for kept in (None, BF16):
        torch.manual_seed(0)
        trained = parameters()
        optimizer = optimizer_of(trained, lr="auto", gradient_dtype=kept)
        start = sum((p.detach() - 1).square().sum() for p in trained).item()
        for _ in range(30):
            for task, place in (("retain", 1.0), ("forget", -1.0)):
                with optimizer.task(task):
                    sum((p - place).square().sum() for p in trained).backward()
            optimizer.step(probe=lambda trained=trained: sum((p - 1).square().sum() for p in trained).detach())
        found.append(sum((p.detach() - 1).square().sum() for p in trained).item())
    exact, rounded = found
    assert exact < 0.5 * start  # it has got somewhere
    assert rounded == pytest.approx(exact, rel=0.1)  # a direction is off by 2^-9 of itself a step


@pytest.mark.parametrize("gram_during_backward", [False, True])
def test_products_are_those_of_the_rounded_gradients(gram_during_backward):
    trained = parameters()
    optimizer = optimizer_of(trained, gram_during_backward=gram_during_backward)
    for _ in range(2):
        given = {task: drawn(trained) for task in ("retain", "forget")}
        for task, gradients in given.items():
            with optimizer.task(task):
                backward(trained, gradients)
        optimizer.step()
        retain, forget = (torch.cat([g.to(BF16).double().flatten() for g in given[task]]) for task in given)
        assert optimizer.last_step is not None
        exact, size = products(retain, forget)
        assert_within(torch.stack(tuple(optimizer.last_step.gram)), exact, 68 * U32 * size)


def products(retain: Tensor, forget: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.stack([retain @ retain, forget @ forget, retain @ forget]),
        torch.stack([retain @ retain, forget @ forget, retain.abs() @ forget.abs()]),
    )


def test_a_direction_beyond_bfloat16_refuses_the_step():
    """d is written over a gradient when the rate is chosen, and must not become infinite there."""
    limits = []
    for kept in (None, BF16):
        parameter = nn.Parameter(torch.zeros(3))
        optimizer = optimizer_of([parameter], rule="gdiff-1", lr=1e-38, gradient_dtype=kept)
        for task, size in (("retain", 3.394e38), ("forget", 0.0)):
            with optimizer.task(task):
                (parameter * torch.tensor([size, 0.0, 0.0])).sum().backward()
        optimizer.step()
        limits.append(optimizer.skipped_steps)
    assert limits == [0, 1]


def test_memory_is_two_bytes_an_element_and_task():
    trained = parameters()
    optimizer = optimizer_of(trained)
    with optimizer.task("retain"):
        backward(trained, drawn(trained))
    (segment,) = optimizer._all_segments()
    assert {task: buffer.nbytes for task, buffer in segment.gradients.items()} == dict.fromkeys(
        ("retain", "forget"), 2 * len(segment.theta)
    )


def test_one_gradient_at_a_time_is_kept_in_the_parameters_dtype():
    layers = [nn.Linear(8, 8) for _ in range(5)]
    trained = [p for layer in layers for p in layer.parameters()]
    optimizer, present = optimizer_of(trained), []

    def count(_: Tensor) -> None:
        present.append(sum(p.grad is not None for p in trained))

    with optimizer.task("retain"):
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(count)  # after ours, which has moved the gradient
        nn.Sequential(*layers)(torch.randn(2, 8)).square().sum().backward()
    assert present == [0] * len(trained)


def test_the_state_does_not_depend_on_it():
    trained = parameters()
    optimizer = optimizer_of(trained, base="adamw")
    for task in ("retain", "forget"):
        with optimizer.task(task):
            backward(trained, drawn(trained))
    optimizer.step()
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}
    others = [nn.Parameter(p.detach().clone()) for p in trained]
    other = optimizer_of(others, base="adamw", gradient_dtype=None)
    other.load_state_dict(optimizer.state_dict())
    for mine, theirs in zip(trained, others, strict=True):
        for name, value in optimizer.state[mine].items():
            assert_bitwise_equal(other.state[theirs][name], value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, "bfloat16"], ids=str)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=r"^gradient_dtype = .*: give torch.bfloat16, or None for the parameters' own$"):
        optimizer_of(parameters(), gradient_dtype=dtype)


def test_the_weights_dtype_limits_a_direction_too():
    """An element of d beyond float16 would make such a weight infinite, though bfloat16 still holds it."""
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    optimizer = optimizer_of([parameter], rule="gdiff-1", lr=1.0)
    for task, size in (("retain", 40000.0), ("forget", 0.0)):
        with optimizer.task(task):
            for _ in range(2):
                (parameter * torch.tensor([size, 0.0, 0.0], dtype=torch.float16)).sum().backward()
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert parameter.eq(0).all()


@pytest.mark.parametrize("blocks_before", [0, 1])
def test_zero_grad_inside_a_task_is_reported(blocks_before):
    """What was moved to the buffer would stay there. Before the first backward there is nothing to clear."""
    trained = parameters()
    optimizer = optimizer_of(trained)
    with optimizer.task("retain"):
        optimizer.zero_grad()
        backward(trained, drawn(trained))
    for _ in range(1 - blocks_before):
        optimizer.zero_grad()
    with (
        pytest.raises(RuntimeError, match=r"^zero_grad: called inside task 'retain', which has gradients already; "),
        optimizer.task("retain"),
    ):
        if not blocks_before:
            backward(trained, drawn(trained))
        optimizer.zero_grad()


def test_a_gradient_put_there_by_hand_is_reported():
    trained = parameters()
    optimizer = optimizer_of(trained)
    with pytest.raises(RuntimeError, match="was replaced inside task 'retain'"), optimizer.task("retain"):
        backward(trained, drawn(trained))
        trained[0].grad = torch.ones_like(trained[0])


@pytest.mark.filterwarnings("ignore:Using backward.* with create_graph=True:UserWarning")
def test_a_gradient_with_a_graph_is_reported():
    trained = parameters()
    optimizer = optimizer_of(trained)
    with pytest.raises(RuntimeError, match="was replaced inside task 'retain'"), optimizer.task("retain"):
        sum(p.square().sum() for p in trained).backward(create_graph=True)


def test_an_exception_inside_a_later_block_discards_the_task():
    trained = parameters()
    optimizer, gradients = optimizer_of(trained), drawn(trained)
    with optimizer.task("retain"):
        backward(trained, drawn(trained))
    with pytest.raises(KeyError), optimizer.task("retain"):
        backward(trained, drawn(trained))
        raise KeyError
    with optimizer.task("retain"):
        backward(trained, gradients)
    for kept, gradient in zip(buffers(optimizer, "retain"), gradients, strict=True):
        assert_bitwise_equal(kept, gradient.to(BF16))


def test_sparse_gradients():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = optimizer_of([embedding.weight])
    with optimizer.task("retain"):
        for _ in range(2):
            embedding(torch.tensor([1, 1, 4])).sum().backward()
    (kept,) = buffers(optimizer, "retain")
    assert kept.sum(1).tolist() == [0.0, 12.0, 0.0, 0.0, 6.0]


def test_groups_of_two_dtypes_and_a_rule_that_reads_one_task():
    wide, narrow = nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(5).bfloat16())
    optimizer = TwoTaskOptimizer([{"params": [wide]}, {"params": [narrow]}], rule="ga", lr=0.5, gradient_dtype=BF16)
    before = wide.detach().clone()
    with optimizer.task("forget"):
        (wide.sum() + narrow.float().sum()).backward()
    optimizer.step()
    assert {g.dtype for segment in optimizer._all_segments() for g in segment.gradients.values()} == {BF16}
    assert_bitwise_equal(wide.detach(), before + 0.5)
