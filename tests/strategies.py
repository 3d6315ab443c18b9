"""Hypothesis strategies: pairs of gradients by the angle between them, over 45 orders of magnitude."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

CHUNK = 64  # tests set reference.CHUNK to this, so that small tensors have several chunks
SIZES = (1, 2, 3, 61, CHUNK - 1, CHUNK, CHUNK + 1, 127, 2 * CHUNK, 2 * CHUNK + 1)
EXPONENTS = (-100, -50, -10, 0, 7, 50)  # of 2: from 7.9e-31 to 1.1e15
NEARLY = 2.0**-10  # relative distance of a nearly parallel pair


class Pair(NamedTuple):
    """g_R and g_F, each of shape (n,), and the name of the angle between them."""

    retain: Tensor
    forget: Tensor
    geometry: str

    def to(self, dtype: torch.dtype) -> "Pair":
        return Pair(self.retain.to(dtype), self.forget.to(dtype), self.geometry)


def _orthogonal(n: int) -> tuple[Tensor, Tensor]:
    both = torch.randn(n)
    mask = torch.arange(n) % 2 == 0
    return both * mask, both * ~mask


# Each makes a pair of length n at scale 1. A pair called aligned or opposed is so exactly, in any precision.
_MAKERS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "general": lambda n: (torch.randn(n), torch.randn(n)),
    "aligned": lambda n: (g := torch.randn(n), g.clone()),
    "opposed": lambda n: (g := torch.randn(n), -g),
    "orthogonal": _orthogonal,
    "nearly parallel": lambda n: (g := torch.randn(n), g + NEARLY * torch.randn(n)),
    "retain zero": lambda n: (torch.zeros(n), torch.randn(n)),
    "forget zero": lambda n: (torch.randn(n), torch.zeros(n)),
    "both zero": lambda n: (torch.zeros(n), torch.zeros(n)),
}
GEOMETRIES = tuple(_MAKERS)
NONZERO = tuple(name for name in GEOMETRIES if "zero" not in name)


@st.composite
def pairs(draw: st.DrawFn, geometries: tuple[str, ...] = GEOMETRIES, dtype: torch.dtype = torch.float32) -> Pair:
    """A pair of the given geometries; each gradient is scaled by a power of two of its own, which keeps the angle."""
    geometry = draw(st.sampled_from(geometries))
    n = draw(st.sampled_from([n for n in SIZES if n > 1 or geometry != "orthogonal"]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    retain, forget = _MAKERS[geometry](n)
    i, j = draw(st.sampled_from(EXPONENTS)), draw(st.sampled_from(EXPONENTS))
    return Pair(retain * 2.0**i, forget * 2.0**j, geometry).to(dtype)


def positive_losses() -> st.SearchStrategy[float]:
    """A mean cross-entropy: from a memorised answer to a destroyed model."""
    return st.floats(1e-6, 100.0)


def losses() -> st.SearchStrategy[float]:
    """A mean cross-entropy, zero included."""
    return st.one_of(st.just(0.0), positive_losses())
