"""The automatic learning rate: GeN's generalized Newton step, from three losses along the direction of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SETTLED = 1.5  # the first search ends when the rate changes by less than this factor: the probe was as long as the step
NOTHING = "nothing measured"  # outcome of a search that failed; the next refresh searches again
SEARCH = 50  # probes of the first refresh at most: enough to double or halve across 15 orders of magnitude


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


class Refresh(NamedTuple):
    """One entry of the trace: at which step, from which rate to which, and why."""

    step: int
    old: float
    new: float
    outcome: str


@dataclass
class AutoLearningRate:
    """Chooses the learning rate by itself, from three evaluations of the retain loss every few steps.

    The rate becomes the minimiser of the parabola through L(theta - h d), L(theta), L(theta + h d), with h the present rate.
    Three guards keep it inside what was measured:

    - it at most doubles at a refresh, because the parabola is known on [-h, h] and beyond 2 h it is a guess; down to 0 it is
      interpolation and needs no bound;
    - where the second difference drowns in rounding the probe was too short, so the rate doubles; where a loss is not
      finite it was too long, so the rate halves;
    - where the parabola has no minimum ahead (slope or curvature not positive), the rate halves if a step of that length would
      raise the loss, and stays otherwise.

    The first refresh repeats until the rate settles, so `initial` is a place to start looking and not a tuned value.

    Args:
        initial: the rate at which the search starts.
        every: steps from one refresh to the next.
        unit_roundoff: of the dtype in which the probed losses are computed, 2^-24 for float32. Probe in float32 wherever it can
            be afforded: the noise of bfloat16 hides all but the longest probes.

    Attributes:
        trace: every refresh, in order.

    Raises:
        ValueError: an argument is out of range.

    Source: arXiv 2407.02772 (GeN) and 2410.22086; the guards are ours.
    """

    initial: float = 1e-2
    every: int = 10
    unit_roundoff: float = 2.0**-24
    trace: list[Refresh] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.initial) and self.initial > 0):
            raise ValueError(f"initial = {self.initial}: the first learning rate must be finite and > 0, e.g. 1e-2")
        if self.every < 1:
            raise ValueError(f"every = {self.every}: the number of steps between refreshes must be >= 1, e.g. 10")

    def due(self, step: int) -> bool:
        """Whether the rate is refreshed at this step, counted from 0. A refresh that could not be made stays due."""
        return not self.trace or step - self.trace[-1].step >= self.every

    def refresh(self, step: int, lr: float, loss_at: Callable[[float], float]) -> float:
        """The new rate.

        Args:
            step: number of steps taken so far.
            lr: the present rate, > 0.
            loss_at: h -> retain loss at theta + h d.
        """
        zero = loss_at(0.0)
        found: list[Refresh] = []
        searching = not self.trace or self.trace[-1].outcome == NOTHING
        for _ in range(SEARCH if searching else 1):
            old = found[-1].new if found else lr
            found.append(Refresh(step, old, *propose(loss_at(-old), zero, loss_at(old), old, self.unit_roundoff)))
            if old / SETTLED <= found[-1].new <= old * SETTLED:
                break
        if len(found) == SEARCH and found[-1].outcome in ("unresolved", "not finite"):
            # The loss is flat along d at every scale, as at d = 0, or no number: nothing is concluded.
            found.append(Refresh(step, found[-1].new, lr, NOTHING))
        self.trace += found  # at the end, so that an error in a probe leaves no trace
        return found[-1].new

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if uninterrupted."""
        return {"initial": self.initial, "every": self.every, "trace": [tuple(entry) for entry in self.trace]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.initial, self.every = state["initial"], state["every"]
        self.trace = [Refresh(*entry) for entry in state["trace"]]


def propose(minus: float, zero: float, plus: float, h: float, unit_roundoff: float = 2.0**-24) -> tuple[float, str]:
    """The next rate after probing at -h, 0, +h, and the reason: one refresh of `AutoLearningRate`, without its memory."""
    if not math.isfinite(minus + zero + plus):
        return h / 2, "not finite"
    parabola = fit_parabola(minus, zero, plus, h, unit_roundoff)
    if not parabola.resolved:
        return 2 * h, "unresolved"
    if parabola.slope <= 0 or parabola.curvature <= 0:
        return (h / 2, "uphill") if minus > zero else (h, "no minimum")
    if parabola.minimiser > 2 * h:
        return 2 * h, "bounded"
    return parabola.minimiser, "minimum"
