"""The trainer for open-unlearning, with a stand-in for that project, which is not a package that can be installed."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
import yaml
from transformers import Trainer, TrainingArguments

from ngdiff import checkpoints
from ngdiff.integrations import launch
from ngdiff.lm.objectives import FORGET, RETAIN
from ngdiff.lm.pairs import PairCollator
from ngdiff.rules import NGDiff, get

PROJECT = Path(__file__).parent / "open_unlearning"
NAMES = ("trainer", "ngdiff.integrations.open_unlearning")


def forget_loaded_modules() -> None:
    for name in [name for name in sys.modules if name.startswith(NAMES)]:
        del sys.modules[name]


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(PROJECT))
    forget_loaded_modules()
    importlib.import_module("ngdiff.integrations.open_unlearning")
    yield importlib.import_module("trainer")
    forget_loaded_modules()


class ForgetRetain:
    """Its dataset: rows of tensors, each forget row with a retain row drawn by torch's generator."""

    def __init__(self, forget: Any, retain: Any, anchor: str = "forget"):
        self.forget, self.retain, self.anchor = forget, retain, anchor

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"forget": self.forget[i], "retain": self.retain[int(torch.randint(len(self.retain), ()))]}


def tensors(count: int, seed: int) -> list[dict[str, Any]]:
    return [
        {name: torch.tensor(ids) for name, ids in row.items()} | {"index": i} for i, row in enumerate(tiny.rows(count, seed))
    ]


class Collator:
    """Its collator: one batch a task, with the numbers of the rows."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            task: PairCollator(0)([row[task] for row in rows]) | {"index": torch.tensor([row[task]["index"] for row in rows])}
            for task in rows[0]
        }


class Tokenizer:
    pad_token_id = 0

    def save_pretrained(self, folder: str) -> None:
        Path(folder, "tokenizer.json").write_text("{}")


def loaded(project: Any, folder: Path, dataset: Any, model: Any = None, evaluators: Any = None, **method_args: Any) -> Any:
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, num_train_epochs=2, logging_steps=1, use_cpu=True, report_to=[],
        disable_tqdm=True, save_strategy="epoch", eval_strategy="epoch" if evaluators else "no",
    )  # fmt: skip
    return project.load_trainer(
        "NGDiff", model or tiny.llama(), dataset, tensors(2, 4), Tokenizer(), Collator(), arguments, evaluators, method_args
    )


@pytest.mark.parametrize("anchor", ["forget", "retain"])
def test_it_trains_on_its_data(project: Any, tmp_path: Path, anchor: str) -> None:
    model = tiny.llama()
    trainer = loaded(project, tmp_path, ForgetRetain(tensors(8, 1), tensors(20, 2), anchor), model, base="sgd", lr=0.1)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4 and all(entry["cosine"] != 0 for entry in logs)
    before = tiny.llama()
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert [kind.__name__ for kind in type(trainer).__mro__ if issubclass(kind, Trainer)] == [
        "NGDiff", "NGDiffTrainer", "SealedTrainer", "UnlearnTrainer", "FinetuneTrainer", "Trainer"
    ]  # fmt: skip


@pytest.mark.parametrize("forget", ["npo", "idk-dpo"])
def test_objectives_that_read_more(project: Any, tmp_path: Path, forget: str) -> None:
    """References, and the refusal that its data has beside each answer."""
    rows: Any = tensors(8, 1)
    if forget.startswith("idk"):
        rows = [{"original": row, "alternate": other} for row, other in zip(rows, tensors(8, 3), strict=True)]
    trainer = loaded(project, tmp_path, ForgetRetain(rows, tensors(20, 2)), forget=forget, rule="gdiff-0.5", lr=1e-3)
    trainer.train()
    assert trainer.state.global_step == 4


def test_its_evaluations_stay_beside_the_checkpoint(project: Any, tmp_path: Path) -> None:
    def evaluators(model: Any, tokenizer: Any, template: Any, folder: Path) -> dict[str, float]:
        assert isinstance(tokenizer, Tokenizer) and template == {"system": ""}
        (folder / "TOFU_EVAL.json").write_text("{}")
        return {"eval_loss": 1.0}

    trainer = loaded(project, tmp_path, ForgetRetain(tensors(8, 1), tensors(20, 2)), evaluators=evaluators, lr=1e-3)
    trainer.train()
    for path in checkpoints.saved(tmp_path):
        assert (path / "evals" / "TOFU_EVAL.json").is_file()
        assert checkpoints.damage(path) is None
    assert len(checkpoints.saved(tmp_path)) == 2


def test_without_the_project_it_says_so() -> None:
    forget_loaded_modules()
    with pytest.raises(
        ImportError, match=r"open-unlearning's package `trainer` cannot be imported.*launch src/train.py"
    ) as error:
        importlib.import_module("ngdiff.integrations.open_unlearning")
    assert "\n" not in str(error.value)


def test_the_script_is_started_with_the_trainer_registered() -> None:
    command = [sys.executable, "-m", "ngdiff.integrations.launch", str(PROJECT / "train.py"), "trainer=NGDiff"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "['NGDiff']" in out
    assert f"'trainer=NGDiff', 'hydra.searchpath=[file://{launch.CONFIGS}]'" in out


def test_a_script_that_is_not_there() -> None:
    with pytest.raises(SystemExit, match=r"found 'src/train.py' in the place of open-unlearning's script"):
        launch.main(["src/train.py"])


def test_the_configuration_names_what_is_there(project: Any, tmp_path: Path) -> None:
    config = yaml.safe_load((launch.CONFIGS / "trainer" / "NGDiff.yaml").read_text())
    method = config["method_args"]
    # As its load_trainer_args builds them, on a machine without a GPU; transformers refuses what it does not know.
    arguments = TrainingArguments(**config["args"] | {"output_dir": str(tmp_path), "use_cpu": True, "report_to": []})
    assert (arguments.per_device_train_batch_size, arguments.learning_rate, arguments.bf16) == (8, 1e-5, True)
    dataset = ForgetRetain(tensors(8, 1), tensors(20, 2))
    trainer = project.load_trainer(
        config["handler"], tiny.llama(), dataset, tensors(2, 4), Tokenizer(), Collator(), arguments, None, method
    )
    assert isinstance(trainer.rule, NGDiff)
    assert config["handler"] == "NGDiff"
    assert method["forget"] in FORGET and method["retain"] in RETAIN
    get(method["rule"])
