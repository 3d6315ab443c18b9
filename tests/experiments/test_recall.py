"""Extraction strength, exact memorisation and Min-K: by hand, and batched against one token at a time."""

import math
from typing import Any

import pytest
import torch

from experiments.lm import models
from experiments.tofu import synthetic
from ngdiff.lm import scoring
from ngdiff.lm.encoding import Encoder, Example
from ngdiff.lm.scoring import LARGEST_NLL, answer_nll, answer_scores, gradient_norms, recall

ROWS = synthetic.rows("forget01")[:12]
SIZE = models.Size(hidden=32, layers=2, heads=4, intermediate=64, vocabulary=400)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(models.train_tokenizer([row["question"] + row["answer"] for row in ROWS], SIZE.vocabulary))


@pytest.fixture
def model(encoder: Encoder) -> Any:
    torch.manual_seed(0)
    return models.build_llama(SIZE, encoder.tokenizer).double().eval()


@pytest.fixture
def examples(encoder: Encoder) -> list[Example]:
    return [encoder.example(row["question"], row["answer"]) for row in ROWS]


@pytest.mark.parametrize(
    ("hits", "extraction", "exact"),
    [
        ([1, 1, 1, 1], 1.0, 1.0),  # known from the first token on
        ([0, 1, 1, 1], 0.75, 0.75),  # one token given, the rest follows
        ([1, 1, 0, 1], 0.25, 0.75),  # three tokens given
        ([1, 1, 1, 0], 0.0, 0.75),  # not even the last one; open-unlearning gives 1/4
        ([0, 0], 0.0, 0.0),
        ([1], 1.0, 1.0),
        ([0], 0.0, 0.0),
    ],
)
def test_extraction_and_exact_memorisation_by_hand(hits: list[int], extraction: float, exact: float) -> None:
    none = torch.zeros(len(hits))
    found = recall(torch.tensor(hits, dtype=torch.bool), none, none)
    assert (found.extraction_strength, found.exact_memorisation) == (extraction, exact)


@pytest.mark.parametrize(
    ("log_p", "expected"),
    [
        ([-1.0, -2.0, -3.0, -4.0, -5.0], 4.5),  # 40% of five tokens are the two lowest
        ([-1.0, -7.0], 7.0),  # 40% of two are less than one: one is taken
        ([-1.0, -2.0, -9.0, -3.0], 9.0),  # 40% of four are 1.6, cut to one
    ],
)
def test_min_k_by_hand(log_p: list[float], expected: float) -> None:
    known = torch.ones(len(log_p), dtype=torch.bool)
    found = recall(known, torch.tensor(log_p), torch.tensor(log_p) / 2)
    assert (found.min_k, found.min_k_plus) == (expected, expected / 2)


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        (0.2, 2.0),
        (1e-8, 1e4),  # nearly certain, and the variance, 3e-6, is still what counts
        (1e-10, -1e3 * math.log(1e-10)),  # here it is 5e-8, and its floor of 1e-6 takes its place; mu is as good as 0
    ],
)
def test_min_k_plus_of_a_coin(q: float, expected: float) -> None:
    """Two tokens of p and q = 1 - p: mu = p ln p + q ln q, and sigma is sqrt(p q) |ln p - ln q|; the unlikely one scores
    (ln q - mu) / sigma = -sqrt(p / q), whatever the logarithms.
    """
    logits = torch.tensor([[[0.0, 0.0], [math.log1p(-q), math.log(q)], [0.0, 0.0]]])
    labels = torch.tensor([[-100, -100, 1]])
    found = scoring._recalls([(logits[:, :-1], labels[:, 1:])])[0]
    # float32: ln q is rounded to 1e-6 at most, and q = exp(ln q) has that as its relative error.
    assert found.min_k_plus == pytest.approx(expected, rel=2e-6)
    assert found.min_k == pytest.approx(-math.log(q), rel=1e-6)


def test_batches_are_one_token_at_a_time(
    model: Any, encoder: Encoder, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a loop that sees one row, without the end token, in float64; with so little room that logits come in parts."""
    monkeypatch.setattr(scoring, "TOKENS", 300)
    monkeypatch.setattr(scoring, "LOGITS", 7 * SIZE.vocabulary)
    found = answer_scores(model, examples, encoder.pad, range(len(examples)))
    assert [score.nll for score in found] == answer_nll(model, examples, encoder.pad)
    for example, score in zip(examples, found, strict=True):
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        values, hits = [], []
        for place in range(example.prompt, len(example.ids) - 1):
            log_probs = logits[place - 1].log_softmax(-1)
            probs = log_probs.exp()
            mu = float((probs * log_probs).sum())
            sigma = math.sqrt(float((probs * (log_probs - mu) ** 2).sum()))
            values.append((float(log_probs[example.ids[place]]), mu, sigma))
            hits.append(int(log_probs.argmax()) == example.ids[place])
        k = max(1, int(0.4 * len(values)))
        lowest = sorted(p for p, _, _ in values)[:k]
        standard = sorted((p - mu) / sigma for p, mu, sigma in values)[:k]
        assert score.recall is not None
        # Log-probabilities pass through float32; sigma is the root of a difference of squares of about 6, so it loses a digit.
        assert score.recall.min_k == pytest.approx(-sum(lowest) / k, rel=1e-5)
        assert score.recall.min_k_plus == pytest.approx(-sum(standard) / k, rel=1e-3)
        assert score.recall.exact_memorisation == pytest.approx(sum(hits) / len(hits), rel=1e-12)


@pytest.mark.parametrize("destroyed", [False, True])
def test_min_k_alone_is_that_of_the_recall(model: Any, encoder: Encoder, examples: list[Example], destroyed: bool) -> None:
    """To the last bit, whatever the order of lengths, with an answer that is an end token alone."""
    rows = [*examples[:3], encoder.example("Who?", ""), *examples[3:6]]
    if destroyed:
        model.get_output_embeddings().weight.data.fill_(math.nan)
    known = [score.recall for score in answer_scores(model, rows, encoder.pad, range(len(rows)))]
    assert scoring.answer_min_k(model, rows, encoder.pad) == [one.min_k for one in known if one]
    assert len({one.min_k for one in known if one}) == (1 if destroyed else len(rows))


def test_only_what_is_asked_for_is_recalled(model: Any, encoder: Encoder, examples: list[Example]) -> None:
    found = answer_scores(model, examples, encoder.pad, [1, 3])
    assert [i for i, score in enumerate(found) if score.recall] == [1, 3]


def test_gradient_norm_is_that_of_one_backward(model: Any, encoder: Encoder, examples: list[Example]) -> None:
    found = gradient_norms(model, examples[:3], encoder.pad)
    assert all(p.grad is None for p in model.parameters())  # nothing is left behind
    for example, norm in zip(examples, found, strict=False):
        model.zero_grad()
        ids = torch.tensor([example.ids])
        log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        (-log_p[example.prompt - 1 : -1].mean()).backward()
        own = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
        assert norm == pytest.approx(own, rel=1e-5)  # the loss is computed in float32


def test_a_destroyed_model_gives_numbers(model: Any, encoder: Encoder, examples: list[Example]) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    for score in answer_scores(model, examples[:3], encoder.pad, range(3)):
        assert score.recall is not None
        assert score.recall.min_k == LARGEST_NLL
        assert math.isfinite(score.recall.min_k_plus)
        assert score.recall.extraction_strength == 0
    assert all(math.isfinite(norm) for norm in gradient_norms(model, examples[:2], encoder.pad))


def test_a_token_that_cannot_come_is_no_nan() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, -math.inf], [0.0, 0.0, 0.0]]])
    found = scoring._recalls([(logits[:, :-1], torch.tensor([[0, 1]]))])[0]
    assert math.isfinite(found.min_k_plus)
    assert found.min_k == pytest.approx(math.log(3), rel=1e-6)  # the end token, 1, is left out
