"""What a run will need, before a weight is read: bytes, which are counted, and activations and time, which are estimates."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from ngdiff_kernels import state_shapes

GIB = 1 << 30
STATE = 4  # bytes: states, and master copies of 16-bit weights, are float32
# Tensors that a layer of a Llama keeps for its backward: of the width of the model (inputs of both norms, queries, keys,
# values, what attention returns, residuals, and the float32 copies in norms), and of the width of its MLP.
HIDDEN, INTERMEDIATE = 12, 4
NAMES = {  # of the states of the optimizer
    "master": "float32 copies of 16-bit weights",
    "exp_avg": "AdamW, means of gradients",
    "exp_avg_sq": "AdamW, means of their squares",
    "momentum_buffer": "momentum",
}
EFFICIENCY = 0.4  # share of the speed of a matrix product that training reaches


@dataclass(frozen=True)
class Model:
    """What is counted of a model.

    Attributes:
        weights: parameters, tied ones once.
        trained: those that a run changes.
        trained_itemsize: bytes of one of them.
        itemsize: bytes of another weight.
        layers, hidden, intermediate, vocabulary: its shape.
    """

    weights: int
    trained: int
    itemsize: int
    trained_itemsize: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        parts: what for -> bytes, counted.
        activations: bytes, an estimate.
        seconds: of training, an estimate: what passes over the weights take, without what is done once, such as compiling.
        probe: bytes of the weights that an automatic rate looks at, where they need a buffer of their own. It is there when
            activations are not.
        whole: where training splits the weights: bytes of all of them and of a share, which are there before and after it.
    """

    parts: dict[str, int]
    activations: int
    seconds: float
    probe: int = 0
    whole: int = 0

    @property
    def bytes(self) -> int:
        """At the peak."""
        return max(sum(self.parts.values()) + max(self.activations, self.probe), self.whole)

    def lines(self) -> Iterator[str]:
        """For the terminal."""
        for name, size in self.parts.items():
            yield _line(name, _size(size))
        yield _line("activations of one batch (an estimate)", _size(self.activations))
        if self.probe:
            yield _line("or, at another time, weights to try a rate with", _size(self.probe))
        if self.whole:
            yield _line("or, before and after training, all weights", _size(self.whole))
        yield _line("memory in all (about)", _size(self.bytes))
        yield _line("training time of all epochs (a rough estimate)", _duration(self.seconds))


@contextmanager
def without_weights() -> Iterator[None]:
    """Models that are built here have shapes and no weights."""
    with torch.device("meta"):
        yield


def counted(model: Any, dtype: torch.dtype) -> Model:
    """The counts of a model, which may be one without weights.

    Args:
        model: of transformers, or a PEFT model.
        dtype: of weights that are not trained by themselves; added ones are float32, where only they are trained.
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    config = model.config.get_text_config()
    itemsize = dtype.itemsize
    intermediate = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    shape = config.num_hidden_layers, config.hidden_size, intermediate, config.vocab_size
    return Model(weights, trained, itemsize, itemsize if trained == weights else 4, *shape)


def bytes_per_parameter(
    base: Mapping[str, Any], dtype: torch.dtype, low_precision: str = "master", gradient_dtype: torch.dtype | None = None
) -> int:
    """Bytes of a trained parameter: its weight, two gradients, the state of the optimizer. Over N processes of FSDP2, a share
    of 1 / N each.

    Args:
        base: "base" and "momentum" of the optimizer.
        dtype: of the weights.
        low_precision, gradient_dtype: of the optimizer.
    """
    states = state_shapes({"momentum": 0.0, "low_precision": low_precision} | dict(base), dtype)
    return dtype.itemsize + 2 * (gradient_dtype or dtype).itemsize + STATE * sum(kind == "flat" for kind in states.values())


def estimate(
    model: Model,
    base: Mapping[str, Any],
    *,
    batch: int,
    longest: int,
    tokens: int,
    read: int = 0,
    computing: torch.dtype,
    checkpointing: bool,
    speed: float,
    gradient_dtype: torch.dtype | None = None,
    automatic: bool = False,
    processes: int = 1,
    split: bool = False,
) -> Estimate:
    """What a run needs on each device.

    Args:
        model: its counts.
        base: "base" and "momentum" of the optimizer.
        batch: rows of a task that are read at once.
        longest: tokens of the longest row.
        tokens: of all rows of both tasks that the run learns from.
        read: tokens that it only reads, to find a rate or whether to stop.
        computing: dtype of activations.
        checkpointing: whether activations are computed again in the backward.
        speed: operations a second that training reaches.
        gradient_dtype: of the optimizer.
        automatic: whether the rate sets itself, by probes: beside gradients that are narrower than the weights they need a
            buffer, at a time at which there are no activations.
        processes: how many take a step together.
        split: whether they split weights, gradients and states, by FSDP2; else each has a copy, by DDP.
    """
    shards = processes if split else 1
    dtype = torch.bfloat16 if model.trained_itemsize == 2 else torch.float32
    states = state_shapes({"momentum": 0.0, "low_precision": "master"} | dict(base), dtype)
    others = model.weights - model.trained
    parts = {
        f"weights, {model.weights:,}": others * model.itemsize + model.trained * model.trained_itemsize,
        f"two gradients of {model.trained:,} trained weights": 2 * model.trained * (gradient_dtype or dtype).itemsize,
    }
    parts |= {NAMES.get(name, name): model.trained * STATE for name, kind in states.items() if kind == "flat"}
    weights = next(iter(parts.values()))
    parts = {name: size // shards for name, size in parts.items()}
    if processes > shards:
        parts["gradients as DDP exchanges them"] = model.trained * model.trained_itemsize
    whole = weights + weights // shards if shards > 1 else 0
    # A weight and token: 2 forward, 4 backward.
    operations = model.weights * ((8 if checkpointing else 6) * tokens + 2 * read)
    probe = model.trained * dtype.itemsize // shards if automatic and gradient_dtype not in (None, dtype) else 0
    activations = _activations(model, batch * longest, computing.itemsize, checkpointing)
    if computing.itemsize < model.itemsize and not checkpointing:
        activations += model.weights * computing.itemsize  # casts by autocast, which wait for the backward
    return Estimate(parts, activations, operations / speed, probe, whole)


def _activations(model: Model, tokens: int, itemsize: int, checkpointing: bool) -> int:
    layer = tokens * (HIDDEN * model.hidden + INTERMEDIATE * model.intermediate) * itemsize
    # Logits, what the loss computes in float32 from them, and their gradients.
    logits = tokens * model.vocabulary * (2 * itemsize + 8)
    kept = layer + model.layers * tokens * model.hidden * itemsize if checkpointing else model.layers * layer
    return kept + logits


def measured_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that training will reach on `device`, guessed from a product of two matrices."""
    size = 4096 if device.type == "cuda" else 512
    a = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return EFFICIENCY * 2 * size**3 / min(seconds)


def _line(name: str, value: str) -> str:
    return f"  {name:<50} {value:>12}"


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.2f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
