import gc
import math

import oracle
import pytest
import safetensors.torch
import torch
from asserts import assert_bitwise_equal
from torch import nn

from ngdiff import TwoTaskOptimizer
from ngdiff.flat import ALIGNMENT, Segment, segments

TASKS = ("retain", "forget")


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=dtype))


def built(*parameters: nn.Parameter) -> Segment:
    return Segment(list(parameters), TASKS)


def odd_parameters() -> list[nn.Parameter]:
    """Shapes that a flat buffer may get wrong: a scalar, one element, a prime, none at all, strides of their own."""
    transposed = nn.Parameter(torch.randn(5, 3).t())
    strided = nn.Parameter(torch.randn(4, 6)[:, ::2])
    channels_last = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    assert not transposed.is_contiguous()
    return [parameter(), parameter(1), parameter(0, 3), transposed, parameter(17), strided, channels_last, parameter(0)]


# Values and memory


def test_values_are_unchanged():
    parameters = odd_parameters()
    before = [p.detach().clone() for p in parameters]
    built(*parameters)
    for p, value in zip(parameters, before, strict=True):
        assert_bitwise_equal(p.detach(), value)


def test_parameters_are_views_of_one_buffer():
    parameters = odd_parameters()
    segment = built(*parameters)
    for p, view in zip(parameters, segment.views(segment.theta), strict=True):
        assert p.data_ptr() == view.data_ptr()
    segment.theta.fill_(3.0)
    assert all(p.eq(3.0).all() for p in parameters)


def test_parameters_are_not_taken_for_tied_ones():
    """safetensors and accelerate tell those by their storage, and save one of them."""
    parameters = [p for p in odd_parameters() if p.numel()]
    built(*parameters)
    for p in parameters:
        assert p.untyped_storage().data_ptr() == p.data_ptr()
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()


def test_a_model_in_a_buffer_is_saved_whole(tmp_path):
    model, other = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    built(*model.parameters())
    safetensors.torch.save_model(model, tmp_path / "model.safetensors")
    built(*other.parameters())
    safetensors.torch.load_model(other, tmp_path / "model.safetensors")
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_bitwise_equal(p.detach(), q.detach())


def test_parameters_keep_their_buffer_and_no_longer():
    parameters = [parameter(1000, 1000), parameter(3)]
    before = [p.detach().clone() for p in parameters]
    storage = torch.UntypedStorage._new_with_weak_ptr
    weak = built(*parameters).theta.untyped_storage()._weak_ref()
    gc.collect()
    for p, value in zip(parameters, before, strict=True):
        assert_bitwise_equal(p.detach(), value)
    assert storage(weak) is not None
    parameters.clear()
    del p
    assert storage(weak) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_are_aligned_and_do_not_overlap(dtype):
    segment = built(*(parameter(n, dtype=dtype) for n in (1, 15, 16, 17, 0, 3, 64)))
    assert segment.theta.data_ptr() % ALIGNMENT == 0
    starts = [v.data_ptr() - segment.theta.data_ptr() for v in segment.views(segment.theta) if v.numel()]
    assert all(start % ALIGNMENT == 0 for start in starts)
    for i, view in enumerate(segment.views(segment.theta)):
        view.fill_(i + 1)
    assert [int(p[0]) for p in segment.parameters if p.numel()] == [1, 2, 3, 4, 6, 7]
    assert segment.theta.numel() * segment.theta.element_size() == ALIGNMENT * sum(
        math.ceil(p.numel() * p.element_size() / ALIGNMENT) for p in segment.parameters
    )


def test_gaps_stay_zero():
    """They would change the inner products and drift under weight decay."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    optimizer = TwoTaskOptimizer(model.parameters(), base="adamw", lr=0.1, weight_decay=0.1)
    for _ in range(3):
        oracle.run_tasks(optimizer, oracle.mlp_problem(torch.float32, model))
        optimizer.step()
    ((segment,),) = optimizer._segments
    buffer = segment.theta
    inside = torch.zeros_like(buffer, dtype=torch.bool)
    for view in segment.views(inside):
        view.fill_(True)
    assert inside.sum() == 32
    assert buffer[inside].all()
    assert buffer[~inside].eq(0).all()


def test_buffers_of_the_tasks_are_apart_and_zero():
    segment = built(parameter(3), parameter(2, 2))
    assert set(segment.gradients) == set(TASKS)
    for gradient in segment.gradients.values():
        assert (gradient.shape, gradient.dtype) == (segment.theta.shape, segment.theta.dtype)
        assert not gradient.any()
    pointers = {buffer.data_ptr() for buffer in (segment.theta, *segment.gradients.values())}
    assert len(pointers) == 3


def test_a_segment_of_nothing():
    segment = built(parameter(0), parameter(0, 4))
    assert segment.theta.shape == (0,)
    assert [tuple(view.shape) for view in segment.views(segment.theta)] == [(0,), (0, 4)]


def test_the_model_computes_as_before():
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 4, 4)
    model.eval()
    before = model(x)
    built(*model.parameters())
    # Sums of at most 36 products, in an order that may depend on the layout of the weights: 36 roundings of terms below 4.
    torch.testing.assert_close(model(x), before, rtol=0, atol=36 * 2.0**-24 * 4)


def test_a_state_dict_loads_into_the_views():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    segment = built(*model.parameters())
    model.load_state_dict(other.state_dict())
    assert_bitwise_equal(segment.views(segment.theta)[0], other.weight.detach())


# Which parameters go where


def test_two_dtypes_make_two_segments():
    parameters = [parameter(2), parameter(3, dtype=torch.float64), parameter(4), parameter(5, dtype=torch.float64)]
    found = list(segments(iter(parameters), TASKS))
    assert len(found) == 2
    sizes = {segment.theta.dtype: [p.numel() for p in segment.parameters] for segment in found}
    assert sizes == {torch.float32: [2, 4], torch.float64: [3, 5]}
    for segment in found:
        assert all(g.dtype == segment.theta.dtype for g in segment.gradients.values())


def test_frozen_parameters_are_left_where_they_are():
    frozen, free = parameter(3), parameter(4)
    frozen.requires_grad_(False)
    pointer, value = frozen.data_ptr(), frozen.detach().clone()
    (segment,) = segments([frozen, free], TASKS)
    assert [p is free for p in segment.parameters] == [True]
    assert frozen.data_ptr() == pointer
    optimizer = TwoTaskOptimizer([frozen, free], lr=0.1)
    for task in TASKS:
        with optimizer.task(task):
            ((free * frozen.sum()).square().sum() if task == "retain" else free.sum()).backward()
    optimizer.step()
    assert_bitwise_equal(frozen.detach(), value)
    assert not optimizer.state[frozen]


def test_tied_weights_are_stored_once():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    (segment,) = segments(model.parameters(), TASKS)
    assert [tuple(p.shape) for p in segment.parameters] == [(6, 4)]
    assert model[0].weight is model[1].weight
    segment.attach("retain")
    model(torch.tensor([1, 2])).sum().backward()
    (view,) = segment.views(segment.gradients["retain"])
    twin = nn.Parameter(model[0].weight.detach().clone())
    (expected,) = torch.autograd.grad(nn.functional.linear(twin[torch.tensor([1, 2])], twin).sum(), twin)
    # Both uses add up: sums of at most 6 products, in either order.
    torch.testing.assert_close(view, expected, rtol=0, atol=6 * 2.0**-24 * 16)


# What backward writes


def test_backward_writes_into_the_buffer_of_the_task():
    a, b = parameter(3), parameter(2, 2)
    segment = built(a, b)
    segment.attach("forget")
    (a.sum() * 2 + b.sum() * 3).backward()
    segment.settle("forget")
    segment.detach()
    assert [view.tolist() for view in segment.views(segment.gradients["forget"])] == [[2.0] * 3, [[3.0] * 2] * 2]
    assert not segment.gradients["retain"].any()
    assert a.grad is None
    assert b.grad is None


def test_backwards_accumulate():
    a = parameter(3)
    segment = built(a)
    segment.attach("retain")
    for factor in (1.0, 10.0):
        (a.sum() * factor).backward()
    segment.detach()
    segment.attach("retain")
    (a.sum() * 100).backward()
    segment.detach()
    assert segment.views(segment.gradients["retain"])[0].tolist() == [111.0] * 3


def test_a_fresh_task_keeps_nothing_of_before():
    """Of a parameter that backward reaches, of one that it does not, and of one it reaches again."""
    a, b = parameter(3), parameter(2, 2)
    segment = built(a, b)
    for view in segment.views(segment.gradients["retain"]):
        view.fill_(math.nan)  # whatever a step or an error has left
    segment.attach("retain", fresh=True)
    for factor in (1.0, 10.0):
        (a.sum() * factor).backward()
    segment.settle("retain")
    segment.detach()
    assert [view.tolist() for view in segment.views(segment.gradients["retain"])] == [[11.0] * 3, [[0.0] * 2] * 2]
    a.sum().backward()
    assert a.grad is not None
    assert a.grad.tolist() == [1.0] * 3  # of its own: no hook has stayed


def test_a_gradient_that_autograd_did_not_give_is_taken_over():
    """As DDP's, where a parameter is used on other ranks alone."""
    a = parameter(3)
    segment = built(a)
    segment.attach("retain", fresh=True)
    a.grad = torch.full((3,), 2.0)
    segment.settle("retain")
    assert segment.views(segment.gradients["retain"])[0].tolist() == [2.0] * 3


@pytest.mark.parametrize("fresh", [True, False])
def test_sparse_gradients_are_accumulated_too(fresh):
    embedding = nn.Embedding(4, 2, sparse=True)
    segment = built(embedding.weight)
    segment.attach("retain", fresh)
    for _ in range(2):
        embedding(torch.tensor([1, 1, 3])).sum().backward()
    segment.settle("retain")
    assert segment.views(segment.gradients["retain"])[0].tolist() == [[0.0] * 2, [4.0] * 2, [0.0] * 2, [2.0] * 2]


def test_point_at_shows_another_buffer_without_a_copy():
    a = parameter(3)
    segment = built(a)
    before, other = segment.theta.clone(), torch.arange(float(len(segment.theta)))
    segment.point_at(other)
    assert a.data_ptr() == other.data_ptr()
    assert a.tolist() == [0.0, 1.0, 2.0]
    segment.point_at(segment.theta)
    assert a.data_ptr() == segment.theta.data_ptr()
    assert_bitwise_equal(segment.theta, before)


# Mistakes


def test_a_moved_parameter_is_reported():
    a, b = parameter(3), parameter(2, 5)
    segment = built(a, b)
    b.data = b.data.clone()
    with pytest.raises(
        RuntimeError, match=r"shape \(2, 5\) was moved or replaced .*; move, resize or shard the model before the first task"
    ):
        segment.attach("retain")


def test_a_stray_gradient_is_reported():
    a, b = parameter(3), parameter(2, 5)
    segment = built(a, b)
    b.sum().backward()
    with pytest.raises(RuntimeError, match=r"shape \(2, 5\) has a gradient from outside a task; call backward inside"):
        segment.attach("retain")


@pytest.mark.parametrize("fresh", [True, False])
def test_a_replaced_gradient_is_reported(fresh):
    a = parameter(3)
    segment = built(a)
    segment.attach("retain", fresh)
    a.sum().backward()
    a.grad = None
    with pytest.raises(RuntimeError, match=r"shape \(3,\) was replaced inside task 'retain'; do not call zero_grad"):
        segment.settle("retain")


@pytest.mark.filterwarnings("ignore:Using backward")  # torch's own, of the cycle that detach breaks
@pytest.mark.parametrize("fresh", [True, False])
def test_a_gradient_with_a_graph_is_reported(fresh):
    a = parameter(3)
    segment = built(a)
    segment.attach("retain", fresh)
    a.square().sum().backward(create_graph=True)
    with pytest.raises(RuntimeError, match=r"replaced inside task 'retain'; .* do not use create_graph=True"):
        segment.settle("retain")
    segment.detach()


# State


def test_state_is_seen_a_parameter_at_a_time():
    segment = built(parameter(3), parameter(2, 2))
    segment.add_state({"step": "scalar", "exp_avg": "flat"})
    assert {name: (tuple(t.shape), t.any().item()) for name, t in segment.state.items()} == {
        "step": ((), False),
        "exp_avg": (tuple(segment.theta.shape), False),
    }
    segment.state["step"] += 5
    segment.state["exp_avg"] += 2
    first, second = segment.state_views()
    assert first["exp_avg"].tolist() == [2.0] * 3
    assert second["exp_avg"].tolist() == [[2.0] * 2] * 2
    assert first["step"].item() == second["step"].item() == 5


def test_scalar_state_is_float32_whatever_the_default_dtype():
    """A step counter in bfloat16 would stop at 256."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        segment = built(parameter(3))
        segment.add_state({"step": "scalar"})
    finally:
        torch.set_default_dtype(default)
    assert segment.state["step"].dtype == torch.float32


def test_state_is_loaded_by_value():
    one, two = built(parameter(3), parameter(2)), built(parameter(3), parameter(2))
    for segment in (one, two):
        segment.add_state({"step": "scalar", "exp_avg": "flat"})
    one.state["exp_avg"].copy_(torch.randn_like(one.theta))
    one.state["step"] += 3
    two.load_state(one.state_views())
    for mine, theirs in zip(two.state_views(), one.state_views(), strict=True):
        assert_bitwise_equal(mine["exp_avg"], theirs["exp_avg"])
        assert_bitwise_equal(mine["step"], theirs["step"])
    one.state["exp_avg"].zero_()
    assert two.state_views()[1]["exp_avg"].all()
