"""What one forward pass tells about answers: their likelihood, and how much of them the model knows by heart."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.lm.batches import collate, in_batches
from experiments.lm.devices import autocast
from experiments.lm.encoding import Example
from ngdiff.objectives import IGNORE

TOKENS = 8192  # a batch, padding included
LARGEST_NLL = 1e4  # nats; what a NaN or infinite NLL counts as, so that a destroyed model gets probability 0 and not an error
LOWEST_SHARE = 0.4  # k of Min-K and Min-K++: the share of tokens with the lowest scores; MUSE, arXiv 2407.06460
VARIANCE_FLOOR = 1e-6  # of Min-K++, where the prediction is certain; open-unlearning's
LARGEST_SCORE = 1e30  # the same for scores without a natural scale
LOGITS = 1 << 24  # as many at a time in float32, 64 MiB: a vocabulary may have 128,000 entries


@dataclass(frozen=True)
class Recall:
    """What the model knows of an answer, token by token under teacher forcing. The last label, the end token, is left out.

    Attributes:
        exact_memorisation: share of the tokens that are the most likely ones, EM (Tirumala et al., arXiv 2205.10770).
        extraction_strength: ES = 1 - k / n, with k the fewest leading tokens after which all others are the most likely ones
            (Carlini et al., arXiv 2012.07805). Where not even the last one is, ES is 0; open-unlearning gives 1 / n.
        min_k: minus the mean of the lowest 40% of the log-probabilities, in nats; at least one token
            (Shi et al., arXiv 2310.16789).
        min_k_plus: the same of (log p - mu) / sigma, mean and deviation over the vocabulary (arXiv 2404.02936).
    """

    exact_memorisation: float
    extraction_strength: float
    min_k: float
    min_k_plus: float


@dataclass(frozen=True)
class Score:
    """One answer: its mean NLL a scored token, in nats, and if asked for its recall."""

    nll: float
    recall: Recall | None = None


def answer_nll(model: Any, examples: Sequence[Example], pad: int) -> list[float]:
    """Mean NLL a scored token, in nats, one number an example, in the order given."""
    return [score.nll for score in answer_scores(model, examples, pad)]


@torch.inference_mode()
def answer_scores(model: Any, examples: Sequence[Example], pad: int, recalled: Collection[int] = ()) -> list[Score]:
    """Scores of answers, one an example, in the order given, from one forward pass of each.

    Args:
        model: of transformers, on its device.
        examples: prompts with answers.
        pad: id to pad with.
        recalled: indices of the examples whose recall is wanted too.
    """
    model.eval()
    result: list[Score | None] = [None] * len(examples)
    recalled = frozenset(recalled)

    def compute(indices: list[int]) -> list[Score]:
        batch = collate([examples[i] for i in indices], pad, model.device)
        labels = batch.pop("labels")
        with autocast(model.device):
            logits = model(**batch, use_cache=False).logits
        return _scores(logits, labels, [i in recalled for i in indices])

    for indices, scores in in_batches([len(example.ids) for example in examples], TOKENS, compute):
        for i, score in zip(indices, scores, strict=True):
            result[i] = score
    return [score for score in result if score is not None]


def _scores(logits: Tensor, labels: Tensor, recalled: Sequence[bool]) -> list[Score]:
    means = _bounded(_row_means(logits, labels)).tolist()
    numbers = [row for row, wanted in enumerate(recalled) if wanted]
    recalls = dict(zip(numbers, _recalls(logits[numbers], labels[numbers]), strict=True)) if numbers else {}
    return [Score(nll, recalls.get(row)) for row, nll in enumerate(means)]


def _row_means(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean next-token NLL of each row over its scored tokens, shape (rows,)."""
    targets = labels[:, 1:]
    scored = targets != IGNORE
    nll = torch.zeros(targets.shape, device=logits.device)
    nll[scored] = torch.nn.functional.cross_entropy(logits[:, :-1][scored].float(), targets[scored], reduction="none")
    return nll.sum(1) / scored.sum(1)


def _recalls(logits: Tensor, labels: Tensor) -> list[Recall]:
    targets = labels[:, 1:]
    scored = targets != IGNORE
    counts = (scored.sum(1) - 1).clamp(min=1).tolist()  # a lone end token counts, for there is nothing else
    known, log_p, standard = (
        values.split(scored.sum(1).tolist()) for values in _token_statistics(logits[:, :-1][scored], targets[scored])
    )
    return [
        recall(*(values[:n] for values in row)) for row, n in zip(zip(known, log_p, standard, strict=True), counts, strict=True)
    ]


def _token_statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token: whether it is the most likely one, its log-probability, and that in standard units; each (tokens,)."""
    parts = []
    for some, target in zip(*(values.split(max(1, LOGITS // logits.shape[-1])) for values in (logits, targets)), strict=True):
        log_probs = some.float().log_softmax(-1)
        probs = log_probs.exp()
        # 0 x -inf is a token that cannot come: it adds nothing.
        mean = (probs * log_probs).nan_to_num(0.0).sum(-1)
        variance = (probs * log_probs.square()).nan_to_num(0.0, posinf=0.0).sum(-1) - mean.square()
        log_p = log_probs.gather(-1, target[:, None])[:, 0]
        standard = (log_p - mean) / variance.clamp(min=VARIANCE_FLOOR).sqrt()
        parts.append((some.argmax(-1) == target, log_p, standard))
    known, log_p, standard = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
    return known, log_p, standard


def recall(known: Tensor, log_p: Tensor, standard: Tensor) -> Recall:
    """The recall of one answer from its tokens: hits, log-probabilities, and those in standard units; each (tokens,)."""
    hits = known.tolist()
    last_miss = max((i for i, hit in enumerate(hits) if not hit), default=-1)
    lowest = max(1, int(LOWEST_SHARE * len(hits)))
    min_k, min_k_plus = (-values.sort().values[:lowest].mean() for values in (log_p, standard))
    extraction_strength = 1 - (last_miss + 1) / len(hits)
    return Recall(
        sum(hits) / len(hits), extraction_strength, _bounded(min_k).item(), _bounded(min_k_plus, LARGEST_SCORE).item()
    )


def _bounded(values: Tensor, largest: float = LARGEST_NLL) -> Tensor:
    return values.nan_to_num(nan=largest, posinf=largest).clamp(max=largest)


def gradient_norms(model: Any, examples: Sequence[Example], pad: int) -> list[float]:
    """Norm of the gradient of each example's NLL by all trained weights, end token left out; one backward pass an example."""
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    norms = []
    for example in examples:
        batch = collate([example], pad, model.device)
        labels = batch.pop("labels")
        labels[0, max(example.prompt + 1, labels.shape[1] - 1) :] = IGNORE
        with torch.enable_grad(), autocast(model.device):
            loss = _row_means(model(**batch, use_cache=False).logits, labels)[0]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        norms.append(_bounded(norm, LARGEST_SCORE).item())
    return norms
