"""Rows of both tasks side by side, for data loaders: each forget row with a retain row, and a refusal where one is wanted."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ngdiff.objectives import IGNORE

Row = Mapping[str, Any]  # input_ids, labels if not all are scored, position_ids if several documents share the row
Pair = tuple[int, int]


class PairedRows(Dataset[dict[str, Row]]):
    """Item (i, j) is forget row i, retain row j and, where there are refusals, that of forget row i.

    Args:
        forget, retain: rows of the two tasks.
        refusals: one a forget row, for objectives that teach them.

    Raises:
        ValueError: a task has no row, or there is not one refusal a forget row.
    """

    def __init__(self, forget: Sequence[Row], retain: Sequence[Row], refusals: Sequence[Row] | None = None):
        for name, rows in (("forget", forget), ("retain", retain)):
            if not len(rows):
                raise ValueError(f"{name}_dataset: found no row; give at least one")
        if refusals is not None and len(refusals) != len(forget):
            raise ValueError(f"refusal_dataset: found {len(refusals)} rows for {len(forget)} forget rows; give one for each")
        self.forget, self.retain, self.refusals = forget, retain, refusals

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, pair: Pair) -> dict[str, Row]:
        i, j = pair
        found = {"forget": self.forget[i], "retain": self.retain[j]}
        return found if self.refusals is None else found | {"refusal": self.refusals[i]}


class PairSampler(Sampler[Pair]):
    """One pass over the forget rows in random order, beside retain rows from shuffled passes over those.

    The order depends on the seed and `epoch` alone, not on any generator's state, so that a resumed run sees the rows that an
    uninterrupted one sees, and processes that share the pairs out see different ones.

    Args:
        forget, retain: number of rows of each task.
        seed: of the run.

    Attributes:
        epoch: which pass comes next, to be set before each.
    """

    def __init__(self, forget: int, retain: int, seed: int):
        self.forget, self.retain, self.seed, self.epoch = forget, retain, seed, 0

    def __len__(self) -> int:
        return self.forget

    def __iter__(self) -> Iterator[Pair]:
        generator = torch.Generator().manual_seed(_seed(self.seed, self.epoch))
        order = torch.randperm(self.forget, generator=generator).tolist()
        beside: list[int] = []
        while len(beside) < self.forget:
            beside += torch.randperm(self.retain, generator=generator).tolist()
        yield from zip(order, beside, strict=False)


def _seed(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"pairs {seed} {epoch}".encode()).digest()[:7], "big")


@dataclass(frozen=True)
class PairCollator:
    """Pads rows to a batch of tensors: of pairs a batch a task, of plain rows one batch.

    Args:
        pad: id to pad with. Padding is masked by the lengths of the rows, so that it may be the id of a real token.
    """

    pad: int

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """input_ids and labels, each (rows, longest row), and attention_mask or position_ids of the same shape."""
        if "input_ids" in rows[0]:
            return _padded(rows, self.pad)
        return {task: _padded([row[task] for row in rows], self.pad) for task in rows[0]}


def _padded(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])[:, None]
    columns = torch.arange(int(lengths.max()))[None]
    batch = {
        "input_ids": _filled([row["input_ids"] for row in rows], pad),
        "labels": _filled([row["labels"] if "labels" in row else row["input_ids"] for row in rows], IGNORE),
        "attention_mask": (columns < lengths).long(),
    }
    if any("position_ids" in row for row in rows):
        # transformers tells documents in one row apart by positions that begin anew, if there is no mask; padding is one more.
        del batch["attention_mask"]
        positions = [row.get("position_ids", range(len(row["input_ids"]))) for row in rows]
        batch["position_ids"] = torch.where(columns < lengths, _filled(positions, 0), columns - lengths)
    return batch


def _filled(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(list(row)) for row in rows], batch_first=True, padding_value=value)
