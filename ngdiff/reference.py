"""What the model said before unlearning: computed once a row, kept on disk, so that no second model need stay in memory."""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

Row = tuple[Sequence[int], Sequence[int]]  # input ids and labels, without padding
DIGEST = 32  # bytes of SHA-256 before the content of a file


class ReferenceCache:
    """Quantities of a model and a row, such as log-probabilities, found again by a hash of both.

    Build it, and ask for all rows that a run will need, before the first step: what is not on disk is computed with the model
    as it is then. A file that is damaged counts as absent.

    Args:
        folder: where the files are; made if absent. One file a row and quantity.
        model: before unlearning. Its weights are read once, for their hash.

    Examples:
        >>> cache = ReferenceCache(folder, model)
        >>> values = cache.get("answer_log_probs", rows, lambda missing: compute([rows[i] for i in missing]))
    """

    def __init__(self, folder: str | Path, model: nn.Module):
        self.folder = Path(folder)
        self.model_hash = content_hash(model)

    def get(self, quantity: str, rows: Sequence[Row], compute: Callable[[list[int]], Sequence[Tensor]]) -> list[Tensor]:
        """One tensor a row, on the CPU, in the order of the rows.

        Args:
            quantity: what is computed, with all that it depends on beside model and row, such as the number of a layer.
            rows: (input ids, labels) of each row.
            compute: numbers of the rows that are not on disk -> one tensor each; called at most once, without gradients.

        Raises:
            ValueError: `compute` returned another number of tensors.
        """
        keys = [self._key(quantity, row) for row in rows]
        found: dict[str, Tensor | None] = {key: _read(self.folder / key) for key in dict.fromkeys(keys)}
        first = {key: i for i, key in reversed(list(enumerate(keys)))}  # equal rows are computed once
        missing = [i for key, i in first.items() if found[key] is None]
        if missing:
            with torch.no_grad():
                values = compute(missing)
            if len(values) != len(missing):
                raise ValueError(f"get: {len(values)} values of {quantity!r} for {len(missing)} rows; compute one a row")
            self.folder.mkdir(parents=True, exist_ok=True)
            for i, value in zip(missing, values, strict=True):
                kept = value.detach().cpu().clone()  # a slice would keep, and write, its whole batch
                _write(self.folder / keys[i], kept)
                found[keys[i]] = kept
        return [known for key in keys if (known := found[key]) is not None]

    def _key(self, quantity: str, row: Row) -> str:
        ids, labels = (list(map(int, part)) for part in row)
        return hashlib.sha256(repr((self.model_hash, quantity, ids, labels)).encode()).hexdigest()


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
