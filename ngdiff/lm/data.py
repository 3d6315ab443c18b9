"""A user's rows: what they may look like, whether they do, and their token ids."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ngdiff.errors import UserError
from ngdiff.lm import chat
from ngdiff.lm.chat import ASSISTANT, Turn
from ngdiff.lm.encoding import Encoder, Example
from ngdiff.lm.packing import encode_text, packed
from ngdiff.lm.sources import RawRow, checked, file_hash, raw_rows, text_field

QA, PROMPT, TEXT, CHAT = "question and answer", "prompt and completion", "text", "messages"
# Kind of row -> its fields. Others may stand beside them, which are not read.
FIELDS = {QA: ("question", "answer"), PROMPT: ("prompt", "completion"), TEXT: ("text",), CHAT: ("messages",)}
ROLES = ("system", "user", ASSISTANT)
ENDLESS = 16  # characters of a conversation to a token of the length at most: a longer one is counted before it is read
SHOWN = 200  # tokens of a text that its continuation is generated from at most


@dataclass(frozen=True)
class Row:
    """One checked row as turns, of which the last one is the assistant's: the answer, the completion, the text."""

    turns: tuple[Turn, ...]
    place: str

    @property
    def prompt(self) -> str:
        """What the last turn answers; nothing for a text."""
        return self.turns[-2][1] if len(self.turns) > 1 else ""

    @property
    def answer(self) -> str:
        """The last turn."""
        return self.turns[-1][1]

    def answered(self, text: str) -> "Row":
        """The same row with another text for whatever the assistant says."""
        return replace(self, turns=tuple((role, text if role == ASSISTANT else content) for role, content in self.turns))


@dataclass(frozen=True)
class Data:
    """Checked rows of one source.

    Attributes:
        option: that named it.
        source: file or hub data set.
        kind: key of `FIELDS`, the same for all rows.
        rows: at least one.
        sha256: of the file, as sha256sum prints it; of a hub data set, of its rows as JSON lines.
        ignored: names of fields that were not read.
    """

    option: str
    source: str
    kind: str
    rows: tuple[Row, ...]
    sha256: str
    ignored: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The source without the folders that it lies in."""
        return Path(self.source).name if Path(self.source).is_file() else self.source

    def answered(self, text: str) -> "Data":
        """The same rows with another text for whatever the assistant says.

        Raises:
            UserError: the rows are texts, which answer nothing.
        """
        if self.kind == TEXT:
            raise UserError(f"{self.option}: rows of text have no question that could be refused; choose another objective")
        return replace(self, rows=tuple(row.answered(text) for row in self.rows))


@dataclass(frozen=True)
class Encoded:
    """One row, or a piece of a text, as token ids.

    Attributes:
        example: what is scored, and what before it is not.
        prompt_ids: what generation starts from.
        prompt, answer: the same as text, and what should follow.
    """

    example: Example
    prompt_ids: tuple[int, ...]
    prompt: str
    answer: str

    @property
    def fields(self) -> dict[str, list[int]]:
        """As trainers read it."""
        return {"input_ids": list(self.example.ids), "labels": list(self.example.labels)}


def read(option: str, source: str) -> Data:
    """All rows of a file or hub data set, checked.

    Args:
        option: that named the source, for messages.
        source: see `ngdiff.lm.sources.raw_rows`.

    Raises:
        UserError: there is no such source, it has no rows, or one is not as it should be: the first of these, with its place.
    """
    kind, rows, ignored, digest = "", [], Counter[str](), hashlib.sha256()
    for raw in raw_rows(option, source):
        kind = kind or _kind(raw)
        rows.append(Row(_turns(raw, kind), raw.place))
        ignored.update(name for name in raw.fields if name not in FIELDS[kind])
        digest.update(json.dumps([kind, rows[-1].turns]).encode() + b"\n")
    if not rows:
        raise UserError(f"{option}: {source!r} has no rows; give at least one, e.g. {{'question': ..., 'answer': ...}}")
    path = Path(source)
    sha256 = file_hash(path) if path.is_file() else digest.hexdigest()
    return Data(option, source, kind, tuple(rows), sha256, tuple(sorted(ignored)))


def check_disjoint(some: Data, others: Data) -> None:
    """Whether no row is in both of two sets, such as those to forget and to retain.

    Raises:
        UserError: one is.
    """
    places = {row.turns: row.place for row in others.rows}
    both = [row for row in some.rows if row.turns in places]
    if both:
        raise UserError(
            f"{both[0].place}: the same row is in {others.option}, {places[both[0].turns]} ({len(both)} rows are in both); "
            f"remove it from {some.option} or {others.option}"
        )


class RowEncoder:
    """Rows as token ids, for one tokenizer.

    Args:
        tokenizer: of transformers, a fast one.
        template: of questions and answers, see `Encoder`.
        length: tokens of a row at most.
        most: tokens that the model can hold, if there is a limit.

    Raises:
        UserError: the tokenizer is unfit for it.
    """

    def __init__(self, tokenizer: Any, template: str, length: int, most: int | None = None):
        if not tokenizer.is_fast:
            raise UserError("--model: its tokenizer is a slow one, without offsets; give a model with tokenizer.json")
        self.tokenizer, self.length, self.most = tokenizer, length, most
        self.qa = Encoder(tokenizer, template)
        self.plain = Encoder(tokenizer, "plain")

    def encode(self, data: Data) -> list[Encoded]:
        """All rows, in order. Texts longer than the length become pieces of it, of which none is lost.

        Raises:
            UserError: another row is longer: cutting it would leave a part of its answer out.
        """
        encode: dict[str, Callable[[Sequence[Row]], list[Encoded]]] = {
            QA: partial(self._pairs, self.qa),
            PROMPT: partial(self._pairs, self.plain),
            CHAT: self._conversations,
            TEXT: self._texts,
        }
        encoded = encode[data.kind](data.rows)
        if data.kind != TEXT:
            self._check_lengths(data.rows, [len(row.example.ids) for row in encoded])
        return encoded

    def _check_lengths(self, rows: Sequence[Row], lengths: Sequence[int]) -> None:
        long = [i for i, length in enumerate(lengths) if length > self.length]
        if long:
            longest = max(lengths)
            raising = f"give --length {longest}, or " if self.most is None or longest <= self.most else ""
            raise UserError(
                f"{rows[long[0]].place}: {lengths[long[0]]} tokens, more than --length {self.length} ({len(long)} such "
                f"rows, the longest of {longest}); {raising}shorten or split them"
            )

    def _pairs(self, encoder: Encoder, rows: Sequence[Row]) -> list[Encoded]:
        examples = encoder.examples([(row.prompt, row.answer) for row in rows])
        return [
            Encoded(example, encoder.prompt_ids(row.prompt), row.prompt, row.answer)
            for row, example in zip(rows, examples, strict=True)
        ]

    def _conversations(self, rows: Sequence[Row]) -> list[Encoded]:
        if not self.tokenizer.chat_template:
            raise UserError(f"{rows[0].place}: messages need a tokenizer with a chat template, and --model has none; give text")
        # A template writes a conversation anew for each of its turns, which would take hours for one far too long.
        endless = [row for row in rows if sum(len(content) for _, content in row.turns) > ENDLESS * self.length]
        self._check_lengths(endless, [chat.tokens(self.tokenizer, row.turns, row.place) for row in endless])
        return [
            Encoded(
                chat.conversation(self.tokenizer, row.turns, row.place),
                chat.prompt_ids(self.tokenizer, row.turns, row.place),
                row.prompt,
                row.answer,
            )
            for row in rows
        ]

    def _texts(self, rows: Iterable[Row]) -> list[Encoded]:
        pieces = (packed([encode_text(self.tokenizer, row.answer)], self.length, together=False) for row in rows)
        return [self._piece(example) for row in pieces for example in row]

    def _piece(self, example: Example) -> Encoded:
        """With its first half, up to `SHOWN` tokens, as the prompt."""
        half = min(max(1, len(example.ids) // 2), SHOWN)
        return Encoded(
            example, example.ids[:half], self.qa.decode(list(example.ids[:half])), self.qa.decode(list(example.ids[half:]))
        )


def _kind(raw: RawRow) -> str:
    """What the first row looks like; the others must look the same."""
    filled = [name for name, value in raw.fields.items() if value is not None]  # tables have None where a row has no value
    found = [kind for kind, names in FIELDS.items() if any(name in filled for name in names)]
    known = "; ".join(" + ".join(names) for names in FIELDS.values())
    if len(found) > 1:
        raise UserError(f"{raw.place}: fields of several kinds of row, {_names(filled)}; keep those of one of: {known}")
    if not found:
        raise UserError(f"{raw.place}: unknown fields, {_names(filled)}; give one of: {known}")
    return found[0]


def _names(fields: Sequence[str]) -> str:
    return f"found {named(fields) or 'none'}"


def named(fields: Sequence[str]) -> str:
    """Names of fields, the first few, as literals: they come from the rows and may hold anything."""
    return ", ".join(f"{name!r:.40}" for name in fields[:8]) + (", ..." if len(fields) > 8 else "")


def _turns(raw: RawRow, kind: str) -> tuple[Turn, ...]:
    found = _kind(raw)
    if found != kind:
        raise UserError(f"{raw.place}: a row of {found} among rows of {kind}; give each kind a file of its own")
    if kind == CHAT:
        return tuple(_messages(raw))
    texts = [text_field(raw, name) for name in FIELDS[kind]]
    return tuple(zip(("user", ASSISTANT)[-len(texts) :], texts, strict=True))


def _messages(raw: RawRow) -> list[Turn]:
    messages = raw.fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{raw.place}: field 'messages' must be a list of turns, found {messages!r:.60}; repair the row")
    turns = [_turn(raw, i, message) for i, message in enumerate(messages, 1)]
    roles = [role for role, _ in turns]
    if roles[-1] != ASSISTANT or "user" not in roles[: roles.index(ASSISTANT)]:
        raise UserError(
            f"{raw.place}: messages must begin with a turn of the user and end with one of the assistant, "
            f"found {', '.join(roles):.80}; repair the row"
        )
    return turns


def _turn(raw: RawRow, number: int, message: Any) -> Turn:
    if not isinstance(message, dict):
        raise UserError(f"{raw.place}: message {number} must have role and content, found {message!r:.60}; repair the row")
    role = message.get("role")
    if role not in ROLES:
        raise UserError(f"{raw.place}: message {number} has the role {role!r:.40}; choose one of {', '.join(ROLES)}")
    other = sorted(name for name, value in message.items() if name not in ("role", "content") and value is not None)
    if other:  # a tool's call or a thought, which would be left out of what is forgotten
        raise UserError(f"{raw.place}: message {number} has other fields, {_names(other)}; write them into its content")
    return role, checked(RawRow(message, f"{raw.place}, message {number}"), "content", message.get("content"))
