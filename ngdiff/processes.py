"""Several processes that do one thing together, as a launcher such as torchrun starts them: they agree, or all fail."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from ngdiff.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

LAUNCHED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets beside WORLD_SIZE
PATIENCE = timedelta(minutes=30)  # of those who wait for another, that writes a large model, say; what Trainer gives them


class RankError(RuntimeError):
    """Another rank has failed: its number, and the first line of its message."""


def in_use() -> bool:
    """Whether there may be other processes than this one."""
    return dist.is_available() and dist.is_initialized()


def count() -> int:
    """How many they are."""
    return dist.get_world_size() if in_use() else 1


def is_first() -> bool:
    """Whether this is the one that speaks and writes for all."""
    return not in_use() or dist.get_rank() == 0


@contextmanager
def launched() -> Iterator[None]:
    """Inside, this process and all others of its launcher are a group, each with a GPU of its own if there are any.

    Without a launcher nothing is done.

    Raises:
        UserError: the launcher's variables are not all there, or it started more processes than there are GPUs; or what went
            wrong inside, where another than the first process says who it is.
        SystemExit: what a process on the same machine has said.
    """
    size = os.environ.get("WORLD_SIZE") or "1"
    if size != "1" and not torch.cuda.is_available():  # else "cpu:0", onto which transformers 5.0 cannot read a checkpoint
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    joins = size != "1" and not in_use()
    if joins:
        _join(size)
    try:
        yield
    except UserError as error:
        raise error if is_first() else UserError(f"rank {dist.get_rank()}: {error}") from None
    if joins:  # not after an error: the others may be waiting, and the launcher ends them
        dist.destroy_process_group()


def _join(size: str) -> None:
    _check_launched(size)
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def _check_launched(size: str) -> None:
    missing = [name for name in LAUNCHED if not os.environ.get(name)]
    if missing or not size.isdecimal():
        raise UserError(
            f"WORLD_SIZE: found {size!r}, but no {', '.join(missing) or 'number'}; start the command by torchrun, or unset it"
        )
    gpus, processes = torch.cuda.device_count(), os.environ.get("LOCAL_WORLD_SIZE", "1")  # torchrun's; others give each its GPU
    if gpus and int(processes) > gpus:
        message = f"torchrun: found {processes} processes on a machine of {gpus} GPUs; give --nproc-per-node {gpus} at most"
        raise UserError(message) if os.environ["LOCAL_RANK"] == "0" else SystemExit(2)


@contextmanager
def together() -> Iterator[None]:
    """Around what some processes may fail at, such as writing a file: all leave it when all are done, and all fail or none.

    Raises:
        RankError: another one has failed.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if in_use():
        lines = (str(failure).strip() or type(failure).__name__).splitlines()
        found = _gathered(None if failure is None else lines[0])
        if failure is None and any(found):
            rank, line = next((rank, line) for rank, line in enumerate(found) if line)
            raise RankError(f"rank {rank}: {line}")
    if failure is not None:
        raise failure


@contextmanager
def alike() -> Iterator[None]:
    """As `together`, around what the user may have to mend: the first process says what, once, and the others end.

    Raises:
        UserError: in the first process.
        SystemExit: in the others.
    """
    try:
        with together():
            yield
    except (UserError, RankError) as error:
        raise said_once(str(error)) from None


def said_once(message: str) -> BaseException:
    """The error of a fault that all processes have: a UserError in the first, and an end without a word in the others."""
    return UserError(message) if is_first() else SystemExit(2)


def decided_by_first(decide: Callable[[], T]) -> T:
    """What `decide` returns in the first process, in all of them; where it fails there, all fail.

    Raises:
        RankError: the first one has failed, and this is another.
    """
    found: list[Any] = [None]
    with together():
        if is_first():
            found = [decide()]
    if in_use():
        dist.broadcast_object_list(found, src=0)
    return cast(T, found[0])


def shared_out(rows: Sequence[T], compute: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
    """What `compute` makes of the rows, one result a row, in their order; each process does a share of them, and has all.

    Args:
        rows: the same in all processes.
        compute: from rows to as many results, which can be pickled; not called without rows.
    """
    size, rank = (dist.get_world_size(), dist.get_rank()) if in_use() else (1, 0)
    mine = rows[rank::size]
    found = list(compute(mine)) if mine else []
    if size == 1:
        return found
    shares = _gathered(found)
    return [shares[i % size][i // size] for i in range(len(rows))]


def _gathered(value: T) -> list[T]:
    """What each process has, in their order."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
