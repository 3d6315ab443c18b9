"""Files that are whole or absent, whatever happens while they are written."""

import errno
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST = 255  # bytes of a name, on every file system in common use
FULL = "no space left"
ROOM = 1 << 20  # bytes: with less, what could not be written found no room for its next block


def write_text(path: Path, text: str) -> None:
    """Write a file that is whole or absent: under a temporary name first, then renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is whole or absent; a NaN is an error."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def unwritten(error: BaseException, folder: Path) -> str:
    """Why something could not be written to a folder, in a few words.

    The system, torch and safetensors name a full disk in three ways, torch by a position in its archive.
    """
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return FULL
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with suppress(OSError):
        if shutil.disk_usage(folder).free < ROOM:
            return FULL
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def can_be_named(path: Path) -> bool:
    """Whether a file system can hold such a name; to ask whether another one exists is an error."""
    return all(len(os.fsencode(part)) <= LONGEST for part in path.parts)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
