from torch import Tensor

from ngdiff.objectives._tokens import check_positive, scored_tokens


def satimp(logits: Tensor, labels: Tensor, saturation: float = 5.0, importance: float = 1.0) -> Tensor:
    """Ascent weighed by saturation and importance: mean of p^saturation (1 - p)^importance times cross-entropy, p a constant.

    Args:
        logits: shape (rows, tokens, vocabulary).
        labels: shape (rows, tokens), with -100 where a token is not scored.
        saturation, importance: exponents.

    Returns:
        Shape (), >= 0.

    Raises:
        ValueError: no token is scored, or an exponent is not > 0.

    Source: Yang et al., "Exploring criteria of loss reweighting to enhance LLM unlearning", arXiv 2505.11953, SatImp.
    """
    check_positive("satimp", saturation=saturation, importance=importance)
    log_probs = scored_tokens(logits, labels, "satimp").log_probs
    certain = log_probs.detach()
    # 1 - p by expm1: for a memorised token it would cancel.
    weight = (saturation * certain).exp() * (-certain.expm1()) ** importance
    return (weight * -log_probs.masked_fill(weight == 0, 0)).mean()  # 0 for a token of probability 0, and not 0 * inf
