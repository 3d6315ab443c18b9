"""Triton's interpreter with what it lacks: programs that run at the same time, and a launch of a few programs out of many."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triton.runtime import interpreter

Builder = type(interpreter.interpreter_builder)


class _Local(Builder):
    """A builder whose program number belongs to the thread that asks."""

    _numbers = threading.local()

    @property
    def grid_idx(self) -> tuple[int, int, int]:
        return self._numbers.value

    @grid_idx.setter
    def grid_idx(self, value: tuple[int, int, int]) -> None:
        self._numbers.value = value


class _AllAtOnce:
    """A kernel that, when called for one program, runs `count` programs in as many threads and waits for all."""

    def __init__(self, fn: Callable[..., None], count: int):
        self.fn, self.count = fn, count
        self.__globals__, self.__annotations__ = fn.__globals__, fn.__annotations__
        self.__signature__ = inspect.signature(fn)
        self.__name__ = fn.__name__

    def __call__(self, **arguments: Any) -> None:
        failures: list[BaseException] = []

        def run(program: int) -> None:
            try:
                interpreter.interpreter_builder.grid_idx = (program, 0, 0)
                self.fn(**arguments)
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=run, args=(program,), daemon=True) for program in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not failures, failures
        assert not any(thread.is_alive() for thread in threads), "programs wait for each other for ever"


@contextmanager
def at_the_same_time(count: int) -> Iterator[None]:
    """Launches of one program become launches of `count` programs, which all run at once."""
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor

    class Executor(executor):  # type: ignore[misc, valid-type]
        def __init__(self, fn: Callable[..., None], *rest: Any, **options: Any):
            super().__init__(fn, *rest, **options)
            self.fn = _AllAtOnce(self.fn, count)

    builder.__class__, interpreter.GridExecutor = _Local, Executor
    builder.set_grid_dim = lambda *_: setattr(builder, "grid_dim", (count, 1, 1))
    try:
        yield
    finally:
        del builder.set_grid_dim
        builder.__class__, interpreter.GridExecutor = Builder, executor


@contextmanager
def only(program: int, count: int) -> Iterator[None]:
    """Launches of one program become that of number `program` out of `count`."""
    builder = interpreter.interpreter_builder
    builder.set_grid_dim = lambda *_: setattr(builder, "grid_dim", (count, 1, 1))
    builder.set_grid_idx = lambda *_: setattr(builder, "grid_idx", (program, 0, 0))
    try:
        yield
    finally:
        del builder.set_grid_dim, builder.set_grid_idx
