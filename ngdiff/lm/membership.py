"""Membership attacks: whether a model's scores tell what it was trained on from what it never saw. Nothing here sees a model.

Every score is higher for texts that look unseen. An attack's AUC is the probability that a holdout text scores higher than a
forget text: 1 means memorised, 1/2 that the two cannot be told apart, and 0 that the forget texts look more unseen than unseen
ones, which is unlearned too much.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import mannwhitneyu

CHANCE = 0.5


@dataclass(frozen=True)
class Exposure:
    """The scores of one text that attacks compare.

    Attributes:
        loss: mean NLL a token, in nats.
        zlib: the same by the bytes of the compressed text, how surprising it is to the model beside a compressor
            (Carlini et al., arXiv 2012.07805).
        min_k, min_k_plus: of Min-K% and Min-K%++, see `ngdiff.lm.scoring.Recall`.
        gradient_norm: norm of the gradient of the loss; None where it was not computed.
    """

    loss: float
    zlib: float
    min_k: float
    min_k_plus: float
    gradient_norm: float | None = None


def zlib_ratio(nll: float, text: str) -> float:
    """Mean NLL by the bytes of the compressed text."""
    return nll / len(zlib.compress(text.encode()))


def auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """Area under the ROC curve with forget as 0 and holdout as 1: P(holdout > forget), and half of P(equal).

    Raises:
        ValueError: one of the two is empty.
    """
    if not forget or not holdout:
        raise ValueError(f"auc: found {len(forget)} forget and {len(holdout)} holdout scores; give at least one of each")
    statistic = mannwhitneyu(holdout, forget, method="asymptotic").statistic  # the method is for the p-value, unused here
    return float(statistic) / (len(forget) * len(holdout))


def attacks(
    forget: Sequence[Exposure],
    holdout: Sequence[Exposure],
    reference: tuple[Sequence[Exposure], Sequence[Exposure]] | None = None,
) -> dict[str, float]:
    """AUC of each attack that the scores allow: loss, zlib, min_k, min_k_plus, gradient_norm, reference.

    Args:
        forget, holdout: scores under the model that is attacked.
        reference: forget and holdout scores of the same texts, in the same order, under a model that saw neither.

    Returns:
        Attack -> AUC. "reference" compares the losses after subtracting those of the reference model.
    """
    names = ["loss", "zlib", "min_k", "min_k_plus"]
    if all(text.gradient_norm is not None for text in (*forget, *holdout)):
        names.append("gradient_norm")
    found = {name: auc(*([getattr(text, name) for text in texts] for texts in (forget, holdout))) for name in names}
    if reference is not None:
        pairs = zip((forget, holdout), reference, strict=True)
        found["reference"] = auc(*([a.loss - b.loss for a, b in zip(own, known, strict=True)] for own, known in pairs))
    return found


def priv_leak(auc_min_k: float, reference: float = CHANCE) -> float | None:
    """PrivLeak = 100 (a - a_ref) / a_ref with a = 1 - AUC of Min-K: near 0 is best, -100 is memorised.

    A positive value: unlearned too much. a is the AUC with forget as 1, as MUSE has it (arXiv 2407.06460, section 3).

    Args:
        auc_min_k: of the unlearned model.
        reference: of the model trained without the forget texts; or chance. At 1, with a_ref = 0, nothing can be said: None.
    """
    if reference == 1:
        return None
    return 100 * ((1 - auc_min_k) / (1 - reference) - 1)
