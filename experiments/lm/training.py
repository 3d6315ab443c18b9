"""Fine-tuning on question-answer pairs."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from experiments.lm.muon import Muon
from ngdiff import objectives
from ngdiff.errors import UserError
from ngdiff.lm.batches import collate, shuffled_batches
from ngdiff.lm.devices import autocast
from ngdiff.lm.encoding import Example


@dataclass(frozen=True)
class Schedule:
    """An optimizer with a linear warm-up and a decay to zero, or none.

    Attributes:
        epochs, batch: passes over the rows, rows a step.
        lr: the peak learning rate.
        warmup: share of the steps that the warm-up takes.
        weight_decay, betas: of AdamW.
        clip: largest norm of the gradient.
        decay: "cosine" over all steps, "linear" over those after the warm-up, or "constant" for none.
        optimizer: "adamw", or "muon" for the weight matrices, at twice the rate, and AdamW for embeddings and the rest.
        noise: standard deviation of the noise on the weights while a gradient is computed, see `shaken`.
    """

    epochs: int
    batch: int
    lr: float
    warmup: float = 0.05
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    optimizer: Literal["adamw", "muon"] = "adamw"
    noise: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """Learning rate at `step` of `steps`, relative to the peak."""
        return min(1.0, (step + 1) / max(1.0, self.warmup * steps)) * self._decayed(step, steps)

    def _decayed(self, step: int, steps: int) -> float:
        if self.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / steps))
        if self.decay == "linear":
            # As transformers' linear schedule, whose warm-up is one step behind: its first step has rate 0 and does nothing.
            return min(1.0, (steps - step) / max(1.0, steps - self.warmup * steps))
        return 1.0


MUON_RATE = 2.0  # of Muon, relative to that of AdamW beside it
FROM_SCRATCH = Schedule(epochs=16, batch=8, lr=2e-3)
# TOFU's settings for pretrained models: 5 epochs, batch 32, weight decay 0.01, one epoch of warm-up, then a linear decay, which
# locuslab/tofu (finetune.py) and open-unlearning (configs/experiment/finetune/tofu) leave at the default of transformers, as
# they do betas and the largest norm.
PRETRAINED = Schedule(epochs=5, batch=32, lr=1e-5, warmup=0.2, weight_decay=0.01, betas=(0.9, 0.999), decay="linear")


def finetune(
    model: Any,
    examples: Sequence[Example],
    pad: int,
    schedule: Schedule,
    generator: torch.Generator,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> int:
    """Minimise the NLL of the answers, in place.

    Args:
        model: of transformers, on its device.
        examples: the rows.
        pad: id to pad with.
        schedule: how long and how fast.
        generator: decides the order of the rows; on the CPU.
        on_step: called after each step with (steps done, steps in all).

    Returns:
        Number of tokens seen, padding left out.

    Raises:
        UserError: the loss or the gradient is not finite; the weights are as before that step.
    """
    model.train()
    optimizers = _optimizers(model, schedule)
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    lengths = [len(example.ids) for example in examples]
    steps = schedule.epochs * math.ceil(len(examples) / schedule.batch)
    step = 0
    for _ in range(schedule.epochs):
        for indices in shuffled_batches(lengths, schedule.batch, generator):
            for group, peak in groups:
                group["lr"] = peak * schedule.factor(step, steps)
            with shaken(model.parameters(), schedule.noise):
                loss = answer_loss(model, [examples[i] for i in indices], pad)
                if not math.isfinite(loss.item()):
                    raise UserError(f"--finetune-lr: {schedule.lr} gave loss {loss.item()} at step {step} of {steps}; lower it")
                loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
            if not math.isfinite(norm.item()):
                raise UserError(f"--finetune-lr: {schedule.lr} gave gradient norm {norm.item()} at step {step}; lower it")
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            on_step(step, steps)
    model.eval()
    return schedule.epochs * sum(lengths)


def _optimizers(model: Any, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Of all parameters, with their peak rates."""
    matrices, rest = [], list(model.parameters())
    if schedule.optimizer == "muon":
        tables = [layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
        matrices = [p for p in rest if p.ndim == 2 and not any(p is table for table in tables)]
        rest = [p for p in rest if not any(p is matrix for matrix in matrices)]
    adamw = torch.optim.AdamW(rest, schedule.lr, schedule.betas, weight_decay=schedule.weight_decay)
    return [Muon(matrices, MUON_RATE * schedule.lr), adamw] if matrices else [adamw]


@contextmanager
def shaken(parameters: Iterable[torch.Tensor], noise: float) -> Iterator[None]:
    """Inside, every parameter has Gaussian noise of `noise` times its own root mean square; afterwards it is as before.

    Trained so, a model keeps what it knows under small changes of its weights, whatever they are made for.

    Args:
        parameters: changed in place, with noise of torch's global generator.
        noise: 0 does nothing.

    Source: weight noise, drawn anew for each step: Jim, Giles and Horne, "An analysis of noise in recurrent neural networks:
        convergence and generalization", IEEE Trans. Neural Networks 7 (1996); that it leads to flat minima: Hochreiter and
        Schmidhuber, "Flat minima", Neural Computation 9 (1997).
    """
    kept = [(parameter, parameter.detach().clone()) for parameter in parameters] if noise else []
    with torch.no_grad():
        for parameter, value in kept:
            parameter.add_(torch.randn_like(value), alpha=noise * value.square().mean().sqrt().item())
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


def answer_loss(model: Any, examples: Sequence[Example], pad: int, exact: bool = False) -> torch.Tensor:
    """Mean NLL of the answers' tokens in one batch, shape (); `exact` computes it in float32 also on a GPU."""
    batch = collate(examples, pad, model.device)
    labels = batch.pop("labels")
    with nullcontext() if exact else autocast(model.device):
        logits = model(**batch, use_cache=False).logits
    return objectives.nll(logits, labels)
