"""Checkpoints that are whole or absent, with hashes that prove it; and the lock of the folder that holds them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ngdiff.files import read_json, sync, write_json

SEAL = "sha256.json"  # of every file of a checkpoint, written last
LOCK = ".lock"
PREFIX = "checkpoint-"
# Where the next checkpoint is written and an old one is removed, kept from uploads by its name. A killed run may leave it, and
# the next run removes it.
STAGING = "_saving"


class CheckpointError(RuntimeError):
    """One line: which checkpoint, what is wrong with it, the remedy."""


def seal(folder: Path) -> None:
    """Write down the hash of every file of a checkpoint, and wait until all of it is on disk."""
    files = _files(folder)
    write_json(folder / SEAL, {path.relative_to(folder).as_posix(): _sha256(path) for path in files})
    for path in (*folder.rglob("*"), folder):
        sync(path)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed checkpoint: the first file that is not what was written, or None."""
    try:
        sealed = read_json(folder / SEAL)
    except (OSError, ValueError):
        return f"{SEAL} is missing or damaged"
    for name, expected in sealed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != expected:
            return f"{name} is not what was written"
    return None


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.is_dir() and _step(path) is not None]
    return sorted(found, key=lambda path: _step(path) or 0)


def newest(folder: Path, on_damage: Callable[[str], None] = lambda message: None) -> Path | None:
    """The newest whole checkpoint in a folder, or None.

    Args:
        folder: of the run.
        on_damage: called with one line for each newer checkpoint that is damaged.
    """
    for path in reversed(saved(folder)):
        wrong = damage(path)
        if wrong is None:
            return path
        on_damage(f"{path}: {wrong}; the checkpoint before it is used")
    return None


def check_unused(folder: Path, after: Path | None = None) -> None:
    """Refuse a folder with checkpoints that a run would write over, or that would be taken for its own.

    Args:
        folder: of the run.
        after: the checkpoint that the run goes on from; None where it begins.

    Raises:
        CheckpointError: there are some.
    """
    begin = -1 if after is None or after.parent.resolve() != folder.resolve() else _step(after) or 0
    later = [path for path in saved(folder) if (_step(path) or 0) > begin and damage(path) is None]
    if later:
        raise CheckpointError(
            f"{later[-1]}: of a run before; go on from it with resume_from_checkpoint=True, or give another output_dir"
        )


def check(folder: Path) -> None:
    """Refuse a damaged checkpoint.

    Raises:
        CheckpointError: it is not there, or a file of it is not what was written.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint; give the folder of one, or True for the newest")
    if wrong := damage(folder):
        raise CheckpointError(f"{folder}: {wrong}; resume from another checkpoint, or with True from the newest whole one")


def publish(staged: Path, final: Path) -> None:
    """Seal a checkpoint and give it its name, which it gets only when everything is on disk.

    A checkpoint of the same name is replaced. What callbacks have written under that name before, such as evaluations, goes
    with it, outside of the seal.
    """
    seal(staged)
    if final.is_dir():
        before = staged.with_name(f"before-{final.name}")
        os.replace(final, before)
        if not (before / SEAL).exists():
            for path in before.iterdir():
                if not (staged / path.name).exists():
                    os.replace(path, staged / path.name)
    os.replace(staged, final)
    sync(final.parent)


def discard(folder: Path) -> None:
    """Remove a folder, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def rotate(folder: Path, limit: int | None, keep: Path | None = None) -> None:
    """Remove the oldest checkpoints until at most `limit` are left, `keep` not counted among those to remove.

    Each one first loses its name, so that a run killed meanwhile leaves no half-removed checkpoint to be seen.
    """
    if limit is None or limit <= 0:
        return
    found = [path for path in saved(folder) if keep is None or path.resolve() != keep.resolve()]
    spare = len(found) + (keep is not None) - limit
    for path in found[: max(0, min(spare, len(found) - 1))]:  # never the newest: it is what a killed run goes on from
        removed = folder / STAGING / f"removed-{path.name}"
        removed.parent.mkdir(exist_ok=True)
        os.replace(path, removed)
        shutil.rmtree(removed)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one run. The system lets go of it with the process, however that ends.

    Raises:
        CheckpointError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        _lock(file.fileno(), folder)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid()}))
        file.flush()
        shutil.rmtree(folder / STAGING, ignore_errors=True)
        _held.add(file.fileno())
        try:
            yield
        finally:
            _held.discard(file.fileno())


# Descriptors of the locks that this process holds. A worker of a data loader is a fork, which would hold them for some seconds
# more where this process is killed.
_held: set[int] = set()


def _let_go() -> None:
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = ""
        with suppress(OSError, ValueError, KeyError):
            holder = f" (process {read_json(folder / LOCK)['pid']})"
        raise CheckpointError(f"{folder}: another run{holder} writes there; wait for it or give another folder") from None
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be locked ({error.strerror}); give a folder on another file system") from None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def _step(path: Path) -> int | None:
    number = path.name.removeprefix(PREFIX)
    return int(number) if number.isascii() and number.isdigit() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
