"""A user's rows: every kind from every file, and every way to spoil them refused with its place."""

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.lm import models
from ngdiff.errors import UserError
from ngdiff.lm import chat, data, scoring, sources
from ngdiff.lm.data import RowEncoder, check_disjoint, read
from ngdiff.lm.encoding import Example
from ngdiff.objectives import IGNORE

CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    + "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
CHANGED = "(m.content if loop.last or m.role {} 'user' else 'cut')"
TALK = [("user", "Who?"), ("assistant", "Me."), ("user", "Where?"), ("assistant", "Here, <b>now</b>.")]
QA = [{"question": "Who?", "answer": "Me."}, {"question": "Where, and why?", "answer": 'In "Rome",\nnot Paris.'}]
KINDS = {
    "qa": QA,
    "prompt": [{"prompt": "Once upon", "completion": " a time"}],
    "text": [{"text": "A story of \u2028 two lines, \x1b[31mred\x1b[0m and <script>alert(1)</script>."}],
}
MESSAGES = {"messages": [{"role": role, "content": content} for role, content in TALK]}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return models.train_tokenizer(["Who? Me. Where? Here, now. A story of two lines, once upon a time."] * 4, 300)


def written(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """The rows in a file of the kind that its name says."""
    if path.suffix == ".jsonl" or path.name == "lines.json":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return str(path)


# Reading


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "lines.json", "rows.csv", "rows.parquet"])
def test_every_kind_from_every_file(tmp_path: Path, name: str, kind: str) -> None:
    found = read("--forget", written(tmp_path / name, KINDS[kind]))
    assert [[content for _, content in row.turns] for row in found.rows] == [list(row.values()) for row in KINDS[kind]]
    assert {row.turns[-1][0] for row in found.rows} == {"assistant"}
    assert found.ignored == ()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_messages(tmp_path: Path, name: str) -> None:
    found = read("--forget", written(tmp_path / name, [MESSAGES, MESSAGES]))
    assert [row.turns for row in found.rows] == [tuple(TALK)] * 2
    assert (found.rows[0].prompt, found.rows[0].answer) == ("Where?", "Here, <b>now</b>.")


def test_fields_that_are_not_read_are_named(tmp_path: Path) -> None:
    found = read("--forget", written(tmp_path / "rows.jsonl", [row | {"id": 1, "author": "x"} for row in QA]))
    assert found.ignored == ("author", "id")


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "abc"}\n')
    # echo '{"text": "abc"}' | sha256sum
    assert read("--forget", str(path)).sha256 == "b3b44c015f2cfd9f6727c04576599da0309a65ffc71323b91e87b469177983c2"


@pytest.mark.parametrize(
    ("spec", "asked"),
    [("org/set", ("org/set", None, "train")), ("set:test", ("set", None, "test")), ("o/s:c:t", ("o/s", "c", "t"))],
)
def test_hub_data_sets(monkeypatch: pytest.MonkeyPatch, spec: str, asked: tuple[Any, ...]) -> None:
    calls = []

    def load(name: str, config: str | None, split: str) -> list[dict[str, str]]:
        calls.append((name, config, split))
        return QA

    monkeypatch.setattr("datasets.load_dataset", load)
    found = read("--retain", spec)
    assert calls == [asked]
    assert [row.place for row in found.rows] == [f"{spec}, row 1", f"{spec}, row 2"]
    assert found.name == spec


def test_a_hub_data_set_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(UserError, match=r"^--retain: no file and no hub data set .*'org/set' \(no route\); give a file"):
        read("--retain", "org/set")


# Hostile rows

BOM = b"\xef\xbb\xbf"
NESTED = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD = {
    "empty.jsonl": (b"", "empty.jsonl:1: found nothing but empty lines"),
    "list.jsonl": (b"[1]\n", "list.jsonl:1: found '.1..n'; each line must be one JSON object"),
    "half.jsonl": (b'{"text": "a"}\n\n{"text": ', "half.jsonl:3: not JSON"),
    "nested.jsonl": (NESTED, "nested.jsonl:1: (not JSON|field 'text' must be a text)"),
    "number.jsonl": (b'{"text": ' + b"9" * 5000 + b"}", "number.jsonl:1: not JSON"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}', "latin.jsonl:2: not UTF-8"),
    "utf16.jsonl": ('{"text": "a"}'.encode("utf-16"), "utf16.jsonl:1: not UTF-8"),
    "nul.jsonl": (b'{"text": "a"}\n{"text": "b\\u0000c"}', r"nul.jsonl:2: field 'text' holds a NUL character"),
    "raw.jsonl": (b'{"text": "b\0c"}', "raw.jsonl:1: not JSON"),
    "surrogate.jsonl": (b'{"text": "b\\ud800c"}', "surrogate.jsonl:1: field 'text' holds a lone surrogate"),
    "blank.jsonl": (b'{"question": "a", "answer": " \\n"}', "blank.jsonl:1: field 'answer' must be a text that is not empty"),
    "other.jsonl": (b'{"text": "a"}\n{"text": 3}', "other.jsonl:2: field 'text' must be a text that is not empty, found 3"),
    "missing.jsonl": (b'{"question": "a"}', "missing.jsonl:1: field 'answer' is missing"),
    "unknown.jsonl": (b'{"q": "a", "a": "b"}', "unknown.jsonl:1: unknown fields, found 'q', 'a'; give one of: question"),
    "both.jsonl": (b'{"text": "a", "prompt": "b"}', "both.jsonl:1: fields of several kinds of row, found 'text', 'prompt'"),
    "mixed.jsonl": (
        b'{"text": "a"}\n{"prompt": "a", "completion": "b"}',
        "mixed.jsonl:2: a row of prompt and completion",
    ),
    "item.json": (b'[{"text": "a"}, 3]', "item.json, row 2: found 3"),
    "broken.json": (b'[{"text": "a"}', "broken.json: not JSON"),
    "none.json": (b"[]", "--forget: '.*none.json' has no rows"),
    "more.csv": (b"text\na\nb,c\n", "more.csv:3: the record has more fields than the header"),
    "fewer.csv": (b"question,answer\na\n", "fewer.csv:2: the record has fewer fields than the header"),
    "quote.csv": (b'text\n"a', "quote.csv:.*not CSV"),
    "latin.csv": (b"text\na\xe9\n", "latin.csv:1: not CSV in UTF-8"),
    "nul.csv": (b"text\na\0b\n", "nul.csv:2: field 'text' holds a NUL character"),
    "twice.csv": (b"text,text\na,b\n", "twice.csv:1: the header has an empty name, or one twice"),
    "header.csv": (b"text\n\n", "--forget: '.*header.csv' has no rows"),
    "no.parquet": (b"PAR1 and nothing else", "no.parquet: not a parquet file"),
    "rows.txt": (b"a", "--forget: '.*rows.txt' is a file of the kind '.txt'; give a file of .jsonl, .json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_refused_with_their_place(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read("--forget", str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "must be a list of turns"),
        ("hello", "must be a list of turns"),
        (["hello"], "message 1 must have role and content"),
        ([{"role": "tool", "content": "a"}], "message 1 has the role 'tool'; choose one of system, user, assistant"),
        ([{"role": "user", "content": ["a"]}], "message 1: field 'content' must be a text"),
        ([{"role": "user"}], "message 1: field 'content' is missing"),
        ([{"role": "user", "content": "a", "tool_calls": [1]}], "message 1 has other fields, found 'tool_calls'"),
        ([{"role": "user", "content": "a"}], "must begin with a turn of the user and end with one of the assistant"),
        ([{"role": "assistant", "content": "a"}], "must begin with a turn of the user"),
    ],
)
def test_bad_messages(tmp_path: Path, messages: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"rows.jsonl:1.*{message}"):
        read("--forget", written(tmp_path / "rows.jsonl", [{"messages": messages}]))


def test_no_such_file(tmp_path: Path) -> None:
    for source, message in (("no.jsonl", "'.*no.jsonl' is missing"), ("a b", "found 'a b'"), ("a:b:c:d", "found 'a:b:c:d'")):
        with pytest.raises(UserError, match=f"--forget: {message}; give a file"):
            read("--forget", source)
    with pytest.raises(UserError, match="is a folder"):
        read("--forget", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("rows.jsonl", b"{}\n", "rows.jsonl:1: unknown fields, found none"),
        ("rows.jsonl", b'{"text": ""}\n', "rows.jsonl:1: field 'text' must be a text that is not empty"),
        ("rows.jsonl", b"\n", "rows.jsonl:1: found nothing but empty lines \\(1000000 of them\\)"),
        ("rows.csv", b",\n", "rows.csv:1: the header has an empty name"),
    ],
)
def test_a_million_empty_rows_are_refused_quickly(tmp_path: Path, name: str, line: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(line * 1_000_000)
    start = time.process_time()
    with pytest.raises(UserError, match=message):
        read("--forget", str(tmp_path / name))
    assert time.process_time() - start < 2


def test_a_line_without_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LINE", 100)
    with pytest.raises(UserError, match=r"rows.jsonl:2: the line is longer than"):
        read("--forget", written(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "a" * 100}]))


def test_rows_in_both_files(tmp_path: Path) -> None:
    forget = read("--forget", written(tmp_path / "forget.jsonl", QA))
    retain = read("--retain", written(tmp_path / "retain.csv", [{"question": "New?", "answer": "Yes"}, QA[1]]))
    message = r"forget.jsonl:2: the same row is in --retain, .*retain.csv:4 \(1 rows are in both\)"
    with pytest.raises(UserError, match=message):
        check_disjoint(forget, retain)
    check_disjoint(forget, read("--retain", written(tmp_path / "other.jsonl", [{"question": "Who?", "answer": "You."}])))


# Token ids


def encoded(tokenizer: Any, path: Path, rows: Sequence[dict[str, Any]], length: int = 64) -> list[data.Encoded]:
    return RowEncoder(tokenizer, "qa", length).encode(read("--forget", written(path / "rows.jsonl", rows)))


def test_prompts_and_completions_stand_as_they_are(tokenizer: Any, tmp_path: Path) -> None:
    (row,) = encoded(tokenizer, tmp_path, KINDS["prompt"])
    assert tokenizer.decode(row.prompt_ids) == "<s>Once upon"
    labels = row.fields["labels"]
    assert tokenizer.decode([i for i in labels if i != IGNORE]) == " a time</s>"
    assert len(labels) == len(row.fields["input_ids"])


def test_a_megabyte_of_text_is_cut_into_pieces_and_none_of_it_lost(tokenizer: Any, tmp_path: Path) -> None:
    text = "A story of two lines. " * 50_000
    rows = encoded(tokenizer, tmp_path, [{"text": text}])
    ids = [i for row in rows for i in row.fields["input_ids"]]
    assert tokenizer.decode(ids) == f"<s>{text}</s>"
    assert max(len(row.example.ids) for row in rows) == 64
    assert rows[0].prompt_ids == rows[0].example.ids[:32]


@pytest.mark.parametrize("row", [QA[0] | {"answer": "now " * 40}, {"prompt": "a", "completion": "now " * 40}])
def test_other_rows_that_are_too_long_are_refused(tokenizer: Any, tmp_path: Path, row: dict[str, str]) -> None:
    short = dict.fromkeys(row, "Who?")
    longer = row | {list(row)[1]: "now " * 50}
    lengths = [len(one.example.ids) for one in encoded(tokenizer, tmp_path, [row, longer], length=1000)]
    message = rf"rows.jsonl:2: {lengths[0]} tokens, more than --length 40 \(2 such rows, the longest of {lengths[1]}\); give"
    with pytest.raises(UserError, match=message):
        encoded(tokenizer, tmp_path, [short, row, longer], length=40)
    assert len(encoded(tokenizer, tmp_path, [short, row, longer], length=lengths[1])) == 3


# Conversations


def templated(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def own(tokenizer: Any) -> Any:
    """A tokenizer whose chat template may be changed."""
    yield tokenizer
    tokenizer.chat_template = None


def scored_texts(tokenizer: Any, example: Example) -> list[str]:
    """The runs of scored tokens as text."""
    runs: list[list[int]] = [[]]
    for label in example.labels:
        if label == IGNORE:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


def test_only_what_the_assistant_says_is_scored_and_each_end_token(own: Any) -> None:
    example = chat.conversation(templated(own, CHATML), TALK, "here")
    assert own.decode(example.ids) == (
        "<s>user\nWho?</s>\n<s>assistant\nMe.</s>\n<s>user\nWhere?</s>\n<s>assistant\nHere, <b>now</b>.</s>"
    )
    assert scored_texts(own, example) == ["Me.</s>", "Here, <b>now</b>.</s>"]
    assert example.scored == sum(label != IGNORE for label in example.labels)
    prompt = chat.prompt_ids(own, TALK, "here")
    assert own.decode(prompt).endswith("Where?</s>\n<s>assistant\n")
    assert prompt == example.ids[: len(prompt)]


def test_a_conversation_far_too_long_is_refused_without_writing_it_turn_by_turn(
    own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writings: list[int] = []
    write = chat._written
    monkeypatch.setattr(chat, "_written", lambda *a, **k: writings.append(0) or write(*a, **k))
    turns = [{"role": role, "content": "Who?"} for role in ("user", "assistant") * 5000]
    with pytest.raises(UserError, match=r"rows.jsonl:1: \d+ tokens, more than --length 40 .*; give --length \d+, or shorten"):
        encoded(templated(own, CHATML), tmp_path, [{"messages": turns}], length=40)
    assert len(writings) == 1


def test_a_conversation_without_end_tokens_gets_one(own: Any) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    example = chat.conversation(templated(own, template), TALK, "here")
    assert scored_texts(own, example)[-1] == "assistant: Here, <b>now</b>.</s>"  # no generation prompt, so it says that too


def test_a_generation_prompt_that_the_answer_does_not_begin_with(own: Any) -> None:
    template = CHATML.replace("<s>assistant\n{% endif %}", "<s>assistant\n<think>{% endif %}")
    example = chat.conversation(templated(own, template), TALK, "here")
    assert scored_texts(own, example) == ["Me.</s>", "Here, <b>now</b>.</s>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else 'cut' }}"),
            "here: the chat template writes turn 2",
        ),
        (
            CHATML.replace("m.content", CHANGED.format("==")),
            "writes turn 2 in another way",
        ),
        (
            CHATML.replace("m.content", CHANGED.format("!=")),
            "writes turn 2 in another way",
        ),
        ("{{ raise_exception('no\\nsystem') }}", "here: the chat template refuses the messages"),
    ],
)
def test_templates_that_do_not_fit(own: Any, template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chat.conversation(templated(own, template), TALK, "here")


def test_messages_without_a_chat_template(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows.jsonl:1: messages need a tokenizer with a chat template"):
        encoded(tokenizer, tmp_path, [MESSAGES])


def test_scores_of_a_conversation_leave_its_questions_out(own: Any) -> None:
    example = chat.conversation(templated(own, CHATML), TALK, "here")
    torch.manual_seed(0)
    size = models.Size(hidden=32, layers=1, heads=2, intermediate=64, vocabulary=300)
    model = models.build_llama(size, own).double().eval()
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
    expected = [-log_p[i - 1, label].item() for i, label in enumerate(example.labels) if label != IGNORE]
    pair = [example, example]  # of one prompt, which is read once where that saves something
    assert scoring.answer_nll(model, pair, 0) == pytest.approx([sum(expected) / len(expected)] * 2, rel=1e-5)
