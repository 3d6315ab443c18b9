"""Which implementation of the step runs on a device."""

import os
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ngdiff_kernels import reference

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


_BACKENDS: dict[str, Backend] = {"reference": reference}


def backend_for(device: torch.device) -> Backend:
    """The backend for buffers on `device`; the environment variable NGDIFF_BACKEND forces one by name.

    Raises:
        ValueError: the variable names no backend.
    """
    name = os.environ.get(ENVIRONMENT_VARIABLE, "reference")
    if name not in _BACKENDS:
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}: unknown backend {name!r} for {device}; choose one of {', '.join(_BACKENDS)}, or unset it"
        )
    return _BACKENDS[name]
