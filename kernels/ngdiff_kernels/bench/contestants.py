"""The ways to take the step theta <- theta - lr base(g_R/||g_R|| - g_F/||g_F||) from two finished gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ngdiff_kernels import backend_for, bases, reference

LR = 1e-6  # so small that thousands of steps change no size
TENSORS = 148  # pieces of a model's parameters: as many as a Llama of 16 layers has
OURS, IN_BACKWARD = "ours", "ours after in-backward Gram"


@dataclass
class Buffers:
    """Everything that one step reads and writes: flat, and the same memory seen as a model's tensors."""

    theta: Tensor
    retain: Tensor
    forget: Tensor
    hyper: dict[str, Any]
    state: dict[str, Tensor]
    optimizer: torch.optim.Optimizer | None = None  # torch's, on the same memory

    @classmethod
    def random(cls, n: int, dtype: torch.dtype, device: torch.device, base: str) -> "Buffers":
        theta, retain, forget = (torch.randn(n, device=device).to(dtype) for _ in range(3))
        hyper = {"base": base, "momentum": 0.0, "nesterov": False, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
        state = {}
        for name, shape in bases.state_shapes(hyper | {"low_precision": "stochastic"}, dtype).items():
            state[name] = torch.zeros(n if shape == "flat" else (), dtype=torch.float32, device=device)
        return cls(theta, retain, forget, hyper, state)

    def tensors(self, flat: Tensor) -> list[Tensor]:
        return list(flat.tensor_split(min(TENSORS, len(flat))))

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in (self.theta, self.retain, self.forget, *self.state.values()))

    def bytes_moved(self, in_backward: bool) -> int:
        """Each gradient once for the Gram unless backward took it, then all read once, and all but the gradients written."""
        gradients = self.retain.nbytes + self.forget.nbytes
        kept = self.theta.nbytes + sum(buffer.nbytes for buffer in self.state.values())
        return gradients * (1 if in_backward else 2) + 2 * kept


Step = Callable[[Buffers], None]


def ours(b: Buffers) -> None:
    """The backend of the device: one launch on a GPU, two sweeps on a CPU."""
    backend: Any = backend_for(b.theta.device, b.theta.dtype)
    if hasattr(backend, "fused_step_"):
        losses = torch.zeros(2, dtype=torch.float64, device=b.theta.device)
        backend.fused_step_(b.theta, b.retain, b.forget, b.state, b.hyper, LR, "ngdiff", 0.0, losses, 1e30, 1)
    else:
        coefficients = backend.gram(b.retain, b.forget)[:2].rsqrt()
        backend.step_(b.theta, b.retain, b.forget, coefficients, _true(b), b.state, b.hyper, LR, 1)


def ours_after_backward(b: Buffers) -> None:
    """The step alone, when backward has taken the Gram."""
    coefficients = torch.ones(2, dtype=torch.float64, device=b.theta.device)
    backend_for(b.theta.device, b.theta.dtype).step_(
        b.theta, b.retain, b.forget, coefficients, _true(b), b.state, b.hyper, LR, 1
    )


def flat_formula(theta: Tensor, retain: Tensor, forget: Tensor, state: dict[str, Tensor], hyper: dict[str, Any]) -> None:
    """The step as one writes it for flat buffers, in float32."""
    r, f = retain.float(), forget.float()
    d = r / r.norm() - f / f.norm()
    direction, advanced = reference.DIRECTIONS[hyper["base"]](theta.float(), d, state, hyper)
    for name, value in advanced.items():
        state[name].copy_(value)
    if "step" in state:
        state["step"].add_(1)
    theta.copy_(theta.float() - LR * direction)


def flat_eager(b: Buffers) -> None:
    flat_formula(b.theta, b.retain, b.forget, b.state, b.hyper)


def compiled() -> Step:
    """torch.compile of the formula, for the size at hand."""
    function = torch.compile(flat_formula, dynamic=False)
    return lambda b: function(b.theta, b.retain, b.forget, b.state, b.hyper)


def foreach(b: Buffers) -> None:
    """A list of tensors and torch's fused loops over it."""
    retain, forget = b.tensors(b.retain), b.tensors(b.forget)
    norms = [torch.stack(torch._foreach_norm(g)).float().norm() for g in (retain, forget)]
    d = torch._foreach_div(retain, norms[0].to(b.retain.dtype))
    torch._foreach_sub_(d, torch._foreach_div(forget, norms[1].to(b.retain.dtype)))
    _torch_step(b, d)


def textbook(b: Buffers) -> None:
    """As public code does it: copies of the gradients by name, and the norm summed up tensor by tensor on the host."""
    copies = {task: {i: g.clone() for i, g in enumerate(b.tensors(flat))} for task, flat in (("r", b.retain), ("f", b.forget))}
    norms = {task: sum(g.float().pow(2).sum().item() for g in grads.values()) ** 0.5 for task, grads in copies.items()}
    _torch_step(b, [copies["r"][i] / norms["r"] - copies["f"][i] / norms["f"] for i in copies["r"]])


def torchjd() -> Step | None:
    """TorchJD's aggregation of the 2 x n matrix by IMTL-G, and the optimizer of torch on what it returns.

    NGDiff is not among its rules; of those that are, this one too needs the Gram matrix alone.
    """
    try:
        from torchjd.aggregation import IMTLG
    except ImportError:
        return None
    aggregator = IMTLG()

    def step(b: Buffers) -> None:
        _torch_step(b, b.tensors(aggregator(torch.stack([b.retain, -b.forget]))))

    return step


def _torch_step(b: Buffers, gradients: Sequence[Tensor]) -> None:
    """The optimizer of torch on the tensors, with its fastest implementation for the device."""
    if b.optimizer is None:
        parameters = [torch.nn.Parameter(t) for t in b.tensors(b.theta)]
        options: dict[str, Any] = {"lr": LR, "weight_decay": 0.0, "foreach": True}
        if b.hyper["base"] == "adamw":
            b.optimizer = torch.optim.AdamW(parameters, betas=b.hyper["betas"], eps=b.hyper["eps"], **options)
        else:
            b.optimizer = torch.optim.SGD(parameters, **options)
    for parameter, gradient in zip(b.optimizer.param_groups[0]["params"], gradients, strict=True):
        parameter.grad = gradient
    b.optimizer.step()


def _true(b: Buffers) -> Tensor:
    return torch.ones((), dtype=torch.bool, device=b.theta.device)


def contestants() -> dict[str, Step]:
    """Name -> step, fresh; TorchJD only where it is installed."""
    found = {
        OURS: ours,
        IN_BACKWARD: ours_after_backward,
        "torch.compile": compiled(),
        "flat eager": flat_eager,
        "foreach": foreach,
        "textbook": textbook,
        "TorchJD IMTL-G": torchjd(),
    }
    return {name: step for name, step in found.items() if step is not None}
