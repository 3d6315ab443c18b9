"""What a model said before unlearning of rows that are token ids, by content: batches need not know their rows' numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from ngdiff.lm.objectives import Objective, layer
from ngdiff.lm.pairs import PairCollator, Row
from ngdiff.reference import ReferenceCache


class Said:
    """Reference quantities of rows, computed by the model as it is when this is built, and kept on disk.

    Args:
        folder: of the `ReferenceCache`.
        model: of transformers, before the first step.
        pad: id to pad with.
        context: around each pass, such as autocast.
        half: whether that computes in 16 bits; such values are not taken for others.
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        pad: int,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        half: bool = False,
    ):
        self.cache, self.model, self.collator = ReferenceCache(folder, model), model, PairCollator(pad)
        self.context, self.suffix = context, " in 16 bits" if half else ""

    def ask(self, objective: Objective, rows: Sequence[Row], size: int) -> None:
        """Compute what an objective will read of these rows, where it is not on disk yet, `size` of them at a time.

        Raises:
            ValueError: a row holds several documents, whose padding cannot be told from tokens.
        """
        if any("position_ids" in row for row in rows):
            raise ValueError("position_ids: found in a row, and the objective compares rows of one document; give one a row")

        def compute(missing: list[int]) -> Iterator[tuple[int, Tensor]]:
            training = self.model.training
            self.model.eval()
            for start in range(0, len(missing), size):
                numbers = missing[start : start + size]
                batch = {k: v.to(self.model.device) for k, v in self.collator([rows[i] for i in numbers]).items()}
                with self.context():
                    out = objective.forward(self.model, batch, layer(self.model))
                yield from zip(numbers, objective.quantities(out), strict=True)
            self.model.train(training)

        found = [(row["input_ids"], row.get("labels", row["input_ids"])) for row in rows]
        self.cache.get(objective.quantity(self.model) + self.suffix, found, compute)

    def of(self, objective: Objective, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """What the model said of each row of a batch.

        Raises:
            RuntimeError: it was not asked, or the file is gone.
        """

        def refuse(missing: list[int]) -> Iterator[tuple[int, Tensor]]:
            raise RuntimeError(f"{self.cache.folder}: there is no reference for a row of the batch; start the run again")

        return list(self.cache.get(objective.quantity(self.model) + self.suffix, _rows(batch), refuse))


def _rows(batch: Mapping[str, Tensor]) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of the rows of a batch, as they were before padding."""
    kept = batch["attention_mask"].bool()
    return [
        (ids[mask].tolist(), labels[mask].tolist())
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], kept, strict=True)
    ]
