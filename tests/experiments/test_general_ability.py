"""Tasks of lm-evaluation-harness: our side against a stand-in, and the package itself where it is installed."""

import importlib.util
import inspect
import json
import random
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from experiments.lm import general_ability as module
from experiments.lm import models
from experiments.lm.general_ability import check, general_ability
from ngdiff.errors import UserError

INSTALLED = importlib.util.find_spec("lm_eval") is not None
SIZE = models.Size(hidden=32, layers=2, heads=2, intermediate=64, vocabulary=300)


@pytest.fixture
def tokenizer() -> Any:
    """Without a padding token, as Llama's."""
    tokenizer = models.train_tokenizer(["What is one and one? two"], SIZE.vocabulary)
    tokenizer.pad_token = None
    return tokenizer


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return models.build_llama(SIZE, tokenizer)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    module._manager.cache_clear()
    yield
    module._manager.cache_clear()


# The stand-in has the names and the order of the arguments of lm-eval 0.4.13; `test_stand_in_is_like_the_package` compares.


class HFLM:
    def __init__(
        self, pretrained: Any, backend: str = "default", revision: str = "main", subfolder: str = "", tokenizer: Any = None,
        truncation: bool = False, logits_cache: bool = True, max_length: Any = None, device: str = "cuda", dtype: Any = "auto",
        softmax_dtype: Any = None, mixed_precision_dtype: Any = None, batch_size: Any = 1,
    ) -> None:  # fmt: skip
        pretrained.eval()
        tokenizer.pad_token_id = tokenizer.eos_token_id
        self.tokenizer, self.batch_size, self.mixed_precision_dtype = tokenizer, batch_size, mixed_precision_dtype


class TaskManager:
    def __init__(self, verbosity: Any = None, include_path: Any = None, include_defaults: bool = True, metadata: Any = None):
        own = [path.stem for path in Path(include_path).glob("*.yaml")] if include_path else []
        self.all_tasks = ["arc_challenge", "arc_easy", "hellaswag", "offline", *own]

    def load(self, task_list: Any) -> dict[str, Any]:
        if "offline" in task_list:
            raise ConnectionError("Couldn't reach 'offline' on the Hub\nand more lines")
        return {"tasks": dict.fromkeys(task_list)}


RESULTS: dict[str, dict[str, Any]] = {
    "arc_easy": {
        "name": "arc_easy", "alias": " - arc_easy", "sample_len": 3, "acc,none": 0.5, "acc_stderr,none": "N/A",
        "acc_norm,none": np.float64(0.25), "exact_match,strict-match": 1, "word_perplexity,none": float("inf"),
        "acc_norm_stderr,none": float("nan"),
    }
}  # fmt: skip
calls: list[dict[str, Any]] = []


def simple_evaluate(
    model: Any, model_args: Any = None, tasks: Any = None, num_fewshot: Any = None, batch_size: Any = None,
    max_batch_size: Any = None, device: Any = None, use_cache: Any = None, cache_requests: bool = False,
    rewrite_requests_cache: bool = False, delete_requests_cache: bool = False, limit: Any = None, samples: Any = None,
    bootstrap_iters: int = 100000, check_integrity: bool = False, write_out: bool = False, log_samples: bool = True,
    evaluation_tracker: Any = None, system_instruction: Any = None, apply_chat_template: Any = False,
    fewshot_as_multiturn: bool = True, gen_kwargs: Any = None, task_manager: Any = None,
) -> Any:  # fmt: skip
    assert isinstance(model, HFLM)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1234)
    calls.append({"tasks": tasks, "limit": limit, "batch": model.batch_size, "precision": model.mixed_precision_dtype})
    if "hellaswag" in tasks:
        raise OverflowError("math range error")
    return {"results": RESULTS}


STAND_IN = {
    "lm_eval": {"simple_evaluate": simple_evaluate},
    "lm_eval.models": {},
    "lm_eval.models.huggingface": {"HFLM": HFLM},
    "lm_eval.tasks": {"TaskManager": TaskManager},
}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    for name, contents in STAND_IN.items():
        fake = ModuleType(name)
        fake.__spec__ = ModuleSpec(name, None)
        vars(fake).update(contents)
        monkeypatch.setitem(sys.modules, name, fake)


@pytest.mark.usefixtures("stand_in")
def test_metrics_are_numbers_by_name(model: Any, tokenizer: Any) -> None:
    found = general_ability(model, tokenizer, ("arc_easy",), 3, batch=2)
    assert found == {"arc_easy": {"acc": 0.5, "acc_norm": 0.25, "exact_match,strict-match": 1.0}}
    assert {type(value) for value in found["arc_easy"].values()} == {float}
    precision = torch.bfloat16 if model.device.type == "cuda" else None
    assert calls == [{"tasks": ["arc_easy"], "limit": 3, "batch": 2, "precision": precision}]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("task", ["arc_easy", "hellaswag"])
def test_nothing_else_changes(model: Any, tokenizer: Any, task: str) -> None:
    """Not the tokenizer, and not the random numbers of the run, also where a task fails."""
    draws = lambda: (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: E731
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    expected = draws()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    if task == "hellaswag":
        with pytest.raises(UserError, match=r"--general-ability: hellaswag failed \(OverflowError: math range error\)"):
            general_ability(model, tokenizer, [task])
    else:
        general_ability(model, tokenizer, [task])
    assert draws() == expected
    assert tokenizer.pad_token is None


@pytest.mark.usefixtures("stand_in")
def test_unknown_tasks_are_one_line_with_what_is_near(tmp_path: Path) -> None:
    check(["arc_easy", "hellaswag"])
    with pytest.raises(UserError, match=r"unknown task 'arc_esay'; choose one such as arc_easy"):
        check(["arc_easy", "arc_esay"])
    with pytest.raises(UserError, match=r"unknown task 'zzz'; run lm-eval ls tasks"):
        check(["zzz"])
    with pytest.raises(UserError, match="unknown task 'mine'"):
        check(["mine"])
    (tmp_path / "mine.yaml").touch()
    check(["mine"], str(tmp_path))
    with pytest.raises(UserError, match=r"--task-folder: found '.*/none', which is no folder"):
        check(["mine"], str(tmp_path / "none"))


@pytest.mark.usefixtures("stand_in")
def test_data_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        check(["arc_easy", "offline"])
    assert str(caught.value) == (
        "--general-ability: arc_easy, offline failed (ConnectionError: Couldn't reach 'offline' on the Hub); "
        "check network and task, or leave it out"
    )


def test_without_the_package_it_is_one_line(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for call in (lambda: check(["arc_easy"]), lambda: general_ability(model, tokenizer, ["arc_easy"])):
        with pytest.raises(UserError, match=r'needs the package lm-eval; run pip install "ngdiff\[lm-eval\]"'):
            call()


# The package itself

real = pytest.mark.skipif(not INSTALLED, reason='lm-eval is not installed; pip install "ngdiff[lm-eval]"')


@real
def test_stand_in_is_like_the_package() -> None:
    import lm_eval
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager as Tasks

    theirs = (lm_eval.simple_evaluate, huggingface.HFLM, Tasks)
    for mine, real_one in zip((simple_evaluate, HFLM, TaskManager), theirs, strict=True):
        names = list(inspect.signature(mine).parameters)
        assert names == list(inspect.signature(real_one).parameters)[: len(names)]


@real
@pytest.mark.filterwarnings("default")  # the package's own
@pytest.mark.parametrize("limit", [None, 2])
def test_a_task_of_the_users_own(model: Any, tokenizer: Any, tmp_path: Path, limit: int | None) -> None:
    """Without a network. The package's accuracy is the share of rows whose right answer has the smallest NLL."""
    rows = [{"question": f"What is {i}?", "choices": ["one", f"two {i}", "three or four"], "label": i % 3} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "ngdiff_own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(json.dumps(task))  # json is yaml
    model.requires_grad_(False)
    model.lm_head.weight.mul_(30)  # so that answers differ
    found = general_ability(model, tokenizer, ["ngdiff_own"], limit, str(tmp_path), batch=4)["ngdiff_own"]
    right = [_smallest(model, tokenizer, row["question"], row["choices"]) == row["label"] for row in rows[:limit]]
    assert found["acc"] == pytest.approx(sum(right) / len(right))
    assert 0 <= found["acc_stderr"] < 1
    assert tokenizer.pad_token is None


def _smallest(model: Any, tokenizer: Any, question: str, choices: list[str]) -> int:
    """Which answer has the smallest summed NLL."""
    prompt = len(tokenizer(question)["input_ids"])
    sums = []
    for choice in choices:
        ids = torch.tensor([tokenizer(f"{question} {choice}")["input_ids"]])
        log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        sums.append(-log_p.gather(1, ids[0, 1:, None])[prompt - 1 :].sum().item())
    return sums.index(min(sums))


@real
@pytest.mark.filterwarnings("default")
def test_unknown_task_of_the_package() -> None:
    with pytest.raises(UserError, match=r"unknown task 'hellaswagg'; choose one such as hellaswag"):
        check(["hellaswagg"])
