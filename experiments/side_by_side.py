"""Pieces of a run side by side, each in a process with its share of the processor's cores.

A step of a model of a million parameters is 1.3 to 1.4 times as fast on two cores as on one, so two trainings beside each other
end sooner than one after the other.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
from rich.console import Console

from ngdiff.command_line import quiet
from ngdiff.errors import UserError
from ngdiff.progress import Progress

Piece = tuple[Any, ...]  # name of a method of the run, and its arguments
# Of a worker process: how it makes its run, and the run once it is made.
_build: Callable[[], Any]
_run: Any = None


def checked_jobs(jobs: int | None, alone: bool) -> int:
    """The number of processes.

    Args:
        jobs: as asked for; None takes one, or one a core.
        alone: whether pieces are to go one after the other where nothing was asked for.

    Raises:
        UserError: fewer than one.
    """
    if jobs is None:
        return 1 if alone or sys.platform == "win32" else torch.get_num_threads()  # Windows has no locks that stages wait for
    if jobs < 1:
        raise UserError(f"--jobs: found {jobs}; give a whole number >= 1")
    return jobs


def side_by_side(build: Callable[[Progress], Any], phases: Sequence[Sequence[Piece]], jobs: int, progress: Progress) -> None:
    """Call methods of a run in other processes, for what they leave in its stages.

    Args:
        build: makes the run, once in each process; has to be picklable.
        phases: pieces that may go side by side, those of a phase only once the phase before has ended.
        jobs: processes at most.
        progress: shows what all of them do.

    Raises:
        UserError: a piece's own, or a process was killed. What other pieces have finished stays.
    """
    jobs = min(jobs, max(map(len, phases)))
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")  # a fork would have locks of threads that it has not
    told: SimpleQueue[Any] = context.SimpleQueue()
    with (
        _shown(told, progress),
        ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(build, threads, told)) as pool,
    ):
        try:
            # A pool watches over the processes that it had when a result last came: without one, it may miss that one dies.
            deque(pool.map(_ready, range(jobs)), maxlen=0)
            for pieces in phases:
                futures = [pool.submit(_compute, piece) for piece in pieces]
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
        except BrokenProcessPool:
            raise UserError(f"--jobs: one of {jobs} processes was killed; if memory ran out, give fewer of them") from None
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)  # waits for those that run: what they make stays


@contextmanager
def _shown(told: "SimpleQueue[Any]", progress: Progress) -> Iterator[None]:
    """Show what the processes tell."""
    with progress.several() as show:
        thread = threading.Thread(target=lambda: [show(*event) for event in iter(told.get, None)], daemon=True)
        thread.start()
        try:
            yield
        finally:
            told.put(None)
            thread.join()


class _Told(Progress):
    """Progress of a worker, told to the process that shows it."""

    def __init__(self, told: "SimpleQueue[Any]"):
        super().__init__(Console(quiet=True))
        self.told = told

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[[int, int], None]]:
        start = time.monotonic()
        yield lambda done, total: self.told.put((os.getpid(), name, done, total, None))
        self.told.put((os.getpid(), name, None, None, time.monotonic() - start))

    @contextmanager
    def spinner(self, name: str) -> Iterator[Callable[[str], None]]:
        with self.task(name) as on_step:
            yield lambda part: on_step(0, 1)


def _begin(build: Callable[[Progress], Any], threads: int, told: "SimpleQueue[Any]") -> None:
    """What a worker does first."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at once and says nothing: the process that shows says it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet()
    torch.set_num_threads(threads)
    global _build
    _build = partial(build, _Told(told))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _ready(worker: int) -> None:
    """Nothing, for a sign that the process is there."""


def _compute(piece: Piece) -> None:
    global _run
    _run = _run or _build()
    name, *arguments = piece
    getattr(_run, name)(*arguments)
