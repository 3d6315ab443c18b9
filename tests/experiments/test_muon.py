"""Muon: the steps of torch's own, in float32, on the parameters that it is meant for."""

from typing import Any

import pytest
import torch

from experiments.lm import training
from experiments.lm.models import Size, build_llama, train_tokenizer
from experiments.lm.muon import Muon, orthogonal
from experiments.lm.training import FROM_SCRATCH, Schedule, finetune
from ngdiff.lm.encoding import Example

SHAPES = [(6, 6), (4, 9), (9, 4)]


def gradients(shape: tuple[int, int], count: int = 1) -> list[torch.Tensor]:
    """Random, and no singular value is near 0, where bfloat16 has no digits."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) + 5 * torch.eye(*shape) for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_that_of_torch(shape: tuple[int, int]) -> None:
    start = torch.zeros(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = Muon([ours], lr=0.1), torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients(shape, count=3):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    # Theirs rounds to bfloat16 (2^-9) at each of 15 products, and the iteration's slope at small singular values is steep.
    assert (ours - theirs).norm() < 0.03 * theirs.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_iteration_brings_singular_values_near_one_and_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = gradients(shape)[0].double()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    assert s.min() > 0.003 * s.norm()  # what the iteration is made for
    turned = u.T @ orthogonal(matrix) @ v.T
    assert ((turned.diagonal() > 0.6) & (turned.diagonal() < 1.3)).all()
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-9  # float64: rounding alone


def test_a_gradient_of_zeros_leaves_the_matrix() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 5))
    parameter.grad = torch.zeros(3, 5)
    Muon([parameter], lr=0.1).step()
    assert torch.equal(parameter, torch.ones(3, 5))


def test_parameters_without_a_gradient_are_left_alone() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 5))
    Muon([parameter], lr=0.1).step()
    assert torch.equal(parameter, torch.ones(3, 5))


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Muon: a parameter of shape \(3,\); give matrices, and the rest to AdamW"):
        Muon([torch.nn.Parameter(torch.ones(3))], lr=0.1)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    size = Size(hidden=16, layers=1, heads=2, intermediate=32, vocabulary=300)
    return build_llama(size, train_tokenizer(["a few words to begin with"], size.vocabulary))


def test_a_schedule_gives_muon_the_matrices_and_adamw_the_rest(model: Any) -> None:
    muon, adamw = training._optimizers(model, Schedule(epochs=1, batch=1, lr=0.1, optimizer="muon"))
    given = [parameter for optimizer in (muon, adamw) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, given)) == sorted(map(id, model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = [names[id(parameter)] for parameter in muon.param_groups[0]["params"]]
    assert len(matrices) == 7 and all(name.endswith("_proj.weight") for name in matrices)  # q, k, v, o, gate, up, down
    assert (muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"]) == (0.2, 0.1)
    assert len(training._optimizers(model, FROM_SCRATCH)) == 1


def test_both_optimizers_learn(model: Any) -> None:
    example = Example(tuple(range(3, 40)), 1)
    generator = torch.Generator().manual_seed(0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    finetune(model, [example], 0, Schedule(epochs=100, batch=1, lr=2e-2, optimizer="muon"), generator)
    assert all((a != b).any() for a, b in zip(before, model.parameters(), strict=True))
    assert training.answer_loss(model, [example], 0).item() < 0.1  # 5.7 before: it knows 36 tokens by heart


def test_rates_of_both_optimizers_follow_the_schedule(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = [], []
    make = training._optimizers
    monkeypatch.setattr(training, "_optimizers", lambda *given: made.append(make(*given)) or made[0])
    schedule = Schedule(epochs=4, batch=1, lr=1e-2, optimizer="muon")

    def look(step: int, steps: int) -> None:
        seen.append([optimizer.param_groups[0]["lr"] for optimizer in made[0]])

    finetune(model, [Example(tuple(range(3, 9)), 1)], 0, schedule, torch.Generator().manual_seed(0), look)
    factors = [schedule.factor(step, 4) for step in range(4)]
    assert seen == [[pytest.approx(2e-2 * factor), pytest.approx(1e-2 * factor)] for factor in factors]
