"""`ngdiff` in several processes: one run, shared out, of which the first process speaks."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import launched_cases as cases
import pytest
import tiny
import torch
from asserts import assert_bitwise_equal, assert_within
from command import Called, refused
from ranks import SIZE, Pool
from torch import Tensor

from ngdiff import checkpoints, memory, processes
from ngdiff.command import training, unlearn
from ngdiff.command.settings import Settings
from ngdiff.errors import UserError
from ngdiff.lm import loading
from ngdiff.lm.loading import load_model

FIXED = {"base": "sgd", "lr": "0.05", "stop-forget": 0, "epochs": 2, "new-tokens": 4}
BOUND = 1e-6  # as in test_distributed.py: sums in another order


def arguments(command: str, folder: Path, **options: Any) -> tuple[str, ...]:
    """Of the command line."""
    usual = {"model": folder / "model", "forget": folder / "forget.jsonl", "retain": folder / "retain.jsonl"}
    given = {name.replace("_", "-"): value for name, value in (usual | options).items()}
    return (command, *(str(part) for name, value in given.items() for part in (f"--{name}", value) if part is not True))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_model(folder, torch.device("cpu")).state_dict()


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def said_by_the_first(found: list[tuple[int, str, str]], message: str) -> None:
    """All end with status 2, and one of them says why."""
    refused(found[0], message)
    assert found[0][1] == ""
    assert found[1:] == [(2, "", "")] * (SIZE - 1)


def assert_learned_alike(found: Path, expected: Path, start: Path, rounded: bool) -> None:
    """What two runs have changed is the same.

    But for sums in another order, 3e-5 of it at most where it was measured; and for weights near the middle between two of 16
    bits, which a sum in another order moves by a unit: those that differ were 0.08 of the change.
    """
    before, one, two = (torch.cat([value.flatten() for value in weights(path).values()]) for path in (start, expected, found))
    assert (two - one).norm() <= (0.2 if rounded else 1e-4) * (one - before).norm()
    assert (one - before).norm() > 0


def test_torchrun_makes_the_model_that_one_process_makes(called: Called, folder: Path, tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert called("unlearn", out=whole, batch=2, **FIXED)[0] == 0
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(SIZE), "-m", "ngdiff")
    asked = arguments("unlearn", folder, out=shared, batch=1, **FIXED)
    ended = subprocess.run(
        (*launcher, *asked), env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert len(re.findall("written: ", ended.stdout)) == 1
    assert "\n2 processes, a step has the batches of all\n" in ended.stdout
    assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shared", "whole"]
    assert sorted(path.name for path in shared.iterdir()) == sorted(path.name for path in whole.iterdir())
    start, expected, found = weights(folder / "model"), weights(whole), weights(shared)
    for name, value in expected.items():
        assert_within(found[name], value, BOUND * value.abs().max())
    assert any((value - start[name]).abs().max() > 100 * BOUND * value.abs().max() for name, value in expected.items())
    one, two = manifest(whole), manifest(shared)
    assert (one["processes"], two["processes"]) == (1, 2)
    for when in ("before", "after"):
        for name, metrics in one[when].items():
            assert two[when][name] == pytest.approx(metrics, rel=1e-4), (when, name)  # batches of other rows round otherwise


@pytest.mark.parametrize("options", [
    {"lora": 2}, {"bf16": True, "bf16_gradients": True}, {"gradient_checkpointing": True, "accumulate": 2},
    {"forget_objective": "rmu", "retain_objective": "activations", "gradient_checkpointing": True},
    {"forget_objective": "npo", "retain_objective": "kl"},
    {"retain_budget": 0.0059, "check_every": 1, "epochs": 8, "lr": "0.05"},
], ids=str)  # fmt: skip
def test_what_one_process_can_two_can(
    called: Called, pool: Pool, folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    pytest.importorskip("peft")
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    options = FIXED | {"lr": "0.01"} | options
    assert called("unlearn", out=whole, batch=2, **options)[0] == 0
    found = pool.run(cases.called, *arguments("unlearn", folder, out=shared, batch=1, **options))
    assert [status for status, _, _ in found] == [0, 0], found
    assert_learned_alike(shared, whole, folder / "model", rounded="bf16" in options)
    assert manifest(shared)["stopping"] == manifest(whole)["stopping"]
    assert ("best checkpoint restored" in manifest(whole)["stopping"]["reason"]) == ("retain_budget" in options)


@pytest.mark.parametrize("options", [
    {}, {"lora": 2}, {"bf16": True}, {"gradient_checkpointing": True}, {"forget_objective": "npo", "retain_objective": "kl"},
    {"retain_budget": 0.0059, "check_every": 1, "epochs": 8},
    {"retain_budget": 0.0059, "check_every": 1, "epochs": 8, "lora": 2},
], ids=str)  # fmt: skip
def test_split_weights_are_put_together_again(
    called: Called, pool: Pool, folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    options = FIXED | options
    assert called("unlearn", out=whole, batch=2, **options)[0] == 0
    asked = arguments("unlearn", folder, out=shared, batch=1, fsdp=True, **options)
    found = pool.run(cases.called, *asked, fault="fsdp")
    assert [status for status, _, _ in found] == [0, 0], found
    assert_learned_alike(shared, whole, folder / "model", rounded="bf16" in options)
    assert manifest(shared)["stopping"] == manifest(whole)["stopping"]
    assert ("best checkpoint restored" in manifest(whole)["stopping"]["reason"]) == ("retain_budget" in options)
    after = manifest(whole)["after"]["forget"]
    assert manifest(shared)["after"]["forget"] == pytest.approx(after, rel=0.05 if "bf16" in options else 1e-3)


def test_split_weights_compute_in_16_bits_and_probe_in_32(called: Called, pool: Pool, folder: Path, tmp_path: Path) -> None:
    """The rate is that of one process in 32 bits, or nearly: gradients are rounded, and what is probed is not."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    options = FIXED | {"lr": "auto", "epochs": 1}
    assert called("unlearn", out=whole, batch=2, **options)[0] == 0
    asked = arguments("unlearn", folder, out=shared, batch=1, fsdp=True, **options)
    found = pool.run(cases.called, *asked, fault="fsdp in 16 bits")
    assert [status for status, _, _ in found] == [0, 0], found
    rates, losses = ([json.loads((out / "metrics.jsonl").read_text().splitlines()[0])[key] for out in (shared, whole)]
                     for key in ("learning_rate", "retain_loss"))  # fmt: skip
    assert rates[0] == pytest.approx(rates[1], rel=0.1)
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)  # it did compute in 16 bits


def test_layers_that_the_model_lacks_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text model may name those of the images that it was once trained with; accelerate would look for them."""
    model = tiny.llama()
    model._no_split_modules = ["LlamaDecoderLayer", "VisionLayer"]
    monkeypatch.setenv("FSDP_VERSION", "1")
    with training._split(model):
        assert os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "LlamaDecoderLayer"
        assert (os.environ["FSDP_VERSION"], os.environ["ACCELERATE_USE_FSDP"]) == ("2", "true")
    assert os.environ["FSDP_VERSION"] == "1"
    assert not {"ACCELERATE_USE_FSDP", "FSDP_TRANSFORMER_CLS_TO_WRAP"} & set(os.environ)  # as before


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_an_evaluation_is_shared_out(called: Called, pool: Pool, folder: Path, tmp_path: Path, rows: int) -> None:
    """Also where there are fewer rows than processes."""
    options = {"rows": rows, "new_tokens": 4, "holdout": folder / "holdout.jsonl"}
    assert called("evaluate", out=tmp_path / "whole", **options)[0] == 0
    asked = arguments("evaluate", folder, out=tmp_path / "shared", **options)
    (status, output, errors), other = pool.run(cases.called, *asked)
    assert (status, errors, other) == (0, "", (0, "", ""))
    assert "What the models know" in output
    one, two = (
        json.loads((tmp_path / name / "evaluation.json").read_text())["models"]["model"] for name in ("whole", "shared")
    )
    for name, expected in one["rows"].items():
        assert len(expected) == len(two["rows"][name])
        for mine, theirs in zip(two["rows"][name], expected, strict=True):
            texts = ("prompt", "answer", "generation")
            assert [mine[text] for text in texts] == [theirs[text] for text in texts]
            assert mine["nll"] == pytest.approx(theirs["nll"], rel=1e-4, abs=1e-6)


@pytest.mark.usefixtures("no_weights")
def test_several_processes_take_fewer_steps_and_less_time(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "measured_speed", lambda *_: 1e6)
    seconds, looks = [], []
    for size in (1, 2):
        for module in (processes, unlearn):
            monkeypatch.setattr(module, "count", lambda size=size: size)
        _, output, _ = called("unlearn", out=tmp_path / "out", dry_run=True, stop_forget=0, lr=0.1, epochs=20)
        (found,) = re.findall(r"training time .*?([\d.]+) min\n", output)
        seconds.append(float(found))
        looks.append(Settings(epochs=100).steps_between_looks(64))
    assert seconds[1] == pytest.approx(seconds[0] / 2, abs=1)  # whole minutes
    assert seconds[1] > 10
    assert "\na pass over 4 rows to forget reads 16, some of them again\n" in output
    _, output, _ = called("unlearn", out=tmp_path / "out", dry_run=True, batch=2)
    assert "again" not in output  # they divide
    assert looks == [16, 8]  # of 800 and 400 steps


def test_more_processes_than_rows() -> None:
    """Of two rows and three processes, one has none."""
    asked: list[Sequence[int]] = []

    def compute(rows: Sequence[int]) -> Sequence[int]:
        asked.append(rows)
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "in_use", lambda: True)
        patch.setattr(processes.dist, "get_world_size", lambda: 3)
        patch.setattr(processes, "_gathered", lambda mine: [["a"], ["b"], []])
        for rank in range(3):
            patch.setattr(processes.dist, "get_rank", lambda rank=rank: rank)
            assert processes.shared_out([1, 2], compute) == ["a", "b"]
    assert asked == [[1], [2]]


# What goes wrong


def test_a_run_that_left_no_checkpoint_is_in_nobodys_way(called: Called, tmp_path: Path) -> None:
    """The launcher may have ended the process that would have removed its folder."""
    (tmp_path / ".out.unfinished" / "model").mkdir(parents=True)
    (tmp_path / ".out.unfinished" / "settings.json").write_text("{}")
    (tmp_path / ".out.unfinished" / "model" / "model-00001-of-00002.safetensors").touch()
    assert called("unlearn", out=tmp_path / "out", **FIXED)[0] == 0
    assert not list((tmp_path / "out").glob("model-*"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_in_one_place_are_refused_and_leave_each_other_alone(called: Called, tmp_path: Path) -> None:
    work = tmp_path / ".out.unfinished"
    with checkpoints.locked(work):
        refused(called("unlearn", out=tmp_path / "out", **FIXED), "--out: .*unfinished: another run [(]process .*; wait for it")
        assert work.is_dir()
    assert called("unlearn", out=tmp_path / "out", **FIXED)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_that_ends_meanwhile_keeps_its_place(called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another reads its rows."""
    identity = loading.identity

    def end(*arguments: Any) -> str:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").touch()
        return identity(*arguments)

    monkeypatch.setattr(loading, "identity", end)
    refused(called("unlearn", out=tmp_path / "out", **FIXED), "--out: '.*out' is not empty; give a new folder")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_fault_of_all_is_said_once(pool: Pool, folder: Path, tmp_path: Path) -> None:
    said_by_the_first(
        pool.run(cases.called, *arguments("unlearn", folder, out=tmp_path / "out", rule="best")), "--rule: unknown name 'best'"
    )
    said_by_the_first(
        pool.run(cases.called, *arguments("evaluate", folder, holdout="no.jsonl")), "--holdout: 'no.jsonl' is missing"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_another_is_said_by_the_first(pool: Pool, folder: Path, tmp_path: Path) -> None:
    """A file that one machine lacks."""
    given = arguments("unlearn", folder, out=tmp_path / "out")
    lacking = arguments("unlearn", folder, out=tmp_path / "out", forget="no.jsonl")
    said_by_the_first(pool.run(cases.called, *given, only={1: lacking}), "error: rank 1: --forget: 'no.jsonl' is missing")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used_ends_all(pool: Pool, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    asked = arguments("unlearn", folder, out=tmp_path / "full")
    said_by_the_first(pool.run(cases.called, *asked), "--out: '.*full' is not empty")
    (tmp_path / ".out.unfinished" / "trainer" / "checkpoint-2").mkdir(parents=True)
    asked = arguments("unlearn", folder, out=tmp_path / "out", **FIXED)
    (status, _, errors), other = pool.run(cases.called, *asked)
    assert (status, other) == (2, (2, "", ""))
    assert "holds an interrupted run with other settings or data" in errors


def test_steps_that_are_not_finite_are_said_once(pool: Pool, folder: Path, tmp_path: Path) -> None:
    asked = arguments("unlearn", folder, out=tmp_path / "out", **FIXED)
    (status, _, errors), other = pool.run(cases.called, *asked, fault="not finite")
    assert (status, other) == (2, (2, "", ""))
    assert errors.startswith("error: step 12: gradients or losses were not finite")
    assert list(tmp_path.iterdir()) == []


def test_who_runs_out_of_memory_says_so(pool: Pool, folder: Path, tmp_path: Path) -> None:
    """The first one may never learn of it: the launcher ends those who wait."""
    asked = arguments("unlearn", folder, out=tmp_path / "out", **FIXED)
    _, (status, _, errors) = pool.run(cases.called, *asked, fault="memory")
    assert status == 2
    assert errors.startswith("error: rank 1: training does not fit into memory")


def test_a_full_disk_is_said_by_who_writes(pool: Pool, folder: Path, tmp_path: Path) -> None:
    asked = arguments("unlearn", folder, out=tmp_path / "out", **FIXED)
    (status, _, errors), other = pool.run(cases.called, *asked, fault="disk")
    assert (status, other) == (2, (0, "", ""))
    assert "cannot be written (no space left)" in errors
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_ours_in_one_process_keeps_its_traceback(pool: Pool, folder: Path, tmp_path: Path) -> None:
    asked = arguments("unlearn", folder, out=tmp_path / "out", **FIXED)
    with pytest.raises(RuntimeError, match="TypeError: a bug"):
        pool.run(cases.called, *asked, fault="bug")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(pool: Pool, folder: Path, tmp_path: Path) -> None:
    options = {"epochs": 4, "batch": 1, "save_every": 2, "stop_forget": 0, "new_tokens": 4}
    whole = arguments("unlearn", folder, out=tmp_path / "whole", **options)
    asked = arguments("unlearn", folder, out=tmp_path / "out", **options)
    assert [status for status, _, _ in pool.run(cases.called, *whole)] == [0, 0]
    assert [status for status, _, _ in pool.run(cases.called, *asked, fault="interrupted")] == [130, 130]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.unfinished", "whole"]
    assert [status for status, _, _ in pool.run(cases.called, *asked)] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    found = weights(tmp_path / "out")
    for name, value in weights(tmp_path / "whole").items():
        assert_bitwise_equal(found[name], value)
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 8


def test_a_run_of_fewer_processes_is_another_run(called: Called, pool: Pool, folder: Path, tmp_path: Path) -> None:
    options = {"epochs": 4, "batch": 1, "save_every": 2, "stop_forget": 0, "new_tokens": 4}
    asked = arguments("unlearn", folder, out=tmp_path / "out", **options)
    assert [status for status, _, _ in pool.run(cases.called, *asked, fault="interrupted")] == [130, 130]
    refused(called("unlearn", out=tmp_path / "out", **options), "holds an interrupted run with other settings or data")


# What is refused before the processes meet


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_number_of_processes_without_a_launcher_is_refused(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Who waited for the others would wait forever."""
    for variable in processes.LAUNCHED:
        monkeypatch.setenv(variable, "1")
    monkeypatch.delenv(name)
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = f"WORLD_SIZE: found '2', but no {name}; start the command by torchrun, or unset it"
    refused(called("unlearn", out=tmp_path / "out"), message)
    refused(called("evaluate"), message)
    assert not (tmp_path / "out").exists()


def test_the_group_is_left_unless_others_may_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_join", lambda size: done.append("joined"))
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: done.append("left"))
    with processes.launched():
        pass
    assert done == ["joined", "left"]
    with pytest.raises(UserError, match="a fault"), processes.launched():
        raise UserError("a fault")
    assert done == ["joined", "left", "joined"]


def test_more_processes_than_gpus_are_refused(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in processes.LAUNCHED:
        monkeypatch.setenv(variable, "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = "torchrun: found 3 processes on a machine of 2 GPUs; give --nproc-per-node 2 at most"
    refused(called("evaluate"), message)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert called("evaluate") == (2, "", "")


@pytest.mark.parametrize(("rank", "said"), [("0", 1), ("1", 0)])
def test_a_wrong_option_is_said_once(called: Called, monkeypatch: pytest.MonkeyPatch, rank: str, said: int) -> None:
    monkeypatch.setenv("RANK", rank)
    status, _, errors = called("unlearn", nonsense=1)
    assert (status, errors.count("error: No such option")) == (2, said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bf16_gradients": True}, "--bf16-gradients: would round them before processes exchange them"),
        ({"bf16_gradients": True, "bf16": True, "lora": 2}, "--bf16-gradients: would round them"),
    ],
)
def test_what_several_processes_cannot(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(UserError, match=message):
        Settings(**options).check()


@pytest.mark.parametrize(("size", "device"), [(1, "cuda"), (2, "cpu")])
def test_weights_are_split_over_several_gpus(monkeypatch: pytest.MonkeyPatch, size: int, device: str) -> None:
    monkeypatch.setattr(processes, "count", lambda: size)
    monkeypatch.setattr("ngdiff.command.settings.default_device", lambda: torch.device(device))
    with pytest.raises(UserError, match="--fsdp: found a single process or no GPU; start one process a GPU, with torchrun"):
        Settings(fsdp=True).check()
