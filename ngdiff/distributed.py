"""Several processes that take one step together: DDP keeps a copy of the model on each, FSDP2 a shard.

Under DDP every rank holds the averaged gradients, so that all find the same inner products by themselves. Under FSDP2 a rank
holds its shard of every parameter, of both gradients and of the state, and the inner products are sums over the shards: one
all-reduce of three numbers. Losses are averaged over the ranks, in the same all-reduce if there is one.
"""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter

from ngdiff.flat import Segment
from ngdiff.processes import in_use

if TYPE_CHECKING:  # torch may have been built without it
    from torch.distributed import ProcessGroup

# What accelerate calls them -> why two gradients cannot be had from them.
REFUSED = {
    "DEEPSPEED": "DeepSpeed steps inside backward and keeps one gradient",
    "MEGATRON_LM": "Megatron-LM steps by itself and keeps one gradient",
}


class ShardedSegment(Segment):
    """One parameter that is a DTensor: its shard on this rank, which stays where FSDP2 keeps it.

    FSDP2 gathers from storage of its own, padded to the largest shard, so a shard cannot move into a flat buffer. Gradient
    buffers and state are ours, and are seen as DTensors of the parameter's placement. A shard may be empty.

    Attributes:
        mesh: the ranks that hold the parameter.
        copies: how many of them hold the same shard.
        shard: which shard this is.
    """

    def __init__(self, parameter: Parameter, tasks: Iterable[str]):
        self.parameters = [parameter]
        self.mesh, self._placements = cast(Any, parameter).device_mesh, cast(Any, parameter).placements
        self._measure()
        self._local, self.theta = _local(parameter)
        self.gradients = {task: torch.zeros_like(self.theta) for task in tasks}
        self.rounds = False
        self.state: dict[str, Tensor] = {}
        self._gradient_views = {task: self.views(buffer) for task, buffer in self.gradients.items()}
        self._pending, self._hooks = set(), []
        self._versions = self._edits()
        self._away: Tensor | None = None  # the buffer that keeps the shard while the model computes with another's values

    def views(self, buffer: Tensor) -> list[Tensor]:
        """`buffer`, shape (n,), as a DTensor like the parameter."""
        from torch.distributed.tensor import DTensor

        (parameter,) = self.parameters
        shape, stride = parameter.shape, parameter.stride()
        local = buffer.view(self._local.shape)
        return [DTensor.from_local(local, self.mesh, self._placements, run_check=False, shape=shape, stride=stride)]

    def gradient(self, task: str, i: int) -> Tensor:
        """The local gradient in the buffer of a task."""
        return self.gradients[task]

    def point_at(self, buffer: Tensor) -> None:
        """Let the model compute with the values in `buffer`, by exchanging contents: FSDP2 gathers from its own storage.

        `point_at(theta)` exchanges them back, to the bit.
        """
        if buffer is not self.theta:
            assert self._away is None, "the shard is already in another buffer"
            self._exchange(buffer)
            self._away = buffer
        elif self._away is not None:
            self._exchange(self._away)
            self._away = None

    def _exchange(self, buffer: Tensor) -> None:
        held = self.theta.clone()
        self.theta.copy_(buffer)
        buffer.copy_(held)

    def _check_in_place(self) -> None:
        """As in `Segment`; but FSDP2 may have padded the shard anew, which it does when it finds it in other memory."""
        (parameter,) = self.parameters
        local, theta = _local(parameter)
        if (theta.shape, theta.dtype, theta.device) != (self.theta.shape, self.theta.dtype, self.theta.device):
            raise self._moved(parameter)
        self._local, self.theta = local, theta

    def attach(self, task: str, fresh: bool = False) -> None:
        """As in `Segment`. The buffer is cleared: FSDP2 reduces into it, and autograd has no part in that."""
        if fresh:
            self.gradients[task].zero_()
        super().attach(task)

    def settle(self, task: str) -> None:
        """As in `Segment`. The first forward may have moved the shard."""
        super().settle(task)
        self._check_in_place()

    def _edits(self) -> list[int]:
        return [self.parameters[0]._version, self._local._version, self._local.data_ptr()]

    def _measure(self) -> None:
        self.copies, self.shard = 1, 0
        for dim, placement in enumerate(self._placements):
            size = self.mesh.size(dim)
            if placement.is_replicate():
                self.copies *= size
            else:
                self.shard = self.shard * size + self.mesh.get_local_rank(dim)


class Ranks:
    """The processes that take a step together; one alone if torch.distributed is not in use.

    Args:
        segments: of all parameters.
        group: the processes; None for those that hold the shards, or for all.

    Attributes:
        size: how many.
        sharded: whether a parameter is split over them.

    Raises:
        ValueError: a parameter is split over other ranks than these.
    """

    def __init__(self, segments: Iterable[Segment], group: "ProcessGroup | None" = None):
        self.sharded, self.size, self._group = False, 1, group
        self._device = torch.device("cpu")
        meshes = []
        for segment in segments:
            self._device = segment.theta.device
            if isinstance(segment, ShardedSegment) and segment.mesh not in meshes:
                meshes.append(segment.mesh)
        if not in_use():
            return
        if meshes:
            self.sharded = True
            self._device = torch.device(meshes[0].device_type)  # the shards themselves may be offloaded to the CPU
        if group is None and len(meshes) == 1 and meshes[0].ndim == 1:
            self._group = meshes[0].get_group()
        self.size = dist.get_world_size(self._group)
        for mesh in meshes:
            if mesh.size() != self.size:
                raise ValueError(
                    f"process_group: a parameter is on a mesh of {mesh.size()} ranks and the group has {self.size}; "
                    "pass process_group=, the group of exactly the ranks that hold the parameters"
                )

    def share(self, segment: Segment) -> float:
        """By what the products of a segment are multiplied in a sum over ranks, so that every element counts once."""
        return 1 / (segment.copies if isinstance(segment, ShardedSegment) else self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, the same on each. One all-reduce."""
        if self.size == 1:
            return values
        total = values.to(self._device, copy=True)
        dist.all_reduce(total, group=self._group)
        return total.to(values.device)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks, the same on each. One all-reduce."""
        return self.sum(values / self.size)


def is_sharded(parameter: Tensor) -> bool:
    """Whether a parameter is a DTensor. Does not import what defines them: that takes a second, and whoever has one has it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(parameter, module.DTensor)


@torch.no_grad()
def put_together(split: nn.Module, whole: nn.Module) -> None:
    """Copy the weights of a model that is split over the ranks into one of the same kind that is not, on each rank.

    One all-gather a split tensor, of which one at a time is whole.
    """
    found, targets = split.state_dict(), whole.state_dict()
    for name, target in targets.items():
        value = found[name]
        target.copy_(value.full_tensor() if is_sharded(value) else value)


def reshard() -> None:
    """Make FSDP2 forget gathered weights.

    A module that is not resharded after forward, as the root, goes on using them until a backward, also where the shards have
    changed. The optimizer knows parameters and not modules, so this goes through all that FSDP2 manages.
    """
    from torch.distributed._composable_state import _module_state_mapping
    from torch.distributed.fsdp import FSDPModule

    for module in list(_module_state_mapping):
        if isinstance(module, FSDPModule):
            module.reshard()


def refuse_deepspeed(accelerator: Any) -> None:
    """Refuse engines that keep the gradients to themselves: DeepSpeed, Megatron-LM, the first FSDP.

    The optimizer cannot see them from inside, so call this before training.

    Args:
        accelerator: an `accelerate.Accelerator`.

    Raises:
        ValueError: one of these is in use.
    """
    kind = getattr(accelerator.distributed_type, "value", accelerator.distributed_type)
    reason = REFUSED.get(kind)
    if kind == "FSDP" and not accelerator.is_fsdp2:
        reason = "fsdp_version = 1 keeps one gradient in flat parameters of its own"
    if reason:
        raise ValueError(f"accelerate: {reason}, but two tasks need two gradients; use FSDP2 (fsdp_version: 2) or DDP")


def _local(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """The shard on this rank, and the same memory with shape (n,), whose writes torch does not count as edits.

    Raises:
        ValueError: the shard is not contiguous.
    """
    local = cast(Any, parameter)._local_tensor
    if not local.is_contiguous():
        raise ValueError(
            f"params: the shard of a parameter of shape {tuple(parameter.shape)} has strides {local.stride()}; "
            "shard it along its first dimension, or make it contiguous"
        )
    return local, local.data.view(-1)
