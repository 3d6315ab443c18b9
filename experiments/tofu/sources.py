"""Where the rows of a TOFU config come from: a folder of json files, the hub, or the built-in generator."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from experiments.errors import UserError
from experiments.tofu import refusals, synthetic

HUB_ID = "locuslab/TOFU"
HUB = "hub"
SYNTHETIC = "synthetic"
REFUSALS = "idontknow.jsonl"  # lines of plain text, for all its name


@dataclass(frozen=True)
class RawRow:
    """One unchecked row and where it stands, for messages."""

    fields: dict[str, Any]
    place: str


class Source(Protocol):
    """Rows by config name, such as "forget10_perturbed"."""

    name: str

    def rows(self, config: str) -> list[RawRow]: ...

    def refusals(self) -> list[str]:
        """Answers that say that the answer is not known."""
        ...


class Folder:
    """JSON-lines files named as the hub's configs: <folder>/<config>.json."""

    name = "folder"

    def __init__(self, path: str):
        self.path = Path(path)
        if not os.path.isdir(path):  # which is False, and no error, for a name that the system refuses
            raise UserError(f"--data: {path!r} is not a folder; give a folder of TOFU json files, 'hub' or 'synthetic'")

    def rows(self, config: str) -> list[RawRow]:
        path = self.path / f"{config}.json"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{path}: missing; this preset needs it, copy it from the dataset {HUB_ID}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as UTF-8 ({error}); copy it again from the dataset {HUB_ID}") from None
        # Not splitlines(): answers may contain U+2028 and the like, which are no line ends in JSON lines.
        lines = enumerate(text.split("\n"), 1)
        return [RawRow(_parse(line, f"{path}:{number}"), f"{path}:{number}") for number, line in lines if line.strip()]

    def refusals(self) -> list[str]:
        """Those of the benchmark, where the folder has them, a line each."""
        path = self.path / REFUSALS
        if not path.is_file():
            return list(refusals.REFUSALS)
        try:
            found = [line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as UTF-8 ({error}); copy it again, or remove it") from None
        if not found:
            raise UserError(f"{path}: has no line of text; copy it again, or remove it")
        return found


class Hub:
    """The dataset locuslab/TOFU, through `datasets`."""

    name = HUB

    def rows(self, config: str) -> list[RawRow]:
        try:
            from datasets import load_dataset
        except ImportError:
            raise UserError("--data hub: the package 'datasets' is not installed; run pip install datasets") from None
        try:
            dataset: Iterable[Any] = load_dataset(HUB_ID, config, split="train")
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise UserError(
                f"--data hub: {HUB_ID}, config {config!r} cannot be loaded ({reason}); check the connection or give a folder"
            ) from None
        return [RawRow(dict(row), f"{HUB_ID}/{config}, row {i}") for i, row in enumerate(dataset)]

    def refusals(self) -> list[str]:
        """Ours: the dataset on the hub has none."""
        return list(refusals.REFUSALS)


class Synthetic:
    """Fictitious authors from the built-in generator."""

    name = SYNTHETIC

    def __init__(self, seed: int):
        self.seed = seed

    def rows(self, config: str) -> list[RawRow]:
        rows = synthetic.rows(config, self.seed)
        return [RawRow(row, f"synthetic {config}, row {i}") for i, row in enumerate(rows)]

    def refusals(self) -> list[str]:
        """Ours."""
        return list(refusals.REFUSALS)


def open_source(data: str, seed: int) -> Source:
    """The source that the option --data names: "synthetic", "hub", or a folder.

    Raises:
        UserError: it is none of them.
    """
    if data == SYNTHETIC:
        return Synthetic(seed)
    return Hub() if data == HUB else Folder(data)


def content_hash(rows: list[RawRow]) -> str:
    """SHA-256 of the rows' fields, the same for every source that holds the same rows."""
    return text_hash(json.dumps(row.fields, sort_keys=True, ensure_ascii=True) for row in rows)


def text_hash(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _parse(line: str, place: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error}), found {line[:40]!r}; each line must be one object") from None
    if not isinstance(fields, dict):
        raise UserError(f"{place}: found {line[:40]!r}; each line must be one JSON object")
    return fields
