"""Rows as they stand in files and on the hub: read one after the other, so that the first bad one ends the reading."""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any

from ngdiff.errors import UserError
from ngdiff.files import can_be_named

LINE = 1 << 24  # bytes of a line at most: a file without line ends would otherwise be read into memory whole
HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class RawRow:
    """One unchecked row and where it stands, for messages."""

    fields: dict[str, Any]
    place: str


def raw_rows(option: str, source: str) -> Iterator[RawRow]:
    """The rows of a file (.jsonl, .json, .csv, .parquet), or of a hub data set: name, name:split or name:config:split.

    Args:
        option: that named the source, for messages.
        source: path or hub data set.

    Raises:
        UserError: there is no such source, or a row of it cannot be read; what, where, and the remedy.
    """
    path = Path(source)
    if path.suffix not in READERS and not (can_be_named(path) and path.exists()):
        return _hub(option, source)
    if path.suffix not in READERS:
        kind = "a folder" if path.is_dir() else f"a file of the kind {path.suffix!r}"
        raise UserError(f"{option}: {source!r} is {kind}; give a file of {', '.join(READERS)}, or a hub data set")
    return _file(option, path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as sha256sum prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_object(line: str, place: str) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
        UserError: it holds none.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error}), found {line[:40]!r}; each line must be one object") from None
    if not isinstance(fields, dict):
        raise UserError(f"{place}: found {line[:40]!r}; each line must be one JSON object")
    return fields


def text_field(raw: RawRow, name: str) -> str:
    """A field that holds a text."""
    return checked(raw, name, raw.fields.get(name))


def checked(raw: RawRow, name: str, value: Any) -> str:
    """The value, found in the field `name`, if it is a text that can be tokenised and is not blank.

    Raises:
        UserError: it is not; the message names the place, the value and the remedy.
    """
    if name not in raw.fields:
        raise UserError(f"{raw.place}: field {name!r} is missing, found {', '.join(map(repr, raw.fields))}; repair the row")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{raw.place}: field {name!r} must be a text that is not empty, found {value!r:.60}; repair the row")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{raw.place}: field {name!r} holds a lone surrogate, found {value!a:.60}; repair the row") from None
    if "\0" in value:
        raise UserError(f"{raw.place}: field {name!r} holds a NUL character, found {value!r:.60}; repair the row")
    return value


def _file(option: str, path: Path) -> Iterator[RawRow]:
    try:
        yield from READERS[path.suffix](path)
    except FileNotFoundError:
        raise UserError(f"{option}: {str(path)!r} is missing; give a file, or a hub data set as name:config:split") from None
    except OSError as error:
        raise UserError(f"{option}: {str(path)!r} cannot be read ({error.strerror or error}); give another file") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not blank. Not splitlines(): texts may hold U+2028, which ends no line in JSON."""
    number, found = 0, False
    with path.open("rb") as file:
        while line := file.readline(LINE + 1):
            number += 1
            if len(line) > LINE:
                raise UserError(f"{path}:{number}: the line is longer than {LINE >> 20} MiB; cut its text into several rows")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None
            if text.strip():
                found = True
                yield number, text
    if not found:
        raise UserError(f"{path}:1: found nothing but empty lines ({number} of them); give a file with rows")


def _json_lines(path: Path) -> Iterator[RawRow]:
    return (RawRow(parse_object(text, f"{path}:{number}"), f"{path}:{number}") for number, text in _lines(path))


def _json(path: Path) -> Iterator[RawRow]:
    """A list of objects; or, as in many a file of this name, one object a line."""
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _json_lines(path)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # what is not UTF-8 is a ValueError too
        raise UserError(f"{path}: not JSON ({error}); give a list of objects, or one object a line") from None
    for number, fields in enumerate(rows, 1):
        if not isinstance(fields, dict):
            raise UserError(f"{path}, row {number}: found {fields!r:.40}; each item of the list must be an object")
        yield RawRow(fields, f"{path}, row {number}")


def _csv(path: Path) -> Iterator[RawRow]:
    """One row a record under a header; a record may go over several lines, and is named by its last one."""
    csv.field_size_limit(LINE)
    with path.open("rb") as binary:
        reader = csv.DictReader(TextIOWrapper(binary, encoding="utf-8-sig", newline=""), strict=True)
        while True:
            try:
                fields = next(reader, None)
            except (csv.Error, UnicodeDecodeError) as error:
                place = f"{path}:{reader.line_num + 1}"
                raise UserError(f"{place}: not CSV in UTF-8 ({error}); repair the file, or give JSON lines") from None
            if fields is None:
                return
            place = f"{path}:{reader.line_num}"
            names = list(reader.fieldnames or ())
            if not all(names) or len(set(names)) < len(names):
                raise UserError(f"{path}:1: the header has an empty name, or one twice; name each field in the first line")
            if None in fields or None in fields.values():
                more = "more" if None in fields else "fewer"
                raise UserError(f"{place}: the record has {more} fields than the header; quote texts that hold commas")
            yield RawRow(dict(fields), place)


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield RawRow(fields, f"{path}, row {number}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a parquet file that can be read ({_first_line(error)}); write it again") from None


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _hub(option: str, source: str) -> Iterator[RawRow]:
    name, *rest = source.split(":")
    if not HUB.fullmatch(name) or len(rest) > 2 or not all(rest):
        raise UserError(f"{option}: found {source!r}; give a file of {', '.join(READERS)}, or name:config:split of the hub")
    config, split = (None, "train") if not rest else (None, rest[0]) if len(rest) == 1 else rest
    try:
        from datasets import load_dataset

        dataset: Iterable[Any] = load_dataset(name, config, split=split)
        rows = iter(dataset)
        first = [next(rows)]
    except StopIteration:
        first = []
    except Exception as error:  # its own, the network's, those of its file formats
        raise UserError(
            f"{option}: no file and no hub data set that can be loaded: {source!r} ({_first_line(error)}); "
            "give a file, or name:config:split"
        ) from None
    return (RawRow(dict(fields), f"{source}, row {i}") for i, fields in enumerate(chain(first, rows), 1))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
