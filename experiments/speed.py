"""How fast the parts of an evaluation were."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Speed:
    """What an evaluation spent its time on.

    Attributes:
        seconds: part -> wall time.
        tokens: part -> tokens of all rows that were scored, or written (generating), padding left out. A prompt that several
            answers share is read once and counted with each.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str, on_part: Callable[[str], None]) -> Iterator[None]:
        """Times what is done inside; `on_part` is told its name before it begins."""
        on_part(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def tokens_per_second(speeds: Collection[Speed]) -> dict[str, int]:
    """Part of the evaluation -> tokens scored or written a second, over all evaluations."""
    parts = {part for speed in speeds for part in speed.tokens}
    return {
        part: round(sum(speed.tokens[part] for speed in speeds) / max(1e-9, sum(speed.seconds[part] for speed in speeds)))
        for part in sorted(parts)
    }
