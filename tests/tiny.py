"""A language model and rows so small that a training step takes milliseconds."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 64


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Two layers, tied embeddings, weights of a size that makes gradients differ from layer to layer."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, "tie_word_embeddings": True,
        "pad_token_id": 0, "initializer_range": 0.2,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(options | changes)))


def rows(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Rows of 4 to 11 tokens, of which the first two are not scored."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    lengths = torch.randint(4, 12, (count,), generator=generator, device="cpu").tolist()
    ids = [torch.randint(1, VOCABULARY, (n,), generator=generator, device="cpu").tolist() for n in lengths]
    return [{"input_ids": row, "labels": [-100, -100, *row[2:]]} for row in ids]
