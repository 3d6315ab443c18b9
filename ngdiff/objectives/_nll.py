from torch import Tensor
from torch.nn.functional import cross_entropy

from ngdiff.objectives._tokens import scored_tokens


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean next-token cross-entropy over the scored tokens of a batch, in nats; for either task.

    Args:
        logits: shape (rows, tokens, vocabulary); position t predicts the token at t + 1.
        labels: shape (rows, tokens), the input ids, with -100 where a token is not scored.

    Returns:
        Shape (), float32 or wider.

    Raises:
        ValueError: no token is scored.

    Source: the forget and retain loss of arXiv 2410.22086.
    """
    scored = scored_tokens(logits, labels, "nll")
    return cross_entropy(scored.logits, scored.targets)
