from torch import Tensor

from ngdiff.objectives._tokens import check_positive, scored_tokens


def wga(logits: Tensor, labels: Tensor, beta: float = 1.0) -> Tensor:
    """Weighted gradient ascent: mean over the scored tokens of p^beta times their cross-entropy, p taken as a constant.

    A token that is forgotten already weighs little, which keeps ascent from going on for ever.

    Args:
        logits: shape (rows, tokens, vocabulary).
        labels: shape (rows, tokens), with -100 where a token is not scored.
        beta: exponent of the weight.

    Returns:
        Shape (), >= 0.

    Raises:
        ValueError: no token is scored, or beta is not > 0.

    Source: Wang et al., "Rethinking LLM unlearning objectives: a gradient perspective and go beyond", arXiv 2502.19301.
    """
    check_positive("wga", beta=beta)
    log_probs = scored_tokens(logits, labels, "wga").log_probs
    weight = log_probs.detach().exp() ** beta
    return (weight * -log_probs.masked_fill(weight == 0, 0)).mean()  # 0 for a token of probability 0, and not 0 * inf
