"""Where the rows of a TOFU config come from: a folder of json files, the hub, or the built-in generator."""

import os
from pathlib import Path
from typing import Protocol

from experiments.sources import HUB, SYNTHETIC, hub_rows, json_lines
from experiments.tofu import refusals, synthetic
from ngdiff.errors import UserError
from ngdiff.lm.sources import RawRow

HUB_ID = "locuslab/TOFU"
REFUSALS = "idontknow.jsonl"  # lines of plain text, for all its name


class Source(Protocol):
    """Rows by config name, such as "forget10_perturbed"."""

    name: str

    def rows(self, config: str) -> list[RawRow]: ...

    def has(self, config: str) -> bool:
        """Whether there is such a config, for those that a run can do without."""
        ...

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
        return json_lines(self.path / f"{config}.json", HUB_ID)

    def has(self, config: str) -> bool:
        return (self.path / f"{config}.json").is_file()

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
        return hub_rows(HUB_ID, config, "train")

    def has(self, config: str) -> bool:
        return True

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

    def has(self, config: str) -> bool:
        return True

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
