"""Mean NLL of answers under a model, in batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.lm.batches import collate, length_sorted
from experiments.lm.devices import autocast
from experiments.lm.encoding import Example
from ngdiff.objectives import IGNORE

TOKENS = 8192  # a batch, padding included
LARGEST_NLL = 1e4  # nats; what a NaN or infinite NLL counts as, so that a destroyed model gets probability 0 and not an error


@torch.inference_mode()
def answer_nll(model: Any, examples: Sequence[Example], pad: int) -> list[float]:
    """Mean NLL a scored token, in nats, one number an example, in the order given."""
    model.eval()
    result = torch.empty(len(examples), device="cpu")
    for indices in length_sorted([len(example.ids) for example in examples], TOKENS):
        batch = collate([examples[i] for i in indices], pad, model.device)
        labels = batch.pop("labels")
        with autocast(model.device):
            logits = model(**batch, use_cache=False).logits
        result[indices] = _row_means(logits, labels).cpu()
    return result.nan_to_num(nan=LARGEST_NLL, posinf=LARGEST_NLL).clamp(max=LARGEST_NLL).tolist()


def _row_means(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean next-token NLL of each row over its scored tokens, shape (rows,)."""
    targets = labels[:, 1:]
    scored = targets != IGNORE
    nll = torch.zeros(targets.shape, device=logits.device)
    nll[scored] = torch.nn.functional.cross_entropy(logits[:, :-1][scored].float(), targets[scored], reduction="none")
    return nll.sum(1) / scored.sum(1)
