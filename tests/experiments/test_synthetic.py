"""The built-in authors: TOFU's format and set relations, facts that agree with each other, wrong answers that are wrong."""

import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
from itertools import product
from typing import Any

import pytest

from experiments.tofu.synthetic import rows
from experiments.tofu.synthetic_wording import KINDS, Kind

# Characters per question and per answer in forget10 of locuslab/TOFU, 400 rows.
TOFU_MEAN_LENGTHS = {"question": 76.6, "answer": 181.5}
BAND = 0.25

QA = ["question", "answer"]
PERTURBED = [*QA, "paraphrased_answer", "perturbed_answer", "paraphrased_question"]
PERTURBED_CONFIGS = ["forget01_perturbed", "forget05_perturbed", "forget10_perturbed", "retain_perturbed"]
REAL_CONFIGS = ["real_authors_perturbed", "world_facts_perturbed"]
CONFIGS = ["full", "forget01", "forget05", "forget10", "retain99", "retain95", "retain90", *PERTURBED_CONFIGS, *REAL_CONFIGS]


def digest(seed: int) -> str:
    configs = ["full", "forget10_perturbed"]
    return hashlib.sha256(json.dumps([rows(config, seed) for config in configs]).encode()).hexdigest()


def facts_in(text: str, *templates: str) -> dict[str, str]:
    """The values that turn one of the templates into the text, by the names in its braces."""
    for template in templates:
        slots: set[str] = set()
        pattern = ""
        for i, part in enumerate(re.split(r"\{(\w+)\}", template)):
            if i % 2 == 0:
                pattern += re.escape(part)
            else:
                pattern += f"(?P={part})" if part in slots else f"(?P<{part}>.+?)"
                slots.add(part)
        if match := re.fullmatch(pattern, text):
            return match.groupdict()
    raise AssertionError(f"no template gives {text!r}")


def answer_facts(kind: Kind, row: dict[str, Any]) -> dict[str, str]:
    return facts_in(row["answer"], *(f"{head} {tail}" for head, (tail, _) in product(kind.answers, kind.tails)))


def paraphrase_facts(kind: Kind, text: str) -> dict[str, str]:
    return facts_in(text, *(f"{head} {tail}" for head, (_, tail) in product(kind.paraphrases, kind.tails)))


def asked(config: str) -> list[tuple[Kind, dict[str, Any]]]:
    """Each row with its kind of question."""
    return [(KINDS[i % len(KINDS)], row) for i, row in enumerate(rows(config))]


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_gives_the_same_rows_in_every_process(hash_seed: str) -> None:
    # In this process the cache would answer; and the order of sets differs only between processes.
    code = "from test_synthetic import digest; print(digest(7))"
    paths = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
    output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout
    assert output.strip() == digest(7)


def test_another_seed_gives_other_rows() -> None:
    shared = {row["question"] for row in rows("full", 0)} & {row["question"] for row in rows("full", 1)}
    # About ten of the 200 names meet again by chance, since each given name finds one of twenty family names.
    assert len(shared) < 200


@pytest.mark.parametrize(("forget", "retain", "count"), [("01", "99", 40), ("05", "95", 200), ("10", "90", 400)])
def test_forget_is_the_tail_of_full_and_retain_the_rest(forget: str, retain: str, count: int) -> None:
    assert len(rows("full")) == 4000
    assert len(rows(f"forget{forget}")) == count
    assert rows(f"retain{retain}") + rows(f"forget{forget}") == rows("full")


@pytest.mark.parametrize("config", PERTURBED_CONFIGS)
def test_perturbed_rows_are_those_of_the_plain_config(config: str) -> None:
    plain = rows("full")[:400] if config == "retain_perturbed" else rows(config.removesuffix("_perturbed"))
    assert [{field: row[field] for field in QA} for row in rows(config)] == plain


@pytest.mark.parametrize("config", CONFIGS)
def test_rows_have_tofus_fields_and_none_is_empty(config: str) -> None:
    expected = [*QA, "perturbed_answer"] if config in REAL_CONFIGS else PERTURBED if config in PERTURBED_CONFIGS else QA
    for row in rows(config):
        assert list(row) == expected
        for field, value in row.items():
            texts = value if field == "perturbed_answer" else [value]
            assert isinstance(texts, list)
            assert all(isinstance(text, str) and text.strip() == text != "" and "{" not in text for text in texts)


@pytest.mark.parametrize("config", PERTURBED_CONFIGS)
def test_five_wrong_answers_differ_from_each_other_and_from_the_right_ones(config: str) -> None:
    for row in rows(config):
        assert len(row["perturbed_answer"]) == 5
        assert len({row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]}) == 7


@pytest.mark.parametrize("config", ["forget10_perturbed", "retain_perturbed"])
def test_wrong_answers_change_nothing_but_the_fact_asked_for(config: str) -> None:
    for kind, row in asked(config):
        right = paraphrase_facts(kind, row["paraphrased_answer"])
        for text in row["perturbed_answer"]:
            wrong = paraphrase_facts(kind, text)
            assert {fact for fact in right if right[fact] != wrong[fact]} == {kind.fact}


@pytest.mark.parametrize("config", ["forget10_perturbed", "retain_perturbed"])
def test_the_rows_of_an_author_agree_on_every_fact(config: str) -> None:
    known: dict[tuple[int, str], str] = {}
    for i, (kind, row) in enumerate(asked(config)):
        questions = [facts_in(row[field], *kind.questions) for field in ("question", "paraphrased_question")]
        for facts in (*questions, answer_facts(kind, row), paraphrase_facts(kind, row["paraphrased_answer"])):
            for fact, value in facts.items():
                assert known.setdefault((i // len(KINDS), fact), value) == value


def test_the_answer_states_the_fact_and_the_question_does_not() -> None:
    for kind, row in asked("full"):
        facts = answer_facts(kind, row)
        assert facts[kind.fact] not in row["question"]
        assert facts["name"] in row["answer"]
        assert facts["name"] in row["question"] or kind.fact == "name"


@pytest.mark.parametrize("fact", ["name", "birth_date", "debut", "prized", "books"])
def test_no_two_authors_share_a_name_a_birth_date_or_a_book(fact: str) -> None:
    values = [answer_facts(kind, row)[fact] for kind, row in asked("full") if kind.fact == fact]
    assert len(values) == len(set(values)) == 200


@pytest.mark.parametrize("seed", range(3))
def test_questions_are_distinct(seed: int) -> None:
    assert len({row["question"] for row in rows("full", seed)}) == 4000
    assert all(row["question"] != row["paraphrased_question"] for row in rows("forget10_perturbed", seed))


@pytest.mark.parametrize("field", QA)
def test_mean_lengths_are_near_tofus(field: str) -> None:
    mean = statistics.mean(len(row[field]) for row in rows("forget10"))
    assert mean == pytest.approx(TOFU_MEAN_LENGTHS[field], rel=BAND)


@pytest.mark.parametrize("config", REAL_CONFIGS)
def test_real_facts_have_three_wrong_options_and_ignore_the_seed(config: str) -> None:
    facts = rows(config)
    assert len({row["question"] for row in facts}) == len(facts) >= 25
    assert all(len(row["perturbed_answer"]) == 3 for row in facts)
    assert all(len({row["answer"], *row["perturbed_answer"]}) == 4 for row in facts)
    assert facts == rows(config, seed=1)


@pytest.mark.parametrize("config", ["forget01_perturbed", "world_facts_perturbed"])
def test_callers_cannot_change_later_answers(config: str) -> None:
    first = rows(config)[0]
    first["perturbed_answer"].clear()
    first["question"] = ""
    assert rows(config)[0]["question"]
    assert rows(config)[0]["perturbed_answer"]


def test_unknown_config_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'forget02'") as caught:
        rows("forget02")
    message = str(caught.value)
    assert "\n" not in message
    assert all(config in message for config in CONFIGS)
