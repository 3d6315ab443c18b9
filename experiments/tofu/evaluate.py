"""TOFU's evaluation of one model: every answer scored, every question answered, in batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.lm.encoding import Encoder
from experiments.lm.generation import greedy
from experiments.lm.scoring import answer_nll
from experiments.tofu.data import EvaluationRow
from experiments.tofu.metrics import ScoredRow, rouge_recall


def evaluate(
    model: Any,
    encoder: Encoder,
    sets: Mapping[str, Sequence[EvaluationRow]],
    max_new_tokens: int,
    on_part: Callable[[str], None] = lambda part: None,
) -> dict[str, list[ScoredRow]]:
    """Score and answer all rows of all sets at once, so that batches are full and well sorted.

    Args:
        model: of transformers, on its device.
        encoder: its tokenizer and template.
        sets: set name -> rows.
        max_new_tokens: length of a generation at most; the benchmark's is 200.
        on_part: called with the name of each part before it begins.

    Returns:
        Set name -> scored rows, in the order given.
    """
    rows = [row for members in sets.values() for row in members]
    on_part("scoring")
    nll = iter(answer_nll(model, [encoder.example(row.question, a) for row in rows for a in row.answers], encoder.pad))
    on_part("generating")
    generated = greedy(model, [encoder.prompt_ids(row.question) for row in rows], encoder.eos, encoder.pad, max_new_tokens)
    on_part("ROUGE")
    texts = [encoder.decode(ids) for ids in generated]
    scored = iter([_scored(row, [next(nll) for _ in row.answers], text) for row, text in zip(rows, texts, strict=True)])
    return {name: [next(scored) for _ in members] for name, members in sets.items()}


def _scored(row: EvaluationRow, nll: list[float], generation: str) -> ScoredRow:
    answer, right, *wrong = nll
    rouge = rouge_recall(row.answer, generation)
    return ScoredRow(row.question, row.answer, generation, answer, right, tuple(wrong), rouge)
