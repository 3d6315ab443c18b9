"""MUSE's rows, checked, and arranged for one run: what to train on, forget, keep and evaluate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from experiments.muse.sources import Source
from experiments.sources import content_hash
from ngdiff.errors import UserError
from ngdiff.lm.sources import RawRow, text_field

FOLDS = tuple(f"forget_{i}" for i in range(1, 5))
SCALABILITY, SUSTAINABILITY = "scalability", "sustainability"
_FOLD_CONFIGS = {SCALABILITY: "scal", SUSTAINABILITY: "sust"}


@dataclass(frozen=True)
class Text:
    """A text of the corpus. Texts are equal if their words are, wherever they stand."""

    text: str
    place: str = field(compare=False)


@dataclass(frozen=True)
class Passage:
    """The beginning of a forget text, and what follows it word for word."""

    prompt: str
    continuation: str
    place: str = field(compare=False)


@dataclass(frozen=True)
class Question:
    """A question and its answer."""

    question: str
    answer: str
    place: str = field(compare=False)


Texts = tuple[Text, ...]


@dataclass(frozen=True)
class Knowledge:
    """Questions on one part of the corpus.

    Attributes:
        evaluated: what is asked.
        shots: pairs that stand before each question, to show the form.
    """

    evaluated: tuple[Question, ...]
    shots: tuple[Question, ...]


@dataclass(frozen=True)
class MuseData:
    """The rows of one corpus.

    Attributes:
        forget: texts to forget.
        retain: texts to keep, `retain1`, which unlearning sees.
        seen: texts to keep, `retain2`, which the model was trained on and unlearning does not see.
        holdout: texts that no model sees.
        passages: for verbatim memorisation.
        forget_knowledge, seen_knowledge: questions on the forget texts, and on those of `seen`.
        members: "forget", "retain" and "holdout" -> texts to tell members from others by.
        validation: texts that no model sees either, to decide by during a run; empty if the source has none.
        folds: "scalability" (nested) and "sustainability" (disjoint) -> four sets of forget texts; empty if the corpus has none
            or they were not asked for.
        sha256: "config/split" -> hash of the rows read.
    """

    forget: Texts
    retain: Texts
    seen: Texts
    holdout: Texts
    passages: tuple[Passage, ...]
    forget_knowledge: Knowledge
    seen_knowledge: Knowledge
    members: dict[str, Texts]
    validation: Texts
    folds: dict[str, tuple[Texts, ...]]
    sha256: dict[str, str]

    @property
    def train(self) -> Texts:
        """What the model is trained on before it unlearns."""
        return self.forget + self.kept

    @property
    def kept(self) -> Texts:
        """What the model is trained on that never saw the forget texts."""
        return self.retain + self.seen


def load(source: Source, with_folds: bool) -> MuseData:
    """Read and check all rows of a corpus.

    Args:
        source: where the rows come from.
        with_folds: read the splits for scalability and sustainability too, where the source has them.

    Raises:
        UserError: a split is missing, empty or malformed; a forget or a validation text is in another split too; questions
            that are evaluated are among the shots; folds are not nested or not disjoint.
    """
    reader = _Reader(source)
    forget, retain, seen, holdout = (reader.texts("raw", split) for split in ("forget", "retain1", "retain2", "holdout"))
    for others in (retain, seen, holdout):
        _refuse_shared(forget, others, "a forget text is in another split too")
    passages, forget_knowledge, seen_knowledge = reader.passages(), reader.knowledge("forget"), reader.knowledge("retain")
    members = {split: reader.texts("privleak", split) for split in ("forget", "retain", "holdout")}
    validation = reader.texts("privleak", "validation") if source.has_validation else ()
    _refuse_shared(members["forget"], members["holdout"], "a forget text is in another split too")
    for others in (forget, retain, seen, *members.values()):
        _refuse_shared(validation, others, "a validation text is in another split too")
    folds = reader.folds() if with_folds and source.folds else {}
    return MuseData(
        forget, retain, seen, holdout, passages, forget_knowledge, seen_knowledge, members, validation, folds, reader.sha256
    )


class _Reader:
    """Reads splits, checks every row and keeps the hashes of what was read."""

    def __init__(self, source: Source):
        self.source = source
        self.sha256: dict[str, str] = {}

    def texts(self, config: str, split: str) -> Texts:
        return tuple(Text(text_field(raw, "text"), raw.place) for raw in self._raw(config, split))

    def passages(self) -> tuple[Passage, ...]:
        raws = self._raw("verbmem", "forget")
        return tuple(Passage(text_field(raw, "prompt"), text_field(raw, "gt"), raw.place) for raw in raws)

    def knowledge(self, name: str) -> Knowledge:
        found = Knowledge(self._questions(f"{name}_qa"), self._questions(f"{name}_qa_icl"))
        if self.source.orderly:
            _refuse_shared(found.shots, found.evaluated, "a pair that shows the form is evaluated too")
        return found

    def folds(self) -> dict[str, tuple[Texts, ...]]:
        found = {name: tuple(self.texts(config, fold) for fold in FOLDS) for name, config in _FOLD_CONFIGS.items()}
        if self.source.orderly:
            _check_nested(found[SCALABILITY])
            _check_disjoint(found[SUSTAINABILITY])
        return found

    def _questions(self, split: str) -> tuple[Question, ...]:
        raws = self._raw("knowmem", split)
        return tuple(Question(text_field(raw, "question"), text_field(raw, "answer"), raw.place) for raw in raws)

    def _raw(self, config: str, split: str) -> list[RawRow]:
        raw = self.source.rows(config, split)
        if not raw:
            raise UserError(f"--data: {self.source.name} has no rows in '{config}/{split}'; the split must not be empty")
        self.sha256[f"{config}/{split}"] = content_hash(raw)
        return raw


def _check_nested(folds: Sequence[Texts]) -> None:
    for i, (smaller, larger) in enumerate(pairwise(folds), 1):
        missing = next((row for row in smaller if row not in set(larger)), None)
        if missing:
            raise UserError(
                f"{missing.place}: not a text of scal/forget_{i + 1}, found {missing.text[:60]!r}; "
                "each fold must hold the one before"
            )


def _check_disjoint(folds: Sequence[Texts]) -> None:
    for i, fold in enumerate(folds):
        for earlier in folds[:i]:
            _refuse_shared(fold, earlier, "a text is in two folds")


def _refuse_shared(rows: Iterable[Text | Question], others: Iterable[Text | Question], fault: str) -> None:
    places = {row: row.place for row in others}
    for row in rows:
        if row in places:
            found = row.text if isinstance(row, Text) else row.question
            raise UserError(f"{row.place}: {fault}, found {found[:60]!r} at {places[row]} too; remove one of the two")
