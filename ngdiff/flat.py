"""Parameters as views of one contiguous buffer, so that a step is a few passes over memory and not a loop over tensors."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby

import torch
from ngdiff_kernels import compute_dtype
from torch import Tensor
from torch.nn import Parameter
from torch.utils.dlpack import from_dlpack, to_dlpack
from torch.utils.hooks import RemovableHandle

ALIGNMENT = 64  # bytes: a cache line, and a multiple of the 16-byte vector loads of GPUs


class Segment:
    """Parameters of one device and dtype, moved into one buffer, with one gradient buffer a task.

    The parameters become views of `theta`: the model keeps no second copy. The gaps that align each parameter hold zeros
    everywhere, so they change no inner product and no step.

    Attributes:
        parameters: the m parameters, in order.
        theta: shape (n,), the values.
        gradients: task -> shape (n,), what backward accumulates into, or is moved to where `rounds`.
        rounds: whether the gradients are kept in another dtype than the parameters'.
        state: name -> shape (n,) or (), the base optimizer's.
    """

    def __init__(self, parameters: list[Parameter], tasks: Iterable[str], gradient_dtype: torch.dtype | None = None):
        first = parameters[0]
        self.parameters = parameters
        self._offsets, n = _layout(parameters)
        self.theta = torch.zeros(n, dtype=first.dtype, device=first.device)
        self.state: dict[str, Tensor] = {}
        self._values = self.views(self.theta)
        for parameter, value in zip(parameters, self._values, strict=True):
            value.copy_(parameter.detach())
        self.point_at(self.theta)  # the memory of before is free again, and the peak never above two copies and the gradients
        self.gradients = {task: torch.zeros_like(self.theta, dtype=gradient_dtype) for task in tasks}
        self.rounds = gradient_dtype not in (None, first.dtype)
        self._versions = self._edits()
        self._gradient_views = {task: self.views(buffer) for task, buffer in self.gradients.items()}
        self._pending: set[int] = set()  # parameters whose place in the buffer still holds what was there before the task
        self._hooks: list[RemovableHandle] = []

    def views(self, buffer: Tensor) -> list[Tensor]:
        """`buffer`, shape (n,), seen as one tensor a parameter."""
        return [
            buffer[start : start + parameter.numel()].view(parameter.shape)
            for parameter, start in zip(self.parameters, self._offsets, strict=True)
        ]

    def gradient(self, task: str, i: int) -> Tensor:
        """The gradient of parameter i in the buffer of a task, one-dimensional."""
        return self._gradient_views[task][i].view(-1)

    def point_at(self, buffer: Tensor) -> None:
        """Make the model compute with the values in `buffer`, shape (n,), without copying them."""
        for parameter, value in zip(self.parameters, self.views(buffer), strict=True):
            parameter.data = _with_own_storage(value)

    def attach(self, task: str, fresh: bool = False) -> None:
        """Let backward accumulate into the buffer of `task`.

        A buffer of another dtype cannot be a parameter's gradient: what backward leaves there is moved into it, one parameter
        after the other, so that never more than one gradient is kept in the parameters' own dtype.

        Args:
            task: whose buffer.
            fresh: begin from zero. The buffer is not cleared for it: the first gradient of each parameter is copied there and
                not added, which moves half as much memory.

        Raises:
            RuntimeError: a parameter no longer lies in the flat buffer, or holds a gradient from outside a task.
        """
        self._check_in_place()
        for parameter in self.parameters:
            if parameter.grad is not None:
                raise RuntimeError(
                    f"a parameter of shape {tuple(parameter.shape)} has a gradient from outside a task; "
                    "call backward inside `with optimizer.task(...)`"
                )
        self._follow_edits()
        if fresh:
            self._pending = set(range(len(self.parameters)))
        if fresh or self.rounds:
            self._await_gradients(task)
        else:
            for parameter, view in zip(self.parameters, self._gradient_views[task], strict=True):
                parameter.grad = view

    def _await_gradients(self, task: str) -> None:
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._take_over, task, i))
            for i, parameter in enumerate(self.parameters)
            if parameter.requires_grad  # it may have been frozen since
        ]

    def _take_over(self, task: str, i: int, parameter: Tensor) -> None:
        """Move the first gradient of parameter i into the buffer, where those after it are added, by autograd or, in another
        dtype, here. Called by autograd.
        """
        gradient, view = parameter.grad, self._gradient_views[task][i]
        if gradient is None or not (self.rounds or i in self._pending):
            return
        if gradient.requires_grad:  # with a graph it cannot be moved
            return
        moved = gradient.to_dense() if gradient.is_sparse else gradient
        if i in self._pending:
            view.copy_(moved)
        else:
            view.add_(moved)
        parameter.grad = None if self.rounds else view
        self._pending.discard(i)

    def _check_in_place(self) -> None:
        for parameter, value in zip(self.parameters, self._values, strict=True):
            if parameter.data_ptr() != value.data_ptr():
                raise self._moved(parameter)

    @staticmethod
    def _moved(parameter: Parameter) -> RuntimeError:
        return RuntimeError(
            f"a parameter of shape {tuple(parameter.shape)} was moved or replaced after the optimizer was first used; "
            "move, resize or shard the model before the first task"
        )

    def _edits(self) -> list[int]:
        """How often each parameter was written to, steps not counted."""
        return [parameter._version for parameter in self.parameters]

    def _follow_edits(self) -> None:
        """Take over into the master weights what someone else wrote into the parameters, such as a loaded checkpoint.

        torch counts such writes in a version of each parameter; steps write into the buffer behind it and are not counted.
        Master weights that still round to the parameter keep their digits.
        """
        versions = self._edits()
        if "master" in self.state and versions != self._versions:
            edited = self.state["master"].to(self.theta.dtype) != self.theta
            self.state["master"].copy_(torch.where(edited, self.theta, self.state["master"]))
        self._versions = versions

    def settle(self, task: str) -> None:
        """Clear the gradients of what backward has not reached, so that the buffer holds the gradient of the task.

        Raises:
            RuntimeError: a gradient went elsewhere since `attach`, as after zero_grad() inside a task.
        """
        for i, (parameter, view) in enumerate(zip(self.parameters, self._gradient_views[task], strict=True)):
            if i in self._pending and parameter.grad is None:
                view.zero_()
                continue
            if not self.rounds:
                self._take_over(task, i, parameter)  # DDP sets a gradient without autograd where only other ranks have one
            if parameter.grad is not (None if self.rounds else view):
                raise RuntimeError(
                    f"the gradient of a parameter of shape {tuple(parameter.shape)} was replaced inside task {task!r}; "
                    "do not call zero_grad or set .grad there, and do not use create_graph=True or gradient_as_bucket_view=True"
                )

    @property
    def has_taken(self) -> bool:
        """Whether a gradient of this task was moved away already, so that clearing the parameters' own changes nothing."""
        return self.rounds and len(self._pending) < len(self.parameters)

    def detach(self) -> None:
        """End what `attach` began."""
        self._pending = set()
        while self._hooks:
            self._hooks.pop().remove()
        for parameter in self.parameters:
            parameter.grad = None

    def add_state(self, shapes: Mapping[str, str]) -> None:
        """Allocate the base optimizer's state, see `ngdiff_kernels.state_shapes`: all zeros, but for the master weights."""
        dtype = compute_dtype(self.theta.dtype)
        for name, shape in shapes.items():
            if name == "master":
                self.state[name] = self.theta.to(dtype, copy=True)
            elif shape == "flat":
                self.state[name] = torch.zeros_like(self.theta, dtype=dtype)
            else:  # counts steps: in float32 whatever the default dtype, because bfloat16 stops counting at 256
                self.state[name] = torch.zeros((), dtype=torch.float32, device=self.theta.device)

    def state_views(self) -> list[dict[str, Tensor]]:
        """The state a parameter at a time; scalars are shared."""
        views = {name: self.views(buffer) for name, buffer in self.state.items() if buffer.dim()}
        scalars = {name: buffer for name, buffer in self.state.items() if not buffer.dim()}
        return [scalars | {name: view[i] for name, view in views.items()} for i in range(len(self.parameters))]

    def load_state(self, states: list[dict[str, Tensor]]) -> None:
        """Copy state given a parameter at a time, as `state_views` returns it, into the buffers."""
        for mine, theirs in zip(self.state_views(), states, strict=True):
            for name, buffer in mine.items():
                buffer.copy_(theirs[name])


def segments(
    parameters: Iterable[Parameter], tasks: Iterable[str], gradient_dtype: torch.dtype | None = None
) -> Iterator[Segment]:
    """Split trainable parameters by device and dtype, keeping their order; frozen ones are left where they are."""

    def kind(parameter: Parameter) -> tuple[str, str]:
        return str(parameter.device), str(parameter.dtype)

    tasks = tuple(tasks)
    for _, members in groupby(sorted((p for p in parameters if p.requires_grad), key=kind), key=kind):
        yield Segment(list(members), tasks, gradient_dtype)


def _with_own_storage(view: Tensor) -> Tensor:
    """The same memory as a storage that begins and ends with the view, and keeps the buffer alive.

    Who saves a model takes tensors of one storage for tied weights: safetensors refuses them, and accelerate drops all but one.
    """
    return from_dlpack(to_dlpack(view)) if view.numel() and view.device.type in ("cpu", "cuda") else view


def _layout(parameters: list[Parameter]) -> tuple[list[int], int]:
    """Offset of each parameter in elements, every one a multiple of the alignment, and the total."""
    step = ALIGNMENT // parameters[0].element_size()
    offsets, n = [], 0
    for parameter in parameters:
        offsets.append(n)
        n += -(-parameter.numel() // step) * step
    return offsets, n
