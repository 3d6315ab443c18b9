"""Fictitious authors in TOFU's format, made from a seed, for demonstrations and tests without the real data.

Two ideas carry the module. An author is a dictionary of facts, dealt out so that names, birth dates and book titles are
unique. A question kind asks for one of the facts; its wrong answers are the paraphrase with other authors' values of that fact.
"""

from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from random import Random
from typing import Any, TypeVar

from experiments.tofu.real_facts import REAL_AUTHORS, WORLD_FACTS
from experiments.tofu.synthetic_tables import FACTS, REGIONS, TITLES, Region
from experiments.tofu.synthetic_wording import KINDS, Kind

T = TypeVar("T")
Facts = dict[str, str]

AUTHORS = 200
HOLDOUT = 20  # more authors, whom no training row is about: what membership attacks compare the forgotten ones with
WRONG_ANSWERS = 5

# Not strftime, whose month names follow the machine's locale.
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
BIRTHS = range(date(1930, 1, 1).toordinal(), date(1985, 12, 31).toordinal() + 1)
DEBUT_AGES = range(22, 38)

_QA = ("question", "answer")
_OPTIONS = (*_QA, "perturbed_answer")
_PERTURBED = (*_QA, "paraphrased_answer", "perturbed_answer", "paraphrased_question")

# Config name -> its part of the 4000 rows, and its fields. One percent is two authors, 40 rows.
_AUTHOR_CONFIGS: dict[str, tuple[slice, tuple[str, ...]]] = {
    "full": (slice(None), _QA),
    **{f"forget{percent:02}": (slice(-40 * percent, None), _QA) for percent in (1, 5, 10)},
    **{f"retain{100 - percent}": (slice(-40 * percent), _QA) for percent in (1, 5, 10)},
    **{f"forget{percent:02}_perturbed": (slice(-40 * percent, None), _PERTURBED) for percent in (1, 5, 10)},
    "retain_perturbed": (slice(400), _PERTURBED),
}
# Rows of the holdout authors: the first 40, 200, 400.
_HOLDOUT_CONFIGS = {f"holdout{percent:02}": slice(40 * percent) for percent in (1, 5, 10)}
_REAL_CONFIGS = {"real_authors_perturbed": REAL_AUTHORS, "world_facts_perturbed": WORLD_FACTS}


def rows(config: str, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of a TOFU config, with the fields and the set relations of the real data.

    Args:
        config: TOFU's name of the config, such as "forget10_perturbed".
        seed: chooses the authors; the same seed gives the same rows. The two sets of real facts do not depend on it.

    Raises:
        ValueError: unknown config.
    """
    if config in _REAL_CONFIGS:
        return [_pick(dict(zip(_OPTIONS, row, strict=True)), _OPTIONS) for row in _REAL_CONFIGS[config]]
    if config in _HOLDOUT_CONFIGS:
        return [_pick(row, _QA) for row in _holdout_rows(seed)[_HOLDOUT_CONFIGS[config]]]
    if config not in _AUTHOR_CONFIGS:
        known = [*_AUTHOR_CONFIGS, *_HOLDOUT_CONFIGS, *_REAL_CONFIGS]
        raise ValueError(f"config: found {config!r}; choose one of {', '.join(known)}")
    part, fields = _AUTHOR_CONFIGS[config]
    return [_pick(row, fields) for row in _all_rows(seed)[part]]


def _pick(row: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    # A list of wrong answers, as in TOFU, and a fresh one: callers may change it without harm to the cache.
    return {field: list(row[field]) if field == "perturbed_answer" else row[field] for field in fields}


@lru_cache(maxsize=4)
def _all_rows(seed: int) -> tuple[dict[str, Any], ...]:
    """The rows of all authors, with all fields, in author order."""
    rng = _main_rng(seed)
    return _rows(_main_authors(rng), rng)


@lru_cache(maxsize=4)
def _holdout_rows(seed: int) -> tuple[dict[str, Any], ...]:
    """Rows about authors who share neither name nor book with those of `_all_rows`, from the same questions and facts."""
    known = _main_authors(_main_rng(seed))
    names, books = {author["name"] for author in known}, {book for author in known for book in author["books"].split('"')}
    rng = Random(f"holdout authors {seed}")
    people = [person for region in REGIONS for person in _people(region, rng) if person["name"] not in names]
    return _rows(_authors(people, [title for title in TITLES if title not in books], HOLDOUT, rng), rng)


def _rows(authors: Sequence[Facts], rng: Random) -> tuple[dict[str, Any], ...]:
    # Ordered, unlike sets of strings, whose order changes from process to process.
    values = {kind.fact: list(dict.fromkeys(author[kind.fact] for author in authors)) for kind in KINDS}
    return tuple(_row(kind, author, values[kind.fact], rng) for author in authors for kind in KINDS)


def _main_rng(seed: int) -> Random:
    return Random(f"synthetic authors {seed}")


def _main_authors(rng: Random) -> list[Facts]:
    return _authors([person for region in REGIONS for person in _people(region, rng)], TITLES, AUTHORS, rng)


def _row(kind: Kind, author: Facts, values: Sequence[str], rng: Random) -> dict[str, Any]:
    question, other_question = _deal(kind.questions, 2, rng)
    answer_tail, paraphrase_tail = rng.choice(kind.tails)
    answer = f"{rng.choice(kind.answers)} {answer_tail}"
    paraphrase = f"{rng.choice(kind.paraphrases)} {paraphrase_tail}"
    wrong = _others(author[kind.fact], values, WRONG_ANSWERS, rng)
    return {
        "question": question.format_map(author),
        "answer": answer.format_map(author),
        "paraphrased_answer": paraphrase.format_map(author),
        "perturbed_answer": tuple(paraphrase.format_map({**author, kind.fact: value}) for value in wrong),
        "paraphrased_question": other_question.format_map(author),
    }


def _authors(people: Sequence[Facts], pool: Sequence[str], count: int, rng: Random) -> list[Facts]:
    """The facts of `count` authors, in author order; no two authors share a name, a birth date or a book title."""
    columns = {fact: _deal(values, count, rng) for fact, values in FACTS.items()}
    births, ages = _deal(BIRTHS, count, rng), _deal(DEBUT_AGES, count, rng)
    titles = iter(_deal(pool, 3 * count, rng))
    return [
        {
            **person,
            **{fact: column[i] for fact, column in columns.items()},
            **_dates(births[i], ages[i]),
            **_books(next(titles), next(titles), next(titles)),
        }
        for i, person in enumerate(_deal(people, count, rng))
    ]


def _people(region: Region, rng: Random) -> list[Facts]:
    count = len(region.given)
    columns = zip(*(_deal(column, count, rng) for column in (region.given, region.family, region.cities)), strict=True)
    return [{"name": f"{given} {family}", "birthplace": city} for given, family, city in columns]


def _dates(birth: int, debut_age: int) -> Facts:
    day = date.fromordinal(birth)
    return {"birth_date": f"{day.day} {MONTHS[day.month - 1]} {day.year}", "debut_year": str(day.year + debut_age)}


def _books(debut: str, prized: str, recent: str) -> Facts:
    quoted = {"debut": f'"{debut}"', "prized": f'"{prized}"', "recent": f'"{recent}"'}
    return {**quoted, "books": "{debut}, {prized} and {recent}".format_map(quoted)}


def _deal(values: Sequence[T], count: int, rng: Random) -> list[T]:
    """`count` of the values in random order, none used again before all have been used."""
    dealt: list[T] = []
    while len(dealt) < count:
        pack = list(values)
        rng.shuffle(pack)
        dealt += pack
    return dealt[:count]


def _others(value: T, values: Sequence[T], count: int, rng: Random) -> list[T]:
    """`count` distinct values that differ from `value`."""
    others: list[T] = []
    # Rejection rather than _deal, which would shuffle up to 200 values for each of 4000 rows.
    while len(others) < count:
        other = rng.choice(values)
        if other != value and other not in others:
            others.append(other)
    return others
