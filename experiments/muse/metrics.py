"""MUSE's metrics as arithmetic on what a model wrote. Nothing here sees a model.

Source: Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language Models", arXiv 2407.06460, and its reference
implementation, whose ROUGE does not stem words and counts F1 where the paper's text says recall; both are kept here. That a
model may still know after one prompt what it denies after another: Lynch et al., "Eight methods to evaluate robust unlearning
in LLMs", arXiv 2402.16835.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Self

from rouge_score.rouge_scorer import RougeScorer

from ngdiff.lm.membership import auc, priv_leak

_ROUGE = RougeScorer(["rougeL"], use_stemmer=False)
# Where an answer to a few-shot prompt ends, in this order.
STOPS = ("\n\n", "\nQuestion", "Question:")


@dataclass(frozen=True)
class Written:
    """A text that a model wrote, beside the true one.

    Attributes:
        prompt: a beginning of a text, or a question.
        truth: the continuation, or the answer.
        generation: greedy, cut at the end token; of an answer also at `STOPS`.
        f1, recall: ROUGE-L of the generation against the truth.
    """

    prompt: str
    truth: str
    generation: str
    f1: float
    recall: float

    @classmethod
    def scored(cls, prompt: str, truth: str, generation: str) -> Self:
        """With its ROUGE-L."""
        rouge = _ROUGE.score(target=truth, prediction=generation)["rougeL"]
        return cls(prompt, truth, generation, float(rouge.fmeasure), float(rouge.recall))


@dataclass(frozen=True)
class Evaluation:
    """All that the metrics of one model are computed from.

    Attributes:
        passages: beginnings of forget texts, continued: verbatim memorisation.
        forget, seen: questions about forget texts, and about kept ones, answered.
        prompted: answers to them after other prompts, by the name of their metric, see `evaluate.other_prompts`.
        min_k: "forget" and "holdout" -> Min-K of each text, see `ngdiff.lm.scoring.Recall`.
    """

    passages: list[Written]
    forget: list[Written]
    seen: list[Written]
    min_k: dict[str, list[float]]
    prompted: dict[str, list[Written]]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """From the fields as JSON keeps them."""
        written = {name: [Written(**row) for row in fields[name]] for name in ("passages", "forget", "seen")}
        prompted = {name: [Written(**row) for row in rows] for name, rows in fields["prompted"].items()}
        return cls(**written, min_k=dict(fields["min_k"]), prompted=prompted)

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """What was written, for results.json."""
        return {name: [asdict(row) for row in getattr(self, name)] for name in ("passages", "forget", "seen")}


def summary(model: Evaluation, reference: Evaluation | None) -> dict[str, float | None]:
    """MUSE's metrics of one model.

    Args:
        model: the one that is judged.
        reference: the model trained without the forget texts; None for that one itself.

    Returns:
        verbmem, knowmem, utility: mean ROUGE-L F1 on forget passages, forget questions, questions on kept texts; with
            "_recall", the mean recall.
        knowmem_zero_shot, knowmem_kept_shots, utility_zero_shot: the same without examples before the question, and with those
            of kept texts; not MUSE's.
        auc: of Min-K, forget against holdout texts; 1 is memorised.
        privleak: near 0 is best, see `ngdiff.lm.membership.priv_leak`; None where there is no reference.
    """
    found: dict[str, float | None] = {}
    for name, rows in (("verbmem", model.passages), ("knowmem", model.forget), ("utility", model.seen)):
        found |= {name: fmean(row.f1 for row in rows), f"{name}_recall": fmean(row.recall for row in rows)}
    found |= {name: fmean(row.f1 for row in rows) for name, rows in model.prompted.items()}
    own = _auc(model)
    return found | {"auc": own, "privleak": priv_leak(own, _auc(reference)) if reference else None}


def cut(text: str) -> str:
    """An answer without what the model wrote after it."""
    for stop in STOPS:
        text = text.split(stop)[0]
    return text.strip()


def is_over(text: str) -> bool:
    """Whether all that follows would be cut away."""
    return any(stop in text for stop in STOPS)


def _auc(model: Evaluation) -> float:
    return auc(model.min_k["forget"], model.min_k["holdout"])
