"""TOFU's rows, checked, and arranged for one run: what to train on, forget, keep and evaluate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from experiments.sources import content_hash, text_hash
from experiments.tofu.metrics import AUTHOR_SETS, OPTION_SETS
from experiments.tofu.sources import Source
from ngdiff.errors import UserError
from ngdiff.lm.sources import RawRow, checked, text_field

VALIDATION = 100  # rows at most: enough to compare learning rates by a mean probability


@dataclass(frozen=True)
class Row:
    """A question and its answer. Rows are equal if both are: two questions of the benchmark are the same."""

    question: str
    answer: str
    place: str = field(compare=False)


@dataclass(frozen=True)
class EvaluationRow(Row):
    """A row with the answers that the truth ratio compares.

    Attributes:
        right: the paraphrased answer; in sets of options the answer itself.
        wrong: the wrong answers.
    """

    right: str
    wrong: tuple[str, ...]

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers to score: the answer, the right one, the wrong ones."""
        return (self.answer, self.right, *self.wrong)


@dataclass(frozen=True)
class TofuData:
    """The rows of one preset.

    Attributes:
        forget, retain: training rows of the two tasks; the model is first fine-tuned on both.
        validation: those of `retain` that unlearning leaves out, to choose learning rates and to stop by. The evaluation has
            none of them.
        refusals: answers that say that the answer is not known.
        evaluation: set name -> rows.
        holdout: rows about other authors, whom no model is trained on, for membership attacks; empty where the source has none.
        sha256: config name -> hash of the rows read.
    """

    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    validation: tuple[Row, ...]
    refusals: tuple[str, ...]
    evaluation: dict[str, tuple[EvaluationRow, ...]]
    holdout: tuple[Row, ...]
    sha256: dict[str, str]

    @property
    def retained(self) -> tuple[Row, ...]:
        """The retain rows that unlearning sees."""
        left_out = set(map(_key, self.validation))
        return tuple(row for row in self.retain if _key(row) not in left_out)

    @property
    def train(self) -> tuple[Row, ...]:
        """All training rows, retain first, as in the benchmark's `full`."""
        return self.retain + self.forget


def load(source: Source, preset: str) -> TofuData:
    """Read and check all rows of a preset.

    Args:
        source: where the rows come from.
        preset: "mini" (20 authors, of whom 2 are forgotten), or "forget01", "forget05", "forget10" (the full benchmark).

    Raises:
        UserError: unknown preset; a config is missing, empty or malformed; forget and retain overlap; a single retain row.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset: unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    reader = _Reader(source)
    forget, retain, evaluation = PRESETS[preset](reader)
    _refuse_overlap(forget, retain)
    validation = _left_out(retain, evaluation["retain"])
    evaluation["retain"] = _without(evaluation["retain"], validation)
    if not evaluation["retain"] or len(validation) == len(retain):
        raise UserError(
            f"--data: found {len(retain)} retain rows; give at least 3, to unlearn with, to validate and to evaluate"
        )
    for name in OPTION_SETS:
        evaluation[name] = reader.evaluation(f"{name}_perturbed", "answer")
    holdout = _holdout(reader, preset)
    _refuse_overlap(holdout, (*retain, *forget), "holdout and training rows")
    refusals = tuple(source.refusals())
    hashes = reader.sha256 | {"refusals": text_hash(refusals)}
    return TofuData(forget, retain, validation, refusals, evaluation, holdout, hashes)


class _Reader:
    """Reads configs, checks every row and keeps the hashes of what was read."""

    def __init__(self, source: Source):
        self.source = source
        self.sha256: dict[str, str] = {}

    def rows(self, config: str) -> tuple[Row, ...]:
        return tuple(Row(text_field(raw, "question"), text_field(raw, "answer"), raw.place) for raw in self._raw(config))

    def evaluation(self, config: str, right: str) -> tuple[EvaluationRow, ...]:
        return tuple(
            EvaluationRow(
                text_field(raw, "question"),
                text_field(raw, "answer"),
                raw.place,
                text_field(raw, right),
                _texts(raw, "perturbed_answer"),
            )
            for raw in self._raw(config)
        )

    def _raw(self, config: str) -> list[RawRow]:
        raw = self.source.rows(config)
        if not raw:
            raise UserError(f"--data: {self.source.name} has no rows in {config!r}; the split must not be empty")
        self.sha256[config] = content_hash(raw)
        return raw


Split = tuple[tuple[Row, ...], tuple[Row, ...], dict[str, tuple[EvaluationRow, ...]]]


def _mini(reader: _Reader) -> Split:
    """The 20 authors of forget10; its last two, forget01, are forgotten and the others retained and evaluated."""
    everything, forget = reader.rows("forget10"), reader.rows("forget01")
    perturbed = reader.evaluation("forget10_perturbed", "paraphrased_answer")
    for row in forget:
        if row not in everything:
            raise UserError(f"{row.place}: not a row of forget10, found {row.question[:60]!r}; use files of one release")
    forgotten = set(map(_key, forget))
    retain = _without(everything, forget)
    if not retain:
        raise UserError("--data: forget01 holds every row of forget10, so nothing is left to retain; use files of one release")
    evaluation = {
        "forget": tuple(row for row in perturbed if _key(row) in forgotten),
        "retain": _without(perturbed, forget),
    }
    for name in AUTHOR_SETS:
        if not evaluation[name]:
            raise UserError(f"--data: forget10_perturbed has no row of the {name} set; use files of one release")
    return forget, retain, evaluation


def _full(percent: int) -> Callable[[_Reader], Split]:
    """The benchmark's own split: forget this share of the 200 authors, retain the others."""

    def read(reader: _Reader) -> Split:
        name = f"forget{percent:02d}"
        evaluation = {
            "forget": reader.evaluation(f"{name}_perturbed", "paraphrased_answer"),
            "retain": reader.evaluation("retain_perturbed", "paraphrased_answer"),
        }
        return reader.rows(name), reader.rows(f"retain{100 - percent}"), evaluation

    return read


PRESETS: dict[str, Callable[[_Reader], Split]] = {"mini": _mini} | {f"forget{p:02d}": _full(p) for p in (1, 5, 10)}
FORGET_OF = {name: "forget01" if name == "mini" else name for name in PRESETS}  # preset -> config that is forgotten


def _holdout(reader: _Reader, preset: str) -> tuple[Row, ...]:
    config = f"holdout{FORGET_OF[preset].removeprefix('forget')}"
    return reader.rows(config) if reader.source.has(config) else ()


def _left_out(retain: Sequence[Row], evaluated: Sequence[Row]) -> tuple[Row, ...]:
    """A tenth of the retain rows, 100 at most, evenly spread: of those that are not evaluated, or of all if all are."""
    free = _without(retain, evaluated) or tuple(retain)
    count = min(VALIDATION, max(1, len(free) // 10))
    return tuple(free[(2 * i + 1) * len(free) // (2 * count)] for i in range(count))


R = TypeVar("R", bound=Row)


def _without(rows: Sequence[R], others: Sequence[Row]) -> tuple[R, ...]:
    keys = set(map(_key, others))
    return tuple(row for row in rows if _key(row) not in keys)


def _key(row: Row) -> tuple[str, str]:
    return row.question, row.answer


def _refuse_overlap(forget: Sequence[Row], retain: Sequence[Row], names: str = "forget and retain") -> None:
    places = {_key(row): row.place for row in retain}
    for row in forget:
        if _key(row) in places:
            raise UserError(
                f"{row.place}: {names} overlap, found {row.question[:60]!r} at {places[_key(row)]} too; remove one of the two"
            )


def _texts(raw: RawRow, name: str) -> tuple[str, ...]:
    values = raw.fields.get(name)
    if not isinstance(values, list) or not values:
        raise UserError(f"{raw.place}: field {name!r} must be a list of texts, found {values!r:.60}; repair the row")
    return tuple(checked(raw, name, value) for value in values)
