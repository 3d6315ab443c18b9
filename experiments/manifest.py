"""What a result was made with."""

import subprocess
from pathlib import Path
from typing import Any

import torch

from ngdiff.machine import describe_device, peak_memory_mib, versions

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "rouge-score", "scipy", "numpy", "gen-optim", "lm-eval")


def commit() -> str | None:
    """The checked-out commit, with "-dirty" if tracked files differ from it; None outside a git repository."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != ROOT:  # unpacked inside another repository
            return None
        return _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def manifest(device: torch.device, **entries: Any) -> dict[str, Any]:
    """The common entries, then those of the run."""
    common = {"project": "ngdiff", "commit": commit(), "versions": versions(PACKAGES), "device": describe_device(device)}
    return common | {"peak_memory_mib": round(peak_memory_mib(device))} | entries


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
