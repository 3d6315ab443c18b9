from torch import Tensor
from torch.nn.functional import logsigmoid

from ngdiff.objectives._nll import nll
from ngdiff.objectives._tokens import answer_log_probs, check_positive, check_rows


def idk_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a refusal, to be raised and so negative: the model learns to answer "I don't know".

    Args:
        logits: shape (rows, tokens, vocabulary), of the question with a refusal as its answer.
        labels: shape (rows, tokens), with -100 where a token is not scored.

    Returns:
        Shape (), at most 0.

    Raises:
        ValueError: no token is scored.

    Source: Maini et al., "TOFU", arXiv 2401.06121.
    """
    return -nll(logits, labels)


def idk_dpo(
    refusal_logits: Tensor,
    refusal_labels: Tensor,
    refusal_reference: Tensor,
    logits: Tensor,
    labels: Tensor,
    reference: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Direct preference of a refusal to the answer, to be raised: 2/beta mean log sigmoid(beta (D_refusal - D_answer)).

    D = log pi(y|x) - log pi_ref(y|x), of the refusal and of the answer to forget. Rows of both belong to the same questions.

    Args:
        refusal_logits, logits: shape (rows, tokens, vocabulary); the numbers of tokens may differ.
        refusal_labels, labels: shape (rows, tokens), with -100 where a token is not scored.
        refusal_reference, reference: shape (rows,), `answer_log_probs` of the model before unlearning.
        beta: inverse temperature.

    Returns:
        Shape (), at most 0.

    Raises:
        ValueError: a row has no scored token, the rows do not pair up, or beta is not > 0.

    Source: Rafailov et al., "Direct preference optimization", arXiv 2305.18290; for unlearning arXiv 2401.06121 and 2404.05868.
    """
    check_positive("idk_dpo", beta=beta)
    rows = len(labels)
    if len(refusal_labels) != rows:
        raise ValueError(f"idk_dpo: {len(refusal_labels)} refusals for {rows} answers; give one a row")
    check_rows("idk_dpo", "reference", reference, rows)
    check_rows("idk_dpo", "refusal_reference", refusal_reference, rows)
    preferred = answer_log_probs(refusal_logits, refusal_labels) - refusal_reference.detach()
    rejected = answer_log_probs(logits, labels) - reference.detach()
    return 2 / beta * logsigmoid(beta * (preferred - rejected)).mean()
