"""MUSE's evaluation of one model: which rows each metric asks, and how much of a text is written, compared and scored."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from experiments.lm import models
from experiments.muse import evaluate as muse_evaluate
from experiments.muse.data import Knowledge, MuseData, Passage, Question, Text
from experiments.muse.evaluate import Reader, continued, evaluate
from experiments.speed import Speed
from ngdiff.lm.encoding import Example

LENGTH = 40  # of the texts that are scored
NUMBERS = " ".join(map(str, range(100, 300)))  # longer than all that is written or scored


def knowledge(name: str) -> Knowledge:
    pairs = [Question(f"{name} {number}?", str(number), "") for number in range(3)]
    return Knowledge(tuple(pairs[:2]), tuple(pairs[2:]))


@pytest.fixture(scope="module")
def data() -> MuseData:
    members = {name: (Text(f"{name} {NUMBERS}", ""), Text(name, "")) for name in ("forget", "retain", "holdout")}
    passages = (Passage("100", NUMBERS, ""),)
    return MuseData((), (), (), (), passages, knowledge("forget"), knowledge("seen"), members, (), {}, {})


@pytest.fixture(scope="module")
def reader(data: MuseData) -> Reader:
    tokenizer = models.train_tokenizer([text.text for texts in data.members.values() for text in texts], 300)
    return Reader(None, tokenizer, tokenizer.pad_token_id, LENGTH)


@pytest.fixture
def budgets(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Prompts and tokens of each call of a model that goes on with the numbers, as long as it may."""
    calls: list[tuple[int, int]] = []

    def greedy(model: Any, prompts: list[Any], eos: int, pad: int, tokens: int, ends: Callable[..., bool] | None) -> list[Any]:
        calls.append((len(prompts), tokens))
        return [reader.tokenizer(NUMBERS, add_special_tokens=False)["input_ids"][:tokens] for _ in prompts]

    monkeypatch.setattr(muse_evaluate, "greedy", greedy)
    return calls


def test_each_metric_reads_rows_of_its_own(
    data: MuseData, reader: Reader, budgets: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the benchmark's budgets; of the texts, no more than `length` tokens are scored and counted."""
    read: list[Example] = []

    def answer_min_k(model: Any, examples: Sequence[Example], pad: int) -> list[float]:
        read.extend(examples)
        return [float(len(read) - len(examples) + i) for i in range(len(examples))]

    monkeypatch.setattr(muse_evaluate, "answer_min_k", answer_min_k)
    speed = Speed()
    found = evaluate(reader, data, speed=speed)
    asked = {"passages": found.passages, "forget": found.forget, "seen": found.seen} | found.prompted
    forget, seen = ["forget 0?", "forget 1?"], ["seen 0?", "seen 1?"]
    assert {name: [row.prompt for row in rows] for name, rows in asked.items()} == {
        "passages": ["100"], "forget": forget, "seen": seen,
        "knowmem_zero_shot": forget, "knowmem_kept_shots": forget, "utility_zero_shot": seen,
    }  # fmt: skip
    assert budgets == [(1, 128), *[(2, 32)] * 5]
    assert found.min_k == {"forget": [0.0, 1.0], "holdout": [2.0, 3.0]}
    begin, end = reader.tokenizer.bos_token_id, reader.tokenizer.eos_token_id
    for text, row in zip([*data.members["forget"], *data.members["holdout"]], read, strict=True):
        ids = (begin, *reader.tokenizer(text.text, add_special_tokens=False)["input_ids"], end)
        assert (row.ids, row.prompt) == (ids[:LENGTH], 1)
    assert [len(row.ids) == LENGTH for row in read] == [True, False] * 2  # both kinds occurred
    assert speed.tokens == {"scoring": sum(len(row.ids) for row in read), "generating": 128 + 2 * 32 * 5}


def test_what_is_written_is_compared_with_as_much_of_the_truth(
    data: MuseData, reader: Reader, budgets: list[tuple[int, int]]
) -> None:
    """So that whoever repeats a truth of several hundred tokens from its beginning misses nothing."""
    assert len(reader.tokenizer(NUMBERS)["input_ids"]) > 300
    rows, tokens = continued(reader, data.passages)
    assert [(row.f1, row.recall, row.truth) for row in rows] == [(1.0, 1.0, rows[0].generation)]
    assert tokens == 128
