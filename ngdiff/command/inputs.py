"""What both commands are given, checked before a weight is read: rows, a tokenizer that fits the model, a folder."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngdiff.errors import UserError
from ngdiff.files import LONGEST, can_be_named
from ngdiff.lm import data, loading
from ngdiff.lm.batches import drawn
from ngdiff.lm.data import Data, Encoded, RowEncoder
from ngdiff.lm.loading import Trust

LENGTH = 1024  # tokens of a row at most, if the model can hold as many


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        template: of questions and answers.
        length: tokens of a row at most; None takes `LENGTH`, or what the model can hold.
        trust: what the model may do.
    """

    template: str = "auto"
    length: int | None = None
    trust: Trust = loading.NONE


DEFAULT = Reading()


@dataclass(frozen=True)
class Source:
    """A model that was not loaded yet, and the rows in its tokens.

    Attributes:
        name: hub id or folder.
        config: of the model.
        encoder: its tokenizer.
        sets: set name -> rows.
    """

    name: str
    config: Any
    encoder: RowEncoder
    sets: dict[str, list[Encoded]]

    def sample(self, rows: int) -> dict[str, list[Encoded]]:
        """At most so many rows of each set, always the same."""
        return {name: drawn(members, rows) for name, members in self.sets.items()}


def prepare(option: str, name: str, sets: Mapping[str, Data], reading: Reading) -> Source:
    """Configuration, tokenizer and encoded rows of a model, whose weights stay where they are.

    Raises:
        UserError: the model, its tokenizer or a row is unfit.
    """
    loading.check_weights(name, reading.trust, option)
    config = loading.load_config(name, reading.trust, option)
    tokenizer = loading.load_tokenizer(name, reading.trust, option)
    loading.check_embeds(name, config.get_text_config().vocab_size, tokenizer, option)
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    encoder = RowEncoder(tokenizer, reading.template, _length(reading.length, most), most)
    return Source(name, config, encoder, {key: encoder.encode(one) for key, one in sets.items()})


def _length(wanted: int | None, most: int | None) -> int:
    if wanted is None:
        return min(LENGTH, most or LENGTH)
    if wanted < 2 or (most and wanted > most):
        raise UserError(f"--length: found {wanted}; give at least 2 tokens, and at most what the model can hold, {most}")
    return wanted


def read_all(**sources: str | None) -> dict[str, Data]:
    """Set name -> its rows, of those that are given; the option of a set has its name."""
    return {name: data.read(f"--{name}", source) for name, source in sources.items() if source is not None}


def remarks(sets: Mapping[str, Data], source: Source) -> Iterator[str]:
    """What was done with the rows that the user may not expect."""
    for name, one in sets.items():
        if one.ignored:
            yield f"--{name}: {len(one.ignored)} further fields are not read: {data.named(one.ignored)}"
        pieces = len(source.sets[name])
        if pieces > len(one.rows):
            yield f"--{name}: texts longer than {source.encoder.length} tokens were cut, {len(one.rows)} into {pieces} pieces"


def check_folder(option: str, folder: Path) -> None:
    """Whether a folder can be made, or is empty.

    Raises:
        UserError: it cannot be used.
    """
    if not can_be_named(folder):
        raise UserError(f"{option}: {str(folder)[:40]!r}... has a name of more than {LONGEST} bytes; give a shorter one")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{option}: {str(folder)!r} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{option}: {str(folder)!r} is not empty; give a new folder")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{option}: {str(folder)!r} cannot be made, {str(existing)!r} is not writable; give another folder")


def check_positive(**numbers: float | None) -> None:
    """Whether options are positive, of those that are given.

    Raises:
        UserError: one is not.
    """
    for name, value in numbers.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')}: found {value}; give a number > 0")


def described(sets: Mapping[str, Data], encoded: Mapping[str, Sequence[Encoded]]) -> dict[str, dict[str, Any]]:
    """Of each set what may be published: no text of it."""
    return {
        name: {
            "source": one.name,
            "kind": one.kind,
            "rows": len(one.rows),
            "tokens": sum(len(row.example.ids) for row in encoded[name]),
            "sha256": one.sha256,
        }
        for name, one in sets.items()
    }
