"""A3. Bounded steps.

In short: ||d|| <= 2, so a run stays within 2 sum(eta_t) of its start

Statement: ||d||^2 = 2 (1 - cos phi) <= 4, so a run of T steps with rates eta_t stays within 2 sum(eta_t) of its start,
whatever the losses do, even if an adversary chooses them anew at every step. GA has no such bound.

Hypotheses: the rule is NGDiff; the step is -eta d.

Source: ours.

Tight: yes: attained when the gradients are opposed and never turn.

Proof: the triangle inequality, with the length of d from T3's identities.

False variant: the run stays within 1.9 sum(eta_t).
"""

from dataclasses import dataclass

import sympy
import torch
from hypothesis import strategies as st

from theory import library
from theory.claim import Counterexample, Identity, Measurement, worst
from theory.exact import ExactPair, U
from theory.strategies import vectors


@dataclass(frozen=True)
class Adversary:
    """Losses that are linear at every step, with these gradients, and the rates of the steps."""

    retain: tuple[tuple[float, ...], ...]
    forget: tuple[tuple[float, ...], ...]
    rates: tuple[float, ...]


@st.composite
def problems(draw: st.DrawFn) -> Adversary:
    """Up to 12 steps in 1 to 5 dimensions; gradients of any scale from 1e-30 to 1e+30, some opposed, some zero."""
    n, steps = draw(st.sampled_from((1, 2, 3, 5))), draw(st.integers(1, 12))
    scale = st.sampled_from((1.0, 1e-30, 1e30, 1e-3, 1e8))
    retain, forget, rates = [], [], []
    stubborn = draw(vectors(n)) if draw(st.booleans()) else None
    for _ in range(steps):
        r = stubborn or draw(vectors(n, nonzero=False))
        f = [-x for x in r] if stubborn or draw(st.booleans()) else draw(vectors(n, nonzero=False))
        retain.append(tuple(x * s for s in [draw(scale)] for x in r))
        forget.append(tuple(x * s for s in [draw(scale)] for x in f))
        rates.append(draw(st.sampled_from((1.0, 0.1, 1e-3, 100.0))))
    return Adversary(tuple(retain), tuple(forget), tuple(rates))


def measure(adversary: Adversary) -> Measurement:
    """Distance from the start after every step, the length of every step, and that it is the step that d asks for."""
    parts, travelled, error, last = [], 0.0, 0.0, None
    for step in library.descend(lambda t: losses(adversary, t), [0.0] * len(adversary.retain[0]), adversary.rates):
        if last is not None:
            # Each step rounds theta once, and d is off by direction_error.
            travelled += 2 * last.rate
            moved = last.theta - step.theta
            rounding = last.rate * library.direction_error(len(moved)) + float(step.theta.norm() + last.theta.norm()) * U
            error += rounding
            parts.append(Measurement(float((moved - last.rate * last.d).norm()), 2 * rounding, "step against -eta d"))
            parts.append(Measurement(float(step.theta.norm()), travelled + error + 8 * U * travelled, "distance / 2 sum(eta)"))
        parts += _length(step)
        last = step
    return worst(*parts)


def false_variant(adversary: Adversary) -> Measurement:
    """1.9 in the place of 2."""
    *_, end = library.descend(lambda t: losses(adversary, t), [0.0] * len(adversary.retain[0]), adversary.rates)
    return Measurement(float(end.theta.norm()), 1.9 * sum(adversary.rates), "distance / 1.9 sum(eta)")


def losses(adversary: Adversary, step: int) -> library.LossPair:
    """The two linear losses of a step (the last ones again at the end)."""
    i = min(step, len(adversary.rates) - 1)
    retain, forget = (torch.tensor(g[i], dtype=torch.float64) for g in (adversary.retain, adversary.forget))
    return (lambda theta: retain @ theta), (lambda theta: forget @ theta)


def _length(step: library.Step) -> list[Measurement]:
    exact = ExactPair(step.retain, step.forget)
    if not exact.rr or not exact.ff:
        return []
    # ||d|| is at most 2 and off by direction_error; the product d.d here by n u of 4.
    error = 9 * library.direction_error(len(step.d))
    return [Measurement(abs(float(step.d @ step.d) - 2 * exact.one_minus_cosine), error, "||d||^2 against 2 (1 - cos phi)")]


def identities() -> list[Identity]:
    """The length of d from the Gram matrix, and its largest value."""
    a, b = sympy.symbols("a b", positive=True)
    x = sympy.symbols("cos_phi", real=True)
    square = a**2 / a**2 - 2 * a * b * x / (a * b) + b**2 / b**2
    return [
        Identity("||d||^2 = 2 (1 - cos phi)", square - 2 * (1 - x)),
        Identity("||d||^2 = 4 where cos phi = -1", square.subs(x, -1) - 4),
    ]


def escape(rule: str, steps: int, rate: float = 0.1) -> list[float]:
    """Distances from the start of a run on L_R = ||theta - a||^2 / 2, L_F = ||theta||^4 / 4, whose forget gradient grows."""
    start, centre = torch.tensor([[1.0, 0.5], [20.0, 9.0]], dtype=torch.float64)
    pair = (lambda t: 0.5 * (t - centre).square().sum(), lambda t: 0.25 * (t @ t) ** 2)
    return [float((step.theta - start).norm()) for step in library.descend(pair, start, [rate] * steps, rule)]


def counterexamples() -> list[Counterexample]:
    """GA; and AdamW, whose steps are longer than d in many dimensions."""
    steps, rate = 16, 0.1
    text = f"GA on L_F = ||theta||^4 / 4, {steps} steps of {rate}"
    found = [
        Counterexample(
            "the rule is NGDiff", text, Measurement(escape("ga", steps)[-1], 2 * steps * rate, "distance / 2 sum(eta)")
        )
    ]
    g = torch.ones(100, dtype=torch.float64)
    *_, end = library.descend((lambda t: g @ t, lambda t: -(g @ t)), torch.zeros(100), [rate] * 3, base="adamw")
    text = "AdamW in 100 dimensions, opposed gradients: steps of length 10 eta"
    return [
        *found,
        Counterexample("the step is -eta d", text, Measurement(float(end.theta.norm()), 6 * rate, "distance / 2 sum(eta)")),
    ]


def runs() -> list[Measurement]:
    """NGDiff on the problem that GA runs away on."""
    distances = escape("ngdiff", 100)
    return [worst(*(Measurement(x, 2 * 0.1 * i + 1e-12, "NGDiff where GA diverges") for i, x in enumerate(distances)))]
