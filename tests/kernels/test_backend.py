import inspect

import pytest
import torch
from ngdiff_kernels import BASES, Backend, backend, backend_for, compute_dtype, cpu, largest_direction, reference, state_shapes
from ngdiff_kernels.backend import ENVIRONMENT_VARIABLE

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FUNCTIONS = ["base_step_", "combine_", "gram", "probe_", "step_"]
BACKENDS = {"reference": reference, "cpu": cpu}


@pytest.fixture(autouse=True)
def not_forced(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


def test_the_backend_is_chosen_by_device_and_dtype(monkeypatch):
    assert backend_for(CPU) is cpu
    assert backend_for(torch.device("meta")) is reference
    assert backend_for(CUDA, torch.float64) is reference
    monkeypatch.setattr(backend, "_triton_is_installed", lambda: False)
    assert backend_for(CUDA) is reference


def test_triton_is_the_backend_of_gpus():
    launch = pytest.importorskip("ngdiff_kernels.gpu.launch", reason="triton is not installed: it exists for Linux alone")
    assert backend_for(CUDA, torch.bfloat16) is launch


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_environment_variable_forces_a_backend(monkeypatch, device):
    monkeypatch.setenv("NGDIFF_BACKEND", "reference")
    assert backend_for(device) is reference


@pytest.mark.parametrize("name", ["", "Reference", "fast"])
def test_unknown_backend_is_named_with_the_remedy(monkeypatch, name):
    monkeypatch.setenv("NGDIFF_BACKEND", name)
    with pytest.raises(
        ValueError, match=f"NGDIFF_BACKEND: unknown backend '{name}' for cpu; choose one of reference.* unset it"
    ):
        backend_for(CPU)


@pytest.mark.parametrize(
    ("name", "device", "dtype", "interpret", "why"),
    [
        ("cpu", CUDA, torch.float32, "0", "the parameters are on cuda:0"),
        ("triton", CPU, torch.float32, "0", "cpu is no GPU"),
        ("triton", CUDA, torch.float64, "0", "the parameters are torch.float64"),
    ],
)
def test_a_backend_that_cannot_work_is_refused(monkeypatch, name, device, dtype, interpret, why):
    monkeypatch.setenv("NGDIFF_BACKEND", name)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr(backend, "_triton_is_installed", lambda: True)
    with pytest.raises(ValueError, match=f"NGDIFF_BACKEND: found '{name}', but .*{why}.*; choose 'reference', or unset it"):
        backend_for(device, dtype)


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_backends_have_the_signatures_of_the_protocol(name, function):
    """Callers pass arguments by position and by name, so all must agree in names and order."""
    module = BACKENDS[name] if name in BACKENDS else pytest.importorskip("ngdiff_kernels.gpu.launch")
    promised = list(inspect.signature(getattr(Backend, function)).parameters)
    assert list(inspect.signature(getattr(module, function)).parameters) == promised[1:]  # without self


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_computed_in_32_with_the_master_weights_as_state(dtype):
    assert compute_dtype(dtype) == torch.float32
    hyper = {"base": "adamw", "momentum": 0.0, "low_precision": "master"}
    assert set(state_shapes(hyper, dtype)) == {"master", *state_shapes(hyper)}
    assert state_shapes(hyper | {"low_precision": "stochastic"}, dtype) == state_shapes(hyper)
    assert largest_direction({"base": "sgd"}, dtype) == torch.finfo(dtype).max  # d is written over a gradient
