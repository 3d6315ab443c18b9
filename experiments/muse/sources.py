"""Where the rows of a MUSE split come from: a folder of json files, the hub, or the built-in generator."""

import os
from pathlib import Path
from typing import Protocol

from experiments.muse import synthetic
from experiments.sources import HUB, SYNTHETIC, hub_rows, json_lines
from ngdiff.errors import UserError
from ngdiff.lm.sources import RawRow

NEWS, BOOKS = "news", "books"
HUB_IDS = {NEWS: "muse-bench/MUSE-News", BOOKS: "muse-bench/MUSE-Books"}
SUFFIXES = (".jsonl", ".json")  # both JSON lines; a file of the first name is preferred


class Source(Protocol):
    """Rows by config and split, such as "knowmem" and "forget_qa".

    Attributes:
        name: for messages.
        folds: whether there are the configs `scal` and `sust`.
        has_validation: whether there is `privleak/validation`, which is not MUSE's: texts that no model sees, to decide by
            during a run, so that `privleak/holdout` is left to the evaluation.
        orderly: whether folds must be nested and disjoint, and shots not evaluated. The hub's rows are taken as they are.
    """

    name: str
    folds: bool
    has_validation: bool
    orderly: bool

    def rows(self, config: str, split: str) -> list[RawRow]: ...


class Folder:
    """JSON-lines files by the hub's names: <folder>/<config>/<split>.jsonl, or .json."""

    name = "folder"
    orderly = True

    def __init__(self, path: str, corpus: str):
        self.path = Path(path)
        self.hub_id = HUB_IDS[corpus]
        self.folds = corpus == NEWS
        if not os.path.isdir(path):  # which is False, and no error, for a name that the system refuses
            raise UserError(f"--data: {path!r} is not a folder; give a folder of MUSE json files, 'hub' or 'synthetic'")
        self.has_validation = any(path.is_file() for path in self._paths("privleak", "validation"))

    def _paths(self, config: str, split: str) -> list[Path]:
        return [self.path / config / f"{split}{suffix}" for suffix in SUFFIXES]

    def rows(self, config: str, split: str) -> list[RawRow]:
        paths = self._paths(config, split)
        return json_lines(next((path for path in paths if path.is_file()), paths[0]), self.hub_id)


class Hub:
    """The datasets muse-bench/MUSE-News and muse-bench/MUSE-Books, through `datasets`."""

    name = HUB
    orderly = False
    has_validation = False

    def __init__(self, corpus: str):
        self.hub_id = HUB_IDS[corpus]
        self.folds = corpus == NEWS

    def rows(self, config: str, split: str) -> list[RawRow]:
        return hub_rows(self.hub_id, config, split)


class Synthetic:
    """Invented local news from the built-in generator."""

    name = SYNTHETIC
    folds = True
    has_validation = True
    orderly = True

    def __init__(self, seed: int):
        self.seed = seed

    def rows(self, config: str, split: str) -> list[RawRow]:
        rows = synthetic.rows(config, split, self.seed)
        return [RawRow(dict(row), f"synthetic {config}/{split}, row {i}") for i, row in enumerate(rows)]


def open_source(data: str, corpus: str, seed: int) -> Source:
    """The source that the options name.

    Args:
        data: "synthetic", "hub", or a folder.
        corpus: "news" or "books". The generator has news alone.
        seed: of the generator.

    Raises:
        UserError: unknown corpus, no such folder, or synthetic books.
    """
    if corpus not in HUB_IDS:
        raise UserError(f"--corpus: unknown corpus {corpus!r}; choose one of {', '.join(HUB_IDS)}")
    if data == SYNTHETIC and corpus != NEWS:
        raise UserError(f"--corpus: found {corpus!r}, and the built-in generator has {NEWS!r} alone; give 'hub' or a folder")
    if data == SYNTHETIC:
        return Synthetic(seed)
    return Hub(corpus) if data == HUB else Folder(data, corpus)
