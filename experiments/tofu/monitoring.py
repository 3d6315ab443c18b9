"""Looking at a model while it unlearns: a few rows of each task, in the cheapest way that still says how it goes."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.lm.monitor import Better, Look, Monitor
from experiments.tofu.data import Row
from experiments.tofu.metrics import share
from ngdiff.lm.encoding import Encoder
from ngdiff.lm.generation import greedy
from ngdiff.lm.rouge import rouge_recall
from ngdiff.lm.scoring import Score, answer_scores

# What can be kept by -> whether more is better. The score is the smaller of two shares: retain probability kept and forget
# probability lost.
BEST = {
    "score": True,
    "retain_probability": True,
    "retain_rouge": True,
    "forget_probability": False,
    "forget_rouge": False,
    "forget_extraction_strength": False,
}
KEPT = "kept"  # name of the state that is kept


def monitor(
    model: Any,
    encoder: Encoder,
    rows: Mapping[str, Sequence[Row]],
    every: int,
    new_tokens: int,
    keep_best: str | None,
) -> Monitor:
    """A monitor of probability, ROUGE and extraction strength on both tasks.

    Args:
        model: before unlearning, which the score compares with.
        encoder: of the model.
        rows: task -> a few rows. Those of the retain task should be in no step and no evaluation.
        every: steps from one look to the next.
        new_tokens: length of a generation at most.
        keep_best: key of `BEST` by which a state is kept, or None.
    """
    before = {task: _probability(model, encoder, members) for task, members in rows.items()}

    def look(model: Any) -> Look:
        found: dict[str, float] = {}
        for task, members in rows.items():
            found |= {f"{task}_{name}": value for name, value in _look(model, encoder, members, new_tokens).items()}
        kept, left = (share(found[f"{task}_probability"], before[task]) for task in ("retain", "forget"))
        return found | {"score": min(kept, 1 - left)}

    return Monitor(every, look, {KEPT: _better(keep_best)} if keep_best else None)


def _look(model: Any, encoder: Encoder, rows: Sequence[Row], new_tokens: int) -> dict[str, float]:
    examples = [encoder.example(row.question, row.answer) for row in rows]
    scores = answer_scores(model, examples, encoder.pad, range(len(examples)))
    generated = greedy(model, [encoder.prompt_ids(row.question) for row in rows], encoder.eos, encoder.pad, new_tokens)
    texts = map(encoder.decode, generated)
    return {
        "probability": _mean_probability(scores),
        "extraction_strength": fmean(score.recall.extraction_strength for score in scores if score.recall),
        "rouge": fmean(rouge_recall(row.answer, text) for row, text in zip(rows, texts, strict=True)),
    }


def _probability(model: Any, encoder: Encoder, rows: Sequence[Row]) -> float:
    return _mean_probability(answer_scores(model, [encoder.example(row.question, row.answer) for row in rows], encoder.pad))


def _mean_probability(scores: Sequence[Score]) -> float:
    return fmean(math.exp(-score.nll) for score in scores)


def _better(name: str) -> Better:
    sign = 1 if BEST[name] else -1
    return lambda look, best: best is None or sign * look[name] > sign * best[name]
