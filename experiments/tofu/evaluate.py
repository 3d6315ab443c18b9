"""TOFU's evaluation of one model: every answer scored, every question answered, in batches."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.speed import Speed
from experiments.tofu.data import EvaluationRow, Row
from experiments.tofu.metrics import AUTHOR_SETS, Evaluation, Memory, ScoredRow
from ngdiff.lm.encoding import Encoder
from ngdiff.lm.generation import greedy
from ngdiff.lm.membership import Exposure, zlib_ratio
from ngdiff.lm.rouge import rouge_recall
from ngdiff.lm.scoring import Score, answer_scores, gradient_norms

STANDARD, ALL = "tofu", "all"
METRICS = (STANDARD, ALL)  # TOFU's own, or with memorisation and membership attacks


def evaluate(
    model: Any,
    encoder: Encoder,
    sets: Mapping[str, Sequence[EvaluationRow]],
    max_new_tokens: int,
    on_part: Callable[[str], None] = lambda part: None,
    *,
    holdout: Sequence[Row] = (),
    metrics: str = STANDARD,
    speed: Speed | None = None,
) -> Evaluation:
    """Score and answer all rows of all sets at once, so that batches are full and well sorted.

    One forward pass an answer serves every metric but the norms of gradients, and one generation a question.

    Args:
        model: of transformers, on its device.
        encoder: its tokenizer and template.
        sets: set name -> rows.
        max_new_tokens: length of a generation at most; the benchmark's is 200.
        on_part: called with the name of each part before it begins.
        holdout: rows that no model was trained on, for membership attacks.
        metrics: which to prepare, of `METRICS`.
        speed: filled in.
    """
    speed, everything = speed or Speed(), metrics == ALL
    rows = [(name, row) for name, members in sets.items() for row in members]
    texts: list[tuple[str, str]] = []
    first: list[int] = []  # number of each row's own answer among them
    for _, row in rows:
        first.append(len(texts))
        texts += [(row.question, answer) for answer in row.answers]
    unseen = range(len(texts), len(texts) + (len(holdout) if everything else 0))
    texts += [(row.question, row.answer) for row in holdout] if everything else []
    examples = encoder.examples(texts)
    forgotten = [i for (name, _), i in zip(rows, first, strict=True) if name == "forget"]
    attacked = [*forgotten, *unseen] if len(unseen) else []  # without a holdout there is nothing to tell the forget rows from
    recalled = {i for (name, _), i in zip(rows, first, strict=True) if name in AUTHOR_SETS} | set(unseen) if everything else ()

    with speed.part("scoring", on_part):
        scores = answer_scores(model, examples, encoder.pad, recalled)
    with speed.part("gradients", on_part):
        norms = dict(zip(attacked, gradient_norms(model, [examples[i] for i in attacked], encoder.pad), strict=True))
    with speed.part("generating", on_part):
        prompts = [encoder.prompt_ids(row.question) for _, row in rows]
        generated = greedy(model, prompts, encoder.eos, encoder.pad, max_new_tokens)
    speed.tokens = {"scoring": sum(len(example.ids) for example in examples), "generating": sum(map(len, generated))}
    with speed.part("ROUGE", on_part):
        found: dict[str, list[ScoredRow]] = {name: [] for name in sets}
        for (name, row), i, ids in zip(rows, first, generated, strict=True):
            own, norm = scores[i : i + len(row.answers)], norms.get(i)
            found[name].append(_scored(name, row, own, norm, encoder.decode(ids)))
    held_out = [_exposure(row.answer, scores[i], norms[i]) for row, i in zip(holdout, unseen, strict=everything)]
    return Evaluation(found, held_out)


def _scored(name: str, row: EvaluationRow, scores: Sequence[Score], norm: float | None, generation: str) -> ScoredRow:
    answer, right, *wrong = (score.nll for score in scores)
    memory = _memory(name, row, scores[0], norm, generation) if scores[0].recall else None
    rouge = rouge_recall(row.answer, generation)
    return ScoredRow(row.question, row.answer, generation, answer, right, tuple(wrong), rouge, memory)


def _memory(name: str, row: EvaluationRow, score: Score, norm: float | None, generation: str) -> Memory:
    assert score.recall is not None
    exposure = _exposure(row.answer, score, norm)
    known = score.recall.exact_memorisation, score.recall.extraction_strength
    if name != "forget":
        return Memory(*known, exposure)
    wrong = fmean(rouge_recall(answer, generation) for answer in row.wrong)
    return Memory(*known, exposure, rouge_recall(row.right, generation), wrong)


def _exposure(text: str, score: Score, norm: float | None) -> Exposure:
    assert score.recall is not None
    return Exposure(score.nll, zlib_ratio(score.nll, text), score.recall.min_k, score.recall.min_k_plus, norm)
