"""Language models: small Llamas from scratch, with a tokenizer of their own, or pretrained ones."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngdiff.lm.loading import Trust, load_config

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

# Some of the benchmarks' published models have no safetensors. torch reads their files as tensors and nothing else.
PUBLISHED = Trust(pickle=True)


@dataclass(frozen=True)
class Size:
    """Shape of a Llama trained from scratch. `deviation` is the standard deviation of its initial weights."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    deviation: float = 0.05
    positions: int = 1024


# Named by their number of parameters. A larger initial deviation than the usual 0.02 makes small models memorise in a
# third fewer epochs.
SIZES = {
    "1m": Size(hidden=192, layers=2, heads=4, intermediate=512, vocabulary=2048),
    "3m": Size(hidden=256, layers=3, heads=4, intermediate=704, vocabulary=2048),
    "12m": Size(hidden=384, layers=6, heads=6, intermediate=1024, vocabulary=4096, deviation=0.03),
    "100m": Size(hidden=768, layers=12, heads=12, intermediate=2048, vocabulary=8192, deviation=0.02),
}


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Byte-level BPE trained on `texts`, as a transformers tokenizer. Every string can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def build_llama(size: Size, tokenizer: Any) -> Any:
    """A LlamaForCausalLM with random weights (from torch's global generator) and tied embeddings, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=size.positions,
        initializer_range=size.deviation,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def positions(source: str | None, size: str) -> int:
    """How many tokens a row may have: of the pretrained model, or of the size trained from scratch."""
    if source is None:
        return SIZES[size].positions
    return int(getattr(_config(source), "max_position_embeddings", sys.maxsize))


# Position by alibi, or a mask made without position ids: documents in one row would see each other.
_ONE_DOCUMENT_A_ROW = ("falcon", "bloom", "mpt")


def holds_several_documents(source: str | None) -> bool:
    """Whether several documents in one row stay apart in this model; None is one trained from scratch."""
    return source is None or _config(source).model_type not in _ONE_DOCUMENT_A_ROW


def parameter_count(folder: Path) -> int:
    """Number of stored weights in a model folder; tied ones count once."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)
    return total


def _config(source: str) -> Any:
    return load_config(source).get_text_config()
