"""Conversations as token ids: the tokenizer's chat template writes them, and only what the assistant says is scored."""

from collections.abc import Iterator, Sequence
from os.path import commonprefix
from typing import Any

from ngdiff.errors import UserError
from ngdiff.lm.encoding import DATE, Example

ASSISTANT = "assistant"
Turn = tuple[str, str]  # role, content


def conversation(tokenizer: Any, turns: Sequence[Turn], place: str) -> Example:
    """A conversation up to its last turn, which is the assistant's.

    Scored are the turns of the assistant, each with the end token that the template writes behind it, and at the end of the
    conversation one in any case. The template is asked for the conversation up to each of them, so it need not mark them.

    Args:
        tokenizer: of transformers, a fast one with a chat template.
        turns: of the conversation.
        place: where it stands, for messages.

    Raises:
        UserError: the template refuses the conversation, or writes earlier turns in another way when later ones follow.
    """
    text = _written(tokenizer, turns, place)
    spans = list(_spans(tokenizer, turns, text, place))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    scored = [any(a < end and b > start for start, end in spans) for a, b in encoded["offset_mapping"]]
    scored[0] = False  # nothing predicts the first token
    last = max(i for i, own in enumerate(scored) if own)
    ids, scored = list(encoded["input_ids"][: last + 1]), scored[: last + 1]
    if ids[-1] not in tokenizer.all_special_ids:
        ids, scored = [*ids, int(tokenizer.eos_token_id)], [*scored, True]
    first = scored.index(True)
    return Example(tuple(ids), first, unscored=tuple(_gaps(scored, first)))


def tokens(tokenizer: Any, turns: Sequence[Turn], place: str) -> int:
    """How many tokens the whole of a conversation has, what comes after its last turn included.

    Raises:
        UserError: the template refuses the conversation.
    """
    return len(tokenizer(_written(tokenizer, turns, place), add_special_tokens=False)["input_ids"])


def prompt_ids(tokenizer: Any, turns: Sequence[Turn], place: str) -> tuple[int, ...]:
    """What the last turn, the assistant's, is generated from."""
    text = _written(tokenizer, turns[:-1], place, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _written(tokenizer: Any, turns: Sequence[Turn], place: str, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    messages = [{"role": role, "content": content} for role, content in turns]
    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt, "date_string": DATE}
    try:
        return str(tokenizer.apply_chat_template(messages, **options))
    except (TemplateError, TypeError, ValueError) as error:  # what templates raise, and what they stumble over
        raise UserError(f"{place}: the chat template refuses the messages ({error!s:.120}); change them") from None


def _spans(tokenizer: Any, turns: Sequence[Turn], text: str, place: str) -> Iterator[tuple[int, int]]:
    """(start, end) in the text of what the model has to say in each turn of the assistant: its content and its end token."""
    for i, (role, _) in enumerate(turns):
        if role != ASSISTANT:
            continue
        before = _written(tokenizer, turns[:i], place)
        asked = _written(tokenizer, turns[:i], place, add_generation_prompt=True)
        prompt = commonprefix([asked, text])  # noqa: RUF071 (of characters, as it is)
        after = _written(tokenizer, turns[: i + 1], place)
        if len(prompt) < len(before) or not text.startswith(after):
            raise UserError(
                f"{place}: the chat template writes turn {i + 1} in another way when later ones follow; "
                "give a row of its own to each turn of the assistant"
            )
        yield len(prompt), len(after.rstrip())  # a line end behind the end token is nothing that the model says


def _gaps(scored: Sequence[bool], first: int) -> Iterator[tuple[int, int]]:
    """Runs of tokens that are not scored, from the first scored one on."""
    start = None
    for i in range(first, len(scored)):
        if not scored[i] and start is None:
            start = i
        if scored[i] and start is not None:
            yield start, i
            start = None
