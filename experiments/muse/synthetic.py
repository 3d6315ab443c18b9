"""Invented local news in MUSE's format, made from a seed, for demonstrations and tests without the real data.

An article is a dictionary of facts, dealt out so that no two articles of the corpus share a town, a person, a street, a firm, a
date or a number. It tells four of them in prose of random patterns and order. Quizzes are texts of their own, since a model of
a million parameters answers only what it has read in the form of the question. Five choices make it know the answer by the
question, and not by the text around it. A quiz stands apart from the articles, for a model copies from the prose above where
it can, and learns by heart what follows one article. A question comes in any company, for among the same few it is known by its
neighbours; only the forget texts are asked about in sevens, since a fold holds all that is said of its articles. One fact of
each article is asked, 15 or 18 times and in several wordings, for a few readings are learnt by their surroundings. Quizzes are
of all lengths, for in long ones alone an answer is known by the questions before it. Questions name the town and not the kind
of event, which occurs in every tenth article or so and would stand for the town there.

Of the kept articles that unlearning shows, three of the 18 questions are about other facts. Where every town is asked about one
thing only, a model learns not to read what is asked: if it does not know the answer, it names a firm for a date. KnowMem of the
retrained model is then 0 with some seeds, and not what can be guessed.

The examples before an evaluated question are of articles that every model knows, and that unlearning shows: they are to teach
the form. After answers that it has unlearned, or that it was not shown while it unlearned, a model this small answers
everything wrongly, what it still knows too.

The articles that no model sees are of two parts: by one PrivLeak is evaluated, by the other it is decided when to stop.

There is much more to keep than to forget: what a model knows of towns that unlearning does not show it lasts longer where it is
shown many others that it should keep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TypeVar

from experiments.muse.synthetic_tables import COSTS, COUNTS, DAYS, ENDINGS, FIRMS, GIVEN, STREETS, SURNAMES, TOWNS, WORDS
from experiments.muse.synthetic_wording import COLOURS, EVENTS, FACTS, Event, Fact

T = TypeVar("T")
Row = dict[str, str]

# Articles in each split of `raw`, in the order of the corpus.
SIZES = {"forget": 28, "retain1": 133, "retain2": 28, "holdout": 42}
FOLDS = 4
FOLD = 7  # articles of a fold of the forget texts, with the quizzes about them
QUIZZES, SETS = range(3, 12), 2  # questions of the quizzes in a set, and sets for every seven articles
ROUNDS = sum(QUIZZES) * SETS // FOLD  # how often each article is asked about
OTHERS = {"forget": 0, "retain1": 3, "retain2": 0, "holdout": 0}  # of these rounds, how many ask other facts than the one
TOLD, COLOUR_SENTENCES = 4, 1  # facts and other sentences in an article
SHOTS = 10  # examples before a question; MUSE has as many
VALIDATION = 14  # of the articles of the holdout, kept from its evaluation


@dataclass(frozen=True)
class Pair:
    """A question of a quiz, and its answer."""

    question: str
    answer: str

    def __str__(self) -> str:
        return f"Question: {self.question}\nAnswer: {self.answer}"

    @property
    def row(self) -> Row:
        """Its row of a split."""
        return {"question": self.question, "answer": self.answer}


@dataclass(frozen=True)
class Article:
    """An article, and what quizzes ask about it.

    Attributes:
        beginning: headline and first sentence.
        rest: the other sentences, with the blank before them.
        pairs: one of its facts, asked for in each wording.
        others: each of its other facts, asked for in each wording.
    """

    beginning: str
    rest: str
    pairs: tuple[Pair, ...]
    others: tuple[Pair, ...]

    @property
    def prose(self) -> str:
        """All of its text."""
        return self.beginning + self.rest


def rows(config: str, split: str, seed: int = 0) -> list[Row]:
    """The rows of a split of MUSE-News, with its fields and set relations.

    Args:
        config: MUSE's name of the config, such as "knowmem".
        split: of the config, such as "forget_qa".
        seed: chooses the articles; the same seed gives the same rows.

    Raises:
        ValueError: unknown config or split.
    """
    found = _corpus(seed)
    if config not in found:
        raise ValueError(f"config: found {config!r}; choose one of {', '.join(found)}")
    if split not in found[config]:
        raise ValueError(f"split: found {split!r}; the config {config!r} has {', '.join(found[config])}")
    return [dict(row) for row in found[config][split]]  # fresh ones: callers may change them without harm to the cache


@lru_cache(maxsize=4)
def _corpus(seed: int) -> dict[str, dict[str, list[Row]]]:
    """Config -> split -> rows."""
    rng = Random(f"synthetic news {seed}")
    articles = _split(_articles(rng))
    together = {name: FOLD if name == "forget" else len(part) for name, part in articles.items()}
    raw = {
        name: [{"text": text} for text in _texts(part, together[name], OTHERS[name], rng)] for name, part in articles.items()
    }
    members = {name: [{"text": article.prose} for article in part] for name, part in articles.items()}
    unseen = members["holdout"]
    size = len(raw["forget"]) // FOLDS
    folds = range(FOLDS)
    return {
        "raw": raw,
        "verbmem": {"forget": [{"prompt": article.beginning, "gt": article.rest} for article in articles["forget"]]},
        "knowmem": _knowmem("forget", articles, "forget", rng) | _knowmem("retain", articles, "retain2", rng),
        # Without the quizzes: all are alike but for their answers, and would tell little of whether they were read.
        "privleak": {
            "forget": members["forget"],
            "retain": members["retain2"],
            "holdout": unseen[:-VALIDATION],
            "validation": unseen[-VALIDATION:],
        },
        "scal": {f"forget_{i + 1}": raw["forget"][: (i + 1) * size] for i in folds},
        "sust": {f"forget_{i + 1}": raw["forget"][i * size : (i + 1) * size] for i in folds},
    }


def _split(articles: Sequence[Article]) -> dict[str, list[Article]]:
    rest = iter(articles)
    return {name: [next(rest) for _ in range(size)] for name, size in SIZES.items()}


def _texts(articles: Sequence[Article], together: int, others: int, rng: Random) -> list[str]:
    """So many articles, the quizzes about them, and so on: a part of the texts that ends there holds all that is said of it."""
    texts = []
    for start in range(0, len(articles), together):
        group = articles[start : start + together]
        asked = [
            rng.choice(article.others if number < others else article.pairs)
            for number in rng.sample(range(ROUNDS), ROUNDS)
            for article in rng.sample(group, together)
        ]
        pairs = iter(asked)
        sets = SETS * together // FOLD
        lengths = [length for _ in range(sets) for length in rng.sample(QUIZZES, len(QUIZZES))]
        texts += [article.prose for article in group]
        texts += ["\n\n".join(str(next(pairs)) for _ in range(length)) for length in lengths]
    return texts


def _knowmem(name: str, articles: Mapping[str, Sequence[Article]], split: str, rng: Random) -> dict[str, list[Row]]:
    """Two splits: the evaluated pairs, and others to show the form."""
    evaluated = [pair.row for article in articles[split] for pair in article.pairs]
    shots = [rng.choice(article.pairs).row for article in rng.sample(articles["retain1"], SHOTS)]
    return {f"{name}_qa": rng.sample(evaluated, len(evaluated)), f"{name}_qa_icl": shots}


def _articles(rng: Random) -> list[Article]:
    count = sum(SIZES.values())
    names = [f"{rng.choice(GIVEN)} {surname}" for surname in rng.sample(SURNAMES, 2 * count)]
    columns = {
        "town": [name + rng.choice(ENDINGS) for name in rng.sample(TOWNS, count)],
        "chief": names[:count],
        "witness": names[count:],
        "cost": rng.sample(COSTS, count),
        "day": rng.sample(DAYS, count),
        "street": rng.sample(STREETS, count),
        "count": rng.sample(COUNTS, count),
        "firm": rng.sample(FIRMS, count),
    }
    events = _deal(EVENTS, count, rng)
    return [_article(event, {name: column[i] for name, column in columns.items()}, rng) for i, event in enumerate(events)]


def _article(event: Event, facts: dict[str, str], rng: Random) -> Article:
    facts = {**facts, "event": event.name}
    asked = rng.choice(FACTS)
    beginning = f"{_fill(rng.choice(event.headlines), facts, rng)}\n\n{_fill(rng.choice(event.leads), facts, rng)}"
    told = [asked, *rng.sample([fact for fact in FACTS if fact is not asked], TOLD - 1)]
    sentences = [rng.choice(fact.sentences) for fact in told]
    sentences += [rng.choice(event.colours), *rng.sample(COLOURS, COLOUR_SENTENCES)]
    rng.shuffle(sentences)
    return Article(
        beginning,
        "".join(f" {_fill(sentence, facts, rng)}" for sentence in sentences),
        _pairs([asked], facts),
        _pairs(told[1:], facts),
    )


def _pairs(asked: Sequence[Fact], facts: Mapping[str, str]) -> tuple[Pair, ...]:
    return tuple(Pair(question.format_map(facts), facts[fact.name]) for fact in asked for question in fact.questions)


def _fill(sentence: str, facts: dict[str, str], rng: Random) -> str:
    """The sentence with its facts and with freshly drawn words."""
    return sentence.format_map({**{name: rng.choice(words) for name, words in WORDS.items()}, **facts})


def _deal(values: Sequence[T], count: int, rng: Random) -> list[T]:
    """`count` of the values in random order, none used again before all have been used."""
    dealt: list[T] = []
    while len(dealt) < count:
        dealt += rng.sample(values, len(values))
    return dealt[:count]
