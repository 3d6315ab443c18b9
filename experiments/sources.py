"""What the sources of every benchmark share: raw rows, JSON lines, the hub, checks and hashes."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ngdiff.errors import UserError
from ngdiff.lm.sources import RawRow, parse_object

HUB = "hub"
SYNTHETIC = "synthetic"


def json_lines(path: Path, hub_id: str) -> list[RawRow]:
    """The rows of a file with one JSON object a line.

    Args:
        path: of the file.
        hub_id: the dataset that the file is a copy of, for messages.

    Raises:
        UserError: the file is missing or not readable as UTF-8; a line is no object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the run needs it, copy it from the dataset {hub_id}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as UTF-8 ({error}); copy it again from the dataset {hub_id}") from None
    # Not splitlines(): answers may contain U+2028 and the like, which are no line ends in JSON lines.
    lines = enumerate(text.split("\n"), 1)
    return [RawRow(parse_object(line, f"{path}:{number}"), f"{path}:{number}") for number, line in lines if line.strip()]


def hub_rows(hub_id: str, config: str, split: str) -> list[RawRow]:
    """The rows of a dataset on the hub, through `datasets`.

    Raises:
        UserError: `datasets` is not installed, or the rows cannot be loaded.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError("--data hub: the package 'datasets' is not installed; run pip install datasets") from None
    # TOFU's configs have one split, which says nothing.
    name = config if split == "train" else f"{config}/{split}"
    try:
        dataset: Iterable[Any] = load_dataset(hub_id, config, split=split)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"--data hub: {hub_id}, config {name!r} cannot be loaded ({reason}); check the connection or give a folder"
        ) from None
    return [RawRow(dict(row), f"{hub_id}/{name}, row {i}") for i, row in enumerate(dataset)]


def content_hash(rows: list[RawRow]) -> str:
    """SHA-256 of the rows' fields, the same for every source that holds the same rows."""
    return text_hash(json.dumps(row.fields, sort_keys=True, ensure_ascii=True) for row in rows)


def text_hash(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
