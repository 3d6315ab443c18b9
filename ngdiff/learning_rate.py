"""The automatic learning rate: GeN's generalized Newton step, from three losses along the direction of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MODES = ("robust", "paper")
BOUND = 2.0  # factor by which a refresh raises the rate at most: beyond 2 h a parabola through -h, 0, h is a guess
SETTLED = 1.5  # a search ends at a minimum not nearer than the probe by this factor: the probe was about as long as the step
SEARCH = 25  # probes of a search at most, enough to cross 30 orders of magnitude either way
LEAP = 16.0  # factor of a search, which probes again where it lands: too long costs no more than too short
BRACKET = 4.0  # a search without a minimum ends when the lengths too short and too long to see one are this factor apart
STEADY, FAILED = 2, 8  # refreshes are at most this many times `every` steps apart: of a steady rate, after a failed search
SMALLEST, LARGEST = 1e-100, 1e100  # initial rates whose squares stay in range, wherever a search goes
NOTHING = "nothing measured"  # outcome of a search that failed; the next refresh searches again
UNSEEN = ("flat", "no minimum")  # outcomes after which a search looks farther out


class Parabola(NamedTuple):
    """L(theta - eta d) = loss - slope eta + curvature eta^2 / 2, fitted through three points.

    Attributes:
        loss: L_0.
        slope: g_R.d, in units of loss per unit of learning rate.
        curvature: d' H_R d.
        resolved: whether the second difference exceeds the rounding error of the losses.
    """

    loss: float
    slope: float
    curvature: float
    resolved: bool

    @property
    def minimiser(self) -> float:
        """eta* = slope / curvature; NaN where the parabola has no minimum."""
        return self.slope / self.curvature if self.curvature > 0 else math.nan


def fit_parabola(minus: float, zero: float, plus: float, h: float, unit_roundoff: float = 2.0**-24) -> Parabola:
    """The parabola through L(theta - h d), L(theta), L(theta + h d).

    Exact for a quadratic loss at any h; otherwise the minimiser is off by O(h^2). Each loss carries a relative rounding error
    of about the unit roundoff, so a second difference below a few units of L_0 is noise and is reported as not resolved.

    Args:
        minus, zero, plus: the losses at -h, 0, +h.
        h: probe step, in units of the learning rate, > 0.
        unit_roundoff: of the dtype in which the losses were computed; 2^-24 for float32.

    Raises:
        ValueError: h is not > 0.

    Source: Bu & Xu, "Gradient descent with generalized Newton's method", arXiv 2407.02772; arXiv 2410.22086, section on the
        learning rate.
    """
    if not h > 0:
        raise ValueError(f"h = {h}: the probe step must be > 0; an automatic learning rate must not be set to 0 from outside")
    difference = plus - 2 * zero + minus
    # Four roundings enter the second difference, with weights 1, 2, 1: at most 4 u L_0.
    floor = 4 * unit_roundoff * abs(zero)
    return Parabola(zero, (plus - minus) / (2 * h), difference / h**2, abs(difference) > floor)


Losses = tuple[float, float, float]  # at -h, 0, +h


class Refresh(NamedTuple):
    """One entry of the trace: at which step, from which rate to which, and why."""

    step: int
    old: float
    new: float
    outcome: str


@dataclass
class AutoLearningRate:
    """Chooses the learning rate by itself, from three evaluations of the retain loss every few steps.

    The rate becomes eta*, the minimiser of the parabola through L(theta - h d), L(theta), L(theta + h d), with h the present
    rate. In mode "paper" that is all, every `every` steps; the rate stays where the parabola has no minimum ahead. Mode
    "robust" adds:

    - a search at the first refresh, which goes from `initial` to the scale of the loss: `initial` is a place to start looking
      and not a tuned value. Where it finds no minimum, later refreshes search again;
    - bounds: from then on the rate at most doubles, because the parabola is known on [-h, h] and beyond 2 h it is a guess; down
      to 0 it is interpolation and needs none. It halves where a loss is not finite, and where a step of its own length would
      raise the loss with no minimum ahead;
    - a ceiling: the largest eta* seen by a refresh whose loss was the lowest so far. Where a run has damaged the model, slope
      and eta* are large because there is much to repair; a rate that followed them would do more damage, and so on;
    - a threshold: a difference of losses tells something if it exceeds sqrt(u) L_0, half of the digits of the loss. Where the
      second difference does not, the loss is flat at this length, and the rate doubles, up to the ceiling; where the first does
      not, it is level, and the rate halves;
    - intervals that follow the rate: 1, 2, 4, ... steps from the start, when curvature changes fastest, then `every`, and twice
      `every` while the rate is steady.

    Probe on the batch that gave the gradient: near a memorised optimum the loss of another batch shows no descent at any
    length, and the rate would go to 0. Probe the retain loss itself (NLL) also where another retain objective is descended,
    such as KL, which begins at its minimum.

    Args:
        initial: the rate at which the search starts; in mode "paper", the first probe step.
        every: steps from one refresh to the next.
        mode: "robust" or "paper".
        unit_roundoff: of the dtype in which the probed losses are computed, 2^-24 for float32. Probe in float32 wherever it can
            be afforded: the noise of bfloat16 hides all but the longest probes.

    Attributes:
        trace: every refresh, in order.
        stretch: the next refresh is this many times `every` steps after the last.
        ceiling: the largest rate at present.
        level: the lowest loss of the refreshes that saw a minimum.

    Raises:
        ValueError: an argument is out of range.

    Source: arXiv 2407.02772 (GeN) and 2410.22086, T6; mode "robust" is ours.
    """

    initial: float = 1e-2
    every: int = 10
    mode: str = "robust"
    unit_roundoff: float = 2.0**-24
    trace: list[Refresh] = field(default_factory=list, init=False)
    stretch: int = field(default=1, init=False)
    ceiling: float = field(default=math.inf, init=False)
    level: float = field(default=math.inf, init=False)

    def __post_init__(self) -> None:
        if not SMALLEST <= self.initial <= LARGEST:
            raise ValueError(
                f"initial = {self.initial}: the first learning rate must be from {SMALLEST} to {LARGEST:g}, e.g. 1e-2"
            )
        if not 0 < self.unit_roundoff < 1:
            raise ValueError(f"unit_roundoff = {self.unit_roundoff}: must be in (0, 1), e.g. 2**-24 for float32")
        if self.every < 1:
            raise ValueError(f"every = {self.every}: the number of steps between refreshes must be >= 1, e.g. 10")
        if self.mode not in MODES:
            raise ValueError(f"mode = {self.mode!r}: unknown; choose one of {', '.join(MODES)}")

    def due(self, step: int) -> bool:
        """Whether the rate is refreshed at this step, counted from 0. A refresh that could not be made stays due."""
        if not self.trace:
            return True
        last, interval = self.trace[-1].step, self.stretch * self.every
        if self.mode == "robust":  # after 1, 2, 4, ... steps
            interval = min(interval, max(1, last - self.trace[0].step))
        return step - last >= interval

    def refresh(self, step: int, lr: float, loss_at: Callable[[float], float]) -> float:
        """The new rate.

        Args:
            step: number of steps taken so far.
            lr: the present rate, > 0.
            loss_at: h -> retain loss at theta + h d.

        Returns:
            A rate > 0. An error in `loss_at` leaves all as it was.

        Raises:
            ValueError: lr is not > 0.
        """
        zero = loss_at(0.0)

        def losses(h: float) -> Losses:
            return loss_at(-h), zero, loss_at(h)

        if self.mode == "paper":
            self.trace.append(Refresh(step, lr, *newton(*losses(lr), lr)))
        elif not self.trace or self.trace[-1].outcome == NOTHING:
            self._conclude(search(step, lr, losses, self.unit_roundoff), zero)
        else:
            self._follow(Refresh(step, lr, *propose(*losses(lr), lr, self.unit_roundoff)), zero)
        return self.trace[-1].new

    def _conclude(self, found: list[Refresh], loss: float) -> None:
        """Take over what a search has found."""
        if found[-1].outcome == NOTHING:
            self.stretch = min(2 * self.stretch, FAILED)
        else:
            self.ceiling, self.level, self.stretch = found[-1].new, loss, 1
        self.trace += found

    def _follow(self, found: Refresh, loss: float) -> None:
        """Take over what one refresh has found, below the ceiling."""
        if found.outcome in ("minimum", "bounded") and loss <= self.level:
            self.ceiling, self.level = max(found.new, self.ceiling), loss
        if found.new > self.ceiling:
            found = found._replace(new=self.ceiling, outcome="capped")
        steady = found.outcome in ("minimum", "capped") and found.new >= found.old / 2
        self.stretch = min(2 * self.stretch, STEADY) if steady else 1
        self.trace.append(found)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if uninterrupted."""
        return {name: getattr(self, name) for name in _STATE} | {"trace": [tuple(entry) for entry in self.trace]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        for name in _STATE:
            setattr(self, name, state[name])
        self.trace = [Refresh(*entry) for entry in state["trace"]]


_STATE = ("initial", "every", "mode", "unit_roundoff", "stretch", "ceiling", "level")


def search(step: int, lr: float, losses: Callable[[float], Losses], unit_roundoff: float = 2.0**-24) -> list[Refresh]:
    """Probe from `lr` on until the minimum is about as far away as the probe was long.

    Where the loss is flat up to some length and rises from there on, as along a direction that is not downhill, there is no
    minimum: the search ends between the two, and its last outcome is `NOTHING`. Where it is flat, or no number, at every
    length, the rate stays `lr`.

    Args:
        step: for the trace.
        lr: where to start, > 0.
        losses: h -> the losses at -h, 0, +h.
        unit_roundoff: of the losses.

    Returns:
        The trace of the search, at least one entry; the last one has the rate.
    """
    found: list[Refresh] = []
    rate, short, long = lr, 0.0, math.inf  # the longest probe that saw nothing, and the shortest that was too long
    for _ in range(SEARCH):
        old = rate
        # Far, while nothing was too long; then by 2, so that of several minima the search ends at the nearest.
        bound = LEAP if long == math.inf else BOUND
        rate, outcome = propose(*losses(old), old, unit_roundoff, bound)
        if outcome == "minimum" and old / SETTLED <= rate <= old * BOUND:
            return [*found, Refresh(step, old, rate, outcome)]
        if outcome in UNSEEN:
            short, rate = max(short, old), bound * old
        elif rate < old:
            long, rate = min(long, old), rate if outcome == "minimum" else old / LEAP
        if short * BRACKET >= long and outcome != "minimum":
            return [*found, Refresh(step, old, short, NOTHING)]
        if not short < rate < long:
            rate = math.sqrt(old * (long if rate >= long else short))
        found.append(Refresh(step, old, rate, outcome))
    return [*found, Refresh(step, rate, lr, NOTHING)]


def newton(minus: float, zero: float, plus: float, h: float) -> tuple[float, str]:
    """One refresh of mode "paper": eta* as the paper has it, or h where there is no minimum ahead or a loss is not finite.

    Args:
        minus, zero, plus: the losses at -h, 0, +h.
        h: the present rate, > 0.

    Returns:
        The next rate, and the outcome: "minimum" or "no minimum".

    Raises:
        ValueError: h is not > 0.

    Source: arXiv 2407.02772.
    """
    eta = fit_parabola(minus, zero, plus, h).minimiser
    return (eta, "minimum") if 0 < eta < math.inf else (h, "no minimum")


def propose(
    minus: float, zero: float, plus: float, h: float, unit_roundoff: float = 2.0**-24, bound: float = BOUND
) -> tuple[float, str]:
    """One refresh of mode "robust", without its memory.

    Args:
        minus, zero, plus: the losses at -h, 0, +h.
        h: the present rate, > 0.
        unit_roundoff: of the losses.
        bound: factor by which the rate rises at most.

    Returns:
        The next rate, > 0, and the outcome: "minimum", or "bounded" for one beyond the bound; "flat", "level", "uphill" or
        "no minimum" where there is none to see; "not finite".

    Raises:
        ValueError: h is not > 0.
    """
    if not math.isfinite(minus + zero + plus):
        return h / 2, "not finite"
    seen = math.sqrt(unit_roundoff)
    parabola = fit_parabola(minus, zero, plus, h, seen / 4)  # whose floor is 4 units
    if not parabola.resolved:
        return bound * h, "flat"
    if parabola.slope <= 0 or parabola.curvature <= 0:
        return (h / 2, "uphill") if minus > zero else (h, "no minimum")
    if plus - minus <= seen * abs(zero):  # a minimum nearer than h / 2, and no digits to say where
        return h / 2, "level"
    return (bound * h, "bounded") if parabola.minimiser > bound * h else (parabola.minimiser, "minimum")
