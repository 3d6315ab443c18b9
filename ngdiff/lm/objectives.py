"""The library's objectives on rows of a language model: what each needs of the rows and of the model before unlearning."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngdiff import ReferenceCache, objectives
from ngdiff.lm.batches import collate, length_sorted
from ngdiff.lm.devices import autocast
from ngdiff.lm.encoding import Example
from ngdiff.lm.scoring import batch_tokens
from ngdiff.objectives import IGNORE
from ngdiff.reference import References

LAYER = 7  # whose activations RMU moves, in models deep enough; arXiv 2403.03218


class Output(NamedTuple):
    """One forward pass: logits (rows, tokens, vocabulary), activations (rows, tokens, hidden), labels (rows, tokens)."""

    logits: Tensor
    activations: Tensor | None
    labels: Tensor


@dataclass(frozen=True)
class Objective:
    """How an objective of the library is fed.

    Attributes:
        loss: (answer, refusal, references of the answer, references of the refusal, u) -> loss; what is not read is None.
        mean: what it averages over, "tokens" or "rows": the weight of a part of a batch.
        reference: quantity of the model before unlearning that it reads, or None.
        rows: the texts that it reads: "answer", "refusal" or "both".
    """

    loss: Callable[..., Tensor]
    mean: str = "tokens"
    reference: str | None = None
    rows: str = "answer"

    @property
    def activations(self) -> bool:
        """Whether it reads activations in the place of logits."""
        return self.loss in (_rmu, _activation_distance)

    def quantity(self, model: Any) -> str:
        """What it reads of the model before unlearning, with all that this depends on beside model and row."""
        return f"activations of layer {layer(model)}" if self.activations else f"{self.reference} of scored tokens"

    def weight(self, labels: Tensor) -> Tensor:
        """What a part of a batch counts in the mean over all of it: scored tokens or rows, shape ()."""
        return (labels[:, 1:] != IGNORE).sum() if self.mean == "tokens" else labels.new_tensor(labels.shape[0])

    def forward(self, model: Any, batch: Mapping[str, Tensor], depth: int = 0) -> Output:
        """One pass.

        Args:
            model: of transformers, wrapped or not.
            batch: its inputs, with labels.
            depth: number of the layer whose activations are read, where they are.
        """
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        out = model(**inputs, use_cache=False, output_hidden_states=self.activations)
        # hidden_states[0] are the embeddings.
        deep = out.hidden_states[depth + 1] if self.activations else None
        return Output(out.logits, deep, batch["labels"])

    def quantities(self, out: Output) -> list[Tensor]:
        """What it reads of the model before unlearning, one tensor a row: of the scored tokens alone, for the rest would be
        padding and prompts.
        """
        if self.reference == "answer_log_probs":
            return list(objectives.answer_log_probs(out.logits, out.labels))
        values, mask = _where(out)
        return [value[kept].float() for value, kept in zip(values, mask, strict=True)]

    def padded(self, values: Sequence[Tensor], out: Output) -> Tensor:
        """`quantities` back in the shape of a batch, with zeros where nothing is scored."""
        if self.reference == "answer_log_probs":
            return torch.stack(list(values)).to(out.labels.device)
        like, mask = _where(out)
        result = torch.zeros(like.shape, device=like.device)
        result[mask] = torch.cat(list(values)).to(like.device)
        return result

    def value(self, outputs: Mapping[str, Output], references: Mapping[str, Tensor], u: Tensor | None = None) -> Tensor:
        """The loss, shape ().

        Args:
            outputs: of the passes over the texts that it reads, "answer" and "refusal".
            references: of the same texts, padded; empty where it reads none.
            u: direction of RMU, shape (hidden,).
        """
        pairs = [(found.get("answer"), found.get("refusal")) for found in (outputs, references)]
        return self.loss(*pairs[0], *pairs[1], u)


def _where(out: Output) -> tuple[Tensor, Tensor]:
    """The positions that an objective reads: of activations those of the tokens, of logits those that predict them."""
    scored = out.labels != IGNORE
    if out.activations is not None:
        return out.activations, scored
    return out.logits, torch.nn.functional.pad(scored[:, 1:], (0, 1))


def _plain(objective: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda answer, *_: objective(answer.logits, answer.labels)


def _referred(objective: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda answer, _, reference, *__: objective(answer.logits, answer.labels, reference)


def _idk_nll(_: None, refusal: Output, *__: Any) -> Tensor:
    return objectives.idk_nll(refusal.logits, refusal.labels)


def _idk_dpo(answer: Output, refusal: Output, reference: Tensor, refusal_reference: Tensor, _: Tensor) -> Tensor:
    return objectives.idk_dpo(refusal.logits, refusal.labels, refusal_reference, answer.logits, answer.labels, reference)


def _rmu(answer: Output, _: None, __: None, ___: None, u: Tensor) -> Tensor:
    assert answer.activations is not None
    return objectives.rmu(answer.activations, answer.labels, u)


def _activation_distance(answer: Output, _: None, reference: Tensor, *__: Any) -> Tensor:
    assert answer.activations is not None
    return objectives.activation_distance(answer.activations, answer.labels, reference)


FORGET = {
    "nll": Objective(_plain(objectives.nll)),
    "npo": Objective(_referred(objectives.npo), "rows", "answer_log_probs"),
    "simnpo": Objective(_plain(objectives.simnpo), "rows"),
    "idk-nll": Objective(_idk_nll, rows="refusal"),
    "idk-dpo": Objective(_idk_dpo, "rows", "answer_log_probs", "both"),
    "wga": Objective(_plain(objectives.wga)),
    "satimp": Objective(_plain(objectives.satimp)),
    "undial": Objective(_referred(objectives.undial), reference="logits"),
    "ceu": Objective(_plain(objectives.ceu)),
    "rmu": Objective(_rmu, "rows"),
}
RETAIN = {
    "nll": FORGET["nll"],
    "kl": Objective(_referred(objectives.kl), reference="logits"),
    "activations": Objective(_activation_distance, "rows", "activations"),
}


class TaskLoss:
    """The loss of one task on rows given by number.

    Build it while the model is as it was before unlearning: what the objective needs of that is computed or read here.

    Args:
        objective: of `FORGET` or `RETAIN`.
        model: of transformers, on its device.
        answers: rows of the task.
        refusals: the same questions with a refusal for an answer; None where the objective reads none.
        pad: id to pad with.
        cache: of this model; None where the objective needs no reference.
        u: direction of RMU, shape (hidden,).
    """

    def __init__(
        self,
        objective: Objective,
        model: Any,
        answers: Sequence[Example],
        refusals: Sequence[Example] | None,
        pad: int,
        cache: ReferenceCache | None,
        u: Tensor | None = None,
    ):
        self.objective, self.model, self.pad, self.u = objective, model, pad, u
        texts = {"answer": answers, "refusal": refusals}
        self.texts = {name: rows for name, rows in texts.items() if rows is not None and objective.rows in (name, "both")}
        self.references: dict[str, References] = {}
        if objective.reference is not None:
            assert cache is not None
            self.references = {name: self._computed(rows, cache) for name, rows in self.texts.items()}

    def backward(self, numbers: Sequence[int], parts: int = 2) -> Tensor:
        """Backward of the loss in parts of similar length, which saves padding. Returns the loss, shape ()."""
        losses = []
        for part, share in self._parts(numbers, parts):
            loss = self._loss(part) * share
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    @torch.no_grad()
    def value(self, numbers: Sequence[int], parts: int = 2) -> Tensor:
        """The loss that `backward` returns, shape (), without gradients."""
        return torch.stack([self._loss(part) * share for part, share in self._parts(numbers, parts)]).sum()

    def probe(self, numbers: Sequence[int], parts: int = 2) -> Tensor:
        """The same, but in float32 also on a GPU."""
        return torch.stack([self._loss(part, exact=True) * share for part, share in self._parts(numbers, parts)]).sum()

    def _parts(self, numbers: Sequence[int], parts: int) -> list[tuple[list[int], float]]:
        """The rows in parts, each with its weight: the mean over a batch is the mean of its parts' means, so weighed."""
        rows = next(iter(self.texts.values()))
        ordered = sorted(numbers, key=lambda i: len(rows[i].ids))
        size = math.ceil(len(ordered) / parts)
        split = [ordered[start : start + size] for start in range(0, len(ordered), size)]

        def weight(part: Sequence[int]) -> int:
            return sum(rows[i].scored for i in part) if self.objective.mean == "tokens" else len(part)

        return [(part, weight(part) / weight(ordered)) for part in split]

    def _loss(self, numbers: Sequence[int], exact: bool = False) -> Tensor:
        out = {name: self._forward([rows[i] for i in numbers], exact) for name, rows in self.texts.items()}
        before = {
            name: self.objective.padded([values[i] for i in numbers], out[name]) for name, values in self.references.items()
        }
        return self.objective.value(out, before, self.u)

    def _forward(self, rows: Sequence[Example], exact: bool = False) -> Output:
        batch = collate(rows, self.pad, self.model.device)
        with nullcontext() if exact else autocast(self.model.device):
            return self.objective.forward(self.model, batch, layer(self.model))

    def _computed(self, rows: Sequence[Example], cache: ReferenceCache) -> References:
        def compute(missing: list[int]) -> Iterator[tuple[int, Tensor]]:
            training = self.model.training
            self.model.eval()
            for part in length_sorted([len(rows[i].ids) for i in missing], batch_tokens(self.model.device)):
                numbers = [missing[k] for k in part]
                yield from zip(numbers, self.objective.quantities(self._forward([rows[i] for i in numbers])), strict=True)
            self.model.train(training)

        return cache.get(self.objective.quantity(self.model), [(row.ids, row.labels) for row in rows], compute)


def layer(model: Any) -> int:
    """Number of the layer whose activations RMU moves, from 0: 7, or the middle one of a shallow model.

    Not the last one where there is another: transformers shows that after the model's last normalisation.
    """
    return min(LAYER, (int(model.config.get_text_config().num_hidden_layers) - 1) // 2)
