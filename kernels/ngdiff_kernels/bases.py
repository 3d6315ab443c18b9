"""The base optimizers that a direction can be fed to, and the state each keeps."""

from collections.abc import Mapping
from typing import Any

import torch

BASES = ("sgd", "adamw")


def state_shapes(hyper: Mapping[str, Any]) -> dict[str, str]:
    """State of a base: name, as in torch.optim -> "flat" (shape (n,), as theta) or "scalar" (shape (), float32).

    Every entry starts as zeros.
    """
    if hyper["base"] == "adamw":
        return {"step": "scalar", "exp_avg": "flat", "exp_avg_sq": "flat"}
    return {"momentum_buffer": "flat"} if hyper["momentum"] else {}


def largest_direction(hyper: Mapping[str, Any], dtype: torch.dtype) -> float:
    """The norm of d that a base can still take in `dtype`: AdamW squares its elements, and an infinite state never heals."""
    largest = torch.finfo(dtype).max
    return float(largest**0.5) if hyper["base"] == "adamw" else float(largest)
