"""Long texts as rows of bounded length, several documents to a row, which do not see each other."""

from collections.abc import Iterable, Sequence
from typing import Any

from ngdiff.lm.encoding import Example


def encode_text(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of a whole document: the tokenizer's begin token, if it has one, the text, the end token."""
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    begin = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
    return (*begin, *ids, int(tokenizer.eos_token_id))


def document(ids: Sequence[int], length: int) -> Example:
    """The first `length` tokens of a document as a row of its own; all but the first token are scored."""
    return Example(tuple(ids[:length]), 1)


def packed(documents: Iterable[Sequence[int]], length: int, together: bool = True) -> list[Example]:
    """Documents cut into pieces of at most `length` tokens, and the pieces put together into rows of at most that.

    Each piece goes to the first row that has room. In every piece all but the first token are scored; attention and positions
    begin anew with it, see `ngdiff.lm.batches.collate`.

    Args:
        documents: token ids of each.
        length: tokens a row at most, at least 2.
        together: False for models that cannot keep documents apart: each piece is a row.
    """
    if length < 2:
        raise ValueError(f"packed: length = {length}; give at least 2, for the first token of a piece is not scored")
    rows: list[list[Sequence[int]]] = []
    room: list[int] = []
    for ids in documents:
        for piece in (ids[i : i + length] for i in range(0, len(ids), length)):
            if len(piece) < 2:  # a last token alone, which nothing predicts
                continue
            fitting = (i for i, free in enumerate(room) if together and free >= len(piece))
            row = next(fitting, len(rows))
            if row == len(rows):
                rows.append([])
                room.append(length)
            rows[row].append(piece)
            room[row] -= len(piece)
    return [_joined(pieces) for pieces in rows]


def _joined(pieces: Sequence[Sequence[int]]) -> Example:
    starts = [0]
    for piece in pieces[:-1]:
        starts.append(starts[-1] + len(piece))
    return Example(tuple(i for piece in pieces for i in piece), 1, tuple(starts))
