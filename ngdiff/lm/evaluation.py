"""What a model still knows of a user's rows: each scored once and answered once."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ngdiff.lm.data import Encoded, RowEncoder
from ngdiff.lm.generation import greedy
from ngdiff.lm.membership import Exposure, attacks, zlib_ratio
from ngdiff.lm.rouge import rouge_recall
from ngdiff.lm.scoring import Score, answer_scores
from ngdiff.objectives import IGNORE
from ngdiff.processes import shared_out

FORGET, RETAIN, HOLDOUT = "forget", "retain", "holdout"
NEW_TOKENS = 200  # of a generation at most, TOFU's


@dataclass(frozen=True)
class ScoredRow:
    """One row after evaluation.

    Attributes:
        prompt, answer, generation: texts; the generation is greedy, cut at the end token and stripped.
        nll: mean NLL of the scored tokens, end token included, in nats.
        rouge: ROUGE-L recall of the generation against the answer.
        exact_memorisation, extraction_strength: see `ngdiff.lm.scoring.Recall`.
        exposure: scores for membership attacks.
    """

    prompt: str
    answer: str
    generation: str
    nll: float
    rouge: float
    exact_memorisation: float
    extraction_strength: float
    exposure: Exposure

    @property
    def probability(self) -> float:
        """Of the answer, per token."""
        return math.exp(-self.nll)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self) | {"probability": self.probability}


# Metric -> what it is of a row. Of the rows to be forgotten lower is better, of the others higher.
METRICS: dict[str, Callable[[ScoredRow], float]] = {
    "probability": lambda row: row.probability,
    "nll": lambda row: row.nll,
    "rouge": lambda row: row.rouge,
    "extraction_strength": lambda row: row.extraction_strength,
    "exact_memorisation": lambda row: row.exact_memorisation,
}


def evaluate(
    model: Any,
    encoder: RowEncoder,
    sets: Mapping[str, Sequence[Encoded]],
    new_tokens: int = NEW_TOKENS,
    on_part: Callable[[str], None] = lambda part: None,
) -> dict[str, list[ScoredRow]]:
    """Score and answer all rows of all sets at once, so that batches are full and well sorted.

    Several processes share the rows out, and each has all results.

    Args:
        model: of transformers, on its device; the same in all processes.
        encoder: that the rows were encoded with.
        sets: set name -> rows.
        new_tokens: length of a generation at most.
        on_part: called with the name of each part before it begins.
    """
    pad, eos = encoder.qa.pad, encoder.qa.eos

    def compute(rows: Sequence[Encoded]) -> list[ScoredRow]:
        on_part("scoring")
        scores = answer_scores(model, [row.example for row in rows], pad, range(len(rows)))
        on_part("generating")
        generated = greedy(model, [row.prompt_ids for row in rows], eos, pad, new_tokens)
        read = [encoder.qa.decode([label for label in row.example.labels if label != IGNORE]) for row in rows]
        written = map(encoder.qa.decode, generated)
        return [_scored(*parts) for parts in zip(rows, scores, read, written, strict=True)]

    scored = iter(shared_out([row for members in sets.values() for row in members], compute))
    return {name: [next(scored) for _ in members] for name, members in sets.items()}


def summary(found: Mapping[str, Sequence[ScoredRow]]) -> dict[str, dict[str, float]]:
    """Number of rows and means of each set; with a holdout also "membership", the AUC of each attack."""
    means: dict[str, dict[str, float]] = {
        name: {"rows": len(rows)} | {metric: fmean(map(of, rows)) for metric, of in METRICS.items()}
        for name, rows in found.items()
    }
    if HOLDOUT in found:
        forget, holdout = ([row.exposure for row in found[name]] for name in (FORGET, HOLDOUT))
        means["membership"] = attacks(forget, holdout)
    return means


def _scored(row: Encoded, score: Score, text: str, generation: str) -> ScoredRow:
    """With `text`, all that was scored: of a conversation every turn of the assistant, of a text its prompt too."""
    recall = score.recall
    assert recall is not None
    exposure = Exposure(score.nll, zlib_ratio(score.nll, text), recall.min_k, recall.min_k_plus)
    rouge, known = rouge_recall(row.answer, generation), (recall.exact_memorisation, recall.extraction_strength)
    return ScoredRow(row.prompt, row.answer, generation, score.nll, rouge, *known, exposure)
