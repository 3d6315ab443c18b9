"""The evaluation end to end: a model that knows the forget rows by heart is recognised."""

from statistics import fmean
from typing import Any

import torch

from experiments.lm import models
from experiments.lm.training import Schedule, finetune
from experiments.tofu import synthetic
from experiments.tofu.data import EvaluationRow, Row
from experiments.tofu.evaluate import evaluate
from experiments.tofu.metrics import Evaluation, privacy
from ngdiff.lm.encoding import Encoder


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
