"""A6. No convergence.

In short: L_F convex, gradients apart: L_F grows without end, like sum(eta_t) where the retain loss is flat along it

Statement: let L_F be convex and 1 - cos phi_t >= kappa > 0 along the run, g_F(theta_0) not zero, sum eta = inf, and L_R
M-smooth. (i) L_F(theta_T) >= L_F(theta_0) + sum eta_t (1 - cos phi_t) ||g_F(theta_t)||. (ii) For every theta_m with
L_F(theta_m) = L_F(theta_0) - delta: ||g_F(theta_t)|| >= delta / (||theta_0 - theta_m|| + 2 sum_{s<t} eta_s). So L_F grows at
least like the logarithm of sum eta, beyond every bound, and the iterates converge nowhere. (iii) Meanwhile L_R(theta_T) <=
L_R(theta_0) - sum eta_t (1 - cos phi_t) ||g_R(theta_t)|| + M / 2 sum eta_t^2 ||d_t||^2. (iv) Where retain and forget act on
separate parameters, so that the retain loss is flat along g_F, L_F(theta_T) >= L_F(theta_0) + ||g_F(theta_0)|| sum eta_t. A
linear softmax model with cross-entropy is convex with M = max ||x||^2 / 2 over the retain features, and if its features are
linearly independent kappa >= 1 - the cosine of the smallest angle between the spans of retain and forget features.

Hypotheses: L_F convex; 1 - cos phi >= kappa > 0 along the run; g_F(theta_0) not zero; sum eta = inf.

Source: ours. A run therefore needs a stopping rule or a bounded forget objective.

Tight: (i) and (iv) for losses linear along the run, as cross-entropy is of two classes where the forget set has probability 0
already; (iii) up to a factor of 2 for short steps from one retain sample of two equally probable classes, where half of
||d||^2 is the forget parameters'.

Proof: (i) L_F(theta - eta d) >= L_F(theta) - eta g_F.d by convexity, and T3 gives g_F.d. (ii) L_F(theta_t) >= L_F(theta_0) by
(i), so by convexity delta <= L_F(theta_t) - L_F(theta_m) <= ||g_F(theta_t)|| ||theta_t - theta_m||, and A3 bounds the
distance. The sum of eta_t / (c + sum eta) diverges with sum eta. (iii) Smoothness and T3; the Hessian of cross-entropy is the
mean of (diag(p) - pp') x xx', and the largest eigenvalue of diag(p) - pp' is at most 1/2. (iv) The forget parameters move
along their own unit gradient, along which the slope of a convex loss does not fall. The gradients of a softmax model are sums
of products with the features.

False variant: (i) with a hundredth more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch
from hypothesis import strategies as st
from torch import Tensor

from ngdiff import objectives
from theory import library
from theory.claim import Counterexample, Identity, Measurement, worst
from theory.claims.a1_fairest_direction import unit
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
    """Retain and forget samples in n features, weights of shape (CLASSES n,), and rates."""

    retain: Samples
    forget: Samples
    weights: tuple[float, ...]
    rates: tuple[float, ...]

    @property
    def losses(self) -> library.LossPair:
        """Both, as functions of the flat weights."""
        return tuple(lambda theta, s=s: s.loss(theta.view(CLASSES, -1)) for s in (self.retain, self.forget))  # type: ignore

    @property
    def separate(self) -> bool:
        """Whether the features are orthogonal, so that the two tasks act on separate parameters."""
        return not (self.retain.tensor @ self.forget.tensor.T).any()


@st.composite
def samples(draw: st.DrawFn, n: int, before: int = 0, after: int = 0) -> Samples:
    """One to three samples of n features, between features that are zero."""
    m = draw(st.integers(1, 3))
    features = tuple((0.0,) * before + tuple(draw(vectors(n))) + (0.0,) * after for _ in range(m))
    return Samples(features, tuple(draw(st.integers(0, CLASSES - 1)) for _ in range(m)))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Models of 2 to 6 features, separate or shared; memorised, undecided or wrong at the start; up to 15 steps."""
    r, f = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if draw(st.booleans()):
        retain, forget = draw(samples(r, after=f)), draw(samples(f, before=r))
    else:
        retain, forget = draw(samples(r + f)), draw(samples(r + f))
    scale = draw(st.sampled_from((0.1, 1.0)))
    weights = tuple(scale * x for x in draw(vectors(CLASSES * (r + f), nonzero=False)))
    first, steps, power = draw(st.sampled_from((0.1, 1e-3, 1.0))), draw(st.integers(1, 15)), draw(st.sampled_from((0.0, 1.0)))
    return Problem(retain, forget, weights, tuple(first / (t + 1) ** power for t in range(steps)))


def measure(problem: Problem) -> Measurement | None:
    """(i) to (iii), and (iv) where the features are separate, on a run of the optimizer."""
    run = Run.of(problem.losses, problem.weights, problem.rates)
    if not run.steps[0].forget.norm() > 1e-300:
        return None  # g_F(theta_0) has underflowed
    parts = [
        Measurement(run.proven_growth, run.growth + run.room, "proven growth of L_F against its growth"),
        Measurement(run.excess, smoothness(problem.retain) / 2 * run.squares + run.room, "rise of L_R above its first order"),
        *_gradient_stays(run, problem.losses[1]),
    ]
    if problem.separate:
        linear = float(run.steps[0].forget.norm()) * sum(problem.rates)
        parts.append(Measurement(linear, run.growth + run.room, "proven linear growth of L_F against its growth"))
    return worst(*parts)


def false_variant(problem: Problem) -> Measurement:
    """A hundredth more growth."""
    run = Run.of(problem.losses, problem.weights, problem.rates)
    return Measurement(1.01 * run.proven_growth, run.growth + run.room + 1e-9, "growth, larger by a hundredth")


def smoothness(retain: Samples) -> float:
    """M = max ||x||^2 / 2."""
    return float(retain.tensor.square().sum(1).max()) / 2


@dataclass(frozen=True)
class Run:
    """A run of the optimizer, and what the statement is about.

    Attributes:
        steps: of the optimizer.
        growth, rise: of L_F and of L_R.
        room: for the rounding of both.
    """

    steps: list[library.Step]
    growth: float
    rise: float
    room: float

    @classmethod
    def of(cls, losses: library.LossPair, start: Sequence[float] | Tensor, rates: Sequence[float]) -> "Run":
        """Run it."""
        steps = list(library.descend(losses, start, rates))
        before, after = ([float(loss(s.theta)) for loss in losses] for s in (steps[0], steps[-1]))
        # Logits of up to a few hundred, rounded a few times at every step.
        room = 1e-12 * len(rates) * (1 + max(before) + max(after))
        return cls(steps, after[1] - before[1], after[0] - before[0], room)

    @property
    def proven_growth(self) -> float:
        """sum eta (1 - cos phi) ||g_F||."""
        return sum(s.rate * gain(s) * float(s.forget.norm()) for s in self.steps)

    @property
    def excess(self) -> float:
        """The rise of L_R above -sum eta (1 - cos phi) ||g_R||, its first order."""
        return self.rise + sum(s.rate * gain(s) * float(s.retain.norm()) for s in self.steps)

    @property
    def squares(self) -> float:
        """sum eta^2 ||d||^2."""
        return sum(s.rate**2 * float(s.d @ s.d) for s in self.steps)


def gain(step: library.Step) -> float:
    """1 - cos phi, with cos phi = 0 where a gradient is zero."""
    return 1 - float(unit(step.retain) @ unit(step.forget))


def _gradient_stays(run: Run, forget: library.Loss) -> list[Measurement]:
    """(ii), with theta_m one step of gradient descent from the start."""
    start = run.steps[0]
    lower = start.theta - start.forget / (1 + start.forget.norm())
    delta, away, travelled = float(forget(start.theta) - forget(lower)), float((start.theta - lower).norm()), 0.0
    parts = []
    for step in run.steps:
        reach = float(step.forget.norm()) * (away + travelled)
        parts.append(
            Measurement(delta, reach * (1 + 1e-12) + run.room, "delta against ||g_F|| (||theta_0 - theta_m|| + 2 sum eta)")
        )
        travelled += 2 * step.rate
    return parts


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


FEATURES, RETAINED = 64, 16


def memorised(seed: int = 0) -> tuple[library.LossPair, Tensor, Tensor]:
    """An over-parameterised softmax model, trained: 16 retain and 8 forget samples in 64 shared features, 4 classes.

    Returns:
        Both losses, weights at which the mean loss is below 0.01, and the features, shape (24, 64), those to retain first.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(RETAINED + 8, FEATURES, generator=generator, dtype=torch.float64) / 8
    classes = torch.randint(4, (RETAINED + 8,), generator=generator)

    def loss(rows: slice) -> library.Loss:
        return lambda theta: torch.nn.functional.cross_entropy(features[rows] @ theta.view(4, FEATURES).T, classes[rows])

    theta = torch.zeros(4 * FEATURES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    value = torch.tensor(torch.inf)
    while value > 0.01:
        optimizer.zero_grad()
        value = loss(slice(0, None))(theta)
        value.backward()
        optimizer.step()
    return (loss(slice(0, RETAINED)), loss(slice(RETAINED, None))), theta.detach(), features


def kappa(features: Tensor) -> float:
    """1 - the cosine of the smallest angle between the spans of retain and forget features."""
    bases = [torch.linalg.qr(part.T)[0] for part in (features[:RETAINED], features[RETAINED:])]
    return 1 - float(torch.linalg.svdvals(bases[0].T @ bases[1])[0])


RATE, STEPS = 0.05, 1000


def counterexamples() -> list[Counterexample]:
    """A bounded forget objective, gradients that come to agree, no gradient at the start, rates with a finite sum."""
    return [_bounded(), _agreeing(), _no_gradient(), _summable()]


def _bounded() -> Counterexample:
    run = Run.of((lambda t: 0.5 * t[0] ** 2, lambda t: t[1] ** 3 - 3 * t[1]), [1.0, -1.5], [0.01] * 500)
    text = f"L_R = x^2/2, L_F = y^3 - 3 y from -1.5, 500 steps of 0.01: stops at the maximum, L_F grows by {run.growth:.3f}"
    return Counterexample(
        "L_F convex", text, Measurement(run.proven_growth, run.growth, "proven growth of L_F against its growth")
    )


def _agreeing() -> Counterexample:
    (retain, forget), start, _ = memorised()
    # Curvature everywhere keeps theta in a ball, so L_F is bounded; the run ends where both unit gradients coincide.
    rate = 10 * RATE
    steps = list(library.descend((lambda t: retain(t) + 0.5 * t @ t, forget), start, [rate] * STEPS))
    half, last = float(forget(steps[STEPS // 2].theta)), float(forget(steps[-1].theta))
    text = (
        f"trained model, L_R + ||theta||^2 / 2, eta = {rate}: 1 - cos phi falls to {gain(steps[-1]):.1e}, "
        f"L_F is {half:.2f} halfway, {last:.2f} after {STEPS} steps"
    )
    growth = Measurement(half + 0.1, last, "L_F grows by 0.1 in the second half")
    return Counterexample("1 - cos phi >= kappa > 0 along the run", text, growth)


def _no_gradient() -> Counterexample:
    run = Run.of((lambda t: 0.5 * t[0] ** 2, lambda t: torch.cosh(t[1])), [1.0, 0.0], [0.01] * 500)
    text = "L_R = x^2/2, L_F = cosh y from y = 0, 500 steps of 0.01: y never moves"
    return Counterexample("g_F(theta_0) not zero", text, Measurement(1e-3, run.growth, "0.001 <= growth of L_F"))


def _summable() -> Counterexample:
    losses, start, _ = memorised()
    run = Run.of(losses, start, [RATE / 2**t for t in range(50)])
    text = f"trained model, rates {RATE}, {RATE / 2}, {RATE / 4}, ..., 50 steps"
    return Counterexample("sum eta = inf", text, Measurement(1.0, run.growth, "1 <= growth of L_F"))


def runs() -> list[Measurement]:
    """The trained model, unlearned for long: L_F and L_R against what the angle between the features' spans proves."""
    losses, start, features = memorised()
    run = Run.of(losses, start, [RATE] * STEPS)
    least, smooth = kappa(features), float(features[:RETAINED].square().sum(1).max()) / 2
    grown = [float(losses[1](run.steps[i].theta)) for i in (0, STEPS // 2, -1)]
    kept = [float(losses[0](run.steps[i].theta)) for i in (0, -1)]
    proven = least * sum(s.rate * float(s.forget.norm()) for s in run.steps)
    promised = least * sum(s.rate * float(s.retain.norm()) for s in run.steps)
    return [
        Measurement(
            least, min(map(gain, run.steps[:-1])), "trained model: 1 - cosine of the features' spans against 1 - cos phi"
        ),
        Measurement(proven, run.growth, "trained model: L_F {:.2g}, {:.3g}, {:.3g}; proven growth".format(*grown)),
        Measurement(
            run.rise + promised,
            smooth / 2 * run.squares,
            "trained model: L_R {:.1g}, {:.1g}; rise above its first order".format(*kept),
        ),
        *_gradient_stays(run, losses[1])[-1:],
    ]
