"""Language models: small Llamas from scratch, with a tokenizer of their own, or pretrained ones."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.errors import UserError

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


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
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
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


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a hub id or folder.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--model: no tokenizer at {str(source)!r} ({first_line(error)}); give a hub id or a model folder"
        ) from None


def load_model(source: str | Path, tokenizer: Any, device: torch.device) -> Any:
    """A causal language model with float32 weights on `device`, in evaluation mode.

    float32, because an update of size lr d is lost in the rounding of bfloat16 weights; on a GPU the model computes in
    bfloat16 by autocast.

    Raises:
        UserError: it cannot be loaded, or the tokenizer knows ids that the model has no embedding for.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--model: no model at {str(source)!r} ({first_line(error)}); give a hub id or a model folder"
        ) from None
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"--model: the tokenizer at {str(source)!r} has {len(tokenizer)} tokens and the model embeds {rows}; "
            "give a model and tokenizer that belong together"
        )
    return model.to(device).eval()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def describe(size: Size) -> dict[str, Any]:
    """A size as plain values, for hashes and configuration files."""
    return asdict(size)
