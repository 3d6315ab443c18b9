"""The one place where `ngdiff unlearn` meets the Trainer."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ngdiff import StoppingCriteria
from ngdiff.checkpoints import CheckpointError
from ngdiff.command.settings import BASES, Settings
from ngdiff.errors import UserError
from ngdiff.processes import RankError, alike, count, said_once
from ngdiff.stopping import FORGOTTEN

Rows = Sequence[Mapping[str, list[int]]]
# FSDP2 with each layer by itself, in accelerate's words: the names of the arguments of TrainingArguments have changed.
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",  # each process has the whole model, which objectives may compare with
}


@dataclass(frozen=True)
class Tasks:
    """Rows as the Trainer reads them; no step sees those that are held out."""

    forget: Rows
    retain: Rows
    held_out: Rows
    refusals: Rows | None = None


@dataclass(frozen=True)
class Trained:
    """What a run leaves beside the weights.

    Attributes:
        logs: one record a step.
        stopping: what ended it; "missed" is the forget probability of the weights that are left, if a target was not reached.
    """

    logs: list[dict[str, float | None]]
    stopping: dict[str, Any]


def train(
    model: Any,
    tokenizer: Any,
    tasks: Tasks,
    settings: Settings,
    folder: Path,
    on_step: Callable[[int, int], None],
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Unlearn, in place. Goes on from the newest checkpoint in `folder`, if there is one.

    Args:
        model: of transformers, or a PEFT model.
        tokenizer: its tokenizer.
        tasks: the rows.
        settings: how.
        folder: for checkpoints.
        on_step: called with steps done and steps in all.
        say: called with a line for each checkpoint that is damaged, and for the one that the run goes on from.

    Raises:
        UserError: the run does not fit into memory, cannot be done in this way, came to gradients that are not finite, or was
            ended by a criterion with the weights as they were.
    """
    from transformers import PrinterCallback, TrainerCallback

    from ngdiff.trainer import NGDiffTrainer

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            on_step(state.global_step, state.max_steps)

    stopping = StoppingCriteria(settings.stop_forget or None, settings.retain_budget)
    with _split(model) if settings.fsdp else nullcontext():
        with alike(), _refused():
            trainer = NGDiffTrainer(
                model,
                arguments(settings, len(tasks.forget), folder, torch.cuda.is_available()),
                forget_dataset=tasks.forget,
                retain_dataset=tasks.retain,
                refusal_dataset=tasks.refusals,
                held_out_dataset=tasks.held_out,
                processing_class=tokenizer,
                rule=settings.rule,
                lr=settings.rate,
                forget=settings.forget_objective,
                retain=settings.retain_objective,
                stopping=stopping,
                check_every=settings.steps_between_looks(len(tasks.forget)),
                gradient_dtype=settings.gradient_dtype,
                callbacks=[Steps()],
                **BASES[settings.base],
            )
        trainer.remove_callback(PrinterCallback)  # our progress is shown in its place
        trainer.say = say
        with _explained(settings):
            trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    _check_changed(stopping, trainer.state.global_step)
    logs = [_finite(record) for record in trainer.state.log_history if "retain_loss" in record]
    return Trained(logs, stopping.summary(trainer.state.global_step) | {"missed": _missed(stopping)})


def arguments(settings: Settings, rows: int, folder: Path, gpu: bool) -> Any:
    """The settings in the Trainer's words, of a run over so many rows to forget."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=count() > 1 and not gpu,  # else each of several processes on CPUs would train alone
        per_device_train_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate,
        num_train_epochs=settings.passes(rows),
        ddp_find_unused_parameters=True,  # objectives that read activations leave layers out
        seed=settings.seed,
        lr_scheduler_type="constant",
        bf16=gpu and not settings.bf16,  # float32 weights compute in bfloat16; 16-bit ones do so anyway
        save_strategy="no" if settings.save_every is None else "steps",
        save_steps=settings.save_every or 1,
        save_total_limit=2,  # one to go on from where the newest is damaged
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=gpu,
    )


def _missed(stopping: StoppingCriteria) -> float | None:
    """Forget probability of the weights that are left, where it was to be lower."""
    if stopping.forget_target is None or stopping.fired == FORGOTTEN:
        return None
    last = stopping.checks[-1][0] if stopping.restored is None else stopping.restored
    probability = next(probability for step, probability, _ in stopping.checks if step == last)
    return probability if math.isfinite(probability) else None


def _check_changed(stopping: StoppingCriteria, steps: int) -> None:
    """Refuse weights that are those of before: nothing was forgotten, and no card may say so."""
    if steps and stopping.restored != 0:
        return
    _, probability, loss = stopping.checks[0]
    last, _, lost = stopping.checks[-1]
    if stopping.fired == FORGOTTEN:
        raise said_once(
            f"--stop-forget: found {stopping.forget_target:g}, and the rows to forget have a probability of {probability:.2g} "
            "before the first step; nothing is written; give a lower one, or 0 to take all steps"
        )
    raise said_once(
        f"--retain-budget: found {stopping.retain_budget:g}, and the held-out retain rows have a loss of {loss:.2g} before the "
        f"first step and {lost:.2g} at step {last}, with nothing to keep between; nothing is written; give a larger one, or a "
        "lower --check-every"
    )


def _finite(record: Mapping[str, float]) -> dict[str, float | None]:
    """As JSON can hold it: a refused step has losses that are no numbers."""
    return {name: value if math.isfinite(value) else None for name, value in record.items()}


@contextmanager
def _split(model: Any) -> Iterator[None]:
    """Meanwhile accelerate splits models over the processes, each layer by itself."""
    there = {type(module).__name__ for module in model.modules()}
    # A text model may name layers of the images that it was once trained with.
    layers = sorted(there & set(getattr(model, "_no_split_modules", None) or ()))
    asked = SHARDED | ({"FSDP_TRANSFORMER_CLS_TO_WRAP": ",".join(layers)} if layers else {})
    before = {name: os.environ.get(name) for name in asked}
    os.environ.update(asked)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _refused() -> Iterator[None]:
    """Arguments that the Trainer refuses, whose messages say what to give."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """What the user can mend, in one line. One process may run out of memory by itself; the rest happens to all."""
    try:
        yield
    except torch.OutOfMemoryError:
        less = "--lora" if settings.fsdp else "--fsdp, or --lora" if count() > 1 else "--bf16-gradients, or --lora"
        raise UserError(
            "training does not fit into memory; give a smaller --batch with --accumulate, or --gradient-checkpointing, or "
            f"--bf16, or {less}"
        ) from None
    except (CheckpointError, RankError) as error:
        raise said_once(str(error)) from None
    except RuntimeError as error:
        if "were not finite" not in str(error):
            raise
        raise said_once(str(error)) from None
