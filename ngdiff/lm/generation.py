"""Greedy decoding of many prompts at once."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ngdiff.lm.batches import in_batches, left_padded
from ngdiff.lm.devices import autocast

TOKENS = 65536  # cache entries a batch: more rows are fewer steps, until copying the cache costs more than they save
CACHE = 4 << 30  # bytes that the cache of a batch may take, of large models
LEAVE = 7 / 8  # share of the batch's rows that still go on when the others leave it: their keys and values are copied then
PREFIX = 32  # tokens that all prompts of a batch must share before they are read once for all

Ends = Callable[[list[int]], bool]


@torch.inference_mode()
def greedy(
    model: Any, prompts: Sequence[Sequence[int]], eos: int, pad: int, max_new_tokens: int, ends: Ends | None = None
) -> list[list[int]]:
    """Up to `max_new_tokens` ids after each prompt, cut before the end token, in the order given; fewer where the model has no
    positions left.

    With `ends`, whether the ids after a prompt hold all that is wanted of them, no more are written once they do.

    Batches are sorted by length and left-padded, keys and values are cached, and rows that have ended leave the batch. What all
    prompts of a batch begin with, such as the examples of a few-shot prompt, is read once.
    """
    model.eval()
    result: list[list[int]] = [[] for _ in prompts]

    def compute(indices: list[int]) -> list[list[int]]:
        with autocast(model.device):
            return _greedy_batch(model, [prompts[i] for i in indices], eos, pad, max_new_tokens, ends)

    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    for indices, batch in in_batches(lengths, max(1, min(TOKENS, CACHE // cache_bytes(model))), compute):
        for i, ids in zip(indices, batch, strict=True):
            result[i] = ids
    return result


def cache_bytes(model: Any) -> int:
    """Bytes of the keys and values of one token."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 if model.device.type == "cuda" else model.dtype.itemsize  # autocast computes in bfloat16
    return int(2 * config.num_hidden_layers * heads * head * size)


def _greedy_batch(
    model: Any, prompts: list[Sequence[int]], eos: int, pad: int, max_new_tokens: int, ends: Ends | None
) -> list[list[int]]:
    rows = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    ended = [False] * len(prompts)
    result: list[list[int]] = [[] for _ in prompts]
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    cache, shared = _read_shared(model, prompts)
    ids, mask = left_padded([prompt[shared:] for prompt in prompts], pad, model.device)
    mask = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=1)
    for _ in range(max_new_tokens):
        # Rows that have ended, for want of positions too, may stay for some steps more.
        positions = (mask.cumsum(1) - 1).clamp(min=0, max=most - 1)[:, -ids.shape[1] :]
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
        for row, new in zip(rows, token.tolist(), strict=True):
            ended[row] |= new == eos
            if not ended[row]:
                result[row].append(new)
                full = len(prompts[row]) + len(result[row]) > most
                ended[row] = full or (ends is not None and ends(result[row]))
        alive = [i for i, row in enumerate(rows) if not ended[row]]
        if not alive:
            break
        if len(alive) <= LEAVE * len(rows):
            keep = torch.tensor(alive, device=model.device)
            cache.batch_select_indices(keep)
            mask, token, rows = mask[keep], token[keep], [rows[i] for i in alive]
        ids = token[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return result


def _read_shared(model: Any, prompts: list[Sequence[int]]) -> tuple[Any, int]:
    """Keys and values of the tokens that all prompts begin with, a copy a row, and how many these are; (None, 0) if too few."""
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # in the order of words, the two that share least
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    shared = min(shared, min(map(len, prompts)) - 1)  # each prompt keeps a token to read
    if len(prompts) < 2 or shared < PREFIX:
        return None, 0
    ids = torch.tensor([list(first[:shared])], device=model.device)
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(len(prompts))
    return cache, shared
