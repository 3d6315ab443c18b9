"""What a forward pass tells about answers: their likelihood, and how much of them the model knows by heart."""

from collections.abc import Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ngdiff.errors import UserError
from ngdiff.lm.batches import collate, in_batches, left_padded
from ngdiff.lm.devices import autocast
from ngdiff.lm.encoding import Example
from ngdiff.objectives import IGNORE

TOKENS = 2048  # a batch on a CPU, padding included: of a small model, what its caches hold
GPU_TOKENS = 8192
PROMPTS = 4096  # tokens of the prompts whose keys and values are kept at a time
LARGEST_NLL = 1e4  # nats; what a NaN or infinite NLL counts as, so that a destroyed model gets probability 0 and not an error
LOWEST_SHARE = 0.4  # k of Min-K and Min-K++: the share of tokens with the lowest scores; MUSE, arXiv 2407.06460
VARIANCE_FLOOR = 1e-6  # of Min-K++, where the prediction is certain; open-unlearning's
LARGEST_SCORE = 1e30  # the same for scores without a natural scale
LOGITS = 1 << 22  # as many at a time in float32, 16 MiB: a vocabulary may have 128,000 entries


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


def batch_tokens(device: torch.device) -> int:
    """Size of a batch that only reads, padding included."""
    return TOKENS if device.type == "cpu" else GPU_TOKENS


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
    groups = _groups(examples)
    score = _Scoring(model, examples, pad, frozenset(recalled))
    batches = score.behind_prompts(groups) if _worthwhile(examples, groups) else score.whole_rows()
    found = {i: one for indices, scores in batches for i, one in zip(indices, scores, strict=True)}
    return [found[i] for i in range(len(examples))]


@torch.inference_mode()
def answer_min_k(model: Any, examples: Sequence[Example], pad: int) -> list[float]:
    """Min-K of answers, as in `Recall`, one number an example, in the order given: without the rest, in half of the time.

    Args:
        model: of transformers, on its device.
        examples: prompts with answers.
        pad: id to pad with.
    """
    model.eval()

    def compute(indices: list[int]) -> list[float]:
        logits, targets = _whole_rows(model, [examples[i] for i in indices], pad)
        rows = zip(_token_nll(logits, targets), targets != IGNORE, strict=True)
        return [_lowest_share(-nll[scored][: max(1, int(scored.sum()) - 1)]).item() for nll, scored in rows]

    lengths = [len(example.ids) for example in examples]
    batches = in_batches(lengths, batch_tokens(model.device), compute)
    found = {i: value for indices, values in batches for i, value in zip(indices, values, strict=True)}
    return [found[i] for i in range(len(examples))]


def _groups(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of the examples with one prompt, a group a prompt, in the order of their first one."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, example in enumerate(examples):
        groups.setdefault(example.ids[: example.prompt], []).append(i)
    return list(groups.values())


def _worthwhile(examples: Sequence[Example], groups: Sequence[Sequence[int]]) -> bool:
    """Whether reading shared prompts once saves a tenth of the tokens: whole rows attend faster than rows behind a cache."""
    if any(len(example.starts) > 1 or example.unscored for example in examples):  # these are scored in parts
        return False
    saved = sum((len(group) - 1) * examples[group[0]].prompt for group in groups)
    return saved > 0.1 * sum(len(example.ids) for example in examples)


Batches = Iterator[tuple[list[int], list[Score]]]  # indices of examples, and their scores
# Logits (rows, tokens, vocabulary), and the ids that they should predict (rows, tokens).
Parts = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Scoring:
    """The ways to read answers, in batches of similar length."""

    model: Any
    examples: Sequence[Example]
    pad: int
    recalled: frozenset[int]

    def whole_rows(self) -> Batches:
        """Prompts and answers in one piece."""

        def compute(indices: list[int]) -> list[Score]:
            return self._scores(indices, [_whole_rows(self.model, [self.examples[i] for i in indices], self.pad)])

        return in_batches([len(example.ids) for example in self.examples], batch_tokens(self.model.device), compute)

    def behind_prompts(self, groups: Sequence[Sequence[int]]) -> Batches:
        """Prompts first, a row each, whose keys and values then serve all their answers."""

        def compute(numbers: list[int]) -> list[tuple[list[int], list[Score]]]:
            prompts = [self.examples[groups[number][0]] for number in numbers]
            read = _Read.of(self.model, [prompt.ids[: prompt.prompt] for prompt in prompts], self.pad)
            answers = [(i, row) for row, number in enumerate(numbers) for i in groups[number]]
            return list(self._answers(read, *zip(*answers, strict=True)))

        lengths = [self.examples[group[0]].prompt for group in groups]
        return (batch for _, batches in in_batches(lengths, PROMPTS, compute) for batch in batches)

    def _answers(self, read: "_Read", indices: Sequence[int], rows: Sequence[int]) -> Batches:
        """Of the examples with these indices, whose prompts are in these rows of what was read."""
        answers = [self.examples[i].ids[self.examples[i].prompt :] for i in indices]

        def compute(numbers: list[int]) -> list[Score]:
            batch = collate([Example(answers[k], 0) for k in numbers], self.pad, self.model.device)
            first, logits = read.continued([rows[k] for k in numbers], batch)
            ids, targets = batch["input_ids"], torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
            return self._scores([indices[k] for k in numbers], [(first[:, None], ids[:, :1]), (logits, targets)])

        for numbers, scores in in_batches([len(answer) for answer in answers], batch_tokens(self.model.device), compute):
            yield [indices[k] for k in numbers], scores

    def _scores(self, indices: Sequence[int], parts: Parts) -> list[Score]:
        wanted = [row for row, i in enumerate(indices) if i in self.recalled]
        recalls = dict(zip(wanted, _recalls([(logits[wanted], targets[wanted]) for logits, targets in parts]), strict=True))
        return [Score(nll, recalls.get(row)) for row, nll in enumerate(_bounded(_row_means(parts)).tolist())]


@dataclass(frozen=True)
class _Read:
    """What the model keeps of prompts that it has read: keys and values, mask, and the logits of the next token, a row each."""

    model: Any
    cache: Any
    mask: Tensor
    logits: Tensor

    @classmethod
    def of(cls, model: Any, prompts: Sequence[Sequence[int]], pad: int) -> "_Read":
        ids, mask = left_padded(prompts, pad, model.device)
        options = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0), "use_cache": True, "logits_to_keep": 1}
        with autocast(model.device):
            out = model(input_ids=ids, attention_mask=mask, **options)
        return cls(model, out.past_key_values, mask, out.logits[:, -1])

    def continued(self, rows: Sequence[int], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits after the prompts in `rows`, (rows, vocabulary), and behind each id of a batch that goes on from there."""
        ids, chosen = batch["input_ids"], torch.tensor(rows, device=self.mask.device)
        cache = copy(self.cache)  # the layers put new tensors into the place of old ones, so that a shallow copy is enough
        cache.layers = [copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(chosen)
        mask = torch.cat([self.mask[chosen], batch.get("attention_mask", torch.ones_like(ids))], dim=1)
        positions = (mask.cumsum(1) - 1)[:, -ids.shape[1] :]
        options = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        with autocast(self.model.device):
            return self.logits[chosen], self.model(input_ids=ids, **options).logits


def _whole_rows(model: Any, examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Logits (rows, tokens, vocabulary) of a batch, and what they should predict (rows, tokens), -100 where nothing counts."""
    batch = collate(examples, pad, model.device)
    targets = torch.nn.functional.pad(batch.pop("labels")[:, 1:], (0, 1), value=IGNORE)
    with autocast(model.device):
        return model(**batch, use_cache=False).logits, targets


def _row_means(parts: Parts) -> Tensor:
    """Mean NLL of each row over its scored tokens, shape (rows,). Where a target is -100, nothing is scored."""
    nll = torch.cat([_token_nll(logits, targets) for logits, targets in parts], dim=1)
    return nll.sum(1) / sum((targets != IGNORE).sum(1) for _, targets in parts)


def _token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL of each target, 0 where nothing is scored, (rows, tokens)."""
    pieces = zip(_pieces(logits.flatten(0, 1)), _pieces(targets.flatten(), logits.shape[-1]), strict=True)
    nll = [torch.nn.functional.cross_entropy(x.float(), y, ignore_index=IGNORE, reduction="none") for x, y in pieces]
    return torch.cat(nll).view(targets.shape)


def _pieces(values: Tensor, vocabulary: int | None = None) -> Sequence[Tensor]:
    return values.split(max(1, LOGITS // (vocabulary or values.shape[-1])))


def _recalls(parts: Parts) -> list[Recall]:
    logits, targets = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
    scored = targets != IGNORE
    if not scored.any():
        return []
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
    for some, target in zip(_pieces(logits), _pieces(targets, logits.shape[-1]), strict=True):
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
    min_k, min_k_plus = _lowest_share(log_p), _lowest_share(standard, LARGEST_SCORE)
    extraction_strength = 1 - (last_miss + 1) / len(hits)
    return Recall(sum(hits) / len(hits), extraction_strength, min_k.item(), min_k_plus.item())


def _lowest_share(values: Tensor, largest: float = LARGEST_NLL) -> Tensor:
    """Minus the mean of the lowest values, (tokens,), shape ()."""
    lowest = max(1, int(LOWEST_SHARE * len(values)))
    return _bounded(-values.sort().values[:lowest].mean(), largest)


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
        loss = _row_means([(model(**batch, use_cache=False).logits[:, :-1], labels[:, 1:])])[0]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
    return _bounded(norm, LARGEST_SCORE).item()
