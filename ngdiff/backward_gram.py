"""Inner products taken during backward, while each gradient is still in cache, so that the step need not sweep for them."""

from functools import partial

import torch
from ngdiff_kernels import backend_for
from torch import Tensor
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from ngdiff.flat import Segment


class BackwardGram:
    """The inner products of a segment's two gradients, a parameter at a time.

    As long as one task has no gradient, nothing is computed. During the other one's backward, every parameter whose gradient
    has just been accumulated has its three products taken anew from the two buffers, not added to: so they are exact whatever
    was accumulated before, and in whichever order. What backward did not reach is left to `total`.

    Args:
        segment: whose parameters to follow; they carry hooks during tasks.
    """

    def __init__(self, segment: Segment):
        self._segment = segment
        self._rows = torch.zeros(len(segment.parameters), 3, dtype=torch.float64, device=segment.theta.device)
        self._current: set[int] = set()  # parameters whose row belongs to what the buffers hold now
        self._taking = False
        self._hooks: list[RemovableHandle] = []

    def begin(self, taking: bool, fresh: bool) -> None:
        """A task begins: whether to take products during it, and whether its gradient starts from zero."""
        self._taking = taking
        if fresh:
            self._current.clear()
        # For the length of a task only: a hook that stayed would keep all buffers alive as long as the model.
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._accumulated, i))
            for i, parameter in enumerate(self._segment.parameters)
            if parameter.requires_grad  # it may have been frozen since
        ]

    def forget(self) -> None:
        """A gradient was changed by other means: no row belongs to it any more."""
        self._current.clear()

    def end(self) -> None:
        """The task is over."""
        self._taking = False
        while self._hooks:
            self._hooks.pop().remove()

    def total(self) -> Tensor:
        """(g_R.g_R, g_F.g_F, g_R.g_F) of the whole segment, shape (3,), float64."""
        for i in set(range(len(self._rows))) - self._current:
            self._take(i)
        return self._rows.sum(0)

    def _accumulated(self, i: int, parameter: Parameter) -> None:
        """Called by autograd: the gradient of parameter i has just been added to."""
        self._current.discard(i)
        if self._taking:
            self._take(i)

    def _take(self, i: int) -> None:
        retain, forget = (self._segment.gradient(task, i) for task in ("retain", "forget"))
        self._rows[i] = backend_for(retain.device, retain.dtype).gram(retain, forget)
        self._current.add(i)
