"""Documents in one row are those documents one by one: in logits, losses, labels, and under batches that do not fit."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.lm import models
from ngdiff.errors import UserError
from ngdiff.lm.batches import collate, in_batches, spread
from ngdiff.lm.encoding import Example
from ngdiff.lm.objectives import FORGET, TaskLoss
from ngdiff.lm.packing import document, encode_text, packed
from ngdiff.objectives import IGNORE

CPU = torch.device("cpu")
SIZE = models.Size(hidden=32, layers=2, heads=4, intermediate=64, vocabulary=300)
TEXTS = ["One fine day.", "A much longer text that goes on and on about nothing at all, " * 3, "Two.", "The end of it all."]
documents = st.lists(st.lists(st.integers(3, 50), min_size=1, max_size=40), max_size=12)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return models.train_tokenizer(TEXTS, SIZE.vocabulary)


@pytest.fixture
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    return models.build_llama(SIZE, tokenizer).double().eval()


@given(documents, st.integers(2, 30))
def test_every_token_is_in_one_row_and_in_order(texts: list[list[int]], length: int) -> None:
    rows = packed(texts, length)
    assert all(len(row.ids) <= length for row in rows)
    pieces = [row.ids[a:b] for row in rows for a, b in pairwise((*row.starts, len(row.ids)))]
    expected = [tuple(ids[i : i + length]) for ids in texts for i in range(0, len(ids), length)]
    assert sorted(pieces) == sorted(piece for piece in expected if len(piece) > 1)
    for row in rows:
        assert [i for i, label in enumerate(row.labels) if label == IGNORE] == list(row.starts)
        assert row.scored == sum(label != IGNORE for label in row.labels)


def test_rows_are_filled() -> None:
    """First fit: 6 and 3 share a row of 9, 5 and 4 the next."""
    rows = packed([[1] * 6, [2] * 5, [3] * 3, [4] * 4], 9)
    assert [row.ids for row in rows] == [(1,) * 6 + (3,) * 3, (2,) * 5 + (4,) * 4]
    assert [row.starts for row in rows] == [(0, 6), (0, 5)]


def test_a_text_begins_and_ends_with_its_tokens(tokenizer: Any) -> None:
    ids = encode_text(tokenizer, "One fine day.")
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(ids[1:-1]) == "One fine day."
    assert document(ids, 3) == Example(ids[:3], 1)


@pytest.mark.parametrize("length", [24, 64, 200])
def test_documents_do_not_see_each_other(model: Any, tokenizer: Any, length: int) -> None:
    """The logits of every piece in its row are those of the piece alone: attention and positions begin anew."""
    rows = packed([encode_text(tokenizer, text) for text in TEXTS], length)
    assert any(len(row.starts) > 1 for row in rows)
    batch = collate(rows, tokenizer.pad_token_id, CPU)
    batch.pop("labels")
    with torch.no_grad():
        together = model(**batch, use_cache=False).logits
        for logits, row in zip(together, rows, strict=True):
            for a, b in pairwise((*row.starts, len(row.ids))):
                alone = model(input_ids=torch.tensor([row.ids[a:b]])).logits[0]
                # float64: sums of a hundred terms in another order. Rotary angles are computed in float32 by transformers.
                torch.testing.assert_close(logits[a:b], alone, rtol=1e-5, atol=1e-6)


def test_the_loss_of_packed_rows_is_that_of_the_documents(model: Any, tokenizer: Any) -> None:
    ids = [encode_text(tokenizer, text) for text in TEXTS]
    losses = []
    for rows in (packed(ids, 200), [document(one, 200) for one in ids]):
        model.zero_grad()
        loss = TaskLoss(FORGET["nll"], model, rows, None, tokenizer.pad_token_id, None).backward(range(len(rows)))
        losses.append((loss, [p.grad.clone() for p in model.parameters()]))
    assert losses[0][0].item() == pytest.approx(losses[1][0].item(), rel=1e-6)  # losses are float32
    for mine, theirs in zip(losses[0][1], losses[1][1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_each_piece_is_a_row_where_documents_would_see_each_other() -> None:
    assert [row.ids for row in packed([[1] * 3, [2] * 5, [3] * 3], 4, together=False)] == [(1,) * 3, (2,) * 4, (3,) * 3]


def test_a_row_must_hold_two_tokens() -> None:
    with pytest.raises(ValueError, match="length = 1"):
        packed([[1, 2]], 1)


@pytest.mark.parametrize("fits", [1, 2, 5, 100])
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(fits: int) -> None:
    lengths, tried = [3, 9, 4, 4, 8, 1, 2, 9, 9, 5], []

    def compute(indices: list[int]) -> list[int]:
        tried.append(len(indices))
        if len(indices) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * i for i in indices]

    found = {
        i: value for indices, values in in_batches(lengths, 200, compute) for i, value in zip(indices, values, strict=True)
    }
    assert found == {i: 10 * i for i in range(len(lengths))}
    if fits < len(lengths):
        assert tried[:2] == [10, 5]


def test_a_row_that_does_not_fit_alone_is_one_line() -> None:
    def compute(indices: list[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="one row of 9 tokens does not fit"):
        list(in_batches([3, 9], 100, compute))


@pytest.mark.parametrize(("count", "expected"), [(2, [0, 5]), (10, list(range(10))), (99, list(range(10)))])
def test_spread(count: int, expected: list[int]) -> None:
    assert spread(list(range(10)), count) == expected
