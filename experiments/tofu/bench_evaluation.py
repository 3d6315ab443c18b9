"""How much faster the evaluation is than the plain loop: one row at a time, `model.generate`, and the same results."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments import manifest
from experiments.lm import models
from experiments.tofu.data import EvaluationRow
from experiments.tofu.evaluate import ALL, STANDARD, evaluate
from experiments.tofu.metrics import Evaluation, ScoredRow
from experiments.tofu.run import TofuRun
from ngdiff.files import write_json
from ngdiff.lm import loading
from ngdiff.lm.devices import autocast
from ngdiff.lm.encoding import Encoder
from ngdiff.lm.rouge import rouge_recall

Sets = Mapping[str, Sequence[EvaluationRow]]


def compare(run: TofuRun, rounds: int, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Time TOFU's own metrics, all metrics and the plain loop in alternation on the memorised model, and write bench.json.

    Args:
        run: whose model and rows are taken.
        rounds: how often.
        report: told each time as it is measured.

    Returns:
        seconds: name -> each round's; speedup and cost_of_all: medians of the rounds' ratios; how well the rows agree.
    """
    folder = run.memorised()
    model, sets, holdout = loading.load_model(folder, run.device, models.PUBLISHED), run.data.evaluation, run.data.holdout
    tokens = run.settings.new_tokens
    ways: dict[str, Callable[[], Evaluation]] = {
        "batched, TOFU's metrics": lambda: evaluate(model, run.encoder, sets, tokens, metrics=STANDARD),
        "batched, all metrics": lambda: evaluate(model, run.encoder, sets, tokens, holdout=holdout, metrics=ALL),
        "one row at a time": lambda: plain_loop(model, run.encoder, sets, tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Evaluation] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            seconds[name].append(time.perf_counter() - start)
            report(f"{name}: {seconds[name][-1]:.1f} s")
    result = _result(seconds, found) | {"rows": {name: len(rows) for name, rows in sets.items()}, "new_tokens": tokens}
    write_json(run.output.folder / "bench.json", result | {"manifest": _made_with(run, folder)})
    return result


def plain_loop(model: Any, encoder: Encoder, sets: Sets, new_tokens: int) -> Evaluation:
    """TOFU's metrics without batches: what a short script would do."""
    return Evaluation({name: [_plain_row(model, encoder, row, new_tokens) for row in rows] for name, rows in sets.items()})


@torch.inference_mode()
def _plain_row(model: Any, encoder: Encoder, row: EvaluationRow, new_tokens: int) -> ScoredRow:
    nll = []
    for answer in row.answers:
        example = encoder.example(row.question, answer)
        ids = torch.tensor([example.ids], device=model.device)
        labels = torch.tensor([example.labels], device=model.device)
        with autocast(model.device):
            nll.append(float(model(input_ids=ids, labels=labels).loss))
    prompt = torch.tensor([encoder.prompt_ids(row.question)], device=model.device)
    options = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": encoder.eos, "pad_token_id": encoder.pad}
    with autocast(model.device):
        written = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)[
            0, prompt.shape[1] :
        ].tolist()
    text = encoder.decode(written[: written.index(encoder.eos)] if encoder.eos in written else written)
    return ScoredRow(row.question, row.answer, text, nll[0], nll[1], tuple(nll[2:]), rouge_recall(row.answer, text))


def _result(seconds: Mapping[str, Sequence[float]], found: Mapping[str, Evaluation]) -> dict[str, Any]:
    standard, everything, plain = seconds.values()
    mine, _, theirs = ([row for rows in evaluation.sets.values() for row in rows] for evaluation in found.values())
    pairs = list(zip(mine, theirs, strict=True))
    return {
        "seconds": {name: list(values) for name, values in seconds.items()},
        "speedup": median(b / a for a, b in zip(standard, plain, strict=True)),
        "cost_of_all": median(b / a for a, b in zip(standard, everything, strict=True)),
        "equal_generations": sum(a.generation == b.generation for a, b in pairs),
        "compared": len(pairs),
        "largest_difference_of_nll": max(_difference(a, b) for a, b in pairs),
    }


def _difference(a: ScoredRow, b: ScoredRow) -> float:
    """Largest difference of two rows' NLLs, in nats a token."""
    pairs = zip((a.nll_answer, a.nll_right, *a.nll_wrong), (b.nll_answer, b.nll_right, *b.nll_wrong), strict=True)
    return max(abs(x - y) if math.isfinite(y) else math.inf for x, y in pairs)


def _made_with(run: TofuRun, folder: Path | str) -> dict[str, Any]:
    parameters = models.parameter_count(folder) if isinstance(folder, Path) else None
    return manifest.manifest(run.device, seed=run.settings.seed, data_sha256=run.data.sha256, parameters=parameters)
