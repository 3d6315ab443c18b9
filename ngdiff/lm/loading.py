"""Pretrained models of the hub or of a folder. What transformers raises becomes one line."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ngdiff.errors import UserError
from ngdiff.files import can_be_named

SUGGESTION = "give a hub id or a model folder"


@dataclass(frozen=True)
class Trust:
    """What a model may do while it is loaded.

    Attributes:
        pickle: read weights that were pickled: such a file may run code of its own.
        code: run Python code that comes with the model.
    """

    pickle: bool = False
    code: bool = False


NONE = Trust()


def load_config(source: str | Path, trust: Trust = NONE, option: str = "--model") -> Any:
    """The configuration of a model.

    Raises:
        UserError: it cannot be loaded, or needs code that is not trusted.
    """
    from transformers import AutoConfig

    with _loading(source, option):
        return AutoConfig.from_pretrained(source, trust_remote_code=trust.code)


def load_tokenizer(source: str | Path, trust: Trust = NONE, option: str = "--model") -> Any:
    """The tokenizer of a hub id or folder.

    Raises:
        UserError: it cannot be loaded, or needs code that is not trusted.
    """
    from transformers import AutoTokenizer

    with _loading(source, option):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust.code)


def load_model(
    source: str | Path, device: torch.device, trust: Trust = NONE, dtype: torch.dtype = torch.float32, option: str = "--model"
) -> Any:
    """A causal language model on `device`, in evaluation mode.

    With float32 weights, because an update of size lr d is lost in the rounding of bfloat16 weights; on a GPU the model
    computes in bfloat16 by autocast. Another dtype needs an optimizer that keeps a float32 copy of the weights.

    Raises:
        UserError: it cannot be loaded, does not fit into memory, lacks weights that would stay random, or has pickled ones or
            code that are not trusted.
    """
    model, missing = _load(source, trust, dtype, option)
    _check_complete(str(source), missing, option)
    try:
        return model.to(device).eval()
    except torch.OutOfMemoryError:
        raise UserError(
            f"{option}: {str(source)!r} does not fit into memory; give --bf16, a smaller model or a larger device"
        ) from None


def check_pretrained(source: str, tokenizer: Any, trust: Trust = NONE) -> None:
    """Load a model once, in its own dtype, to find out before anything is written that it can be used.

    Raises:
        UserError: it cannot be loaded, lacks weights that would stay random, or does not embed all of the tokenizer's ids.
    """
    model, missing = _load(source, trust, "auto", "--model")
    _check_complete(source, missing, "--model")
    check_embeds(source, model.get_input_embeddings().weight.shape[0], tokenizer)


def check_embeds(source: str, rows: int, tokenizer: Any, option: str = "--model") -> None:
    """Whether a model that embeds ids up to `rows` belongs to a tokenizer.

    Raises:
        UserError: the tokenizer has more tokens.
    """
    if len(tokenizer) > rows:
        raise UserError(
            f"{option}: the tokenizer of {source!r} has {len(tokenizer)} tokens and the model embeds {rows}; "
            "give a model and tokenizer that belong together"
        )


def check_weights(source: str, trust: Trust = NONE, option: str = "--model") -> None:
    """Whether a folder holds weights that may be read, before any is. What the hub has is found out when it is loaded.

    Raises:
        UserError: it holds none, or only pickled ones, which are not trusted.
    """
    folder = Path(source)
    if not can_be_named(folder) or not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    if not any(folder.glob("*.bin")):
        raise UserError(f"{option}: {source!r} holds no weights, no file *.safetensors; {SUGGESTION}")
    if not trust.pickle:
        raise UserError(_pickled(source, option))


def build(config: Any, trust: Trust = NONE, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model of this shape, with new weights.

    Raises:
        UserError: there is no such model.
    """
    from transformers import AutoModelForCausalLM

    with _loading(config.name_or_path):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust.code, dtype=dtype)


def identity(source: str, config: Any = None) -> str:
    """What tells one state of a pretrained model from another: the hub's commit, or a hash of the folder's files.

    Args:
        source: hub id or folder.
        config: of the model, if it was loaded.
    """
    folder = Path(source)
    if not folder.is_dir():
        return str(getattr((config or load_config(source)).get_text_config(), "_commit_hash", None))
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _load(source: str | Path, trust: Trust, dtype: torch.dtype | str, option: str) -> tuple[Any, list[str]]:
    from transformers import AutoModelForCausalLM

    check_weights(str(source), trust, option)
    # None lets transformers take pickled weights where there are no others.
    options: dict[str, Any] = {"use_safetensors": None if trust.pickle else True, "trust_remote_code": trust.code}
    with _loading(source, option):
        model, info = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    return model, sorted(info["missing_keys"])


def _check_complete(source: str, missing: list[str], option: str) -> None:
    if missing:
        raise UserError(
            f"{option}: {source!r} lacks {len(missing)} weights, such as {missing[0]}; "
            "give a complete checkpoint of a causal language model"
        )


def _pickled(source: str | Path, option: str) -> str:
    return (
        f"{option}: {str(source)!r} has only pickled weights, which may run code of their own; give a model with safetensors, "
        "or --allow-pickle if you trust it"
    )


@contextmanager
def _loading(source: str | Path, option: str = "--model") -> Iterator[None]:
    """Whatever transformers raises for a missing or broken model becomes one line."""
    try:
        yield
    except Exception as error:  # its own, torch's, safetensors' and the validation of configurations
        raise UserError(_explained(source, option, str(error).strip(), type(error).__name__)) from None


def _explained(source: str | Path, option: str, text: str, kind: str) -> str:
    if "trust_remote_code" in text:
        return (
            f"{option}: {str(source)!r} brings Python code of its own, which is not run; give another model, "
            "or --trust-remote-code if you trust it"
        )
    if "safetensors" in text and "does not appear to have a file named" in text:
        return _pickled(source, option)
    reason = (text.splitlines() or [kind])[0][:200]
    return f"{option}: {str(source)!r} cannot be loaded ({reason}); {SUGGESTION}"
