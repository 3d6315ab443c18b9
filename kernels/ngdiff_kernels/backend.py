"""Which implementation of the step runs on a device."""

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

import torch
from torch import Tensor

ENVIRONMENT_VARIABLE = "NGDIFF_BACKEND"


class Backend(Protocol):
    """What the optimizer asks of a backend; `reference` documents each function."""

    def gram(self, retain: Tensor, forget: Tensor) -> Tensor: ...

    def combine_(self, retain: Tensor, forget: Tensor, coefficients: Tensor) -> None: ...

    def base_step_(
        self,
        theta: Tensor,
        d: Tensor,
        finite: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Any],
        lr: float | Tensor,
        seed: int | None = None,
    ) -> None: ...

    def step_(
        self,
        theta: Tensor,
        retain: Tensor,
        forget: Tensor,
        coefficients: Tensor,
        finite: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Any],
        lr: float | Tensor,
        seed: int | None = None,
    ) -> None: ...

    def probe_(
        self,
        out: Tensor,
        theta: Tensor,
        d: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Any],
        h: float | Tensor,
    ) -> None: ...


class FusedBackend(Backend, Protocol):
    """A backend that can also do the whole step in one launch."""

    def fused_step_(
        self,
        theta: Tensor,
        retain: Tensor,
        forget: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Any],
        lr: float | Tensor,
        rule: str,
        parameter: float,
        losses: Tensor,
        limit: float,
        seed: int | None = None,
    ) -> Tensor: ...


# Imported when first asked for, so that machines without triton never try.
_MODULES = {
    "reference": "ngdiff_kernels.reference",
    "cpu": "ngdiff_kernels.cpu",
    "triton": "ngdiff_kernels.gpu.launch",
}


def backend_for(device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
    """The fastest backend for parameters of `dtype` on `device`; the environment variable NGDIFF_BACKEND forces one by name.

    Raises:
        ValueError: the variable names no backend, or one that cannot work here.
    """
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    if name is None:
        name = {"cuda": "triton", "cpu": "cpu"}.get(device.type, "reference")
        return _load("reference" if _obstacle(name, device, dtype) else name)
    if name not in _MODULES:
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}: unknown backend {name!r} for {device}; choose one of {', '.join(_MODULES)}, or unset it"
        )
    if obstacle := _obstacle(name, device, dtype):
        raise ValueError(f"{ENVIRONMENT_VARIABLE}: found {name!r}, but {obstacle}; choose 'reference', or unset it")
    return _load(name)


def _obstacle(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot take such parameters, or None."""
    if name == "cpu" and device.type != "cpu":
        return f"the parameters are on {device}"
    if name != "triton":
        return None
    if not _triton_is_installed():
        return "the package triton is not installed"
    if dtype == torch.float64:
        return "its kernels are for 16 and 32 bits and the parameters are torch.float64"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"{device} is no GPU (TRITON_INTERPRET=1 would run the kernels there, for tests)"
    return None


@lru_cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None


@lru_cache
def _load(name: str) -> Backend:
    return cast(Backend, import_module(_MODULES[name]))
