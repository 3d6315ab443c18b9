"""Obviously correct, but slow: two float64 backwards, flatten, combine by the written formula, torch's own optimizer."""

import copy
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module], Tensor]


def unit(g: Tensor) -> Tensor:
    """g / ||g||, and 0 for the zero vector."""
    g = g.double()
    return g / g.norm() if g.any() else g


# d of the table of methods in arXiv 2410.22086, from g_R, g_F, L_R, L_F.
FORMULAS: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "ga": lambda g_r, g_f, l_r, l_f: -g_f,
    "gdiff-0.9": lambda g_r, g_f, l_r, l_f: 0.9 * g_r - 0.1 * g_f,
    "gdiff-0.1": lambda g_r, g_f, l_r, l_f: 0.1 * g_r - 0.9 * g_f,
    "lossnorm": lambda g_r, g_f, l_r, l_f: g_r / l_r - g_f / l_f,
    "ngdiff": lambda g_r, g_f, l_r, l_f: unit(g_r) - unit(g_f),
}


def exact_products(a: Tensor, b: Tensor) -> tuple[Fraction, Fraction]:
    """a.b and sum |a_i b_i| without any rounding."""
    products = [Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    return sum(products, Fraction(0)), sum(map(abs, products), Fraction(0))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1).double() for t in tensors])


def weights(model: nn.Module) -> Tensor:
    """A copy of the trainable weights, shape (n,), float64."""
    return flatten(trainable(model))


def gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """The gradient, shape (n,), float64, with zeros where a parameter is not used."""
    parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return flatten(parts)


class Problem(NamedTuple):
    """A model and the two losses, as functions of the model."""

    model: nn.Module
    retain: Loss
    forget: Loss


def mlp_problem(dtype: torch.dtype = torch.float64, model: nn.Module | None = None) -> Problem:
    """Two regressions on one small network with biases. Nothing in it is symmetric in the two tasks."""
    if model is None:
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)

    def regression(scale: float) -> Loss:
        x, y = torch.randn(7, 3), scale * torch.randn(7, 2)

        def loss(model: nn.Module) -> Tensor:
            kind = next(model.parameters()).dtype  # the oracle evaluates the same data in float64
            return (model(x.to(kind)) - y.to(kind)).square().mean()

        return loss

    return Problem(model, regression(1), regression(3))


def llama_problem() -> Problem:
    """Next-token losses of a tiny Llama in float64, input and output embedding tied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=True,
    )

    def next_token(rows: int, tokens: int) -> Loss:
        ids = torch.randint(24, (rows, tokens))
        return lambda model: model(input_ids=ids, labels=ids).loss

    return Problem(LlamaForCausalLM(config).double(), next_token(3, 9), next_token(2, 7))


def quadratic_problem(dtype: torch.dtype = torch.float64) -> tuple[Problem, Tensor]:
    """L_R(theta) = (theta - a)' H (theta - a) / 2 and a linear L_F on three parameters, and H."""
    hessian = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=dtype)
    a, slope = torch.tensor([1.0, -2.0, 0.5], dtype=dtype), torch.tensor([0.3, 0.1, -0.7], dtype=dtype)
    model = nn.ParameterList([nn.Parameter(torch.zeros(3, dtype=dtype))])

    def retain(model: nn.Module) -> Tensor:
        return 0.5 * (model[0] - a) @ hessian @ (model[0] - a)

    return Problem(model, retain, lambda model: slope @ model[0]), hessian


def copy_of(problem: Problem) -> Problem:
    """The same problem with a model of its own."""
    return problem._replace(model=copy.deepcopy(problem.model))


def run_tasks(optimizer: torch.optim.Optimizer, problem: Problem) -> tuple[Tensor, Tensor]:
    """Both backwards of a step, each in its task; returns the losses."""
    losses = []
    for task, loss_of in (("retain", problem.retain), ("forget", problem.forget)):
        with optimizer.task(task):
            loss = loss_of(problem.model)
            loss.backward()
        losses.append(loss.detach())
    return losses[0], losses[1]


class Oracle:
    """Trains a float64 copy of the model of a problem by the written formula and an optimizer from torch.optim."""

    def __init__(self, problem: Problem, rule: str, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]):
        self.problem = copy_of(problem)
        self.problem.model.double()
        self.parameters = trainable(self.problem.model)
        self.formula = FORMULAS[rule]
        self.optimizer = make(self.parameters)

    def gradients(self) -> tuple[Tensor, Tensor]:
        return gradient(self.problem.retain(self.problem.model), self.parameters), gradient(
            self.problem.forget(self.problem.model), self.parameters
        )

    def direction(self) -> Tensor:
        """d at the present weights, shape (n,)."""
        losses = [loss(self.problem.model).item() for loss in (self.problem.retain, self.problem.forget)]
        return self.formula(*self.gradients(), *losses)

    def step(self) -> None:
        for parameter, part in zip(self.parameters, self._split(self.direction()), strict=True):
            parameter.grad = part
        self.optimizer.step()

    def weights(self) -> Tensor:
        return flatten(self.parameters)

    def _split(self, flat: Tensor) -> Iterator[Tensor]:
        parts = flat.split([p.numel() for p in self.parameters])
        return (part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True))
