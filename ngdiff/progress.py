"""Progress bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from ngdiff.text import visible


class Progress:
    """Shows the stages of a run."""

    def __init__(self, console: Console):
        self.console = console

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """A bar; yields a function of (steps done, steps in all)."""
        start = time.monotonic()
        with self._bars() as bars:
            bar = bars.add_task(name, total=None)
            yield lambda done, total: bars.update(bar, completed=done, total=total)
        self._done(name, time.monotonic() - start)

    @contextmanager
    def several(self) -> Iterator[Callable[[int, str, int | None, int | None, float | None], None]]:
        """A bar for each of several workers; yields a function of (worker, name of what it does, steps done, steps in all,
        seconds it took once it has ended, else None).
        """
        with self._bars() as bars:
            of_worker: dict[int, TaskID] = {}

            def show(worker: int, name: str, done: int | None, total: int | None, seconds: float | None) -> None:
                if worker not in of_worker:
                    of_worker[worker] = bars.add_task(name, total=None)
                bars.update(of_worker[worker], completed=done, total=total)
                if seconds is not None:
                    bars.remove_task(of_worker.pop(worker))
                    self._done(name, seconds)

            yield show

    @contextmanager
    def spinner(self, name: str) -> Iterator[Callable[[str], None]]:
        """For work without a count; yields a function of the name of the part being done."""
        start = time.monotonic()
        with self.console.status(name) as status:
            yield lambda part: status.update(f"{name}: {part}")
        self._done(name, time.monotonic() - start)

    def say(self, line: str) -> None:
        """A line beside the bars; nothing in it acts on the terminal."""
        self.console.print(Text(visible(line)))

    def _bars(self) -> Bars:
        columns = (
            TextColumn("{task.description:<32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        return Bars(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)

    def _done(self, name: str, seconds: float) -> None:
        self.console.print(f"{name:<40} {seconds:6.1f} s", highlight=False)
