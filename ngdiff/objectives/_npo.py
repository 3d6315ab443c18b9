from torch import Tensor
from torch.nn.functional import logsigmoid

from ngdiff.objectives._tokens import check_positive, check_rows, scored_rows


def npo(logits: Tensor, labels: Tensor, reference: Tensor, beta: float = 0.1) -> Tensor:
    """Negative preference optimization, to be raised: 2/beta mean log sigmoid(-beta D), D = log pi(y|x) - log pi_ref(y|x).

    Its gradient is that of the NLL weighed by 2 sigmoid(beta D), so a row that is forgotten loses its weight: NPO has the floor
    that cross-entropy lacks. As beta tends to 0 it becomes the NLL, less a constant.

    Args:
        logits: shape (rows, tokens, vocabulary).
        labels: shape (rows, tokens), with -100 where a token is not scored.
        reference: shape (rows,), `answer_log_probs` of the model before unlearning.
        beta: inverse temperature.

    Returns:
        Shape (), at most 0.

    Raises:
        ValueError: a row has no scored token, `reference` is not one number a row, or beta is not > 0.

    Source: Zhang et al., "Negative preference optimization", arXiv 2404.05868, equation 3.
    """
    check_positive("npo", beta=beta)
    scored = scored_rows(logits, labels, "npo")
    check_rows("npo", "reference", reference, len(labels))
    difference = scored.sums(scored.log_probs) - reference.detach()
    return 2 / beta * logsigmoid(-beta * difference).mean()
