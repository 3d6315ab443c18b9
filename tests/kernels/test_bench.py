"""The benchmark compares equal things, and its CSV and picture are whole."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from asserts import U32, assert_within
from ngdiff_kernels.bench import contestants
from ngdiff_kernels.bench.contestants import OURS, Buffers
from ngdiff_kernels.bench.table import COLUMNS, append, plot
from ngdiff_kernels.bench.timing import rows

CPU = torch.device("cpu")
N = 1500
# All but TorchJD's, which takes another step, and the one that is given its coefficients.
SAME = ("ours", "torch.compile", "flat eager", "foreach", "textbook")


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("name", SAME)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_contestants_take_the_same_step(monkeypatch, name, base):
    monkeypatch.setattr(contestants, "LR", 0.1)
    buffers = Buffers.random(N, torch.float32, CPU, base)
    buffers.hyper["eps"] = 1e-2  # not small, so that rounding in d is not magnified
    theta, d = buffers.theta.double(), buffers.retain.double() / buffers.retain.double().norm()
    d -= buffers.forget.double() / buffers.forget.double().norm()
    if base == "adamw":
        d = d / (d.abs() + 1e-2)  # the first step of Adam
    contestants.contestants()[name](buffers)
    assert_within(buffers.theta, theta - 0.1 * d, 200 * U32 * (1 + theta.abs()))


def test_the_bytes_that_must_move():
    sgd, adamw = (Buffers.random(N, torch.bfloat16, CPU, base) for base in ("sgd", "adamw"))
    assert sgd.bytes_moved(in_backward=False) == 6 * 2 * N
    assert sgd.bytes_moved(in_backward=True) == 4 * 2 * N
    # Moments in float32, read and written; and the count of steps.
    assert adamw.bytes_moved(in_backward=False) == 6 * 2 * N + 4 * 4 * N + 8


def test_rows_and_picture(monkeypatch, tmp_path):
    monkeypatch.setattr(contestants, "compiled", lambda: None)
    monkeypatch.setattr("ngdiff_kernels.bench.timing.CACHE", 1)
    for n in (100, 1000):
        append(tmp_path / "bench.csv", list(rows(CPU, "fp32", "sgd", n, repeats=5)))
    with (tmp_path / "bench.csv").open() as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == COLUMNS
    assert {row["n"] for row in found} == {"100", "1000"}
    for row in found:
        assert float(row["p20"]) <= float(row["milliseconds"]) <= float(row["p80"])
        assert row["ours_times_faster"] == "1" or row["contestant"] != OURS
        limit, taken = float(row["limit_milliseconds"]), float(row["milliseconds"])
        assert taken / limit == pytest.approx(float(row["time_over_limit"]), rel=0.02)
    plot(tmp_path / "bench.csv", tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_command(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "ngdiff_kernels.bench",
        "--out",
        str(tmp_path / "b.csv"),
        "--sizes",
        "64",
        "--repeats",
        "3",
    ]
    subprocess.run([*command, "--bases", "sgd", "--device", "cpu", "--dtypes", "fp32"], check=True, capture_output=True)
    assert (tmp_path / "b.csv").read_text().count("\n") > 5
