"""Rows of different length as rectangular batches, with as little padding as possible."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ngdiff.errors import UserError
from ngdiff.lm.devices import free_memory
from ngdiff.lm.encoding import Example
from ngdiff.objectives import IGNORE

T = TypeVar("T")


class TooLarge(UserError):
    """A single row does not fit into memory, with what lies there beside it."""


def collate(examples: Sequence[Example], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Right-padded input_ids and labels, each (rows, longest row), and what keeps padding and documents apart.

    Prompts and padding have label -100. The attention mask is left out where no row is padded: attention then takes its faster,
    purely causal path. Where a row holds several documents there are position_ids instead, which begin anew with each document
    and with the padding: from them transformers makes a mask of one block a document.
    """
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad)
    labels = torch.full_like(ids, IGNORE)
    for i, example in enumerate(examples):
        ids[i, : len(example.ids)] = torch.tensor(example.ids)
        labels[i, : len(example.ids)] = torch.tensor(example.labels)
    batch = {"input_ids": ids, "labels": labels} | _apart(examples, longest)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _apart(examples: Sequence[Example], longest: int) -> dict[str, Tensor]:
    lengths = torch.tensor([len(example.ids) for example in examples])[:, None]
    columns = torch.arange(longest)[None]
    if all(example.starts == (0,) for example in examples):
        mask = (columns < lengths).long()
        return {} if bool(mask.all()) else {"attention_mask": mask}
    begins = torch.zeros(len(examples), longest, dtype=torch.long)
    for i, example in enumerate(examples):
        starts = [*example.starts, len(example.ids)]
        begins[i, [start for start in starts if start < longest]] = torch.tensor([s for s in starts if s < longest])
    return {"position_ids": columns - begins.cummax(1).values}


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, each (rows, longest row), of rows that end in the last column."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def length_sorted(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, each batch at most `tokens` in size when padded.

    Longest first, so that a batch that does not fit into memory fails at the start.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def in_batches(lengths: Sequence[int], tokens: int, compute: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """(indices, result) of each batch of `length_sorted`. A batch that does not fit into memory is halved.

    Args:
        lengths: tokens of each row.
        tokens: size of a batch at most, padding included; a smaller one takes its place once it proved too large.
        compute: from the indices of a batch to its result.

    Raises:
        TooLarge: a single row does not fit.
    """
    left = [i for batch in length_sorted(lengths, tokens) for i in batch]
    while left:
        batch = next(length_sorted([lengths[i] for i in left], tokens))
        indices = [left[k] for k in batch]
        try:
            result = compute(indices)
        except (torch.OutOfMemoryError, TooLarge):  # or what is read inside, in batches of its own
            tokens = len(indices) // 2 * lengths[indices[0]]
        else:
            yield indices, result
            left = left[len(indices) :]
            continue
        # Only here is the error gone, and with it the frames that hold the batch's tensors.
        free_memory()
        if not tokens:
            raise TooLarge(f"evaluation: one row of {lengths[indices[0]]} tokens does not fit into memory; use a larger device")


def shuffled_batches(lengths: Sequence[int], size: int, generator: torch.Generator) -> list[list[int]]:
    """All indices once, in random batches of `size` whose rows have similar length.

    Rows are sorted by length only inside random pools of eight batches, which keeps the batches random and saves most of the
    padding.
    """
    order = torch.randperm(len(lengths), generator=generator, device="cpu").tolist()
    batches = []
    for start in range(0, len(order), 8 * size):
        pool = sorted(order[start : start + 8 * size], key=lambda i: lengths[i])
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator, device="cpu").tolist()]


def spread(rows: Sequence[T], count: int) -> list[T]:
    """At most `count` of the rows, evenly spaced: they often come by author or topic."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else list(rows)


def drawn(rows: Sequence[T], count: int, seed: int = 0) -> list[T]:
    """At most `count` of the rows, drawn by the seed alone, in their order.

    For rows whose order is not known: where each topic has equally many, evenly spaced ones are the same question of each.
    """
    if len(rows) <= count:
        return list(rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed), device="cpu")
    return [rows[i] for i in sorted(order[:count].tolist())]
