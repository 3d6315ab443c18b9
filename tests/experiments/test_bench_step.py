"""The benchmark of the step: both ways take real steps on the same tokens."""

from pathlib import Path
from statistics import median

import pytest
import torch

from experiments.lm import bench_step, models
from experiments.lm.bench_step import GDIFF, NGDIFF, Workload, compare
from ngdiff.errors import UserError
from ngdiff.files import read_json


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.SIZES, "tiny", models.Size(hidden=16, layers=1, heads=2, intermediate=32, vocabulary=300))


def test_it_times_both_ways_in_alternation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, torch.Tensor]] = []
    for way in (bench_step.GDiff, bench_step.NGDiff):
        step = way.step

        def counted(self: bench_step.Way, retain: torch.Tensor, forget: torch.Tensor, step=step, way=way) -> None:
            before = [p.detach().clone() for p in self.model.parameters()]
            step(self, retain, forget)
            assert any(not torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True))
            taken.append((way.__name__, retain))

        monkeypatch.setattr(way, "step", counted)
    found = compare(Workload("tiny", rows=2, length=8, steps=3, rounds=2), tmp_path, lambda line: None)
    names = [name for name, _ in taken]
    assert names == (["GDiff"] * 3 + ["NGDiff"] * 3) * 3  # a round to warm up, and two that count
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(taken[:3], taken[3:6], strict=True))
    assert taken[0][1].shape == (2, 8)
    ratios = [b / a for a, b in zip(found["seconds"][GDIFF], found["seconds"][NGDIFF], strict=True)]
    assert len(ratios) == 2 and found["ratio"] == median(ratios)
    assert found["refreshes"] == [1, 1]  # the automatic rate looks at steps 0, 1, 2, which warm up, then at 4 and 8
    stored = read_json(tmp_path / "step.json")
    assert stored["ratio"] == found["ratio"]
    model = bench_step.GDiff(Workload("tiny"), torch.device("cpu")).model
    assert stored["manifest"]["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("change", "message"), [
    ({"rows": 0}, "--rows: found 0"), ({"length": 1}, "--length: found 1"), ({"steps": 0}, "--steps: found 0"),
    ({"rounds": 0}, "--rounds: found 0"), ({"size": "9b"}, "--size: unknown value '9b'"),
])  # fmt: skip
def test_refusals(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Workload(**change)
