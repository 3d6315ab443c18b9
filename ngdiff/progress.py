"""Progress bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Shows the stages of a run, one after the other."""

    def __init__(self, console: Console):
        self.console = console

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """A bar; yields a function of (steps done, steps in all)."""
        columns = (
            TextColumn("{task.description:<32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        start = time.monotonic()
        with Bars(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            bar = bars.add_task(name, total=None)
            yield lambda done, total: bars.update(bar, completed=done, total=total)
        self._done(name, start)

    @contextmanager
    def spinner(self, name: str) -> Iterator[Callable[[str], None]]:
        """For work without a count; yields a function of the name of the part being done."""
        start = time.monotonic()
        with self.console.status(name) as status:
            yield lambda part: status.update(f"{name}: {part}")
        self._done(name, start)

    def _done(self, name: str, start: float) -> None:
        self.console.print(f"{name:<40} {time.monotonic() - start:6.1f} s", highlight=False)
