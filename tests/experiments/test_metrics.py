"""TOFU's arithmetic: on published logs, on a stored excerpt computed by other means, and on cases done by hand."""

import json
import math
from dataclasses import asdict

import pytest
from make_excerpt import EXCERPT
from real_data import LOGS, REMEDY

from experiments.tofu import metrics
from experiments.tofu.metrics import (
    Evaluation,
    Memory,
    ScoredRow,
    forget_quality,
    privacy,
    set_metrics,
    summary,
    utility,
)
from ngdiff.lm.membership import Exposure
from ngdiff.lm.rouge import rouge_recall

published = pytest.mark.skipif(
    not LOGS.is_dir(), reason=f"the published evaluation logs are not at {LOGS}, the excerpt is tested; {REMEDY}"
)

SIX_DIGITS = 5e-7  # half a unit of the sixth decimal in which the published figures are given

# From the public evaluation logs of locuslab/tofu, first 300 rows of each set: probability, ROUGE, truth ratio.
PUBLISHED = {
    "full": {
        "model_utility": 0.622677,
        "retain": (0.989527, 0.985655, 0.474699),
        "real_authors": (0.455482, 0.933, 0.596229),
        "world_facts": (0.418562, 0.882479, 0.539033),
        "forget": (0.990939, 0.985450, 0.515985),
    },
    "retain90": {
        "model_utility": 0.613745,
        "retain": (0.988897, 0.975811, 0.470977),
        "real_authors": (0.434087, 0.923, 0.570681),
        "world_facts": (0.414326, 0.897436, 0.544198),
        "forget": (0.147563, 0.408244, 0.674019),
    },
}


def published_rows(model: str) -> dict[str, list[ScoredRow]]:
    sets: dict[str, list[ScoredRow]] = {}
    for line in (LOGS / f"llama2-7b_{model}.jsonl").read_text(encoding="utf-8").splitlines():
        log = json.loads(line)
        nll = log["nll_answer"], log["nll_paraphrased"], tuple(log["nll_perturbed"])
        rouge = rouge_recall(log["answer"], log["generation"])  # from the texts, not from the log
        sets.setdefault(log["set"], []).append(ScoredRow(log["prompt"], log["answer"], log["generation"], *nll, rouge))
    return sets


def row(answer: float = 0.1, right: float = 0.1, wrong: tuple[float, ...] = (1.0,), rouge: float = 1.0) -> ScoredRow:
    return ScoredRow("q", "a", "g", answer, right, wrong, rouge)


@published
@pytest.mark.parametrize("model", PUBLISHED)
def test_published_aggregates(model: str) -> None:
    found = summary(published_rows(model))
    assert found["model_utility"] == pytest.approx(PUBLISHED[model]["model_utility"], abs=SIX_DIGITS)
    for name in metrics.SETS:
        values = [found["sets"][name][m] for m in ("probability", "rouge", "truth_ratio")]
        assert values == pytest.approx(PUBLISHED[model][name], abs=SIX_DIGITS), name


@published
def test_published_forget_quality() -> None:
    found = forget_quality(published_rows("full")["forget"], published_rows("retain90")["forget"])
    assert found["forget_quality"] == pytest.approx(1.834066e-21, rel=SIX_DIGITS)
    assert found["ks_statistic"] == pytest.approx(0.396667, abs=SIX_DIGITS)
    assert found["log10_forget_quality"] == pytest.approx(math.log10(1.834066e-21), abs=SIX_DIGITS)


@published
@pytest.mark.parametrize("model", PUBLISHED)
def test_published_rouge_of_every_row(model: str) -> None:
    logs = map(json.loads, (LOGS / f"llama2-7b_{model}.jsonl").read_text(encoding="utf-8").splitlines())
    different = [
        log["index"] for log in logs if abs(rouge_recall(log["answer"], log["generation"]) - log["rougeL_recall"]) > 1e-9
    ]
    assert different == []


def test_stored_excerpt() -> None:
    """The same arithmetic as written out in exact and 50-digit numbers by make_excerpt.py."""
    stored = json.loads(EXCERPT.read_text(encoding="utf-8"))
    models = {
        model: {
            name: [ScoredRow.from_dict(r | {"rouge": rouge_recall(r["answer"], r["generation"])}) for r in rows]
            for name, rows in sets.items()
        }
        for model, sets in stored["rows"].items()
    }
    # Sums of a few dozen float64 terms of order 1: far below 1e-12.
    for model, sets in models.items():
        found, expected = summary(sets), stored["expected"][model]
        assert found["model_utility"] == pytest.approx(expected["model_utility"], rel=1e-12)
        for name in metrics.SETS:
            values = [found["sets"][name][m] for m in ("probability", "rouge", "truth_ratio")]
            assert values == pytest.approx(expected["sets"][name], rel=1e-12), name
    found = forget_quality(models["unlearned"]["forget"], models["reference"]["forget"])
    assert found["ks_statistic"] == pytest.approx(stored["expected"]["ks_statistic"], rel=1e-12)
    # scipy's exact method keeps about ten digits of p.
    assert found["forget_quality"] == pytest.approx(stored["expected"]["forget_quality"], rel=1e-9)


@pytest.mark.parametrize("n", [40, 200, 300, 400])
def test_forget_quality_floor(n: int) -> None:
    """Disjoint samples give D = 1 and p = 2 / C(2n, n), the two orders that separate them out of all."""
    found = forget_quality([row(right=9.0 + i) for i in range(n)], [row(right=-9.0 - i) for i in range(n)])
    assert found["ks_statistic"] == 1
    assert found["forget_quality"] == pytest.approx(2 / math.comb(2 * n, n), rel=1e-9)


def test_forget_quality_of_equal_models_is_one() -> None:
    rows = [row(right=0.1 * i) for i in range(30)]
    assert forget_quality(rows, rows)["forget_quality"] == 1


def test_truth_ratio_by_hand() -> None:
    """Wrong answers of probability 1/2 and 1/8 have geometric mean 1/4; against a right one of 1/2, R = 1/2."""
    r = row(right=math.log(2), wrong=(math.log(2), math.log(8)))
    assert r.truth_ratio(forget=True) == pytest.approx(0.5, rel=1e-15)
    assert r.truth_ratio(forget=False) == pytest.approx(0.5, rel=1e-15)
    inverse = row(right=math.log(8), wrong=(math.log(4),))  # R = 2
    assert inverse.truth_ratio(forget=True) == pytest.approx(0.5, rel=1e-15)
    assert inverse.truth_ratio(forget=False) == 0


def test_probability_by_hand() -> None:
    r = row(answer=math.log(2), wrong=(math.log(4), math.log(8), math.log(8)))
    assert r.probability(among_options=False) == pytest.approx(0.5, rel=1e-15)
    assert r.probability(among_options=True) == pytest.approx(0.5, rel=1e-15)  # (1/2) / (1/2 + 1/4 + 1/8 + 1/8)


def test_destroyed_model_gives_numbers() -> None:
    """NLLs of ten thousand nats underflow as probabilities; nothing may become NaN or raise."""
    r = row(answer=1e4, right=1e4, wrong=(0.5, 1.0, 2.0))
    assert r.probability(among_options=False) == 0
    assert r.probability(among_options=True) == 0
    assert r.truth_ratio(forget=True) == 0
    assert r.truth_ratio(forget=False) == 0
    assert row(answer=1e4, wrong=(1e4, 1e4, 1e4)).probability(among_options=True) == 0.25


def test_utility_is_the_harmonic_mean() -> None:
    sets = {name: {"probability": 1.0, "rouge": 1.0, "truth_ratio": 1.0} for name in metrics.UTILITY_SETS}
    sets["retain"]["rouge"] = 0.1
    assert utility(sets) == pytest.approx(9 / (8 + 10), rel=1e-15)
    assert utility(sets, ("retain",)) == pytest.approx(3 / (2 + 10), rel=1e-15)
    sets["world_facts"]["rouge"] = 0.0
    assert utility(sets) == 0


def test_rouge_is_recall_with_stemming() -> None:
    assert rouge_recall("the author writes novels", "An author wrote a novel about the sea") == 0.5  # author, novel
    assert rouge_recall("one two", "one two three four") == 1
    assert rouge_recall("one two", "") == 0


@pytest.mark.parametrize(("name", "rows"), [("forget", []), ("forgotten", [row()])])
def test_set_metrics_refuses(name: str, rows: list[ScoredRow]) -> None:
    with pytest.raises(ValueError, match=name):
        set_metrics(name, rows)


def known(nll: float, right: float, wrong: float) -> ScoredRow:
    """A forget row with its memory: ROUGE of the generation against the paraphrase and, on average, the wrong answers."""
    memory = Memory(0.75, 0.5, Exposure(nll, nll / 10, 2 * nll, 3 * nll, 4 * nll), right, wrong)
    return ScoredRow("q", "a", "g", nll, math.log(4), (math.log(2), math.log(8)), 1.0, memory)


def test_memory_metrics_by_hand() -> None:
    """Means over rows; the paraphrase has probability 1/4, the wrong answers 1/2 and 1/8, on average 5/16."""
    found = set_metrics("forget", [known(1.0, 0.5, 0.25), known(2.0, 1.0, 0.0)])
    expected = {"exact_memorisation": 0.75, "extraction_strength": 0.5, "right_probability": 0.25, "wrong_probability": 5 / 16}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-14)
    assert (found["rouge_right"], found["rouge_wrong"]) == (0.75, 0.125)
    assert not set(expected) & set(set_metrics("forget", [row()]))
    assert "rouge_right" not in set_metrics("retain", [known(1.0, 0.5, 0.25)])


def test_privacy_by_hand() -> None:
    """Forget rows of loss 1 and 2 against unseen ones of 0.5 and 3: half of the pairs are told right, which is chance."""
    rows = [known(1.0, 0.0, 0.0), known(2.0, 0.0, 0.0)]
    holdout = [Exposure(loss, loss / 10, 2 * loss, 3 * loss, 4 * loss) for loss in (0.5, 3.0)]
    model = Evaluation({"forget": rows}, holdout)
    found = privacy(model, None)
    assert found is not None
    assert found["auc"] == dict.fromkeys(("loss", "zlib", "min_k", "min_k_plus", "gradient_norm"), 0.5)
    assert found["privleak"] == 0
    memorised = Evaluation({"forget": [known(0.1, 0.0, 0.0)]}, holdout)
    against = privacy(memorised, Evaluation({"forget": rows[:1]}, holdout))
    assert against is not None
    assert against["auc"]["min_k"] == 1
    assert against["privleak"] == -100
    # Minus the reference's losses the forget row has -0.9 and the unseen ones 0: told apart in every pair.
    assert against["auc"]["reference"] == 1
    assert privacy(Evaluation({"forget": rows}), None) is None
    assert privacy(Evaluation({"forget": [row()]}, holdout), None) is None


def test_an_evaluation_comes_back_from_json() -> None:
    found = Evaluation({"forget": [known(1.0, 0.5, 0.25)], "retain": [row()]}, [Exposure(1.0, 0.1, 2.0, 3.0)])
    assert Evaluation.from_dict(json.loads(json.dumps(asdict(found)))) == found
