"""Pieces of a run side by side, in processes that share the processor's cores.

A step of a model of a million parameters is 1.3 to 1.4 times as fast on two cores as on one, so two trainings beside each other
end sooner than one after the other.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
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


def shared(jobs: int, phases: Sequence[Sequence[Piece]]) -> tuple[int, int]:
    """How many processes these phases have use for, and the threads of each."""
    jobs = min(jobs, max(map(len, phases)))
    return jobs, max(1, torch.get_num_threads() // jobs)


def side_by_side(build: Callable[[Progress], Any], phases: Sequence[Sequence[Piece]], jobs: int, progress: Progress) -> None:
    """Call methods of a run in other processes, for what they leave in its stages.

    Args:
        build: makes the run, once in each process; has to be picklable.
        phases: pieces that may go side by side, those of a phase only once the phase before has ended.
        jobs: processes at most.
        progress: shows what all of them do.

    Raises:
        UserError: a piece's own, or a process died. The other pieces end at once; stages that were finished stay.
        RuntimeError: another error of a piece, with its traceback.
    """
    jobs, threads = shared(jobs, phases)
    context = multiprocessing.get_context("spawn")  # a fork would have locks of threads that it has not
    told: SimpleQueue[Any] = context.SimpleQueue()
    others = set(multiprocessing.active_children())
    with (
        _shown(told, progress) as check,
        ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(build, threads, told)) as pool,
    ):
        try:
            # A pool watches over the processes that it had when a result last came: without one, it may miss that one dies.
            deque(pool.map(_ready, range(jobs)), maxlen=0)
            for pieces in phases:
                _computed(pool, pieces, check)
        except BaseException as error:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                text = f"--jobs: one of {jobs} processes died; if memory ran out, give fewer of them"
                raise UserError(text) from error
            raise


def _computed(pool: ProcessPoolExecutor, pieces: Sequence[Piece], check: Callable[[], None]) -> None:
    running = {pool.submit(_compute, piece) for piece in pieces}
    while running:
        done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        check()


@contextmanager
def _shown(told: "SimpleQueue[Any]", progress: Progress) -> Iterator[Callable[[], None]]:
    """Show what the processes tell; yields a function that raises what went wrong with it."""
    errors: list[BaseException] = []
    ended = threading.Event()

    def hear() -> None:
        try:
            with progress.several() as show:
                while not (ended.is_set() and told.empty()):
                    if told.empty():
                        time.sleep(0.05)
                    else:
                        show(*told.get())
        except BaseException as error:  # rich leaves by SystemExit where nobody reads its output
            errors.append(error)

    def check() -> None:
        if errors:
            raise errors[0]

    thread = threading.Thread(target=hear, daemon=True)
    thread.start()
    try:
        yield check
    finally:
        ended.set()
        thread.join(timeout=10)  # a process that was killed while it told something may never end its sentence


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
    name, *arguments = piece
    try:
        _run = _run or _build()
        getattr(_run, name)(*arguments)
    except UserError as error:
        raise UserError(str(error)) from None
    except Exception:  # not all errors can be sent to another process
        raise RuntimeError(traceback.format_exc()) from None
