"""Greedy decoding of many prompts at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.lm.batches import length_sorted
from experiments.lm.devices import autocast

TOKENS = 32768  # cache entries a batch: rows x (prompt + new tokens)


@torch.inference_mode()
def greedy(model: Any, prompts: Sequence[Sequence[int]], eos: int, pad: int, max_new_tokens: int) -> list[list[int]]:
    """Up to `max_new_tokens` ids after each prompt, cut before the end token, in the order given.

    Batches are sorted by length and left-padded, keys and values are cached, and rows that have ended leave the batch.
    """
    model.eval()
    result: list[list[int]] = [[] for _ in prompts]
    for indices in length_sorted([len(prompt) + max_new_tokens for prompt in prompts], TOKENS):
        with autocast(model.device):
            batch = _greedy_batch(model, [prompts[i] for i in indices], eos, pad, max_new_tokens)
        for i, ids in zip(indices, batch, strict=True):
            result[i] = ids
    return result


def _greedy_batch(model: Any, prompts: list[Sequence[int]], eos: int, pad: int, max_new_tokens: int) -> list[list[int]]:
    ids, mask = _left_padded(prompts, pad, model.device)
    rows = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    result: list[list[int]] = [[] for _ in prompts]
    cache = None
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,  # only the last position predicts the next token
        )
        cache = out.past_key_values
        token = out.logits[:, -1].argmax(-1)
        tokens = token.tolist()
        for row, new in zip(rows, tokens, strict=True):
            if new != eos:
                result[row].append(new)
        alive = [i for i, new in enumerate(tokens) if new != eos]
        if not alive:
            break
        if len(alive) < len(rows):
            keep = torch.tensor(alive, device=model.device)
            cache.batch_select_indices(keep)
            mask, token, rows = mask[keep], token[keep], [rows[i] for i in alive]
        ids = token[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return result


def _left_padded(prompts: list[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
