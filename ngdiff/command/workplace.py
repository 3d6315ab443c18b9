"""The hidden folder that `ngdiff unlearn` works in: of one run at a time, and kept only for one to go on from."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ngdiff import checkpoints
from ngdiff.checkpoints import CheckpointError
from ngdiff.command import inputs
from ngdiff.errors import UserError
from ngdiff.files import LONGEST, read_json, unwritten, write_json
from ngdiff.processes import alike, is_first

SETTINGS = "settings.json"
TRAINER, MODEL = "trainer", "model"  # folders in it
NAME = LONGEST - len("..unfinished")  # bytes of a name that leave room for what is put around it


def check_replaceable(out: Path) -> None:
    """Whether a finished folder can be put in the place of `out`, which is absent or empty.

    Raises:
        UserError: it cannot.
    """
    remedy = "give a new folder"
    if len(os.fsencode(out.absolute().name)) > NAME:
        raise UserError(f"--out: found a name of {len(os.fsencode(out.name))} bytes; give one of {NAME} at most")
    if out.is_symlink():
        raise UserError(f"--out: {str(out)!r} is a symbolic link, which would be replaced; {remedy}")
    if out.is_dir() and (out.samefile(Path.cwd()) or out.is_mount()):
        raise UserError(f"--out: {str(out)!r} is in use, as the current folder or a mount point; {remedy} in it")


@contextmanager
def workplace(out: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """A folder beside `out`, which outlives the run only where it holds a checkpoint to go on from.

    Of several processes the first makes and removes it.

    Args:
        out: where the result will be.
        identity: what tells the run from another.

    Raises:
        UserError: another run is in it, or one with other settings or data was interrupted in it; or something cannot be
            written inside.
    """
    work = out.absolute().with_name(f".{out.absolute().name}.unfinished")
    with _explained(out), ExitStack() as held:
        with alike():
            if is_first():
                held.enter_context(_claimed(work, out, identity))
        yield work


@contextmanager
def _claimed(work: Path, out: Path, identity: dict[str, Any]) -> Iterator[None]:
    try:
        with _locked(work, out, identity):
            yield
    finally:
        with suppress(OSError):  # it is not empty, or is gone
            work.rmdir()  # of what network file systems keep of it until the lock is closed


@contextmanager
def _locked(work: Path, out: Path, identity: dict[str, Any]) -> Iterator[None]:
    with checkpoints.locked(work):
        try:
            inputs.check_folder("--out", out)  # a run may have ended meanwhile
            _check_same(work, identity)
            shutil.rmtree(work / MODEL, ignore_errors=True)  # a killed run may have left parts of it
            write_json(work / SETTINGS, identity)
            yield
        except BaseException:
            if not _interrupted(work):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def _check_same(work: Path, identity: dict[str, Any]) -> None:
    if not _interrupted(work):
        return
    try:
        same = read_json(work / SETTINGS) == identity
    except (FileNotFoundError, ValueError):
        same = False
    if not same:
        raise UserError(f"--out: {str(work)!r} holds an interrupted run with other settings or data; give those, or delete it")


def _interrupted(work: Path) -> bool:
    return bool(checkpoints.saved(work / TRAINER))


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise UserError(f"--out: {error}") from None
    except (OSError, SafetensorError) as error:  # a full disk; what is read raises errors of its own
        reason = unwritten(error, out.absolute().parent)
        raise UserError(f"--out: {str(out)!r} cannot be written ({reason}); make room, or give another folder") from None
