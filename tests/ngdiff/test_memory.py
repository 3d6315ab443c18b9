"""What a run needs, against what the optimizer really holds."""

from typing import Any

import pytest
import tiny
import torch

from ngdiff import TwoTaskOptimizer, memory
from ngdiff.command.settings import BASES
from ngdiff.command.unlearn import _checkpoint_activations
from ngdiff.lm import loading

SPEED = 1e9


def estimated(model: Any, dtype: torch.dtype, base: str = "adamw", **changed: Any) -> memory.Estimate:
    usual = {"batch": 2, "longest": 10, "tokens": 1000, "computing": torch.float32, "checkpointing": False, "speed": SPEED}
    return memory.estimate(memory.counted(model, dtype), BASES[base], **(usual | changed))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradient_dtype", [None, torch.bfloat16])
def test_counted_bytes_are_those_that_the_optimizer_holds(
    base: str, dtype: torch.dtype, gradient_dtype: torch.dtype | None
) -> None:
    model = tiny.llama().to(dtype)
    optimizer = TwoTaskOptimizer(model.parameters(), lr=1e-3, gradient_dtype=gradient_dtype, **BASES[base])
    with optimizer.task("retain"):
        pass  # buffers may be made at first use
    held = 0
    for segment in optimizer._all_segments():
        states = [state for state in segment.state.values() if state.dim()]
        held += sum(x.numel() * x.element_size() for x in (segment.theta, *segment.gradients.values(), *states))
    counted = sum(estimated(model, dtype, base, gradient_dtype=gradient_dtype).parts.values())
    per = memory.bytes_per_parameter(BASES[base], dtype, gradient_dtype=gradient_dtype)
    assert counted == per * sum(p.numel() for p in model.parameters())
    assert 0 <= held - counted < 0.01 * counted + 4096  # buffers are padded to whole blocks


def test_probes_beside_narrow_gradients_need_a_buffer_of_their_own() -> None:
    """At another time than activations: the larger of the two counts."""
    model = tiny.llama()
    weights = sum(p.numel() for p in model.parameters())
    few, many = ({"batch": batch, "longest": batch} for batch in (1, 64))
    for options, automatic, expected in ((few, False, 0), (few, True, 4 * weights), (many, True, 0)):
        found = estimated(model, torch.float32, gradient_dtype=torch.bfloat16, automatic=automatic, **options)
        assert found.bytes == sum(found.parts.values()) + max(found.activations, expected)
        assert any("try a rate" in line for line in found.lines()) == automatic
    assert (
        estimated(model, torch.float32, **few).activations < 4 * weights < estimated(model, torch.float32, **many).activations
    )
    assert estimated(model, torch.float32, automatic=True, **few).probe == 0


def test_processes_that_split_a_model_hold_a_share_of_it() -> None:
    """But for all weights before and after training, which may be the larger part: here 4 bytes of each beside 16 / 8."""
    model = tiny.llama()
    options = {"gradient_dtype": torch.bfloat16, "automatic": True, "batch": 1, "longest": 1}
    copied, shared = (estimated(model, torch.float32, "adamw", processes=8, split=split, **options) for split in (False, True))
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert copied.parts.pop("gradients as DDP exchanges them") == weights
    assert shared.parts == {name: size // 8 for name, size in copied.parts.items()}
    assert (copied.whole, shared.whole) == (0, weights + weights // 8)
    assert (shared.probe, shared.activations) == (copied.probe // 8, copied.activations)
    assert shared.bytes == shared.whole > sum(shared.parts.values()) + max(shared.probe, shared.activations)
    assert [any("all weights" in line for line in found.lines()) for found in (copied, shared)] == [False, True]


def test_a_model_without_weights_counts_the_same() -> None:
    """With tied embeddings once."""
    model = tiny.llama()
    with memory.without_weights():
        empty = loading.build(model.config)
    assert next(empty.parameters()).is_meta
    assert memory.counted(empty, torch.float32) == memory.counted(model, torch.float32)
    assert memory.counted(model, torch.float32).weights == sum(p.numel() for p in set(model.parameters()))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's, for the newest transformers
def test_adapters_leave_the_rest_without_gradients() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    counted = memory.counted(peft.get_peft_model(tiny.llama().bfloat16(), config), torch.bfloat16)
    parts = list(memory.estimate(counted, BASES["adamw"], batch=1, longest=1, tokens=1, computing=torch.bfloat16,
                                 checkpointing=False, speed=SPEED).parts.values())  # fmt: skip
    frozen, trained = counted.weights - counted.trained, counted.trained
    # 2 layers, 4 square matrices and 3 of the MLP, ranks of 2.
    assert trained == 2 * 2 * (4 * (32 + 32) + 3 * (32 + 48))
    assert parts == [2 * frozen + 4 * trained, 8 * trained, 4 * trained, 4 * trained]


class Kept:
    """Bytes that a forward pass keeps for its backward, each storage once."""

    def __init__(self, parameters: Any):
        self.known = {p.untyped_storage().data_ptr() for p in parameters}
        self.bytes = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.known.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return x


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_of_the_right_size(checkpointing: bool) -> None:
    """Within a factor of 2 of what a Llama keeps in its forward pass, logits and their float32 copies included."""
    model = tiny.llama(vocab_size=200, hidden_size=64, num_hidden_layers=6, intermediate_size=170).train()
    if checkpointing:
        _checkpoint_activations(model)
    ids = torch.randint(0, 200, (4, 50))
    kept = Kept(model.parameters())
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
        model(input_ids=ids, labels=ids, use_cache=False)
    found = estimated(model, torch.float32, batch=4, longest=50, checkpointing=checkpointing).activations
    if checkpointing:  # the layer that is computed again is not in what the forward pass keeps
        found -= 200 * (memory.HIDDEN * 64 + memory.INTERMEDIATE * 170) * 4
    assert kept.bytes / 2 < found < 2 * kept.bytes


@pytest.mark.parametrize("checkpointing", [False, True])
def test_casts_of_weights_wait_for_the_backward(checkpointing: bool) -> None:
    """Beside few tokens they are nearly all that is kept, unless activations are computed again; embeddings are not cast."""
    model = tiny.llama(hidden_size=64, num_hidden_layers=6, intermediate_size=170).train()
    if checkpointing:
        _checkpoint_activations(model)
    ids = torch.randint(0, 64, (1, 2))
    kept = Kept(model.parameters())
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, labels=ids, use_cache=False)
    options = {"batch": 1, "longest": 2, "checkpointing": checkpointing, "computing": torch.bfloat16}
    found = estimated(model, torch.float32, **options).activations
    casts = 2 * sum(p.numel() for p in model.parameters())
    if checkpointing:
        assert found < 0.1 * casts
    else:
        assert casts < found < 1.1 * casts
        assert kept.bytes == pytest.approx(found, rel=0.1)


def test_time_follows_operations() -> None:
    model = tiny.llama()
    weights = memory.counted(model, torch.float32).weights
    assert estimated(model, torch.float32).seconds == pytest.approx(6 * weights * 1000 / SPEED)
    assert estimated(model, torch.float32, checkpointing=True).seconds == pytest.approx(8 * weights * 1000 / SPEED)
    assert estimated(model, torch.float32, read=300).seconds == pytest.approx((6 * 1000 + 2 * 300) * weights / SPEED)
    assert memory.measured_speed(torch.device("cpu"), torch.float32) > 1e6
