"""T3 to T6 along an actual unlearning run of a small language model: quadratics flatter every theorem.

A Llama memorises made-up authors and unlearns one of them by NGDiff with its automatic rate, as `python -m experiments tofu`
does. At some steps the run stops for a measurement: both losses along d, with gradients and Hessian-vector products by
autograd, in float64.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.lm import models
from experiments.lm.methods import Method
from experiments.lm.training import Schedule, answer_loss, finetune
from experiments.lm.unlearning import Rows, unlearn
from experiments.tofu.data import load
from experiments.tofu.sources import open_source
from ngdiff.learning_rate import fit_parabola
from ngdiff.lm.encoding import Encoder, Example
from theory import library
from theory.claim import Measurement

RUNGS = 5  # step lengths to which an order is fitted, each half of the one before
CLEAR = 1e3  # how far above its rounding error an error must be to be fitted
ROUNDED = 1e-14  # relative rounding error of a loss or a derivative: 90 u, for sums of a few thousand products
SETTLED = 0.05  # how far a fitted order may be from the true one, by the order after the next and by rounding
SIZES = models.SIZES | {"tiny": models.Size(hidden=48, layers=2, heads=4, intermediate=96, vocabulary=512)}
RUNS: dict[str, dict[str, Any]] = {
    "tiny": {"size": "tiny", "rows": 80, "steps": 60, "at": (0, 5, 20, 60)},
    "1m": {"size": "1m", "rows": 380, "steps": 120, "at": (0, 5, 20, 60, 120)},
}


@dataclass(frozen=True)
class Task:
    """A memorised model and its rows."""

    model: Any
    retain: list[Example]
    forget: list[Example]
    pad: int


@dataclass(frozen=True)
class Place:
    """What was measured at one step of the run.

    Attributes:
        step: steps taken before.
        retain_loss, forget_loss: on the rows measured.
        cosine: of the two gradients.
        slopes, curvatures: g.d and d'Hd, of retain and forget loss.
        eta: g_R.d / (d'H_R d); NaN where d'H_R d <= 0.
        crossing: the eta at which the retain loss is back at its value, over T5's limit 2 eta; NaN likewise.
        noise: root mean square error of the retain loss's second difference where the model computes in float32, over u L_0;
            A7 allows 4 if each loss were rounded once.
        checks: the claims.
    """

    step: int
    retain_loss: float
    forget_loss: float
    cosine: float
    slopes: tuple[float, float]
    curvatures: tuple[float, float]
    eta: float
    crossing: float
    noise: float
    checks: list[Measurement]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        checks = [{"what": c.what, "measured": c.measured, "bound": c.bound, "holds": c.holds} for c in self.checks]
        numbers = {key: None if isinstance(x, float) and math.isnan(x) else x for key, x in asdict(self).items()}
        return numbers | {"checks": checks}


def run(size: str, rows: int, steps: int, at: Sequence[int]) -> Iterator[Place]:
    """Memorise, unlearn and measure.

    Args:
        size: of the model, one of `SIZES`.
        rows: how many retain rows to use; the forget rows are one author's 20.
        steps: of unlearning.
        at: after how many steps to measure.
    """
    task = memorise(size, rows)
    if 0 in at:
        yield measure(task, 0)
    method, generator = Method("ngdiff", "sgd", "auto"), torch.Generator().manual_seed(0)
    for record in unlearn(task.model, Rows(task.forget, task.retain, task.pad), method, steps, 16, generator):
        if record["step"] + 1 in at:
            task.model.eval()
            yield measure(task, record["step"] + 1)


def memorise(size: str, rows: int) -> Task:
    """A model of random weights, trained in float32 on made-up authors and turned to float64."""
    torch.manual_seed(0)
    data = load(open_source("synthetic", 0), "mini")
    retain, forget = data.retain[:rows], data.forget[:20]
    texts = [text for row in (*retain, *forget) for text in (row.question, row.answer)]
    tokenizer = models.train_tokenizer(texts, SIZES[size].vocabulary)
    encoder = Encoder(tokenizer)
    model = models.build_llama(SIZES[size], tokenizer)
    kept, forgotten = ([encoder.example(row.question, row.answer) for row in part] for part in (retain, forget))
    schedule = Schedule(epochs=16 if size != "tiny" else 45, batch=8, lr=2e-3 if size != "tiny" else 5e-3)
    finetune(model, kept + forgotten, encoder.pad, schedule, torch.Generator().manual_seed(0))
    return Task(in_float64(model), kept, forgotten, encoder.pad)


def in_float64(model: Any) -> Any:
    """The model with all its arithmetic in float64. The RMSNorm of transformers computes in float32 whatever it is given."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return model.double()


def measure(task: Task, step: int) -> Place:
    """T3 to T6 at the present weights, on 16 rows of each task."""
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]

    def loss(rows: list[Example]) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            return answer_loss(task.model, rows[:16], task.pad, exact=True)

    (l_r, g_r), (l_f, g_f) = (_gradient(loss(rows), parameters) for rows in (task.retain, task.forget))
    d, _, gram = library.combine("ngdiff", g_r, g_f)
    slopes = float(g_r @ d), float(g_f @ d)
    curvatures = tuple(float(_product(loss(rows), parameters, d) @ d) for rows in (task.retain, task.forget))

    lines = along(task.model, start, d, task.retain, task.pad), along(task.model, start, d, task.forget, task.pad)
    cosine = float(gram.cosine)
    checks = _cone(slopes, float(g_r.norm()), float(g_f.norm()), cosine, len(d))
    for name, line, value, slope, curvature in zip(("retain", "forget"), lines, (l_r, l_f), slopes, curvatures, strict=True):
        checks += _expansion(name, line, value, slope, curvature)
    eta = slopes[0] / curvatures[0] if curvatures[0] > 0 else math.nan
    crossing = math.nan
    if eta > 0:
        checks.append(_fitted(lines[0], l_r, eta, curvatures[0]))
        crossing = _crossing(lines[0], l_r, eta) / (2 * eta)
    rounded = along(copy.deepcopy(task.model).float(), start, d, task.retain, task.pad)
    noise = _noise(rounded, lines[0], abs(slopes[0] / curvatures[0])) / (2.0**-24 * l_r)
    return Place(step, l_r, l_f, cosine, slopes, (curvatures[0], curvatures[1]), eta, crossing, noise, checks)


def along(model: Any, start: list[Tensor], d: Tensor, rows: list[Example], pad: int) -> Callable[[float], float]:
    """eta -> loss of the model on 16 rows at start - eta d, in the precision of its parameters, which are put back."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    @torch.no_grad()
    def value(eta: float) -> float:
        for p, origin, part in zip(parameters, start, _split(d, parameters), strict=True):
            p.copy_(origin - eta * part)
        found = float(answer_loss(model, rows[:16], pad, exact=True))
        for p, origin in zip(parameters, start, strict=True):
            p.copy_(origin)
        return found

    return value


def _noise(rounded: Callable[[float], float], exact: Callable[[float], float], h: float) -> float:
    """A7 on a model: root mean square error of the second difference at 6 places a hundredth of h apart."""
    errors = []
    for shift in (k * h / 100 for k in range(6)):
        minus, zero, plus = (rounded(shift + s) - exact(shift + s) for s in (-h, 0.0, h))
        errors.append(plus - 2 * zero + minus)
    return math.sqrt(sum(e * e for e in errors) / len(errors))


def _cone(slopes: tuple[float, float], r: float, f: float, cosine: float, n: int) -> list[Measurement]:
    """T3. The slopes are sums of n products, off by n u of their sizes like d and the cosine."""
    bound = 3 * library.direction_error(n)
    return [
        Measurement(abs(slopes[0] / r - (1 - cosine)), bound, "T3: g_R.d / ||g_R|| - (1 - cos phi)"),
        Measurement(abs(slopes[1] / f + (1 - cosine)), bound, "T3: g_F.d / ||g_F|| + (1 - cos phi)"),
        Measurement(max(-slopes[0], slopes[1]), 0.0, "T3: signs of the slopes"),
    ]


def _expansion(name: str, line: Callable[[float], float], value: float, slope: float, curvature: float) -> list[Measurement]:
    """T4 and T5: the orders of what the first and the second order leave."""
    scale = abs(slope / curvature)

    def first(eta: float) -> float:
        return line(eta) - value + eta * slope

    def second(eta: float) -> float:
        return first(eta) - eta**2 * curvature / 2

    def rounding(eta: float) -> float:
        return ROUNDED * (abs(value) + eta * abs(slope) + eta**2 * abs(curvature))

    return [
        _order(first, rounding, scale, 2, f"T4: order, {name}"),
        _order(second, rounding, scale, 3, f"T5: order, {name}"),
    ]


def _fitted(line: Callable[[float], float], value: float, eta: float, curvature: float) -> Measurement:
    """T6: the order of the error of the library's fit in the probe step."""

    def error(h: float) -> float:
        return fit_parabola(line(h), value, line(-h), h, 2.0**-53).minimiser - eta

    def rounding(h: float) -> float:
        return 4 * ROUNDED * abs(value) * (abs(eta) + h) / (curvature * h**2) + ROUNDED * abs(eta)

    return _order(error, rounding, abs(eta), 2, "T6: order of eta_hat - eta*")


def _order(
    error: Callable[[float], float], rounding: Callable[[float], float], scale: float, expected: int, what: str
) -> Measurement:
    """How far the fitted order is from the expected one, on the shortest rungs that are clear of rounding.

    There the next order has its smallest share, and a wrong lower order its largest: a curvature that is off shows as order 2.
    Where the expected order's coefficient happens to be small, the next order still shows there. Its share halves from rung to
    rung, so log2 of the error is a - order i + b 2^-i, and b is fitted too; the share of a wrong lower order would double.
    """
    logs = []
    for i in range(60):
        found = abs(error(scale / 2**i))
        if not found > CLEAR * rounding(scale / 2**i):
            break
        logs.append(math.log2(found))
    if len(logs) < RUNGS:
        return Measurement(math.nan, SETTLED, f"{what}: only {len(logs)} lengths are clear of rounding")
    rungs = np.arange(RUNGS)
    terms = np.stack([np.ones(RUNGS), -rungs, 2.0**-rungs], axis=1)
    order = float(np.linalg.lstsq(terms, np.array(logs[-RUNGS:]))[0][1])
    return Measurement(abs(order - expected), SETTLED, what)


def _crossing(line: Callable[[float], float], value: float, eta: float) -> float:
    """Where the retain loss is back at its value: by doubling, then bisection to a thousandth."""
    low, high = eta, 2 * eta
    while line(high) < value and high < 1e3 * eta:
        low, high = high, 2 * high
    while high - low > 1e-3 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if line(middle) < value else (low, middle)
    return (low + high) / 2


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[float, Tensor]:
    return float(loss.detach()), _flat(torch.autograd.grad(loss, parameters))


def _product(loss: Tensor, parameters: list[nn.Parameter], v: Tensor) -> Tensor:
    """The Hessian times v, shape (n,)."""
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    along = sum((g * part).sum() for g, part in zip(gradient, _split(v, parameters), strict=True))
    return _flat(torch.autograd.grad(along, parameters))  # type: ignore[arg-type]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _split(flat: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    parts = flat.split([p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
