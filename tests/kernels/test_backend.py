import inspect

import pytest
import torch
from ngdiff_kernels import BASES, Backend, backend_for, largest_direction, reference, state_shapes
from ngdiff_kernels.backend import ENVIRONMENT_VARIABLE

CPU = torch.device("cpu")
FUNCTIONS = ["base_step_", "combine_", "gram", "probe_", "step_"]


def test_reference_is_the_backend_of_the_cpu(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert backend_for(CPU) is reference


def test_environment_variable_forces_a_backend(monkeypatch):
    monkeypatch.setenv("NGDIFF_BACKEND", "reference")
    assert backend_for(torch.device("cuda", 0)) is reference


@pytest.mark.parametrize("name", ["", "Reference", "fast"])
def test_unknown_backend_is_named_with_the_remedy(monkeypatch, name):
    monkeypatch.setenv("NGDIFF_BACKEND", name)
    with pytest.raises(
        ValueError, match=f"NGDIFF_BACKEND: unknown backend '{name}' for cpu; choose one of reference.* unset it"
    ):
        backend_for(CPU)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_reference_has_the_signature_of_the_protocol(function):
    """Callers pass arguments by position and by name, so both must agree in names and order."""
    promised = list(inspect.signature(getattr(Backend, function)).parameters)
    assert list(inspect.signature(getattr(reference, function)).parameters) == promised[1:]  # without self


def test_the_protocol_is_these_functions():
    assert sorted(name for name in vars(Backend) if not name.startswith("_")) == FUNCTIONS


@pytest.mark.parametrize(
    ("base", "momentum", "shapes"),
    [
        ("sgd", 0.0, {}),
        ("sgd", 0.9, {"momentum_buffer": "flat"}),
        ("adamw", 0.0, {"step": "scalar", "exp_avg": "flat", "exp_avg_sq": "flat"}),
        ("adamw", 0.9, {"step": "scalar", "exp_avg": "flat", "exp_avg_sq": "flat"}),
    ],
)
def test_state_shapes(base, momentum, shapes):
    assert state_shapes({"base": base, "momentum": momentum}) == shapes
    assert base in BASES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_largest_direction_is_as_much_as_the_state_can_hold(dtype):
    largest = torch.tensor([largest_direction({"base": base}, dtype) for base in ("sgd", "adamw")], dtype=dtype)
    assert largest.isfinite().all()
    assert (largest[1] * largest[1]).isfinite()
    # Not by far: twice as much is too much.
    assert (2 * largest[0]).isinf()
    assert (2 * largest[1] * 2 * largest[1]).isinf()
