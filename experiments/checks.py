"""Checks of options that every benchmark has. Each refuses with one line: the option, the value found, the remedy."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ngdiff.errors import UserError


def option(name: str) -> str:
    """The option of the command line that sets the field of this name."""
    return "--" + name.replace("_", "-")


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in choices:
        raise UserError(f"{option(name)}: unknown value {value!r}; choose one of {', '.join(choices)}")


def whole(settings: Any, names: Iterable[str], least: int = 1) -> None:
    """Refuse fields below `least`; None stands for a default."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise UserError(f"{option(name)}: found {value}; give a whole number >= {least}")


def rates(name: str, values: Iterable[float | None]) -> None:
    """Refuse learning rates that are none; None stands for a default."""
    for value in values:
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{option(name)}: found {value}; give a learning rate > 0")


def distinct(name: str, values: Sequence[Any]) -> None:
    """Refuse a repetition."""
    if len(set(values)) < len(values):
        raise UserError(f"{option(name)}: found {','.join(map(str, values))}, with a repetition; name each once")


def some(name: str, values: Sequence[Any]) -> None:
    """Refuse an empty list."""
    if not values:
        raise UserError(f"{option(name)}: found none; name at least one")


def seed(value: int) -> None:
    """Refuse what is no seed."""
    if not 0 <= value < 2**32:
        raise UserError(f"--seed: found {value}; give a whole number from 0 to 4294967295")


def plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as plain values, for config.yaml and hashes."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
