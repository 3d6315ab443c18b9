"""Objectives: from logits and labels to the scalar loss of one task."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORE = -100  # label of a token that is not scored, as in transformers


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean next-token cross-entropy over the scored tokens of a batch, in nats.

    Args:
        logits: shape (rows, tokens, vocabulary); position t predicts the token at t + 1.
        labels: shape (rows, tokens), the input ids, with -100 where a token is not scored.

    Returns:
        Shape (), float32 or wider.

    Raises:
        ValueError: no token is scored.

    Source: the forget and retain loss of arXiv 2410.22086.
    """
    targets = labels[:, 1:]
    scored = targets != IGNORE
    # Rows of prompts and padding are dropped before the softmax, which is most of the work of the loss.
    selected = logits[:, :-1][scored]
    if selected.shape[0] == 0:
        raise ValueError(f"nll: no scored token in labels of shape {tuple(labels.shape)}; every label is {IGNORE}")
    return cross_entropy(selected.to(torch.promote_types(logits.dtype, torch.float32)), targets[scored])
