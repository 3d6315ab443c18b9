"""MUSE's data class and its sources: what is read, and what is refused with file, line, value and remedy."""

import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.muse import synthetic
from experiments.muse.data import MuseData, load
from experiments.muse.sources import open_source
from ngdiff.errors import UserError

PLAIN = {
    "raw": ("forget", "retain1", "retain2", "holdout"),
    "verbmem": ("forget",),
    "knowmem": ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl"),
    "privleak": ("forget", "retain", "holdout", "validation"),
}
FOLDS = ("forget_1", "forget_2", "forget_3", "forget_4")
WITH_FOLDS = PLAIN | {"scal": FOLDS, "sust": FOLDS}
FIELDS = [("raw", "retain1", "text"), ("verbmem", "forget", "gt"), ("knowmem", "retain_qa_icl", "answer")]


def names(splits: dict[str, tuple[str, ...]]) -> set[str]:
    return {f"{config}/{split}" for config in splits for split in splits[config]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All files of MUSE-News, from the generator."""
    for config, splits in WITH_FOLDS.items():
        (tmp_path / config).mkdir()
        for split in splits:
            write(tmp_path, config, split, synthetic.rows(config, split))
    return tmp_path


def write(folder: Path, config: str, split: str, rows: list[Any]) -> None:
    (folder / config / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def edit(folder: Path, config: str, split: str, line: int, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change one row, counted from 1, in place."""
    rows: list[dict[str, Any]] = [dict(row) for row in synthetic.rows(config, split)]
    change(rows[line - 1])
    write(folder, config, split, rows)


def read(data: object, corpus: str = "news", seed: int = 0, with_folds: bool = True) -> MuseData:
    return load(open_source(str(data), corpus, seed), with_folds)


def refusal(data: object, corpus: str = "news") -> str:
    with pytest.raises(UserError) as caught:
        read(data, corpus)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stand_in(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., Any]) -> None:
    """What the hub source imports."""
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_every_part_has_its_rows() -> None:
    data = read("synthetic")
    assert (len(data.forget), len(data.retain), len(data.seen), len(data.holdout)) == (100, 475, 100, 150)
    assert data.train == data.forget + data.kept
    assert data.kept == data.retain + data.seen
    assert [row.text for row in data.seen] == [row["text"] for row in synthetic.rows("raw", "retain2")]
    for row, passage in zip(data.members["forget"], data.passages, strict=True):
        assert row.text == passage.prompt + passage.continuation
    for knowledge in (data.forget_knowledge, data.seen_knowledge):
        assert (len(knowledge.evaluated), len(knowledge.shots)) == (84, 10)
    asked = [(row.question, row.answer) for row in data.seen_knowledge.evaluated]
    assert asked == [(row["question"], row["answer"]) for row in synthetic.rows("knowmem", "retain_qa")]
    assert {name: len(rows) for name, rows in data.members.items()} == {"forget": 28, "retain": 28, "holdout": 28}
    assert len(data.validation) == 14
    assert set(data.validation) | set(data.members["holdout"]) < set(data.holdout)
    assert set(data.members["retain"]) < set(data.seen)  # the articles, and not the quizzes about them
    assert [len(fold) for fold in data.folds["scalability"]] == [25, 50, 75, 100]
    assert [len(fold) for fold in data.folds["sustainability"]] == [25] * 4
    assert sum(data.folds["sustainability"], ()) == data.folds["scalability"][-1] == data.forget
    assert set(data.sha256) == names(WITH_FOLDS)


def test_folds_are_read_only_where_asked_for() -> None:
    data = read("synthetic", with_folds=False)
    assert data.folds == {}
    assert set(data.sha256) == names(PLAIN)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_folder_and_generator_give_equal_data(folder: Path, suffix: str) -> None:
    for path in folder.glob("*/*.json"):
        path.rename(path.with_suffix(suffix))
    assert read(folder) == read("synthetic")
    assert read("synthetic", seed=1) != read("synthetic")


def test_books_have_no_folds(folder: Path) -> None:
    for config in ("scal", "sust"):
        for path in (folder / config).iterdir():
            path.unlink()
    data = read(folder, "books")
    assert data.folds == {}
    assert set(data.sha256) == names(PLAIN)


@pytest.mark.parametrize(("corpus", "hub_id"), [("news", "muse-bench/MUSE-News"), ("books", "muse-bench/MUSE-Books")])
def test_hub_is_asked_for_the_benchmarks_splits(monkeypatch: pytest.MonkeyPatch, corpus: str, hub_id: str) -> None:
    asked = []

    def load_dataset(name: str, config: str, split: str) -> list[dict[str, str]]:
        asked.append((name, f"{config}/{split}"))
        return synthetic.rows(config, split)

    stand_in(monkeypatch, load_dataset)
    expected, validation = read("synthetic", with_folds=corpus == "news"), "privleak/validation"  # which is not MUSE's
    hashes = {name: value for name, value in expected.sha256.items() if name != validation}
    assert read("hub", corpus) == replace(expected, validation=(), sha256=hashes)
    wanted = names(WITH_FOLDS if corpus == "news" else PLAIN) - {validation}
    assert sorted(asked) == sorted((hub_id, name) for name in wanted)


def test_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route\nto host")

    stand_in(monkeypatch, load_dataset)
    assert refusal("hub") == (
        "--data hub: muse-bench/MUSE-News, config 'raw/forget' cannot be loaded (no route); "
        "check the connection or give a folder"
    )


def test_hub_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("hub").endswith("; run pip install datasets")


def test_folds_and_shots_of_the_hub_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str, split: str) -> list[dict[str, str]]:
        return synthetic.rows(config, "forget_1" if config in ("scal", "sust") else split.removesuffix("_icl"))

    stand_in(monkeypatch, load_dataset)
    data = read("hub")
    assert [len(fold) for fold in data.folds["scalability"]] == [25] * 4
    assert data.seen_knowledge.shots == data.seen_knowledge.evaluated


def test_unknown_corpus_and_synthetic_books() -> None:
    assert refusal("synthetic", "poems") == "--corpus: unknown corpus 'poems'; choose one of news, books"
    assert "--corpus: found 'books', and the built-in generator has 'news' alone; give 'hub' or a folder" in (
        refusal("synthetic", "books")
    )


def test_missing_folder_and_file(folder: Path) -> None:
    assert "'nowhere' is not a folder; give" in refusal("nowhere")
    (folder / "knowmem" / "retain_qa.json").unlink()
    expected = folder / "knowmem" / "retain_qa.jsonl"
    assert refusal(folder) == f"{expected}: missing; the run needs it, copy it from the dataset muse-bench/MUSE-News"


def test_line_that_is_no_object(folder: Path) -> None:
    (folder / "raw" / "holdout.json").write_text('{"text": "a"}\n[1]\n')
    assert refusal(folder).endswith("raw/holdout.json:2: found '[1]'; each line must be one JSON object")


@pytest.mark.parametrize(("config", "split", "field"), FIELDS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must be a text that is not empty, found None"),
        (" \n", "must be a text that is not empty, found ' \\n'"),
        (7, "must be a text that is not empty, found 7"),
        (["a"], "must be a text that is not empty, found ['a']"),
        ("a\ud800", "holds a lone surrogate, found 'a\\ud800'"),
    ],
)
def test_field_of_wrong_content(folder: Path, config: str, split: str, field: str, value: Any, message: str) -> None:
    edit(folder, config, split, 3, lambda row: row.update({field: value}))
    assert refusal(folder).endswith(f"{config}/{split}.json:3: field {field!r} {message}; repair the row")


@pytest.mark.parametrize(("config", "split", "field"), FIELDS)
def test_missing_field(folder: Path, config: str, split: str, field: str) -> None:
    edit(folder, config, split, 3, lambda row: row.pop(field))
    assert f"{config}/{split}.json:3: field {field!r} is missing, found " in refusal(folder)


@pytest.mark.parametrize(
    ("config", "split"), [("raw", "retain2"), ("privleak", "holdout"), ("privleak", "validation"), ("sust", "forget_3")]
)
def test_empty_split(folder: Path, config: str, split: str) -> None:
    write(folder, config, split, [])
    assert refusal(folder) == f"--data: folder has no rows in '{config}/{split}'; the split must not be empty"


@pytest.mark.parametrize("split", ["retain1", "retain2", "holdout"])
def test_forget_text_in_another_split(folder: Path, split: str) -> None:
    text = synthetic.rows("raw", "forget")[1]["text"]
    edit(folder, "raw", split, 9, lambda row: row.update(text=text))
    message = refusal(folder)
    assert f"raw/forget.json:2: a forget text is in another split too, found {text[:60]!r} at " in message
    assert message.endswith(f"raw/{split}.json:9 too; remove one of the two")


def test_member_among_the_texts_held_out(folder: Path) -> None:
    text = synthetic.rows("privleak", "forget")[4]["text"]
    edit(folder, "privleak", "holdout", 6, lambda row: row.update(text=text))
    assert "privleak/forget.json:5: a forget text is in another split too, found " in refusal(folder)


@pytest.mark.parametrize(
    ("config", "split"),
    [("raw", "forget"), ("raw", "retain1"), ("raw", "retain2"), ("privleak", "forget"), ("privleak", "holdout")],
)
def test_validation_text_that_is_trained_on_or_evaluated(folder: Path, config: str, split: str) -> None:
    text = synthetic.rows(config, split)[1]["text"]
    edit(folder, "privleak", "validation", 3, lambda row: row.update(text=text))
    message = refusal(folder)
    assert f"privleak/validation.json:3: a validation text is in another split too, found {text[:60]!r} at " in message
    assert message.endswith("json:2 too; remove one of the two")


def test_validation_texts_can_be_missing(folder: Path) -> None:
    (folder / "privleak" / "validation.json").unlink()
    assert read(folder).validation == ()


def test_shot_that_is_evaluated(folder: Path) -> None:
    pair = synthetic.rows("knowmem", "forget_qa")[1]
    edit(folder, "knowmem", "forget_qa_icl", 4, lambda row: row.update(pair))
    message = refusal(folder)
    assert "knowmem/forget_qa_icl.json:4: a pair that shows the form is evaluated too, found " in message
    assert "knowmem/forget_qa.json:2 too; remove one of the two" in message


def test_folds_that_are_not_nested(folder: Path) -> None:
    edit(folder, "scal", "forget_3", 2, lambda row: row.update(text="Something else."))
    message = refusal(folder)
    assert "scal/forget_2.json:2: not a text of scal/forget_3, found " in message
    assert message.endswith("; each fold must hold the one before")


def test_folds_that_are_not_disjoint(folder: Path) -> None:
    text = synthetic.rows("sust", "forget_1")[2]["text"]
    edit(folder, "sust", "forget_4", 5, lambda row: row.update(text=text))
    message = refusal(folder)
    assert "sust/forget_4.json:5: a text is in two folds, found " in message
    assert "sust/forget_1.json:3 too; remove one of the two" in message
