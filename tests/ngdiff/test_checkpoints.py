"""Checkpoints are whole or absent; a run that was killed ends with the bits of one that was not."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from ngdiff import NGDiffTrainer, StoppingCriteria, checkpoints
from ngdiff.checkpoints import CheckpointError

FORGETTING, RETAINING = tiny.rows(12, 1), tiny.rows(20, 2)
# What a run is made with -> arguments of the Trainer and of transformers.
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd, automatic rate": ({"base": "sgd"}, {}),
    "adamw, automatic rate, accumulation": ({}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
    "momentum, schedule": ({"base": "sgd", "momentum": 0.9, "lr": 0.05}, {"weight_decay": 0.1}),
    "references": ({"forget": "npo", "retain": "kl", "rule": "gdiff-0.5", "lr": 1e-3}, {}),
}


class StopAfter(TrainerCallback):
    """Ends the run after a number of steps, as if it had been killed behind its checkpoint."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step == self.step
        return control


def run(folder: Path, name: str = "sgd, automatic rate", stop: int | None = None, model: Any = None, **changes: Any) -> Any:
    """A trainer of 6 steps or more that saves at each."""
    ours, theirs = RUNS[name]
    options: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "steps",
        "save_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_total_limit": 3,
    }  # fmt: skip
    arguments = TrainingArguments(**(options | theirs | changes.pop("arguments", {})))
    callbacks = [StopAfter(stop)] if stop else []
    data = {"forget_dataset": FORGETTING, "retain_dataset": RETAINING}
    return NGDiffTrainer(model or dropout_model(), arguments, callbacks=callbacks, **(data | ours | changes))


def dropout_model() -> Any:
    """Draws random numbers in each pass, so that the random state matters."""
    return tiny.llama(attention_dropout=0.2)


def state(trainer: Any) -> dict[str, Any]:
    """All that must be equal at the end."""
    return {
        "weights": {name: value.detach().clone() for name, value in trainer.model.state_dict().items()},
        "optimizer": trainer.own_optimizer.state_dict(),
        "random": torch.random.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("stop", [1, 3, 4])  # within a pass, at its end, in the next one
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, name: str, stop: int) -> None:
    whole = run(tmp_path / "whole", name)
    whole.train()
    run(tmp_path / "cut", name, stop).train()
    torch.manual_seed(1234)  # a new process has another random state
    resumed = run(tmp_path / "cut", name)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step
    assert same(state(resumed), state(whole))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's, for the newest transformers
def test_a_resumed_run_of_adapters_ends_with_the_same_bits(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> Any:
        torch.manual_seed(0)
        return peft.get_peft_model(dropout_model(), peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))

    run(tmp_path / "cut", stop=3, model=adapted()).train()
    resumed = run(tmp_path / "cut", model=adapted())
    resumed.train(resume_from_checkpoint=True)
    ended = state(resumed)
    whole = run(tmp_path / "whole", model=adapted())  # transformers seeds the random numbers here
    whole.train()
    assert same(ended, state(whole))
    assert not same(ended["weights"], adapted().state_dict())


def test_what_the_stopping_criteria_have_seen_survives(tmp_path: Path) -> None:
    """The best weights lie before the checkpoint that the run goes on from."""

    def over_budget(folder: Path, stop: int | None = None) -> Any:
        stopping = StoppingCriteria(retain_budget=6.0)
        return run(folder, rule="ga", lr=0.3, stop=stop, stopping=stopping, check_every=1, arguments={"num_train_epochs": 9})

    whole = over_budget(tmp_path / "whole")
    whole.train()
    last = whole.state.global_step
    assert last > 2 and whole.stopping.restored is not None
    over_budget(tmp_path / "cut", stop=last - 1).train()
    resumed = over_budget(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.stopping.checks == whole.stopping.checks
    assert same(state(resumed)["weights"], state(whole)["weights"])


@pytest.mark.parametrize("after", [1, 4])
def test_a_run_that_was_stopped_does_not_go_on(tmp_path: Path, after: int) -> None:
    """Whether its last checkpoint is of the step that it ended with, or the criterion fires again behind an earlier one."""

    def stopped(folder: Path) -> Any:
        criteria = StoppingCriteria(forget_target=1e-3)
        options = {"num_train_epochs": 9, "save_steps": after, "lr_scheduler_type": "constant"}
        return run(folder, lr=0.3, stopping=criteria, check_every=1, arguments=options)

    whole = stopped(tmp_path)
    whole.train()
    end = whole.state.global_step
    assert 4 < end < 27
    again = stopped(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == end
    assert same(state(again)["weights"], state(whole)["weights"])


def test_references_stay_those_of_the_model_that_was_given(tmp_path: Path) -> None:
    """Also where the same trainer goes on, whose model has changed."""
    first = run(tmp_path / "cut", "references", stop=3)
    first.train()
    first.remove_callback(StopAfter)
    first.train(resume_from_checkpoint=True)
    whole = run(tmp_path / "whole", "references")
    whole.train()
    assert same(state(first)["weights"], state(whole)["weights"])


def test_what_an_interrupted_step_left_is_forgotten(tmp_path: Path) -> None:
    trainer = run(tmp_path / "cut", stop=2)
    trainer.train()
    optimizer = trainer.own_optimizer
    with optimizer.task("retain"):
        trainer.model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()  # and then an error, or Ctrl-C
    trainer.remove_callback(StopAfter)
    trainer.train(resume_from_checkpoint=True)
    whole = run(tmp_path / "whole")
    whole.train()
    assert same(state(trainer)["weights"], state(whole)["weights"])


# Killed at any moment


def forked(work: Callable[[], None]) -> int:
    """Process that does the work and exits: forked, so that nothing is imported anew."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def exited(child: int) -> bool:
    """Whether the process is done, which `finished` must still be told."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def finished(child: int) -> int:
    """Exit status, negative after a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_random_moments(tmp_path: Path, name: str) -> None:
    """A run of 24 steps is killed 10 times (40 in all four), each time somewhere in its next steps, its saving or its start."""
    steps, kills = {"arguments": {"num_train_epochs": 8}}, 10
    end = tmp_path / "end.pt"

    def go_on() -> None:
        trainer = run(tmp_path / "killed", name, **steps)
        trainer.train(resume_from_checkpoint=True)
        torch.save(state(trainer), end)

    begin = time.monotonic()
    whole = run(tmp_path / "whole", name, **steps)
    whole.train()
    step, random_numbers = (time.monotonic() - begin) / 24, random.Random(name)
    statuses, reached = [], []
    for _ in range(kills):
        child, before = forked(go_on), checkpoints.saved(tmp_path / "killed")
        # At any moment of the start, or of the steps and savings behind the first checkpoint.
        while len(statuses) % 3 and checkpoints.saved(tmp_path / "killed") == before and not exited(child):
            time.sleep(step / 20)
        time.sleep(random_numbers.uniform(0, 2) * step)
        os.kill(child, signal.SIGKILL)
        statuses.append(finished(child))
        found = checkpoints.saved(tmp_path / "killed")
        assert all(checkpoints.damage(path) is None for path in found)
        reached.append(int(found[-1].name.removeprefix("checkpoint-")) if found else 0)
    assert set(statuses) <= {-signal.SIGKILL, 0} and statuses.count(-signal.SIGKILL) >= 5  # most met a run under way,
    assert sum(0 < step < 24 for step in set(reached)) >= 2  # and several went on from another's checkpoint
    assert finished(forked(go_on)) == 0
    assert same(torch.load(end, weights_only=False), state(whole))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end(tmp_path: Path, number: int) -> None:
    """A process of its own, as from a shell: the next one goes on to the end."""
    script = tmp_path / "run.py"
    script.write_text(
        "import signal; from pathlib import Path; import torch; import test_checkpoints as t\n"
        f"torch.set_num_threads({torch.get_num_threads()})  # sums in the same order as the runs below\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # in background jobs of a shell it is ignored\n"
        f"t.run(Path({str(tmp_path / 'told')!r}), arguments={{'num_train_epochs': 200}}).train(resume_from_checkpoint=True)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    child = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not checkpoints.saved(tmp_path / "told"):
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.05)
    child.send_signal(number)
    assert child.wait(60) != 0
    found = checkpoints.newest(tmp_path / "told")
    assert found is not None
    passes = {"num_train_epochs": int(found.name.removeprefix("checkpoint-")) // 3 + 2}  # the automatic rate knows no end
    resumed = run(tmp_path / "told", arguments=passes)
    resumed.train(resume_from_checkpoint=True)
    whole = run(tmp_path / "whole", arguments=passes | {"save_strategy": "no"})
    whole.train()
    assert same(state(resumed), state(whole))


# A disk that is full


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """A limit on the size of files, which the system enforces as it does the size of a disk; then none, and the run goes on."""
    run(tmp_path, stop=2).train()

    def without_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # bytes; the weights have 60 thousand
        try:
            run(tmp_path).train(resume_from_checkpoint=True)
        except CheckpointError as error:
            line = str(error)
            good = "checkpoint-3: cannot be written" in line and "what was saved is whole" in line and "\n" not in line
            os._exit(0 if good else 3)
        os._exit(4)

    assert finished(forked(without_room)) == 0
    assert [path.name for path in checkpoints.saved(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    assert not (tmp_path / checkpoints.STAGING).exists()
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-2"
    resumed = run(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    whole = run(tmp_path / "whole")
    whole.train()
    assert same(state(resumed), state(whole))


def test_a_full_tmpfs(small_disk: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"cannot be written \(no space left\); make room or mend that and resume"
    ) as error:
        run(small_disk, arguments={"save_total_limit": 50, "num_train_epochs": 20}).train()
    assert "\n" not in str(error.value)
    kept = checkpoints.saved(small_disk)
    assert kept and all(checkpoints.damage(path) is None for path in kept)
    for path in kept[:-1]:  # the user makes room
        shutil.rmtree(path)
    resumed = run(small_disk, arguments={"save_total_limit": 2, "num_train_epochs": 20})
    resumed.train(resume_from_checkpoint=True)
    assert len(checkpoints.saved(small_disk)) == 2


def test_an_old_checkpoint_is_whole_until_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed where the first file is about to be removed; the next run clears away what is left."""
    run(tmp_path, stop=3).train()
    rmtree = shutil.rmtree

    def killed(path: Path, **options: Any) -> None:
        if path.name.endswith("checkpoint-1"):
            next(iter(path.iterdir())).unlink()
            raise KeyboardInterrupt
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.rotate(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in checkpoints.saved(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    assert all(checkpoints.damage(path) is None for path in checkpoints.saved(tmp_path))
    with checkpoints.locked(tmp_path):
        assert not (tmp_path / checkpoints.STAGING).exists()


# Two runs, damage


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    with checkpoints.locked(tmp_path), pytest.raises(CheckpointError, match=rf"another run \(process {os.getpid()}\) writes"):
        run(tmp_path).train()
    run(tmp_path, stop=1).train()


def test_checkpoints_of_a_run_before_are_neither_written_over_nor_taken(tmp_path: Path) -> None:
    run(tmp_path, stop=2).train()
    before = (tmp_path / "checkpoint-1" / "model.safetensors").read_bytes()
    for resume in (None, str(tmp_path / "checkpoint-1")):
        with pytest.raises(CheckpointError, match="checkpoint-2: of a run before; go on from it"):
            run(tmp_path, lr=0.5).train(resume_from_checkpoint=resume)
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_bytes() == before
    run(tmp_path, arguments={"save_strategy": "no"}).train()  # writes none


@pytest.mark.parametrize("worker", [False, True])
def test_a_dead_process_holds_no_lock(tmp_path: Path, worker: bool) -> None:
    """Nor does a fork of it that lives on, as the worker of a data loader does for some seconds."""

    def hold() -> None:
        with checkpoints.locked(tmp_path):
            if worker:
                (tmp_path / "worker").write_text(str(forked(lambda: time.sleep(60))))
            (tmp_path / "held").touch()
            time.sleep(60)

    child = forked(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match=f"process {child}"), checkpoints.locked(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    finished(child)
    with checkpoints.locked(tmp_path):
        pass
    if worker:
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)  # it was there until now


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    run(tmp_path, stop=3).train()
    damage(tmp_path / "checkpoint-3" / file)
    told: list[str] = []
    assert checkpoints.newest(tmp_path, told.append) == tmp_path / "checkpoint-2"
    assert len(told) == 1 and f"checkpoint-3: {file} is " in told[0]
    with pytest.raises(CheckpointError, match=f"checkpoint-3: {file} is "):
        run(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_run_goes_on_from_before_the_damage(tmp_path: Path) -> None:
    run(tmp_path, stop=3).train()
    _flip(tmp_path / "checkpoint-3" / "optimizer.pt")
    resumed = run(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    whole = run(tmp_path / "whole")  # building a trainer seeds torch's generator
    whole.train()
    assert same(state(resumed)["weights"], state(whole)["weights"])
    assert checkpoints.damage(tmp_path / "checkpoint-3") is None or not (tmp_path / "checkpoint-3").exists()


def test_a_seal_that_is_lost_or_no_seal(tmp_path: Path) -> None:
    run(tmp_path, stop=1).train()
    seal = tmp_path / "checkpoint-1" / checkpoints.SEAL
    seal.write_text("{")
    assert checkpoints.newest(tmp_path) is None
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        run(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    fresh = run(tmp_path)
    fresh.train(resume_from_checkpoint=True)  # from the beginning
    assert fresh.state.global_step == 6


def test_the_oldest_go_and_the_best_stays(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
    }
    trainer = run(
        tmp_path, eval_dataset=RETAINING[:4], arguments={**options, "load_best_model_at_end": True, "save_total_limit": 2}
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path and checkpoints.damage(best) is None
    names = {path.name for path in checkpoints.saved(tmp_path)}
    assert names == {best.name, "checkpoint-6"}
    saved = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == str(best)


# Gradients that are not finite


class Poison(TrainerCallback):
    """Makes the gradients of chosen steps NaN, and keeps the weights of before."""

    def __init__(self, model: Any, steps: set[int]):
        self.steps, self.model, self.on = steps, model, False
        self.before: dict[int, list[Tensor]] = {}
        self.untouched: list[bool] = []
        model.model.norm.register_forward_hook(lambda module, inputs, output: output * float("nan") if self.on else output)

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on = state.global_step in self.steps
        self.kept = self.weights()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on:
            self.untouched.append(same(self.kept, self.weights()))
        self.on = False


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_steps_that_are_not_finite_change_nothing_and_are_counted(tmp_path: Path, base: str) -> None:
    model, steps = tiny.llama(), {0, 3, 4, 9}
    poison = Poison(model, steps)
    trainer = run(tmp_path, model=model, base=base, arguments={"num_train_epochs": 4})
    trainer.add_callback(poison)
    trainer.train()
    assert poison.untouched == [True] * 4
    assert trainer.own_optimizer.skipped_steps == 4
    assert trainer.state.log_history[-2]["skipped_steps"] == 4
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    model = tiny.llama()
    trainer = run(tmp_path, model=model, max_skipped_steps=3, arguments={"num_train_epochs": 9})
    trainer.add_callback(Poison(model, {1, 2, *range(5, 99)}))
    with pytest.raises(RuntimeError, match=r"step 9: .*not finite for 3 steps in a row") as error:
        trainer.train()
    assert "\n" not in str(error.value)
    assert trainer.state.global_step == 9  # steps 6, 7 and 8 were refused, and are looked at one step later


def test_a_run_of_which_no_step_was_taken_is_no_success(tmp_path: Path) -> None:
    model = tiny.llama()
    trainer = run(tmp_path, model=model)  # of 6 steps, fewer than the limit
    trainer.add_callback(Poison(model, set(range(6))))
    with pytest.raises(RuntimeError, match="not finite for 6 steps in a row"):
        trainer.train()


def test_another_kind_of_error_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoints, "seal", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        run(tmp_path).train()
    assert not (tmp_path / checkpoints.STAGING).exists()
