"""Stages: named pieces of a run, kept in folders that are whole or absent, and found again by a hash of their inputs."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ngdiff.files import read_json, sync, write_json

SOURCES = ("ngdiff", "ngdiff_kernels", "experiments")
# How results are shown and compared changes none of them.
NOT_INPUTS = {"report", "cli.py", "command_line.py", "progress.py", "table.py", "summary.py", "comparison.py", "rates.py"} | {
    "bench_evaluation.py",
    "bench_memory.py",
    "bench_step.py",
    "options.py",
}


class Stages:
    """The stages under one folder.

    Args:
        root: folder that holds a folder for each finished stage.
        common: inputs of every stage, such as the versions of the libraries.

    Attributes:
        seconds: folder of the stage -> wall time, for all stages asked for; of cached ones, when they were computed.
        computed: names of the stages that were not cached.
    """

    def __init__(self, root: Path, common: Mapping[str, Any]):
        self.root = root
        self.common = dict(common)
        self.seconds: dict[str, float] = {}
        self.computed: list[str] = []

    def run(self, name: str, inputs: Mapping[str, Any], compute: Callable[[Path], None]) -> Path:
        """The folder of a finished stage, computed now unless it is there already.

        `compute` writes into a temporary folder, which gets its final name only when everything is on disk: an interrupted
        stage leaves nothing that could be taken for a result. Where another process computes the same stage, this one waits.

        Args:
            name: of the stage, also the beginning of its folder's name.
            inputs: all that the result depends on, as JSON values; a folder of another stage enters by its name.
            compute: writes the files of the stage into the folder it is given.
        """
        key = json_hash({"inputs": dict(inputs), "common": self.common})
        final = self.root / f"{name}-{key[:16]}"
        if not final.is_dir():
            with _awaited(self.root / f".{final.name}.lock"):
                if not final.is_dir():  # another process may have computed it meanwhile
                    self._compute(final, name, inputs, compute)
        self.seconds[final.name] = read_json(final / "stage.json")["seconds"]
        return final

    def _compute(self, final: Path, name: str, inputs: Mapping[str, Any], compute: Callable[[Path], None]) -> None:
        temporary = self.root / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        start = time.monotonic()
        compute(temporary)
        write_json(temporary / "stage.json", {"name": name, "inputs": inputs, "seconds": time.monotonic() - start})
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        os.replace(temporary, final)
        sync(self.root)
        self.computed.append(name)


@contextmanager
def _awaited(lock: Path) -> Iterator[None]:
    """Hold the file, once no other process does. The system lets go of it with the process, however that ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        with suppress(ImportError):  # on Windows, where pieces do not go side by side
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    lock.unlink(missing_ok=True)  # the stage is there now: who waits for this file, or makes a new one, finds it


def code_hash(root: Path) -> str:
    """SHA-256 of the project's Python sources, so that a stage computed by other code is not taken for this one's."""
    digest = hashlib.sha256()
    folders = {"ngdiff_kernels": root / "kernels" / "ngdiff_kernels"}
    for package in SOURCES:
        for path in sorted(folders.get(package, root / package).rglob("*.py")):
            relative = path.relative_to(root)
            if NOT_INPUTS.isdisjoint(relative.parts):
                digest.update(relative.as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def json_hash(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
