import torch
from torch import Tensor

from ngdiff.objectives._tokens import check_reference, cross_entropy_to, scored_tokens


def undial(logits: Tensor, labels: Tensor, teacher: Tensor, strength: float = 10.0) -> Tensor:
    """Self-distillation, to be raised and so negative: minus the cross-entropy to the teacher without the answer.

    The target distribution is softmax(teacher - strength onehot(y)) at each scored token: what the model said before, but with
    the answer's logit lowered.

    Args:
        logits: shape (rows, tokens, vocabulary).
        labels: shape (rows, tokens), with -100 where a token is not scored.
        teacher: logits of the model before unlearning, of the same shape.
        strength: by how much the answer's logit is lowered.

    Returns:
        Shape (), at most 0.

    Raises:
        ValueError: no token is scored, or the shapes differ.

    Source: Dong et al., "UNDIAL: self-distillation with adjusted logits for robust unlearning", arXiv 2402.10052.
    """
    check_reference("undial", "teacher", teacher, logits)
    scored, before = scored_tokens(logits, labels, "undial"), scored_tokens(teacher, labels, "undial")
    lowered = before.logits.detach().scatter_add(-1, before.targets[:, None], torch.full_like(before.logits[:, :1], -strength))
    return -cross_entropy_to(lowered.softmax(-1), scored.logits)
