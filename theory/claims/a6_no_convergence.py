"""A6. No convergence.

In short: L_F convex and unbounded, retain loss flat along it: L_F grows like sum(eta_t) for ever

Statement: if L_F is convex and unbounded above, the retain loss is flat along the forget gradients, g_F(theta_0) is not zero
and sum eta = inf, iterates never converge: L_F grows without bound, while L_R rises by what the curvature of its own steps
allows. For a linear softmax model whose retain and forget features are orthogonal: L_F(theta_T) >= L_F(theta_0) +
||g_F(theta_0)|| sum eta_t and L_R(theta_T) <= L_R(theta_0) - sum eta_t ||g_R(theta_t)|| + M sum eta_t^2 / 2, with M = max
||x||^2 / 2 over the retain features.

Hypotheses: L_F convex along the run and unbounded above, as the cross-entropy of a linear model is; g_F(theta_0) not zero;
zero curvature of the retain loss along the forget gradients, as over-parameterised models have; sum eta = inf.

Source: ours. A run therefore needs a stopping rule or a bounded forget objective.

Tight: the bound of L_F is, where the forget set has probability 0 already: then ||g_F|| no longer changes. That of L_R is for
short steps from one sample of two equally probable classes.

Proof: the gradients are orthogonal, so the forget block moves along its own unit gradient. L_F is convex, so it grows by eta
||g_F|| at least and ||g_F|| does not fall on the way. The retain block moves against its own: Taylor, with the largest
eigenvalue of diag(p) - pp', which is at most 1/2.

False variant: L_F grows by a hundredth more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import sympy
import torch
from hypothesis import strategies as st
from torch import Tensor

from ngdiff import objectives
from theory import library
from theory.claim import Counterexample, Identity, Measurement, worst
from theory.strategies import vectors

CLASSES = 3


@dataclass(frozen=True)
class Samples:
    """Features, each of length n, and a class for each."""

    features: tuple[tuple[float, ...], ...]
    classes: tuple[int, ...]

    @property
    def tensor(self) -> Tensor:
        """Shape (samples, n)."""
        return torch.tensor(self.features, dtype=torch.float64)

    def loss(self, weights: Tensor) -> Tensor:
        """Mean cross-entropy of the linear softmax model with weights of shape (CLASSES, n), by the library's objective."""
        logits = self.tensor @ weights.T
        # The objective predicts the next token, so the class is the second of two tokens.
        labels = torch.tensor([[objectives.IGNORE, k] for k in self.classes])
        return objectives.nll(torch.stack([logits, logits], dim=1), labels)


@dataclass(frozen=True)
class Problem:
    """Retain and forget samples in separate features, initial weights of both blocks, and rates."""

    retain: Samples
    forget: Samples
    weights: tuple[tuple[float, ...], tuple[float, ...]]
    rates: tuple[float, ...]

    @property
    def losses(self) -> library.LossPair:
        """Both, as functions of the flat weights: first the retain block, then the forget block."""
        sizes = [CLASSES * len(samples.features[0]) for samples in (self.retain, self.forget)]

        def of(block: int, samples: Samples) -> library.Loss:
            return lambda theta: samples.loss(theta.split(sizes)[block].view(CLASSES, -1))

        return of(0, self.retain), of(1, self.forget)


@st.composite
def samples(draw: st.DrawFn, n: int) -> Samples:
    """One to three samples."""
    m = draw(st.integers(1, 3))
    features = tuple(tuple(draw(vectors(n))) for _ in range(m))
    return Samples(features, tuple(draw(st.integers(0, CLASSES - 1)) for _ in range(m)))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Models of 2 to 6 features, memorised, undecided or wrong at the start; up to 15 steps of constant or falling rate."""
    sizes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    scale = draw(st.sampled_from((0.1, 1.0)))
    weights = tuple(tuple(scale * x for x in draw(vectors(CLASSES * n, nonzero=False))) for n in sizes)
    first, steps, power = draw(st.sampled_from((0.1, 1e-3, 1.0))), draw(st.integers(1, 15)), draw(st.sampled_from((0.0, 1.0)))
    rates = tuple(first / (t + 1) ** power for t in range(steps))
    return Problem(draw(samples(sizes[0])), draw(samples(sizes[1])), (weights[0], weights[1]), rates)


def measure(problem: Problem) -> Measurement:
    """Both bounds, at the end of a run of the optimizer."""
    growth, proven, excess, room = _run(problem)
    smooth = float(problem.retain.tensor.square().sum(1).max()) / 2
    return worst(
        Measurement(proven, growth, "proven growth of L_F against its growth"),
        Measurement(excess, smooth * sum(r * r for r in problem.rates) / 2 + room, "rise of L_R above its first order"),
    )


def false_variant(problem: Problem) -> Measurement:
    """A hundredth more growth."""
    growth, proven, *_ = _run(problem)
    return Measurement(1.01 * proven, growth + 1e-9, "growth, larger by a hundredth")


def _run(problem: Problem) -> tuple[float, float, float, float]:
    """How much L_F grew (with room for rounding), how much it must, how much L_R rose above -sum eta ||g_R||, and its room."""
    steps = list(library.descend(problem.losses, torch.tensor(sum(problem.weights, ())), problem.rates))
    start, end = steps[0], steps[-1]
    before, after = ([float(loss(s.theta)) for loss in problem.losses] for s in (start, end))
    # Logits of up to a few hundred, rounded a few times at every step.
    retain_room, forget_room = (1e-12 * len(problem.rates) * (1 + max(pair)) for pair in zip(before, after, strict=True))
    excess = after[0] - before[0] + sum(s.rate * float(s.retain.norm()) for s in steps)
    # Where the forget gradient has underflowed nothing is claimed; where it is rounding, no more than rounding.
    return after[1] - before[1] + forget_room, float(start.forget.norm()) * sum(problem.rates), excess, retain_room


def identities() -> list[Identity]:
    """Convexity of the log-sum-exp in one direction, and the curvature of a two-class softmax."""
    p, v, w = sympy.symbols("p v w", real=True)
    variance = p * v**2 + (1 - p) * w**2 - (p * v + (1 - p) * w) ** 2
    x = sympy.symbols("x", real=True)
    loss = sympy.log(1 + sympy.exp(x))
    sigma = 1 / (1 + sympy.exp(-x))
    return [
        Identity("curvature of softmax = variance of v = p (1 - p) (v - w)^2", variance - p * (1 - p) * (v - w) ** 2),
        Identity("d^2/dx^2 log(1 + e^x) = s (1 - s) >= 0", sympy.diff(loss, x, 2) - sigma * (1 - sigma)),
        Identity("p (1 - p) <= 1/4", sympy.Rational(1, 4) - p * (1 - p) - (p - sympy.Rational(1, 2)) ** 2),
    ]


def memorised(seed: int = 0) -> tuple[library.LossPair, Tensor, Callable[[Tensor], Tensor]]:
    """An over-parameterised softmax model, trained: 16 retain and 8 forget samples in 64 shared features, 4 classes.

    Returns:
        Both losses, weights at which the mean loss is below 0.01, and the mean probability of the forget set's classes.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(24, 64, generator=generator, dtype=torch.float64) / 8
    classes = torch.randint(4, (24,), generator=generator)

    def loss(rows: slice) -> library.Loss:
        return lambda theta: torch.nn.functional.cross_entropy(features[rows] @ theta.view(4, 64).T, classes[rows])

    def forget_probability(theta: Tensor) -> Tensor:
        return (features[16:] @ theta.view(4, 64).T).softmax(1).gather(1, classes[16:, None]).mean()

    theta = torch.zeros(256, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    value = torch.tensor(torch.inf)
    while value > 0.01:
        optimizer.zero_grad()
        value = loss(slice(0, 24))(theta)
        value.backward()
        optimizer.step()
    return (loss(slice(0, 16)), loss(slice(16, 24))), theta.detach(), forget_probability


RATE, STEPS = 0.05, 1000


def counterexamples() -> list[Counterexample]:
    """A bounded forget objective, a retain loss with curvature everywhere, rates with a finite sum: all on the trained model.

    Then a forget loss that is not convex, and one without a gradient at the start.
    """
    (retain, forget), start, probability = memorised()
    *_, end = library.descend((retain, lambda t: 1 - probability(t)), start, [RATE] * STEPS)
    text = f"trained model, L_F = 1 - p, {STEPS} steps of {RATE}: stays below its bound 1"
    value = float(1 - probability(end.theta))
    found = [Counterexample("L_F unbounded above", text, Measurement(2.0, value, "2 <= L_F"))]
    # Curvature everywhere keeps theta in a ball, so L_F is bounded; the run ends where both unit gradients coincide.
    rate, losses = 10 * RATE, (lambda t: retain(t) + 0.5 * t @ t, forget)
    ends = [float(forget(s.theta)) for s in library.descend(losses, start, [rate] * STEPS)]
    half, last = ends[STEPS // 2], ends[-1]
    text = f"trained model, L_R + ||theta||^2 / 2, eta = {rate}: L_F is {half:.2f} halfway, {last:.2f} after {STEPS} steps"
    growth = Measurement(half + 0.1, last, "L_F grows by 0.1 in the second half")
    found.append(Counterexample("flat retain directions", text, growth))
    *_, end = library.descend((retain, forget), start, [RATE / 2**t for t in range(50)])
    text = f"trained model, rates {RATE}, {RATE / 2}, {RATE / 4}, ...: L_F ends at {float(forget(end.theta)):.3f}"
    found.append(Counterexample("sum eta = inf", text, Measurement(1.0, float(forget(end.theta)), "1 <= L_F after 50 steps")))
    return [*found, *_not_convex()]


def _not_convex() -> list[Counterexample]:
    """A forget loss with a maximum on the way, and one that starts at its minimum."""
    found = []
    for without, text, start, forget in (
        (
            "L_F convex",
            "L_R = x^2/2, L_F = y^3 - 3 y from -1.5: stops at a maximum",
            -1.5,
            lambda t: t[1] ** 3 - 3 * t[1],
        ),
        ("g_F(theta_0) not zero", "L_R = x^2/2, L_F = cosh y from y = 0: never moves", 0.0, lambda t: torch.cosh(t[1])),
    ):
        *_, end = library.descend((lambda t: 0.5 * t[0] ** 2, forget), [1.0, start], [0.01] * 500)
        found.append(Counterexample(without, text, Measurement(3.0, float(forget(end.theta)), "3 <= L_F after 500 steps")))
    return found


def runs() -> list[Measurement]:
    """The trained model, unlearned for long: L_F grows at a steady rate while L_R stays put."""
    (retain, forget), start, _ = memorised()
    steps = list(library.descend((retain, forget), start, [RATE] * STEPS))
    grown = [float(forget(s.theta)) for s in steps]
    half, end = grown[STEPS // 2], grown[-1]
    kept = [float(retain(steps[i].theta)) for i in (0, -1)]
    return [
        Measurement(
            half - grown[0],
            1.05 * (end - half),
            f"trained model: L_F {grown[0]:.2g}, {half:.3g}, {end:.3g}; first half's growth against second's",
        ),
        Measurement(kept[1], kept[0] + 0.01, f"trained model: L_R {kept[0]:.2g} before, after"),
    ]
