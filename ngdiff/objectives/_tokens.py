"""What all objectives share: which tokens are scored, and their log-probabilities."""

from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100  # label of a token that is not scored, as in transformers


class Scored(NamedTuple):
    """The k scored tokens of a batch.

    Attributes:
        logits: shape (k, vocabulary), float32 or wider, of the positions that predict them.
        targets: shape (k,), their ids.
        mask: shape (rows, tokens - 1), where they are among the positions that predict.
    """

    logits: Tensor
    targets: Tensor
    mask: Tensor

    @property
    def log_probs(self) -> Tensor:
        """Shape (k,), of the targets."""
        return self.logits.log_softmax(-1).gather(-1, self.targets[:, None])[:, 0]

    def sums(self, values: Tensor) -> Tensor:
        """Values of the scored tokens, shape (k,), summed over each row: shape (rows,)."""
        rows = self.mask.nonzero()[:, 0]
        return values.new_zeros(self.mask.shape[0]).index_add(0, rows, values)


def scored_tokens(logits: Tensor, labels: Tensor, objective: str) -> Scored:
    """The scored tokens of a batch, for an objective of that name.

    Rows of prompts and padding are dropped before any softmax, which is most of the work of a loss.

    Raises:
        ValueError: the shapes do not belong together, or no token is scored.
    """
    if logits.shape[:-1] != labels.shape or labels.dim() != 2:
        raise ValueError(
            f"{objective}: logits of shape {tuple(logits.shape)} for labels of shape {tuple(labels.shape)}; "
            "give logits of shape (rows, tokens, vocabulary) for labels of shape (rows, tokens)"
        )
    targets = labels[:, 1:]
    mask = targets != IGNORE
    selected = logits[:, :-1][mask]
    if selected.shape[0] == 0:
        raise ValueError(f"{objective}: no scored token in labels of shape {tuple(labels.shape)}; every label is {IGNORE}")
    return Scored(selected.to(torch.promote_types(logits.dtype, torch.float32)), targets[mask], mask)


def scored_rows(logits: Tensor, labels: Tensor, objective: str) -> Scored:
    """`scored_tokens` for an objective that looks at whole answers.

    Raises:
        ValueError: as there, or a row has no scored token.
    """
    scored = scored_tokens(logits, labels, objective)
    empty = (~scored.mask.any(-1)).nonzero()
    if len(empty):
        raise ValueError(f"{objective}: row {int(empty[0])} has no scored token; leave rows without an answer out of the batch")
    return scored


def answer_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """log pi(y | x), summed over the scored tokens of each row: what NPO and DPO ask of the reference model.

    Args:
        logits: shape (rows, tokens, vocabulary).
        labels: shape (rows, tokens).

    Returns:
        Shape (rows,), in nats.

    Raises:
        ValueError: a row has no scored token.
    """
    scored = scored_rows(logits, labels, "answer_log_probs")
    return scored.sums(scored.log_probs)


def cross_entropy_to(target: Tensor, logits: Tensor) -> Tensor:
    """Mean over k tokens of -sum q log softmax(logits), q the target distribution; both of shape (k, vocabulary).

    What has no probability in the target adds nothing, also where its logit is -inf, as that of a masked word is.
    """
    log_probs = logits.log_softmax(-1).masked_fill(target == 0, 0)
    return -(target * log_probs).sum(-1).mean()


def check_reference(objective: str, name: str, reference: Tensor, logits: Tensor) -> None:
    """Refuse logits of another model that are not of the same shape, as with a vocabulary that one of them has padded."""
    if reference.shape != logits.shape:
        raise ValueError(
            f"{objective}: {name} of shape {tuple(reference.shape)} for logits of shape {tuple(logits.shape)}; "
            "give the logits of the model before unlearning, for the same batch"
        )


def check_positive(objective: str, **values: float) -> None:
    """Refuse a parameter that is not > 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{objective}: {name} = {value} must be > 0")


def check_rows(objective: str, name: str, values: Tensor, rows: int) -> None:
    """Refuse values that are not one a row."""
    if values.shape != (rows,):
        raise ValueError(f"{objective}: {name} of shape {tuple(values.shape)}; give one log-probability a row, shape ({rows},)")
