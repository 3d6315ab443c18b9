import torch
from torch import Tensor

from ngdiff.objectives._tokens import check_reference, scored_tokens


def kl(logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
    """KL(pi_ref || pi), mean over the scored tokens, in nats: a retain loss that asks the model to stay as it was.

    Where the model still is the reference the gradient is 0 to the last bit, so that rules which normalise gradients see a zero
    gradient and not the direction of its rounding. That takes a reference computed on the same batch; one of another padding
    differs by rounding. LossNorm, which divides by a loss that begins at 0, does not suit it.

    Args:
        logits: shape (rows, tokens, vocabulary).
        labels: shape (rows, tokens), with -100 where a token is not scored.
        reference: logits of the model before unlearning, of the same shape.

    Returns:
        Shape (), >= 0 up to rounding.

    Raises:
        ValueError: no token is scored, or the shapes differ.

    Source: Yao et al., "Large language model unlearning", arXiv 2310.10683; Maini et al., "TOFU", arXiv 2401.06121.
    """
    check_reference("kl", "reference", reference, logits)
    x, before = (
        scored_tokens(logits, labels, "kl").logits,
        scored_tokens(reference.detach(), labels, "kl").logits.to(logits.device),
    )
    normaliser, log_q = x.logsumexp(-1), before - before.logsumexp(-1, keepdim=True)
    q = log_q.exp()
    divergence = torch.where(q > 0, q * (log_q - (x - normaliser[:, None])), torch.zeros_like(q)).sum(-1).mean()
    # The gradient comes from logsumexp(x) - q.x, in which softmax(x) is computed as q is: it is softmax(x) - q exactly. That of
    # the sum above is softmax(x) sum(q) - q, and the sum of q is not exactly 1.
    descent = (normaliser - (q * x.masked_fill(q == 0, 0)).sum(-1)).mean()
    return divergence.detach() + (descent - descent.detach())
