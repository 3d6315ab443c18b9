"""Where a model runs and in which precision it computes."""

import gc
from contextlib import AbstractContextManager

import torch


def default_device() -> torch.device:
    """The GPU of this process, which is the first unless a launcher has given it another, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 computation with float32 weights on a GPU; float32 throughout on the CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def free_memory() -> None:
    """Let go of what only cycles of references hold, and of what torch keeps for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
