"""Objectives on rows of a language model: fed as the library defines them, whatever the batch and its parts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.lm import models
from ngdiff import ReferenceCache, objectives
from ngdiff.lm.batches import collate
from ngdiff.lm.encoding import Encoder, Example
from ngdiff.lm.objectives import FORGET, RETAIN, TaskLoss, layer

# Of float64: logits and references are computed in batches of another padding, about 1e3 roundings of numbers up to 1e3; the
# references of logits and activations are kept in float32 where they are compared with float32 models.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
U = torch.linspace(0.1, 1, 16)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(models.train_tokenizer(["Who wrote it? Somebody did, long ago. I don't know."], 300))


@pytest.fixture(scope="module")
def rows(encoder: Encoder) -> tuple[list[Example], list[Example]]:
    answers = ["Nobody.", "Somebody wrote it long ago, long ago.", "It wrote itself.", "I did.", "Who?"]
    questions = [f"Who wrote {'it ' * i}?" for i in range(5)]
    answered = [encoder.example(q, a) for q, a in zip(questions, answers, strict=True)]
    return answered, [encoder.example(q, "I don't know."[: 3 + 2 * i]) for i, q in enumerate(questions)]


@pytest.fixture
def model(encoder: Encoder) -> Any:
    torch.manual_seed(0)
    return models.build_llama(models.Size(16, 3, 2, 32, 300, deviation=0.3), encoder.tokenizer)


def changed(model: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


class Plain:
    """Every objective on the whole batch at once, with the model before it was changed kept as a second model."""

    def __init__(self, model: Any, before: Any, rows: list[Example], refused: list[Example], pad: int):
        self.out, self.labels = self._forward(model, rows, pad)
        self.before = self._forward(before, rows, pad)[0]
        self.refusal, self.refusal_labels = self._forward(model, refused, pad)
        self.refusal_before = self._forward(before, refused, pad)[0]
        self.layer = layer(model) + 1

    def _forward(self, model: Any, rows: list[Example], pad: int) -> tuple[Any, Tensor]:
        batch = collate(rows, pad, torch.device("cpu"))
        labels = batch.pop("labels")
        return model(**batch, output_hidden_states=True), labels

    def log_probs(self, out: Any, labels: Tensor) -> Tensor:
        return objectives.answer_log_probs(out.logits, labels)

    def loss(self, name: str) -> Tensor:
        x, y = self.out.logits, self.labels
        activations, earlier = self.out.hidden_states[self.layer], self.before.hidden_states[self.layer]
        known = {
            "npo": lambda: objectives.npo(x, y, self.log_probs(self.before, y)),
            "idk-nll": lambda: objectives.idk_nll(self.refusal.logits, self.refusal_labels),
            "idk-dpo": lambda: objectives.idk_dpo(
                self.refusal.logits,
                self.refusal_labels,
                self.log_probs(self.refusal_before, self.refusal_labels),
                x,
                y,
                self.log_probs(self.before, y),
            ),
            "undial": lambda: objectives.undial(x, y, self.before.logits),
            "kl": lambda: objectives.kl(x, y, self.before.logits),
            "rmu": lambda: objectives.rmu(activations, y, U),
            "activations": lambda: objectives.activation_distance(activations, y, earlier),
        }
        return known[name]() if name in known else getattr(objectives, name)(x, y)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("name", [*FORGET, "kl", "activations"])
def test_a_loss_in_parts_is_that_of_the_whole_batch(
    name: str, parts: int, model: Any, rows: Any, encoder: Encoder, tmp_path: Path
) -> None:
    """Value and gradient, with the references of the model before, of which only the cache remains."""
    answers, refused = rows
    before = models.build_llama(models.Size(16, 3, 2, 32, 300), encoder.tokenizer)
    before.load_state_dict(model.state_dict())
    task = TaskLoss((FORGET | RETAIN)[name], model, answers, refused, encoder.pad, ReferenceCache(tmp_path, model), U)
    changed(model)
    numbers = [3, 0, 4, 1]
    expected = Plain(model, before, [answers[i] for i in numbers], [refused[i] for i in numbers], encoder.pad).loss(name)
    gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    loss = task.backward(numbers, parts)
    torch.testing.assert_close(loss, expected.detach(), **TOLERANCE)
    with torch.no_grad():
        torch.testing.assert_close(task.probe(numbers, parts), expected.detach(), **TOLERANCE)
    again = task.value(numbers, parts)
    assert torch.equal(again, loss) and not again.requires_grad  # to the bit: the same passes
    largest = max(g.abs().max().item() for g in gradients if g is not None)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        theirs = torch.zeros_like(parameter) if gradient is None else gradient
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4 * largest)  # float32 sums of a few hundred terms


@pytest.mark.parametrize("name", ["npo", "idk-dpo", "undial", "kl", "activations"])
def test_a_second_run_computes_no_reference(
    name: str, model: Any, rows: Any, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = (FORGET | RETAIN)[name]
    TaskLoss(objective, model, *rows, encoder.pad, ReferenceCache(tmp_path, model))
    calls: list[Any] = []
    real: Callable[..., Any] = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: calls.append(k) or real(*a, **k))
    again = TaskLoss(objective, model, *rows, encoder.pad, ReferenceCache(tmp_path, model))
    assert calls == []
    assert len(again.references) == (2 if name == "idk-dpo" else 1)


def test_references_are_taken_without_dropout_and_leave_the_mode(
    model: Any, rows: Any, encoder: Encoder, tmp_path: Path
) -> None:
    model.config.attention_dropout = 0.5
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    values = []
    for mode in (True, False):
        model.train(mode)
        task = TaskLoss(FORGET["npo"], model, *rows, encoder.pad, ReferenceCache(tmp_path / str(mode), model))
        assert model.training is mode
        values.append(torch.stack(list(task.references["answer"])))
    assert torch.equal(*values)


def test_objectives_that_need_no_reference_touch_no_disk(model: Any, rows: Any, encoder: Encoder) -> None:
    for name in ("nll", "simnpo", "idk-nll", "wga", "satimp", "ceu", "rmu"):
        assert TaskLoss(FORGET[name], model, *rows, encoder.pad, None, U).references == {}


def test_the_layer_of_rmu_is_the_seventh_or_the_middle_one(encoder: Encoder) -> None:
    for layers, expected in ((1, 0), (2, 0), (3, 1), (12, 5), (16, 7), (32, 7)):
        size = models.Size(4, layers, 1, 4, 300)
        with torch.device("meta"):
            assert layer(models.build_llama(size, encoder.tokenizer)) == expected
