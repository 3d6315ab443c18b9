"""What the model said before unlearning: computed once a row, kept on disk, so that no second model need stay in memory."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Row = tuple[Sequence[int], Sequence[int]]  # input ids and labels, without padding
DIGEST = 32  # bytes of SHA-256 before the content of a file


class ReferenceCache:
    """Quantities of a model and a row, such as log-probabilities, found again by a hash of both.

    Build it, and ask for all rows that a run will need, before the first step: what is not on disk is computed with the model
    as it is then. A file that is damaged counts as absent.

    Args:
        folder: where the files are; made if absent. One file a row and quantity. Keep folders of other versions, devices or
            precisions apart: the hash is of the model's weights alone.
        model: before unlearning. Its weights are read once, for their hash.

    Examples:
        >>> cache = ReferenceCache(folder, model)
        >>> values = cache.get("answer_log_probs", rows, lambda missing: ((i, compute(rows[i])) for i in missing))
        >>> loss = ngdiff.objectives.npo(logits, labels, torch.stack([values[i] for i in batch]))

    Source: ours.
    """

    def __init__(self, folder: str | Path, model: nn.Module):
        self.folder = Path(folder)
        self.model_hash = content_hash(model)

    def get(
        self, quantity: str, rows: Sequence[Row], compute: Callable[[list[int]], Iterable[tuple[int, Tensor]]]
    ) -> References:
        """One tensor a row, read from disk when it is asked for: those of a large vocabulary fill no memory.

        Args:
            quantity: what is computed, with all that it depends on beside model and row, such as the number of a layer.
            rows: (input ids, labels) of each row.
            compute: numbers of the rows that are not on disk -> number and tensor of each, written as they come. Called at
                most once, without gradients.

        Raises:
            ValueError: `compute` left out a row.
        """
        paths = [self.folder / self._key(quantity, row) for row in rows]
        first = {path: i for i, path in reversed(list(enumerate(paths)))}  # equal rows are computed once
        missing = [i for path, i in first.items() if _read(path) is None]
        left = set(missing)
        if missing:
            with torch.no_grad():
                for i, value in compute(missing):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    _write(paths[i], value.detach().cpu().clone())  # a slice would be written with its whole batch
                    left.discard(i)
        if left:
            raise ValueError(f"get: no value of {quantity!r} for row {min(left)}; compute one for each of the missing rows")
        return References(paths)

    def _key(self, quantity: str, row: Row) -> str:
        ids, labels = (list(map(int, part)) for part in row)
        return hashlib.sha256(repr((self.model_hash, quantity, ids, labels)).encode()).hexdigest()


class References(Sequence[Tensor]):
    """One tensor a row, on disk until it is asked for, then on the CPU."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: Any) -> Any:
        """The tensor of row i.

        Raises:
            RuntimeError: its file was removed or damaged since it was asked for.
        """
        value = _read(self._paths[i])
        if value is None:
            raise RuntimeError(f"{self._paths[i]}: removed or damaged during the run; start it again")
        return value


def content_hash(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().contiguous().cpu().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"")
    return digest.hexdigest()


def _read(path: Path) -> Tensor | None:
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = stored[:DIGEST], stored[DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        return None
    value: Tensor = torch.load(io.BytesIO(content), weights_only=True)
    return value


def _write(path: Path, value: Tensor) -> None:
    """Under a temporary name first: a file is whole or absent, also where two runs write the same one."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    content = buffer.getvalue()
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
