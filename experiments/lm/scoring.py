"""What a forward pass tells about answers: their likelihood, and how much of them the model knows by heart."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.errors import UserError
from experiments.lm.batches import collate, in_batches, left_padded
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
    """Scores of answers, one an example, in the order given. A prompt that several answers share is read once.

    Args:
        model: of transformers, on its device.
        examples: prompts with answers.
        pad: id to pad with.
        recalled: indices of the examples whose recall is wanted too.
    """
    model.eval()
    recalled = frozenset(recalled)
    groups = _groups(examples)
    if not _worthwhile(examples, groups):
        groups = [[i] for i in range(len(examples))]
    predict = _from_shared_prompts if len(groups) < len(examples) else _from_whole_rows

    def compute(numbers: list[int]) -> list[tuple[int, Score]]:
        batch = [groups[number] for number in numbers]
        logits, targets = predict(model, [[examples[i] for i in group] for group in batch], pad)
        indices = [i for group in batch for i in group]
        return list(zip(indices, _scores(logits, targets, [i in recalled for i in indices]), strict=True))

    sizes = [len(group) * max(len(examples[i].ids) for i in group) for group in groups]
    found = dict(pair for _, pairs in in_batches(sizes, TOKENS, compute) for pair in pairs)
    return [found[i] for i in range(len(examples))]


def _groups(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of the examples with one prompt, a group a prompt, in the order of their first one."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, example in enumerate(examples):
        groups.setdefault(example.ids[: example.prompt], []).append(i)
    return list(groups.values())


def _worthwhile(examples: Sequence[Example], groups: Sequence[Sequence[int]]) -> bool:
    """Whether reading shared prompts once saves a tenth of the tokens: whole rows attend faster than rows behind a cache."""
    if any(len(example.starts) > 1 for example in examples):
        return False
    saved = sum((len(group) - 1) * examples[group[0]].prompt for group in groups)
    return saved > 0.1 * sum(len(example.ids) for example in examples)


Groups = Sequence[Sequence[Example]]


def _from_whole_rows(model: Any, groups: Groups, pad: int) -> tuple[Tensor, Tensor]:
    """Logits (rows, tokens, vocabulary) and the ids that they should predict (rows, tokens), -100 where nothing is scored."""
    batch = collate([example for group in groups for example in group], pad, model.device)
    labels = batch.pop("labels")
    with autocast(model.device):
        logits = model(**batch, use_cache=False).logits
    return logits[:, :-1], labels[:, 1:]


def _from_shared_prompts(model: Any, groups: Groups, pad: int) -> tuple[Tensor, Tensor]:
    """The same, of the answers alone: prompts are read first, a row each, and their keys and values serve all answers."""
    prompts, mask = left_padded([group[0].ids[: group[0].prompt] for group in groups], pad, model.device)
    rows = torch.tensor([row for row, group in enumerate(groups) for _ in group], device=model.device)
    answers = collate([Example(e.ids[e.prompt :], 0) for group in groups for e in group], pad, model.device)
    ids, targets = answers["input_ids"], answers["labels"].clone()
    targets[:, 0] = ids[:, 0]  # scored too: here the prompt predicts it
    with autocast(model.device):
        read = model(
            input_ids=prompts,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        cache = read.past_key_values
        cache.batch_select_indices(rows)
        mask = torch.cat([mask[rows], answers.get("attention_mask", torch.ones_like(ids))], dim=1)
        positions = (mask.cumsum(1) - 1)[:, -ids.shape[1] :]
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return torch.cat([read.logits[rows], out.logits[:, :-1]], dim=1), targets


def _scores(logits: Tensor, targets: Tensor, recalled: Sequence[bool]) -> list[Score]:
    means = _bounded(_row_means(logits, targets)).tolist()
    numbers = [row for row, wanted in enumerate(recalled) if wanted]
    recalls = dict(zip(numbers, _recalls(logits[numbers], targets[numbers]), strict=True)) if numbers else {}
    return [Score(nll, recalls.get(row)) for row, nll in enumerate(means)]


def _row_means(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean NLL of each row over its scored tokens, shape (rows,)."""
    scored = targets != IGNORE
    nll = torch.zeros(targets.shape, device=logits.device)
    nll[scored] = torch.nn.functional.cross_entropy(logits[scored].float(), targets[scored], reduction="none")
    return nll.sum(1) / scored.sum(1)


def _recalls(logits: Tensor, targets: Tensor) -> list[Recall]:
    scored = targets != IGNORE
    counts = (scored.sum(1) - 1).clamp(min=1).tolist()  # a lone end token counts, for there is nothing else
    known, log_p, standard = (
        values.split(scored.sum(1).tolist()) for values in _token_statistics(logits[scored], targets[scored])
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
        try:
            norms.append(_gradient_norm(model, parameters, batch, labels))
        except torch.OutOfMemoryError:
            raise UserError("evaluation: one gradient of the model does not fit into memory; give --metrics tofu") from None
    return norms


def _gradient_norm(model: Any, parameters: Sequence[Tensor], batch: dict[str, Tensor], labels: Tensor) -> float:
    with torch.enable_grad(), autocast(model.device):
        loss = _row_means(model(**batch, use_cache=False).logits[:, :-1], labels[:, 1:])[0]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
    return _bounded(norm, LARGEST_SCORE).item()
