"""Language models: small Llamas from scratch, with a tokenizer of their own, or pretrained ones."""

import hashlib
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ngdiff.errors import UserError

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


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a hub id or folder.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with _loading(source):
        return AutoTokenizer.from_pretrained(source)


def check_pretrained(source: str, tokenizer: Any) -> None:
    """Load a model once, in its own dtype, to find out before anything is written that it can be used.

    Raises:
        UserError: it cannot be loaded, lacks weights that would stay random, or does not embed all of the tokenizer's ids.
    """
    from transformers import AutoModelForCausalLM

    with _loading(source):
        model, info = AutoModelForCausalLM.from_pretrained(source, dtype="auto", output_loading_info=True)
    if info["missing_keys"]:
        raise UserError(
            f"--model: {source!r} lacks {len(info['missing_keys'])} weights, such as {min(info['missing_keys'])}; "
            "give a complete checkpoint of a causal language model"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"--model: the tokenizer of {source!r} has {len(tokenizer)} tokens and the model embeds {rows}; "
            "give a model and tokenizer that belong together"
        )


def identity(source: str) -> str:
    """What tells one state of a pretrained model from another: the hub's commit, or a hash of the folder's files."""
    folder = Path(source)
    if not folder.is_dir():
        return str(getattr(_config(source), "_commit_hash", None))
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


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


def load_model(source: str | Path, device: torch.device) -> Any:
    """A causal language model with float32 weights on `device`, in evaluation mode.

    float32, because an update of size lr d is lost in the rounding of bfloat16 weights; on a GPU the model computes in
    bfloat16 by autocast.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    with _loading(source):
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).to(device).eval()


def parameter_count(folder: Path) -> int:
    """Number of stored weights in a model folder; tied ones count once."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)
    return total


def _config(source: str) -> Any:
    from transformers import AutoConfig

    with _loading(source):
        return AutoConfig.from_pretrained(source).get_text_config()


@contextmanager
def _loading(source: str | Path) -> Iterator[None]:
    """Whatever transformers raises for a missing or broken model becomes one line."""
    try:
        yield
    except Exception as error:  # its own, torch's, safetensors' and the validation of configurations
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"--model: {str(source)!r} cannot be loaded ({reason}); give a hub id or a model folder") from None
