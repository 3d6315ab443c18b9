import math

import oracle
import pytest
import torch
from asserts import U32, U64, assert_bitwise_equal
from hypothesis import given
from hypothesis import strategies as st

from ngdiff.objectives import IGNORE, nll


def slow_nll(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The definition, one token at a time."""
    terms = []
    for row, row_labels in zip(logits.tolist(), labels.tolist(), strict=True):
        for predicting, target in zip(row[:-1], row_labels[1:], strict=True):
            if target != -100:
                largest = max(predicting)
                normaliser = largest + math.log(math.fsum(math.exp(x - largest) for x in predicting))
                terms.append(normaliser - predicting[target])
    return math.fsum(terms) / len(terms)


def bound(logits: torch.Tensor, unit_roundoff: float) -> float:
    """Rounding of nll.

    A log-softmax sums `vocabulary` exponentials (vocabulary + 2 units, in nats) and subtracts twice, at the size of the largest
    loss, which is below the range of the logits + log(vocabulary). The mean of n terms adds n units of that size.
    """
    rows, tokens, vocabulary = logits.shape
    size = float(logits.max() - logits.min()) + math.log(vocabulary) + float(logits.abs().max())
    return unit_roundoff * (vocabulary + 2 + (rows * tokens + 4) * size)


@st.composite
def batches(draw):
    rows, tokens, vocabulary = draw(st.integers(1, 4)), draw(st.integers(2, 7)), draw(st.sampled_from([1, 2, 13]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    logits = torch.randn(rows, tokens, vocabulary).double() * draw(st.sampled_from([0.0, 1.0, 30.0]))
    labels = torch.randint(vocabulary, (rows, tokens))
    labels[torch.rand(rows, tokens) < draw(st.sampled_from([0.0, 0.5, 0.9]))] = IGNORE
    labels[-1, -1] = 0  # at least one scored token
    return logits, labels


@given(batch=batches(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_nll_is_its_definition(batch, dtype):
    logits, labels = batch[0].to(dtype), batch[1]
    loss = nll(logits, labels)
    assert (loss.shape, loss.dtype) == ((), dtype)
    assert abs(loss.item() - slow_nll(logits, labels)) <= bound(logits, {torch.float32: U32, torch.float64: U64}[dtype])


@given(batch=batches(), dtype=st.sampled_from([torch.bfloat16, torch.float16]))
def test_low_precision_logits_are_computed_in_float32(batch, dtype):
    logits, labels = batch[0].to(dtype), batch[1]
    loss = nll(logits, labels)
    assert loss.dtype == torch.float32
    assert_bitwise_equal(loss, nll(logits.float(), labels))


def test_the_value_of_ignored_labels_and_their_logits_does_not_matter():
    logits, labels = torch.randn(3, 6, 11), torch.randint(11, (3, 6))
    labels[:, :4] = IGNORE
    before = nll(logits, labels)
    logits[:, :3] = float("nan")  # these predict ignored labels
    logits[:, -1] = float("nan")  # nothing follows the last token
    labels[:, 0] = 5  # nothing predicts the first token
    assert_bitwise_equal(nll(logits, labels), before)


def test_the_gradient_is_zero_exactly_where_nothing_is_scored():
    logits, labels = torch.randn(2, 5, 7, requires_grad=True), torch.randint(7, (2, 5))
    labels[0, :3] = IGNORE
    nll(logits, labels).backward()
    scored = torch.tensor([[False, False, True, True, False], [True, True, True, True, False]])
    assert logits.grad.ne(0).all(-1).equal(scored)
    assert logits.grad.ne(0).any(-1).equal(scored)


def test_every_token_weighs_the_same_whatever_its_row():
    logits = torch.zeros(2, 4, 3)
    logits[0, :, 0] = 5.0
    labels = torch.tensor([[0, 0, IGNORE, IGNORE], [0, 0, 0, 0]])
    # One token of log(1 + 2 exp(-5)) and three of log 3; float32 roundings of four terms of about 1.
    assert abs(nll(logits, labels).item() - (math.log1p(2 * math.exp(-5)) + 3 * math.log(3)) / 4) <= 8 * U32 * 5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_nll_is_the_loss_of_transformers(attention):
    problem = oracle.llama_problem()
    model = problem.model.float()
    model.set_attn_implementation(attention)
    ids = torch.randint(24, (4, 10))
    labels = ids.clone()
    labels[:, :3] = IGNORE
    labels[2, 6:] = IGNORE
    with torch.no_grad():
        theirs = model(input_ids=ids, labels=labels)
    # The same logits, summed in another order.
    assert abs(nll(theirs.logits, labels).item() - theirs.loss.item()) <= 2 * bound(theirs.logits, U32)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("rows", [0, 3])
def test_a_batch_without_scored_tokens_is_refused(rows, tokens):
    labels = torch.full((rows, tokens), IGNORE)
    labels[:, 0] = 1  # the first token is never scored
    with pytest.raises(ValueError, match=rf"no scored token in labels of shape \({rows}, {tokens}\)"):
        nll(torch.randn(rows, tokens, 7), labels)
