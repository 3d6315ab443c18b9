"""Looks at a model while it unlearns: when they come, that they change nothing, and which state is kept."""

from statistics import fmean
from typing import Any

import pytest
import torch

from experiments.lm import models
from experiments.lm.methods import Method
from experiments.lm.monitor import Monitor
from experiments.lm.unlearning import Rows, unlearn
from experiments.tofu import synthetic
from experiments.tofu.data import Row
from experiments.tofu.monitoring import BEST, KEPT, monitor
from ngdiff.lm.encoding import Encoder, Example
from ngdiff.lm.scoring import answer_nll

ROWS = synthetic.rows("forget01")[:12]
SIZE = models.Size(hidden=32, layers=1, heads=2, intermediate=64, vocabulary=400)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(models.train_tokenizer([row["question"] + row["answer"] for row in ROWS], SIZE.vocabulary))


@pytest.fixture
def model(encoder: Encoder) -> Any:
    torch.manual_seed(0)
    return models.build_llama(SIZE, encoder.tokenizer)


@pytest.fixture
def examples(encoder: Encoder) -> list[Example]:
    return [encoder.example(row["question"], row["answer"]) for row in ROWS]


def run(model: Any, examples: list[Example], pad: int, *watchers: Monitor, steps: int = 7) -> list[dict[str, Any]]:
    rows = Rows(examples[:4], examples[4:], pad)
    return list(
        unlearn(model, rows, Method("ngdiff", "adamw", 1e-2), steps, 4, torch.Generator().manual_seed(0), monitors=watchers)
    )


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(("every", "steps", "expected"), [(3, 7, [3, 6, 7]), (7, 7, [7]), (1, 3, [1, 2, 3]), (10, 4, [4])])
def test_looks_come_every_so_many_steps_and_at_the_end(
    model: Any, encoder: Encoder, examples: list[Example], every: int, steps: int, expected: list[int]
) -> None:
    watcher = Monitor(every, lambda model: {"parameters": 1.0})
    run(model, examples, encoder.pad, watcher, steps=steps)
    assert [look["step"] for look in watcher.looks] == expected
    assert watcher.kept == {}
    with pytest.raises(ValueError, match="no state 'best' was kept"):
        watcher.restore(model, "best")


def test_a_look_is_without_dropout_and_the_run_goes_on_with_it(model: Any) -> None:
    modes: list[bool] = []
    model.train()
    Monitor(1, lambda model: modes.append(model.training) or {})(model, 1, 2)
    assert (modes, model.training) == ([False], True)


def test_looking_changes_nothing(model: Any, encoder: Encoder, examples: list[Example]) -> None:
    """The same run with and without looks, that even generate: equal records, equal weights."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    rows = {task: [Row(r["question"], r["answer"], "") for r in ROWS[:3]] for task in ("forget", "retain")}
    watcher = monitor(model, encoder, rows, 2, 5, "score")
    watched = run(model, examples, encoder.pad, watcher)
    after = weights(model)
    model.load_state_dict(start)
    assert run(model, examples, encoder.pad) == watched
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights(model), after, strict=True))
    names = {f"{task}_{name}" for task in rows for name in ("probability", "rouge", "extraction_strength")}
    assert [set(look) for look in watcher.looks] == [{"step", "score"} | names] * 4


@pytest.mark.parametrize("name", BEST)
def test_the_best_state_is_kept(model: Any, encoder: Encoder, examples: list[Example], name: str) -> None:
    """Values are given one by one, so the best look is known; the state that comes back is that of its step."""
    values = [0.5, 0.9, 0.1, 0.4]
    best = 1 if BEST[name] else 2
    seen: list[list[torch.Tensor]] = []

    def look(model: Any) -> dict[str, float]:
        seen.append(weights(model))
        return {name: values[len(seen) - 1]}

    rows = {task: [Row("q", "a", "")] for task in ("forget", "retain")}
    watcher = Monitor(2, look, monitor(model, encoder, rows, 2, 5, name).keep)
    run(model, examples, encoder.pad, watcher)
    assert watcher.kept == {KEPT: [2, 4, 6, 7][best]}
    watcher.restore(model, KEPT)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights(model), seen[best], strict=True))
    assert not all(torch.equal(mine, theirs) for mine, theirs in zip(weights(model), seen[-1], strict=True))


def test_the_look_says_what_the_scores_say(model: Any, encoder: Encoder, examples: list[Example]) -> None:
    rows = {
        task: [Row(r["question"], r["answer"], "") for r in part] for task, part in (("forget", ROWS[:3]), ("retain", ROWS[3:]))
    }
    watcher = monitor(model, encoder, rows, 1, 5, None)
    before = watcher.look(model)
    assert before["score"] == pytest.approx(0, abs=1e-12)  # everything is kept, and nothing lost
    run(model, examples, encoder.pad)
    model.eval()
    found = watcher.look(model)
    for task, part in (("forget", examples[:3]), ("retain", examples[3:])):
        own = fmean(torch.tensor(answer_nll(model, part, encoder.pad)).neg().exp().tolist())
        assert found[f"{task}_probability"] == pytest.approx(own, rel=1e-6)
    kept, left = (found[f"{task}_probability"] / before[f"{task}_probability"] for task in ("retain", "forget"))
    assert found["score"] == pytest.approx(min(kept, 1 - left), rel=1e-9)


def test_two_monitors_keep_states_each(model: Any, encoder: Encoder, examples: list[Example]) -> None:
    seen: list[list[torch.Tensor]] = []

    def look(model: Any) -> dict[str, float]:
        seen.append(weights(model))
        return {"looks": float(len(seen))}

    early = Monitor(2, look, {"first": lambda found, best: best is None, "last": lambda found, best: True})
    late = Monitor(3, look, {"late": lambda found, best: found["looks"] > 2}, until="late")  # its second look, the fifth of all
    run(model, examples, encoder.pad, early, late)
    assert [look["step"] for look in early.looks] == [2, 4, 6, 7]
    assert [look["step"] for look in late.looks] == [3, 6]
    assert (early.kept, late.kept) == ({"first": 2, "last": 7}, {"late": 6})
    for watcher, state, expected in ((late, "late", seen[4]), (early, "first", seen[0]), (early, "last", seen[5])):
        watcher.restore(model, state)  # the looks came in the order 2, 3, 4, 6, 6, 7
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights(model), expected, strict=True))
