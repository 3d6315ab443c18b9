"""The evaluation end to end: a model that knows the forget rows by heart is recognised."""

from collections import Counter
from statistics import fmean
from typing import Any

import pytest
import torch

from experiments.lm import models
from experiments.lm.training import Schedule, finetune
from experiments.speed import Speed
from experiments.tofu import evaluate as tofu_evaluate
from experiments.tofu import synthetic
from experiments.tofu.data import EvaluationRow, Row
from experiments.tofu.evaluate import evaluate
from experiments.tofu.metrics import Evaluation, privacy
from ngdiff.lm import scoring
from ngdiff.lm.encoding import Encoder
from ngdiff.lm.membership import zlib_ratio


def test_a_memorised_model_is_recognised() -> None:
    """End to end: forget rows known by heart score lower than the holdout in every attack, and PrivLeak is -100."""
    rows = synthetic.rows("forget01")[:6]
    held = synthetic.rows("holdout01")[:6]
    encoder = Encoder(models.train_tokenizer([row["question"] + row["answer"] for row in rows + held], 400))
    torch.manual_seed(0)
    size = models.Size(hidden=64, layers=2, heads=4, intermediate=128, vocabulary=400)
    model = models.build_llama(size, encoder.tokenizer)
    examples = [encoder.example(row["question"], row["answer"]) for row in rows]
    fresh = evaluated(model, encoder, rows, held)
    finetune(model, examples, encoder.pad, Schedule(epochs=60, batch=6, lr=5e-3), torch.Generator().manual_seed(0))
    known = evaluated(model, encoder, rows, held)
    found = privacy(known, fresh)
    assert found is not None
    assert found["auc"] == dict.fromkeys(("loss", "zlib", "min_k", "min_k_plus", "gradient_norm", "reference"), 1.0)
    assert found["privleak"] == -100
    memory = known.forget[0].memory
    assert memory is not None
    assert (memory.exact_memorisation, memory.extraction_strength) == (1.0, 1.0)
    assert fmean(row.memory.extraction_strength for row in fresh.forget if row.memory) < 0.1


def evaluated(model: Any, encoder: Encoder, rows: list[dict[str, Any]], held: list[dict[str, Any]]) -> Evaluation:
    """Of rows whose paraphrase and wrong answers are the answer and another one's."""
    forget = [
        EvaluationRow(row["question"], row["answer"], "", row["answer"], (other["answer"],))
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    holdout = [Row(row["question"], row["answer"], "") for row in held]
    return evaluate(model, encoder, {"forget": forget}, 8, holdout=holdout, metrics="all")


FORGET = [
    EvaluationRow(f"Who is {i}?", f"The answer is {i} itself.", "", f"Said otherwise: {i}.", ("Red.", f"Blue {i}."))
    for i in range(3)
]
HOLDOUT = [Row(f"Where is {i}?", f"Nobody was told that it is at {i}.", "") for i in range(2)]
Fresh = tuple[Any, Encoder]


@pytest.fixture(scope="module")
def fresh() -> Fresh:
    """A model of random weights, and its encoder."""
    encoder = Encoder(models.train_tokenizer([text for row in FORGET for text in (row.question, *row.answers)], 300))
    torch.manual_seed(0)
    size = models.Size(hidden=16, layers=1, heads=2, intermediate=32, vocabulary=300)
    return models.build_llama(size, encoder.tokenizer), encoder


def test_each_score_is_of_its_own_text(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that generates the paraphrase, which has one of five words of the answer, and one of two of a wrong answer in
    two. A compressor sees the answers, as the losses are theirs.
    """
    model, encoder = fresh
    said = [encoder.tokenizer(row.right, add_special_tokens=False)["input_ids"] for row in FORGET]
    monkeypatch.setattr(tofu_evaluate, "greedy", lambda *_: said)
    found = evaluate(model, encoder, {"forget": FORGET}, 8, holdout=HOLDOUT, metrics="all")
    assert [(row.rouge, row.memory.rouge_right, row.memory.rouge_wrong) for row in found.forget if row.memory] == [
        (1 / 5, 1.0, 1 / 4)
    ] * 3
    exposures = [row.memory.exposure for row in found.forget if row.memory] + found.holdout
    for row, exposure in zip([*FORGET, *HOLDOUT], exposures, strict=True):
        assert exposure.zlib == zlib_ratio(exposure.loss, row.answer)


@pytest.mark.parametrize(("metrics", "holdout"), [("tofu", []), ("all", []), ("all", HOLDOUT)])
def test_one_forward_an_answer_serves_all_metrics(
    fresh: Fresh, metrics: str, holdout: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the record of the speed has what was read. Where prompts are read once for several answers, which is a choice by
    their lengths, less is read than the rows have; so here they are not.
    """
    model, encoder = fresh
    monkeypatch.setattr(scoring, "_worthwhile", lambda *_: False)
    read: Counter[str] = Counter()
    parts: list[str] = []

    def count(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        read[parts[-1]] += int(kwargs.get("attention_mask", torch.ones_like(kwargs["input_ids"])).sum())

    speed, sets = Speed(), {"forget": FORGET, "retain": FORGET[:1], "world_facts": FORGET[1:]}
    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    evaluate(model, encoder, sets, 2, parts.append, holdout=holdout, metrics=metrics, speed=speed)
    hook.remove()
    answers = [(row.question, answer) for rows in sets.values() for row in rows for answer in row.answers]
    lengths = [len(row.ids) for row in encoder.examples(answers + [(row.question, row.answer) for row in holdout])]
    assert read["scoring"] == speed.tokens["scoring"] == sum(lengths)
    assert (read["gradients"] > 0) == bool(holdout)
