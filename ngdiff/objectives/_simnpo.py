from torch import Tensor
from torch.nn.functional import logsigmoid

from ngdiff.objectives._tokens import check_positive, scored_rows


def simnpo(logits: Tensor, labels: Tensor, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """NPO without a reference, to be raised: 2/beta mean log sigmoid(beta (NLL(y|x) / |y| - delta)).

    Args:
        logits: shape (rows, tokens, vocabulary).
        labels: shape (rows, tokens), with -100 where a token is not scored; |y| counts the scored ones.
        beta: inverse temperature.
        delta: margin, in nats a token.

    Returns:
        Shape (), at most 0.

    Raises:
        ValueError: a row has no scored token, or beta is not > 0.

    Source: Fan et al., "Simplicity prevails: rethinking negative preference optimization for LLM unlearning", arXiv 2410.07163.
        The paper's margin gamma is beta delta; open-unlearning's weight gamma of the forget loss is the rule's business here.
    """
    check_positive("simnpo", beta=beta)
    scored = scored_rows(logits, labels, "simnpo")
    per_token = -scored.sums(scored.log_probs) / scored.mask.sum(-1)
    return 2 / beta * logsigmoid(beta * (per_token - delta)).mean()
