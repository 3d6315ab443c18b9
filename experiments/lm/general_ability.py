"""What a model can do besides the benchmark: any task of EleutherAI's lm-evaluation-harness, by its package lm-eval."""

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ngdiff.errors import UserError

BATCH = 8  # rows; the package holds their log-probabilities of the whole vocabulary in float32


def check(tasks: Sequence[str], include: str | None = None) -> None:
    """Find out before anything is written that the tasks can be run. This downloads their data.

    Args:
        tasks: names of tasks, groups or tags.
        include: folder with tasks of the user's own, as yaml files.

    Raises:
        UserError: lm-eval is not installed, there is no such folder or task, or the data of one cannot be loaded.
    """
    if find_spec("lm_eval") is None:
        raise UserError('--general-ability: needs the package lm-eval; run pip install "ngdiff[lm-eval]"')
    if include is not None and not Path(include).is_dir():
        raise UserError(f"--task-folder: found {include!r}, which is no folder; give one with yaml files of tasks")
    manager = _manager(include)
    for name in tasks:
        if name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks, n=3)
            remedy = f"choose one such as {', '.join(near)}" if near else "run lm-eval ls tasks for a list"
            raise UserError(f"--general-ability: unknown task {name!r}; {remedy}")
    with _one_line(tasks):
        manager.load(list(tasks))


def general_ability(
    model: Any, tokenizer: Any, tasks: Sequence[str], limit: int | None = None, include: str | None = None, batch: int = BATCH
) -> dict[str, dict[str, float]]:
    """Metrics of each task; those of a group have those of its members beside them.

    As in the package's own runs: few-shot examples as the task says, no chat template. A metric of a filter other than "none"
    is named with it: "exact_match,strict-match". Metrics that are not finite, as the standard error of one row, are left out.
    Tokenizer and random numbers stay as they are.

    Args:
        model: of transformers, on its device; put in evaluation mode.
        tokenizer: the model's own.
        tasks, include: as in `check`.
        limit: rows of a task, from the first; None takes all.
        batch: rows at a time.

    Raises:
        UserError: as `check`, or a task fails.
    """
    check(tasks, include)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # A copy, because the package gives it a padding token. bfloat16 on a GPU, as everywhere here.
    precision = torch.bfloat16 if model.device.type == "cuda" else None
    wrapped = HFLM(model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch, mixed_precision_dtype=precision)
    with _one_line(tasks), _own_random_numbers(model.device):
        found = simple_evaluate(wrapped, tasks=list(tasks), task_manager=_manager(include), limit=limit, log_samples=False)
    return {name: _metrics(values) for name, values in found["results"].items()}


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries "metric,filter"; others are names and counts, and what cannot be computed is a string."""
    numbers = {name: value for name, value in values.items() if "," in name and not isinstance(value, str)}
    return {name.removesuffix(",none"): float(value) for name, value in numbers.items() if math.isfinite(value)}


@lru_cache(maxsize=1)
def _manager(include: str | None) -> Any:
    """Of all tasks; reading the names of the package's own 14,000 takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include)


@contextmanager
def _one_line(tasks: Sequence[str]) -> Iterator[None]:
    """Whatever a task, its data or its metric raises becomes one line."""
    try:
        yield
    except Exception as error:  # a hub that cannot be reached, a broken yaml file, a perplexity that overflows
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        message = f"{', '.join(tasks)} failed ({type(error).__name__}: {reason}); check network and task, or leave it out"
        raise UserError(f"--general-ability: {message}") from error


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    """The package seeds all global generators, as some tasks draw from them; afterwards they go on as if it had not run."""
    import numpy as np

    state, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(arrays)
