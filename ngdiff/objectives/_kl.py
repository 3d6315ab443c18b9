from torch import Tensor
from torch.nn.functional import kl_div

from ngdiff.objectives._tokens import scored_tokens


def kl(logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
    """KL(pi_ref || pi), mean over the scored tokens, in nats: a retain loss that asks the model to stay as it was.

    Args:
        logits: shape (rows, tokens, vocabulary).
        labels: shape (rows, tokens), with -100 where a token is not scored.
        reference: logits of the model before unlearning, of the same shape.

    Returns:
        Shape (), >= 0.

    Raises:
        ValueError: no token is scored, or the shapes differ.

    Source: Yao et al., "Large language model unlearning", arXiv 2310.10683; Maini et al., "TOFU", arXiv 2401.06121.
    """
    scored, before = scored_tokens(logits, labels, "kl"), scored_tokens(reference, labels, "kl")
    target = before.logits.detach().log_softmax(-1)
    return kl_div(scored.logits.log_softmax(-1), target, reduction="batchmean", log_target=True)
