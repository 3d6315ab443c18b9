"""Two processes of the distributed tests, which stay alive, because starting one takes longer than any test."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SIZE = 2
PATIENCE = 180  # seconds; a case takes less than ten


class Pool:
    """Two processes with a process group of gloo, which run functions of the modules beside this one."""

    def __init__(self, folder: Path):
        self._folder, self._starts = folder, 0
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def run(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
        """What the function returns on each rank.

        Raises:
            RuntimeError: it raised on one of them, or does not end.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments, options))
        answers = [pipe.recv() if pipe.poll(PATIENCE) else (False, "no answer") for pipe in self._pipes]
        if failures := [answer for succeeded, answer in answers if not succeeded]:
            self.close()  # one may still wait for the other; the next call starts anew
            raise RuntimeError("\n".join(failures))
        return [answer for _, answer in answers]

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()
        self._pipes, self._processes = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._starts += 1
        for rank in range(SIZE):
            mine, theirs = context.Pipe()
            store = str(self._folder / f"store-{self._starts}")
            process = context.Process(target=serve, args=(rank, store, theirs), daemon=True)
            process.start()
            self._pipes.append(mine)
            self._processes.append(process)


def serve(rank: int, store: str, pipe: Connection) -> None:
    """Run what comes through the pipe, forever."""
    torch.set_num_threads(1)
    # What torchrun would set and accelerate reads; the port is not used, for there is a process group already.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(SIZE), MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=SIZE, timeout=timedelta(seconds=PATIENCE / 3)
    )
    while True:
        function, arguments, options = pipe.recv()
        try:
            pipe.send((True, function(*arguments, **options)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
