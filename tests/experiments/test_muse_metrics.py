"""MUSE's arithmetic on cases done by hand."""

from dataclasses import asdict

import pytest

from experiments.muse.metrics import Evaluation, Written, cut, is_over, summary


def written(truth: str, generation: str) -> Written:
    return Written.scored("p", truth, generation)


def evaluation(verbmem: float, knowmem: float, utility: float, forget: list[float], holdout: list[float]) -> Evaluation:
    rows = ([Written("p", "t", "g", value, value / 2)] for value in (verbmem, knowmem, utility))
    prompted = {"knowmem_zero_shot": [Written("p", "t", "g", value, 0.0) for value in (knowmem, 0.0)]}
    return Evaluation(*rows, {"forget": forget, "retain": [0.0], "holdout": holdout}, prompted)


@pytest.mark.parametrize(
    ("truth", "generation", "f1", "recall"),
    [
        ("the cat sat", "the cat sat", 1.0, 1.0),
        ("the cat sat", "the dog sat down", 4 / 7, 2 / 3),  # two of three words, two of four: 2 * 2/3 * 1/2 / (2/3 + 1/2)
        ("walks", "walking", 0.0, 0.0),  # no stemming, unlike TOFU
        ("40,640", "40,430", 0.5, 0.5),  # a comma parts words
        ("a", "", 0.0, 0.0),
    ],
)
def test_rouge_by_hand(truth: str, generation: str, f1: float, recall: float) -> None:
    found = written(truth, generation)
    assert (found.f1, found.recall) == pytest.approx((f1, recall), rel=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 14 August\n\nQuestion: Who?", "14 August"),
        (" 14 August\nQuestion: Who?", "14 August"),
        (" 14 August Question: Who?", "14 August"),
        (" 14 August\nor so", "14 August\nor so"),
        ("\n\nnothing", ""),
    ],
)
def test_an_answer_ends_where_the_next_question_begins(text: str, expected: str) -> None:
    assert cut(text) == expected
    # Writing may end as soon as it is over: nothing of what is kept changes.
    whole = next((text[:i] for i in range(len(text) + 1) if is_over(text[:i])), text)
    assert cut(whole) == expected


def test_summary_by_hand() -> None:
    """The target's forget texts all look more familiar than the holdout, the retrained model cannot tell: PrivLeak is -100."""
    target, retrained = evaluation(1.0, 0.5, 0.8, [1.0, 2.0], [3.0, 4.0]), evaluation(0.2, 0.1, 0.8, [1.0, 4.0], [2.0, 3.0])
    found = summary(target, retrained)
    assert (found["verbmem"], found["knowmem"], found["utility"]) == (1.0, 0.5, 0.8)
    assert (found["verbmem_recall"], found["knowmem_recall"], found["utility_recall"]) == (0.5, 0.25, 0.4)
    assert found["knowmem_zero_shot"] == 0.25
    assert (found["auc"], found["privleak"]) == (1.0, -100.0)
    over = summary(evaluation(0.0, 0.0, 0.8, [9.0, 9.0], [3.0, 4.0]), retrained)
    assert (over["auc"], over["privleak"]) == (0.0, 100.0)
    assert summary(retrained, None)["privleak"] is None
    assert summary(retrained, retrained)["privleak"] == 0


def test_an_evaluation_comes_back_from_json() -> None:
    found = evaluation(1.0, 0.5, 0.8, [1.0], [2.0])
    assert Evaluation.from_dict(asdict(found)) == found
