"""The base optimizers that a direction can be fed to, and the state each keeps."""

from collections.abc import Mapping
from typing import Any

import torch

BASES = ("sgd", "adamw")
LOW_PRECISION = ("master", "stochastic")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a step of parameters of `dtype` is computed and its state kept: float32 for those of 16 bits."""
    return torch.promote_types(dtype, torch.float32)


def state_shapes(hyper: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """State of a base: name, as in torch.optim -> "flat" (shape (n,), of `compute_dtype`) or "scalar" (shape (), float32).

    Parameters of 16 bits have a further entry "master", flat, where `hyper["low_precision"]` is "master": the weights
    themselves, of which the parameters are a rounded copy. Every other entry starts as zeros.
    """
    shapes = {"master": "flat"} if dtype.itemsize == 2 and hyper["low_precision"] == "master" else {}
    if hyper["base"] == "adamw":
        return shapes | {"step": "scalar", "exp_avg": "flat", "exp_avg_sq": "flat"}
    return shapes | ({"momentum_buffer": "flat"} if hyper["momentum"] else {})


def largest_direction(hyper: Mapping[str, Any], dtype: torch.dtype) -> float:
    """The norm of d that a base can still take, for gradients of `dtype`.

    d is written over a gradient when the rate is chosen, and AdamW squares its elements: an infinite state never heals.
    """
    largest = torch.finfo(compute_dtype(dtype)).max
    return min(float(largest**0.5) if hyper["base"] == "adamw" else float(largest), float(torch.finfo(dtype).max))
