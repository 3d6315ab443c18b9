"""What a result was made with: versions, processor, memory."""

import platform
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import ngdiff


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of Python, of the project and of the packages that results depend on; None if absent."""
    found: dict[str, str | None] = {"python": platform.python_version(), "ngdiff": ngdiff.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def describe_device(device: torch.device) -> str:
    """Name of the processor, with the number of threads or the memory."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{_processor()}, {torch.get_num_threads()} threads"


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far, in MiB: of the GPU's tensors, or of this process or one that it has waited for."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux counts in KiB, macOS in bytes.
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return largest / (2**20 if sys.platform == "darwin" else 2**10)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
