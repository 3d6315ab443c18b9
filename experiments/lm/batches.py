"""Rows of different length as rectangular batches, with as little padding as possible."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from experiments.lm.encoding import Example
from ngdiff.objectives import IGNORE


def collate(examples: Sequence[Example], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Right-padded input_ids, attention_mask and labels, each (rows, longest row); prompts and padding have label -100.

    The attention mask is left out where no row is padded: attention then takes its faster, purely causal path.
    """
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for i, example in enumerate(examples):
        n = len(example.ids)
        ids[i, :n] = torch.tensor(example.ids)
        mask[i, :n] = 1
        labels[i, example.prompt : n] = ids[i, example.prompt : n]
    batch = {"input_ids": ids, "labels": labels} | ({} if bool(mask.all()) else {"attention_mask": mask})
    return {name: tensor.to(device) for name, tensor in batch.items()}


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
