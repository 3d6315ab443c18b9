"""All that a combination rule sees of two gradients: three inner products and two losses."""

from typing import NamedTuple, Self

import torch
from torch import Tensor


class Gram(NamedTuple):
    """Inner products of the retain gradient g_R and the forget gradient g_F, each of shape (...).

    Attributes:
        retain: g_R.g_R.
        forget: g_F.g_F.
        cross: g_R.g_F.
    """

    retain: Tensor
    forget: Tensor
    cross: Tensor

    @classmethod
    def from_vector(cls, vector: Tensor) -> Self:
        """From a tensor of shape (..., 3) in the order above, as the kernels return it."""
        return cls(*vector.unbind(-1))

    @property
    def cosine(self) -> Tensor:
        """cos phi of the angle between the gradients; 0 where one of them vanishes."""
        return (self.cross * inverse_norm(self.retain) * inverse_norm(self.forget)).clamp(-1, 1)

    def scaled(self) -> Self:
        """The matrix divided by its larger diagonal element, so that products of its elements stay in range; zeros stay."""
        largest = torch.maximum(self.retain, self.forget)
        divisor = torch.where(largest > 0, largest, torch.ones_like(largest))
        return type(self)(*(x / divisor for x in self))


class Losses(NamedTuple):
    """The losses that the two gradients belong to, each of shape (...)."""

    retain: Tensor
    forget: Tensor


class Coefficients(NamedTuple):
    """c_R and c_F of the direction d = c_R g_R - c_F g_F, each of shape (...)."""

    retain: Tensor
    forget: Tensor

    @property
    def weight(self) -> Tensor:
        """c = c_R / (c_R + c_F), the weight of the retain task where d is written as a multiple of c g_R - (1 - c) g_F.

        Shape (...); NaN where both coefficients are 0.
        """
        return self.retain / (self.retain + self.forget)


def inverse_norm(square: Tensor) -> Tensor:
    """1 / ||g|| from g.g, and 0 for a gradient that is zero, so that c g is the zero vector and not NaN.

    The threshold is the dtype's own smallest normal number. No absolute epsilon would do: gradients of norm 1e-30 are as
    good a direction as gradients of norm 1. The kernels sum squares in float64, where every non-zero float32 gradient is
    far above the threshold (1.4e-45 squared is 2e-90; the threshold is 2e-308). A Gram matrix of float32 would end at
    norms of 1e-19.
    """
    nonzero = square >= torch.finfo(square.dtype).tiny
    return torch.where(nonzero, square, torch.ones_like(square)).rsqrt() * nonzero


def conflict(gram: Gram, square: Tensor) -> Tensor:
    """max(g_R.g_F, 0) / square, with square one of g_R.g_R and g_F.g_F: how much of that gradient opposes the other task's.

    0 where the gradient is zero. Shape (...).
    """
    nonzero = square >= torch.finfo(square.dtype).tiny
    return gram.cross.clamp(min=0) / torch.where(nonzero, square, torch.ones_like(square)) * nonzero
