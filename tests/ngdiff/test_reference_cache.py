"""What is kept of the model before unlearning: found again by content, never wrong, never half-written."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ngdiff import ReferenceCache
from ngdiff.reference import content_hash

ROWS = [((1, 2, 3), (-100, 2, 3)), ((4, 5), (-100, 5)), ((1, 2, 3), (-100, 2, 3))]


class Counted:
    """A computation of one tensor a row, which says what it was asked for."""

    def __init__(self, rows=ROWS):
        self.rows, self.asked = rows, []

    def __call__(self, missing):
        self.asked.append(missing)
        assert not torch.is_grad_enabled()
        return ((i, torch.tensor(self.rows[i][0], dtype=torch.float64).cumsum(0)) for i in missing)


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def get(folder, rows=ROWS, quantity="sums", of=None):
    compute = Counted(rows)
    return ReferenceCache(folder, of or model()).get(quantity, rows, compute), compute.asked


def test_each_row_is_computed_once_and_read_afterwards(tmp_path):
    values, asked = get(tmp_path / "new")
    assert asked == [[0, 1]] or asked == [[1, 0]]  # row 2 equals row 0
    again, asked = get(tmp_path / "new")
    assert asked == []
    for value, other, (ids, _) in zip(values, again, ROWS, strict=True):
        assert value.tolist() == other.tolist() == torch.tensor(ids).cumsum(0).tolist()
        assert value.dtype == other.dtype == torch.float64
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_new_rows_alone_are_computed(tmp_path):
    get(tmp_path)
    _, asked = get(tmp_path, [*ROWS, ((7,), (7,))])
    assert asked == [[3]]


@pytest.mark.parametrize("changed", ["model", "dtype", "ids", "labels", "quantity"])
def test_whatever_a_value_depends_on_is_part_of_its_name(tmp_path, changed):
    get(tmp_path, ROWS[:1])
    other, rows, quantity = model(), ROWS[:1], "sums"
    if changed == "model":
        with torch.no_grad():
            other.weight[0, 0] += 2.0**-20
    elif changed == "dtype":
        other = other.double()
    elif changed == "ids":
        rows = [((1, 2, 4), (-100, 2, 3))]
    elif changed == "labels":
        rows = [((1, 2, 3), (-100, -100, 3))]
    else:
        quantity = "other sums"
    _, asked = get(tmp_path, rows, quantity, other)
    assert asked == [[0]]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:], lambda b: b + b"x"]
)
def test_a_damaged_file_counts_as_absent(tmp_path, damage):
    get(tmp_path, ROWS[:1])
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    values, asked = get(tmp_path, ROWS[:1])
    assert asked == [[0]]
    assert values[0].tolist() == [1, 3, 6]
    assert get(tmp_path, ROWS[:1])[1] == []  # and it is mended


def test_a_slice_does_not_carry_its_batch(tmp_path):
    batch = torch.zeros(1000, 1000)
    values = ReferenceCache(tmp_path, model()).get("rows", ROWS[:2], lambda missing: ((i, batch[i]) for i in missing))
    assert all(value.untyped_storage().nbytes() == 4000 for value in values)
    assert all(path.stat().st_size < 20_000 for path in tmp_path.iterdir())


def test_an_error_while_computing_leaves_no_file(tmp_path):
    def fail(missing):
        raise MemoryError("from the user")

    with pytest.raises(MemoryError, match="from the user"):
        ReferenceCache(tmp_path / "new", model()).get("sums", ROWS, fail)
    assert not (tmp_path / "new").exists()


def test_an_error_while_writing_leaves_no_partial_file(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        get(tmp_path, ROWS[:1])
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_was_left_out_is_named(tmp_path):
    with pytest.raises(ValueError, match="no value of 'sums' for row 1; compute one for each"):
        ReferenceCache(tmp_path, model()).get("sums", ROWS, lambda missing: [(0, torch.zeros(1))])


def test_what_was_computed_before_an_interruption_is_kept(tmp_path):
    def interrupted(missing):
        yield 0, torch.zeros(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ReferenceCache(tmp_path, model()).get("sums", ROWS, interrupted)
    assert get(tmp_path)[1] == [[1]]


def test_a_value_that_vanishes_during_the_run_is_named(tmp_path):
    values, _ = get(tmp_path, ROWS[:1])
    (path,) = tmp_path.iterdir()
    path.unlink()
    with pytest.raises(RuntimeError, match=f"{path}: removed or damaged during the run; start it again"):
        values[0]


@given(st.lists(st.tuples(st.text(min_size=1), st.integers(0, 5)), max_size=4, unique_by=lambda pair: pair[0]))
def test_the_hash_tells_names_shapes_and_values_apart(parts):
    """An oracle that writes out what the hash is of; empty tensors and names of any characters included."""

    class Named(nn.Module):
        def state_dict(self, *args, **kwargs):
            return {name: torch.arange(n, dtype=torch.float32) for name, n in parts}

    digest = hashlib.sha256()
    for name, n in sorted(parts):
        digest.update(f"{name} torch.float32 ({n},)".encode() + torch.arange(n, dtype=torch.float32).numpy().tobytes())
    assert content_hash(Named()) == digest.hexdigest()


def test_weights_of_sixteen_bits_and_tied_ones_are_hashed():
    one = nn.Embedding(4, 3, dtype=torch.bfloat16)
    assert content_hash(one) == content_hash(one)
    other = nn.Embedding(4, 3, dtype=torch.bfloat16)
    other.weight.data = one.weight.data.clone()
    assert content_hash(one) == content_hash(other)
    other.weight.data[3, 2] += 1
    assert content_hash(one) != content_hash(other)
