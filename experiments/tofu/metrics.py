"""TOFU's metrics as arithmetic on scored rows. Nothing here sees a model.

Source: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv 2401.06121, and its reference implementation.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import fmean, harmonic_mean
from typing import Any, Self

from scipy.stats import ks_2samp

from ngdiff.lm.membership import CHANCE, Exposure, attacks, auc, priv_leak

AUTHOR_SETS = ("forget", "retain")  # the right answer of the truth ratio is the paraphrase
OPTION_SETS = ("real_authors", "world_facts")  # the right answer is one of four options
SETS = AUTHOR_SETS + OPTION_SETS
UTILITY_SETS = ("retain", *OPTION_SETS)


@dataclass(frozen=True)
class ScoredRow:
    """One question after evaluation.

    Attributes:
        question, answer, generation: texts; the generation is greedy, cut at the end token and stripped.
        nll_answer: mean NLL of the answer's tokens, end token included, in nats.
        nll_right: the same for the right answer of the truth ratio: the paraphrase, or the answer itself for options.
        nll_wrong: the same for each wrong answer.
        rouge: ROUGE-L recall of the generation against the answer.
        memory: what the model knows of the answer by heart; None outside of the authors' sets, and where it was not asked for.
    """

    question: str
    answer: str
    generation: str
    nll_answer: float
    nll_right: float
    nll_wrong: tuple[float, ...]
    rouge: float
    memory: "Memory | None" = None

    @cached_property
    def log_truth_ratio(self) -> float:
        """ln R, with R = (geometric mean of the wrong probabilities) / (right probability).

        Kept as a logarithm: a model that unlearned has NLLs of hundreds of nats, where R itself is 0, inf or 0/0. Against that
        open-unlearning adds 1e-10 to the right probability. One published script takes the arithmetic mean of the wrong ones,
        with which model utility differs by up to 0.04.
        """
        return self.nll_right - fmean(self.nll_wrong)

    def probability(self, among_options: bool) -> float:
        """P(answer) per token; among options, its share in the sum over right and wrong answers."""
        if not among_options:
            return math.exp(-self.nll_answer)
        # Divided through by P(answer), so that NLLs of hundreds of nats do not become 0 / 0.
        return 1 / (1 + math.fsum(_exp(self.nll_answer - wrong) for wrong in self.nll_wrong))

    def truth_ratio(self, forget: bool) -> float:
        """min(R, 1/R) for the forget set, where indifference (1) is the aim; max(0, 1 - R) elsewhere."""
        return math.exp(-abs(self.log_truth_ratio)) if forget else -math.expm1(min(self.log_truth_ratio, 0.0))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """From the fields as JSON keeps them."""
        memory = fields.get("memory")
        restored = {"nll_wrong": tuple(fields["nll_wrong"]), "memory": Memory.from_dict(memory) if memory else None}
        return cls(**{**fields, **restored})

    def as_dict(self, name: str) -> dict[str, Any]:
        """All fields and the row's own metrics, for results.json; `name` is the row's set."""
        metrics = {"probability": self.probability(name in OPTION_SETS), "truth_ratio": self.truth_ratio(name == "forget")}
        return asdict(self) | metrics


@dataclass(frozen=True)
class Memory:
    """What a model knows of one answer beyond TOFU's own metrics, as in open-unlearning (arXiv 2506.12618).

    Attributes:
        exact_memorisation, extraction_strength: see `ngdiff.lm.scoring.Recall`.
        exposure: scores for membership attacks.
        rouge_right: ROUGE-L recall of the generation against the paraphrased answer; None outside of the forget set.
        rouge_wrong: its mean over the wrong answers; None outside of the forget set.
    """

    exact_memorisation: float
    extraction_strength: float
    exposure: Exposure
    rouge_right: float | None = None
    rouge_wrong: float | None = None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """From the fields as JSON keeps them."""
        return cls(**{**fields, "exposure": Exposure(**fields["exposure"])})


@dataclass(frozen=True)
class Evaluation:
    """All that the metrics of one model are computed from.

    Attributes:
        sets: set name -> rows.
        holdout: scores of answers that no model was trained on; empty where there are none.
    """

    sets: dict[str, list[ScoredRow]]
    holdout: list[Exposure] = field(default_factory=list)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """From the fields as JSON keeps them."""
        sets = {name: [ScoredRow.from_dict(row) for row in rows] for name, rows in fields["sets"].items()}
        return cls(sets, [Exposure(**exposure) for exposure in fields["holdout"]])

    @property
    def forget(self) -> list[ScoredRow]:
        """Rows of the forget set."""
        return self.sets["forget"]

    @property
    def exposed(self) -> list[Exposure]:
        """Scores of the forget answers; empty where they were not asked for."""
        return [row.memory.exposure for row in self.forget if row.memory]


def set_metrics(name: str, rows: Sequence[ScoredRow]) -> dict[str, float]:
    """Mean probability, ROUGE and truth ratio of one set, with its number of rows.

    Raises:
        ValueError: unknown set, or no rows.
    """
    if name not in SETS or not rows:
        raise ValueError(f"set_metrics: set {name!r} with {len(rows)} rows; give one of {', '.join(SETS)}, not empty")
    own = {
        "probability": fmean(row.probability(name in OPTION_SETS) for row in rows),
        "rouge": fmean(row.rouge for row in rows),
        "truth_ratio": fmean(row.truth_ratio(name == "forget") for row in rows),
        "rows": len(rows),
    }
    return own | _memory_metrics(name, rows)


def _memory_metrics(name: str, rows: Sequence[ScoredRow]) -> dict[str, float]:
    """Means over a set of authors; nothing where the rows carry no memory. Right and wrong are the paraphrased and the
    perturbed answers, Para and Pert in open-unlearning.
    """
    memories = [row.memory for row in rows if row.memory]
    if not memories:
        return {}
    found = {key: fmean(getattr(m, key) for m in memories) for key in ("exact_memorisation", "extraction_strength")}
    found["right_probability"] = fmean(math.exp(-row.nll_right) for row in rows)
    found["wrong_probability"] = fmean(fmean(math.exp(-nll) for nll in row.nll_wrong) for row in rows)
    if name == "forget":
        found |= {key: fmean(getattr(m, key) for m in memories) for key in ("rouge_right", "rouge_wrong")}
    return found


def privacy(model: Evaluation, reference: Evaluation | None) -> dict[str, Any] | None:
    """Membership attacks on the forget set against holdout rows, and PrivLeak; None where there are no such scores.

    Args:
        model: the one that is attacked.
        reference: the retain-only model; None for that one itself, whose PrivLeak is against chance.

    Returns:
        auc: attack -> AUC, 1 for memorised, see `ngdiff.lm.membership`.
        privleak: near 0 is best.
    """
    if not model.holdout or not model.exposed:
        return None
    known = (reference.exposed, reference.holdout) if reference else None
    against = auc(*([text.min_k for text in texts] for texts in known)) if known else CHANCE
    found = attacks(model.exposed, model.holdout, known)
    return {"auc": found, "privleak": priv_leak(found["min_k"], against)}


def utility(sets: Mapping[str, Mapping[str, float]], names: Sequence[str] = UTILITY_SETS) -> float:
    """Harmonic mean of probability, ROUGE and truth ratio over the named sets; over all three it is TOFU's model utility."""
    return float(harmonic_mean([max(0.0, sets[name][m]) for name in names for m in ("probability", "rouge", "truth_ratio")]))


def forget_quality(unlearned: Sequence[ScoredRow], reference: Sequence[ScoredRow]) -> dict[str, float]:
    """Two-sample Kolmogorov-Smirnov test between the truth ratios of a model and of the retain-only one, on the forget set.

    Returns:
        forget_quality: the p-value. At D = 1 it is 2 / C(2n, n) and cannot be smaller.
        log10_forget_quality: its decimal logarithm.
        ks_statistic: D.
    """
    # The test depends on ranks alone, so ln R does for R, without overflow.
    test = ks_2samp([r.log_truth_ratio for r in unlearned], [r.log_truth_ratio for r in reference])
    p = float(test.pvalue)
    # Only beyond 500 rows can p be below the smallest float; it is then reported as that.
    log10_p = math.log10(max(p, sys.float_info.min))
    return {"forget_quality": p, "log10_forget_quality": log10_p, "ks_statistic": float(test.statistic)}


def share(after: float, before: float) -> float:
    """What is left of a probability; nothing is left of one that was zero."""
    return after / max(before, sys.float_info.min)


def summary(rows: Mapping[str, Sequence[ScoredRow]]) -> dict[str, Any]:
    """All metrics of one model that need no reference: a set each, model utility and utility on the retain set alone."""
    sets = {name: set_metrics(name, rows[name]) for name in SETS if name in rows}
    complete = all(name in sets for name in UTILITY_SETS)
    return {
        "model_utility": utility(sets) if complete else None,
        "retain_utility": utility(sets, ("retain",)) if "retain" in sets else None,
        "sets": sets,
    }


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
