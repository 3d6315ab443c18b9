"""The built-in news: MUSE's splits and set relations, articles that share no fact, quizzes that agree with the prose."""

import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import combinations

import pytest

from experiments.muse.synthetic import FOLD, QUIZZES, ROUNDS, SETS, SIZES, rows
from experiments.muse.synthetic_tables import COSTS, COUNTS, DAYS, ENDINGS, FIRMS, STREETS, SURNAMES, TOWNS
from experiments.muse.synthetic_wording import FACTS, Fact

SPLITS = {
    "raw": {"forget": 100, "retain1": 475, "retain2": 100, "holdout": 150},
    "verbmem": {"forget": 28},
    "knowmem": {"forget_qa": 84, "retain_qa": 84, "forget_qa_icl": 10, "retain_qa_icl": 10},
    "privleak": {"forget": 28, "retain": 28, "holdout": 28, "validation": 14},
    "scal": {"forget_1": 25, "forget_2": 50, "forget_3": 75, "forget_4": 100},
    "sust": {"forget_1": 25, "forget_2": 25, "forget_3": 25, "forget_4": 25},
}
FIELDS = {"verbmem": ["prompt", "gt"], "knowmem": ["question", "answer"]}
ALL = [(config, split) for config, splits in SPLITS.items() for split in splits]
SPLITS_OF_RAW = list(SPLITS["raw"])
QA = re.compile(r"Question: (.+)\nAnswer: (.+)")


WHOLE_TOWNS = tuple(town + ending for town in TOWNS for ending in ENDINGS)


def digest(seed: int) -> str:
    return hashlib.sha256(json.dumps([rows(config, split, seed) for config, split in ALL]).encode()).hexdigest()


def texts(split: str, config: str = "raw", seed: int = 0) -> list[str]:
    return [row["text"] for row in rows(config, split, seed)]


def asked(text: str) -> list[tuple[str, str]]:
    return QA.findall(text)


def articles(split: str, seed: int = 0) -> list[str]:
    return [text for text in texts(split, seed=seed) if not text.startswith("Question: ")]


def quizzes(split: str, seed: int = 0) -> list[str]:
    return [text for text in texts(split, seed=seed) if text.startswith("Question: ")]


def pairs(split: str, seed: int = 0) -> set[tuple[str, str]]:
    return {(row["question"], row["answer"]) for row in rows("knowmem", split, seed)}


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_gives_the_same_rows_in_every_process(hash_seed: str) -> None:
    # In this process the cache would answer; and the order of sets differs only between processes.
    code = "from test_muse_synthetic import digest; print(digest(7))"
    paths = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
    output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout
    assert output.strip() == digest(7)


def test_rows_of_seed_0_are_those_that_results_were_obtained_with() -> None:
    assert digest(0) == "368d019e7ab3f2c2fe4620a9f3026389e050cb8c91597438efd050363f52b6c3"


def test_another_seed_gives_other_articles() -> None:
    assert not set(texts("forget", seed=0)) & set(texts("forget", seed=1))


@pytest.mark.parametrize(("config", "split"), ALL)
def test_rows_have_muses_fields_and_none_is_blank(config: str, split: str) -> None:
    found = rows(config, split)
    assert len(found) == SPLITS[config][split]
    for row in found:
        assert list(row) == FIELDS.get(config, ["text"])
        assert all(value.strip() and "{" not in value and "  " not in value for value in row.values())


def test_folds_are_nested_and_disjoint_parts_of_forget() -> None:
    forget = texts("forget")
    for i in range(1, 5):
        assert texts(f"forget_{i}", "scal") == forget[: 25 * i]
        assert texts(f"forget_{i}", "sust") == forget[25 * (i - 1) : 25 * i]
    assert len(set(forget)) == len(forget)


def test_membership_texts_are_the_articles_of_the_corpus() -> None:
    for split, source in (("forget", "forget"), ("retain", "retain2")):
        assert texts(split, "privleak") == articles(source)
    assert texts("holdout", "privleak") + texts("validation", "privleak") == articles("holdout")


@pytest.mark.parametrize("split", SPLITS_OF_RAW)
def test_a_text_is_an_article_or_a_quiz(split: str) -> None:
    assert len(articles(split)) == SIZES[split]
    for text in quizzes(split):
        assert "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in asked(text)) == text
        assert len(asked(text)) in QUIZZES
    assert not any(asked(text) for text in articles(split))


@pytest.mark.parametrize("seed", range(3))
def test_prompt_and_continuation_are_the_article_word_for_word(seed: int) -> None:
    for row, text in zip(rows("verbmem", "forget", seed), articles("forget", seed), strict=True):
        assert row["prompt"] + row["gt"] == text
        assert row["gt"].startswith(" ")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("values", [COSTS, COUNTS, DAYS, FIRMS, STREETS, SURNAMES, WHOLE_TOWNS])
def test_no_fact_occurs_in_two_splits(values: tuple[str, ...], seed: int) -> None:
    # Words around it, so that 4 June is not found in 14 June, nor 412 in 7,412.
    pattern = re.compile(rf"(?<![\w,])(?:{'|'.join(map(re.escape, values))})(?![\w,]\w|\w)")
    found = {split: set(pattern.findall("\n".join(texts(split, seed=seed)))) for split in SPLITS_OF_RAW}
    assert all(found.values())  # the next test counts them
    for one, other in combinations(SPLITS_OF_RAW, 2):
        assert not found[one] & found[other]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("split", SPLITS_OF_RAW)
def test_an_article_names_one_town_and_tells_four_facts(split: str, seed: int) -> None:
    town = re.compile("|".join(WHOLE_TOWNS))
    for article in articles(split, seed):
        assert len(set(town.findall(article))) == 1
        assert sum(tells(article, fact) for fact in FACTS) == 4


def tells(article: str, fact: Fact) -> bool:
    """Whether one of the fact's sentences is in it, whatever the words that fill it."""
    return any(re.search(re.sub(r"\\{\w+\\}", ".+?", re.escape(sentence)), article) for sentence in fact.sentences)


@pytest.mark.parametrize("seed", range(3))
def test_no_answer_is_that_of_two_splits(seed: int) -> None:
    found = {split: {answer for text in texts(split, seed=seed) for _, answer in asked(text)} for split in SPLITS_OF_RAW}
    for one, other in combinations(SPLITS_OF_RAW, 2):
        assert found[one]
        assert not found[one] & found[other]


@pytest.mark.parametrize("split", SPLITS_OF_RAW)
def test_quizzes_ask_equally_often_about_each_of_the_articles_before_them(split: str) -> None:
    """And about no other, so a fold of the forget texts holds all that is said of its articles."""
    together = FOLD if split == "forget" else SIZES[split]
    sets = SETS * together // FOLD
    found, length = texts(split), together + sets * len(QUIZZES)
    for start in range(0, len(found), length):
        group, about_them = found[start : start + together], found[start + together : start + length]
        assert sorted(len(asked(text)) for text in about_them) == sorted(list(QUIZZES) * sets)
        answers = [answer for text in about_them for _, answer in asked(text)]
        owners = [i for answer in answers for i, article in enumerate(group) if states(article, answer)]
        assert sorted(owners) == sorted(list(range(together)) * ROUNDS)
        for round_ in range(0, len(owners), together):  # spread over the quizzes, not one article after the other
            assert sorted(owners[round_ : round_ + together]) == list(range(together))


@pytest.mark.parametrize("split", SPLITS_OF_RAW)
def test_other_facts_are_asked_three_times_of_the_articles_that_are_kept_and_not_evaluated(split: str) -> None:
    about: dict[str, list[str]] = {
        town: [] for town in {question.split()[-1] for text in texts(split) for question, _ in asked(text)}
    }
    for question, answer in (pair for text in texts(split) for pair in asked(text)):
        about[question.split()[-1]].append(answer)
    expected = 3 if split == "retain1" else 0
    assert len(about) == SIZES[split]
    for answers in about.values():
        assert len(answers) - max(map(answers.count, answers)) == expected


def states(text: str, answer: str) -> bool:
    return re.search(rf"(?<![\w,]){re.escape(answer)}(?![\w,]\w|\w)", text) is not None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "split"), [("forget", "forget"), ("retain", "retain2")])
def test_quizzes_answer_the_questions_that_are_evaluated(name: str, split: str, seed: int) -> None:
    evaluated = pairs(f"{name}_qa", seed)
    assert len({answer for _, answer in evaluated}) == SIZES[split]  # every article, in every wording
    assert {(question.split()[-1], answer) for question, answer in evaluated} == quizzed(split, seed)
    for question, answer in evaluated:
        assert answer not in question
        assert 1 <= len(answer.split()) <= 6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["forget", "retain"])
def test_examples_are_of_articles_that_every_model_knows_and_unlearning_shows(name: str, seed: int) -> None:
    shots = pairs(f"{name}_qa_icl", seed)
    assert len({answer for _, answer in shots}) == 10
    assert {(question.split()[-1], answer) for question, answer in shots} < quizzed("retain1", seed)


def quizzed(split: str, seed: int) -> set[tuple[str, str]]:
    """Town, the last word of a question, and answer."""
    return {(question.split()[-1], answer) for text in texts(split, seed=seed) for question, answer in asked(text)}


def test_callers_cannot_change_later_answers() -> None:
    rows("scal", "forget_1")[0]["text"] = ""
    assert rows("scal", "forget_1")[0]["text"] == rows("raw", "forget")[0]["text"] != ""


def test_unknown_config_and_split_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="config: found 'rawest'; choose one of raw, verbmem, knowmem, privleak, scal, sust"):
        rows("rawest", "forget")
    with pytest.raises(ValueError, match="split: found 'retain'; the config 'raw' has forget, retain1, retain2, holdout"):
        rows("raw", "retain")
