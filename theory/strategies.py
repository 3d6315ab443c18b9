"""What hypothesis draws: gradients by the angle between them, losses by their kind and conditioning.

Numbers are small integers and powers of ten, so that what remains after shrinking can be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from hypothesis import strategies as st
from torch import Tensor

from theory.losses import Loss, TwoTasks, quadratic, ridge

DIMENSIONS = (1, 2, 3, 5, 10, 50)
NEARLY = {"near": 1e-8, "close": 1e-5}  # radians, at most, between nearly parallel gradients
CONDITIONS = (1.0, 10.0, 1e3, 1e8)
KINDS = ("quadratic", "logistic", "sine")


@dataclass(frozen=True)
class GradientPair:
    """g_R and g_F."""

    retain: tuple[float, ...]
    forget: tuple[float, ...]

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both, shape (n,), float64."""
        return torch.tensor(self.retain, dtype=torch.float64), torch.tensor(self.forget, dtype=torch.float64)


def vectors(n: int, nonzero: bool = True) -> st.SearchStrategy[list[float]]:
    """n small integers, as floats."""
    drawn = st.lists(st.integers(-9, 9).map(float), min_size=n, max_size=n)
    return drawn.filter(any) if nonzero else drawn


@st.composite
def gradient_pairs(
    draw: st.DrawFn, geometries: Sequence[str] = ("general", "near", "close", "opposed", "same"), zeros: bool = False
) -> GradientPair:
    """Gradients in general position, 1e-8 or 1e-5 apart, opposed or the same way, times powers of ten from 1e-30 to 1e+30.

    Args:
        geometries: those to choose from.
        zeros: whether a gradient may vanish.
    """
    geometry = draw(st.sampled_from(geometries))
    n = draw(st.sampled_from(DIMENSIONS))
    r = torch.tensor(draw(vectors(n)), dtype=torch.float64)
    if geometry == "general":
        f = torch.tensor(draw(vectors(n)), dtype=torch.float64)
    elif geometry in NEARLY:
        aside = torch.tensor(draw(vectors(n)), dtype=torch.float64)
        f = r + NEARLY[geometry] * r.norm() / aside.norm() * aside
    else:
        f = r * draw(st.integers(1, 9)) * (-1 if geometry == "opposed" else 1)
    scales = [10.0 ** draw(st.sampled_from((0, -1, 3, -10, 15, 30, -30))) for _ in range(2)]
    keep = [not (zeros and draw(st.booleans()) and draw(st.booleans())) for _ in range(2)]
    return GradientPair(*(tuple((g * scale * kept).tolist()) for g, scale, kept in zip((r, f), scales, keep, strict=True)))


@st.composite
def quadratics(
    draw: st.DrawFn,
    n: int,
    conditions: Sequence[float] = CONDITIONS,
    centre: Sequence[float] | None = None,
    smallest: Sequence[float] = (1.0,),
) -> Loss:
    """Strongly convex, smallest curvature one of `smallest`, largest one of `conditions` times that (with n = 1: that one)."""
    condition, low = draw(st.sampled_from(conditions)), draw(st.sampled_from(smallest))
    spectrum = [low * condition ** (i / (n - 1)) for i in range(n)] if n > 1 else [low * condition]
    return quadratic(spectrum, draw(vectors(n, nonzero=False)), draw(vectors(n, nonzero=False)) if centre is None else centre)


@st.composite
def two_centres(draw: st.DrawFn, n: int) -> tuple[list[float], list[float]]:
    """Two different points."""
    first = draw(vectors(n, nonzero=False))
    return first, [x + y for x, y in zip(first, draw(vectors(n)), strict=True)]


@st.composite
def ridges(draw: st.DrawFn, n: int, profile: str) -> Loss:
    """One to four terms of one profile, with weights 1 to 5 and directions of norm up to 3."""
    m = draw(st.integers(1, 4))
    directions = [[x / (9 * n**0.5) * 3 for x in draw(vectors(n))] for _ in range(m)]
    weights = [float(draw(st.integers(1, 5))) for _ in range(m)]
    return ridge(profile, weights, directions, [float(draw(st.integers(-3, 3))) for _ in range(m)])


@st.composite
def losses(draw: st.DrawFn, n: int, kind: str, conditions: Sequence[float] = CONDITIONS) -> Loss:
    """A convex quadratic, a logistic loss or a non-convex sum of sines."""
    if kind == "quadratic":
        return draw(quadratics(n, conditions))
    return draw(ridges(n, {"logistic": "softplus", "sine": "sine"}[kind]))


@st.composite
def two_tasks(
    draw: st.DrawFn,
    kinds: Sequence[str] = KINDS,
    dimensions: Sequence[int] = DIMENSIONS,
    conditions: Sequence[float] = CONDITIONS,
    negated: tuple[bool, bool] = (True, True),
) -> TwoTasks:
    """Two losses of any kind and a point; each loss of either sign, unless `negated` forbids it for retain or forget."""
    n = draw(st.sampled_from(dimensions))
    pair = [draw(losses(n, draw(st.sampled_from(kinds)), conditions)) for _ in range(2)]
    retain, forget = (-loss if may and draw(st.booleans()) else loss for loss, may in zip(pair, negated, strict=True))
    return TwoTasks(retain, forget, tuple(draw(vectors(n, nonzero=False))))


@st.composite
def opposing_quadratics(
    draw: st.DrawFn,
    dimensions: Sequence[int] = DIMENSIONS,
    conditions: Sequence[float] = CONDITIONS,
    smallest: Sequence[float] = (1.0,),
) -> TwoTasks:
    """L_R and -L_F strongly convex quadratics, with different minimisers; smallest curvatures from `smallest`."""
    n = draw(st.sampled_from(dimensions))
    retain, forget = (draw(quadratics(n, conditions, centre, smallest)) for centre in draw(two_centres(n)))
    return TwoTasks(retain, -forget, tuple(draw(vectors(n, nonzero=False))))


@st.composite
def opposing_ridges(
    draw: st.DrawFn, profile: str, dimensions: Sequence[int] = (1, 2, 3), smallest: Sequence[float] = (1.0,)
) -> TwoTasks:
    """L_R and -L_F: terms of one profile plus one of `smallest` times half the squared distance to a point of their own."""
    n = draw(st.sampled_from(dimensions))
    retain, forget = (
        draw(ridges(n, profile)) + draw(quadratics(n, (1.0,), centre, smallest)) for centre in draw(two_centres(n))
    )
    return TwoTasks(retain, -forget, tuple(draw(vectors(n, nonzero=False))))


def opposing_logistics(
    dimensions: Sequence[int] = (1, 2, 3), smallest: Sequence[float] = (1.0,)
) -> st.SearchStrategy[TwoTasks]:
    """L_R and -L_F logistic, of smallest curvature from `smallest`."""
    return opposing_ridges("softplus", dimensions, smallest)
