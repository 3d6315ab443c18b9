"""The base optimizers that a direction can be fed to, and the state each keeps."""

from collections.abc import Mapping
from typing import Any

BASES = ("sgd", "adamw")


def state_shapes(hyper: Mapping[str, Any]) -> dict[str, str]:
    """State of a base: name, as in torch.optim -> "flat" (shape (n,), as theta) or "scalar" (shape (), float32).

    Every entry starts as zeros.
    """
    if hyper["base"] == "adamw":
        return {"step": "scalar", "exp_avg": "flat", "exp_avg_sq": "flat"}
    return {"momentum_buffer": "flat"} if hyper["momentum"] else {}
