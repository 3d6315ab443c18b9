import torch
from torch import Tensor

from ngdiff.objectives._tokens import cross_entropy_to, scored_tokens


def ceu(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy unlearning, to be raised and so negative: minus the cross-entropy to the model itself without the answer.

    The target is the model's own distribution, taken as a constant, with the answer's token at probability 0.

    Args:
        logits: shape (rows, tokens, vocabulary), vocabulary >= 2.
        labels: shape (rows, tokens), with -100 where a token is not scored.

    Returns:
        Shape (), at most 0.

    Raises:
        ValueError: no token is scored, or the vocabulary is a single token.

    Source: Yang, "CE-U: cross entropy unlearning", arXiv 2503.01224. open-unlearning leaves the first token of an answer out by
        default; here the labels say what is scored.
    """
    scored = scored_tokens(logits, labels, "ceu")
    if logits.shape[-1] < 2:
        raise ValueError(f"ceu: a vocabulary of {logits.shape[-1]} has no other token to move to; give logits of at least 2")
    others = scored.logits.detach().scatter(-1, scored.targets[:, None], torch.full_like(scored.logits[:, :1], -torch.inf))
    return -cross_entropy_to(others.softmax(-1), scored.logits)
