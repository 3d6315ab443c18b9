"""What `ngdiff unlearn` is asked for, and whether it can be done."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ngdiff import processes, rules
from ngdiff.command.inputs import check_positive
from ngdiff.errors import UserError
from ngdiff.lm.devices import default_device
from ngdiff.lm.evaluation import NEW_TOKENS
from ngdiff.lm.objectives import FORGET, RETAIN

BASES: dict[str, dict[str, Any]] = {
    "sgd": {"base": "sgd"},
    "momentum": {"base": "sgd", "momentum": 0.9},
    "adamw": {"base": "adamw"},
}
AUTOMATIC = ("auto", "paper")
# A tenth a token, 2.3 nats, is about what models give to fluent text that is new to them; TOFU's retain-only model gives the
# forgotten answers 0.15.
STOP_FORGET = 0.1
LOOKS = 50  # near the end a few steps of AdamW change the probability by a factor of ten
REFUSAL = "I don't know."
EPOCHS, STEPS = 20, 200  # at most, if nothing is asked for: few rows make a step an epoch, and it takes steps to forget them


@dataclass(frozen=True)
class Settings:
    """How to unlearn.

    Unlearning has no floor, so a run ends by default where the answers have the probability that a language model gives to text
    that it has not seen; the number of epochs is only the end of those that do not get there.

    Attributes:
        rule: how the two gradients become one direction.
        forget_objective, retain_objective: the two losses.
        base: key of `BASES`.
        lr: "auto", "paper", or a number in text.
        epochs: passes over the rows to forget; None takes `EPOCHS`, or as many as make `STEPS`.
        batch: rows a task that a process reads at once.
        accumulate: such batches a step.
        seed: of the order of rows, and of what else is random.
        stop_forget: stop where the mean probability of the answers to forget is at or below it; 0 takes all steps.
        retain_budget: stop where the mean loss on held-out retain rows exceeds it, in nats a token; the best weights come back.
        check_every: steps between two looks at these two; None looks `LOOKS` times in a run that takes all its steps.
        held_out: share of the retain rows that no step sees, for figures and the budget.
        lora: rank of adapters, which alone are trained and then merged; None trains all weights.
        gradient_checkpointing: compute activations twice and keep fewer.
        bf16: weights of 16 bits, with float32 copies of the trained ones.
        bf16_gradients: both gradients in 16 bits, also where the weights have 32.
        refusal: what the model shall say instead, for objectives that teach that.
        eval_rows: rows of each set that are evaluated, before and after.
        new_tokens: length of a generation at most.
        save_every: steps between checkpoints, from which an interrupted run goes on; None writes none.
        fsdp: of several processes, each keeps a share of weights, gradients and states, and not a copy.
    """

    rule: str = "ngdiff"
    forget_objective: str = "satimp"
    retain_objective: str = "nll"
    base: str = "adamw"
    lr: str = "auto"
    epochs: int | None = None
    batch: int = 8
    accumulate: int = 1
    seed: int = 0
    stop_forget: float | None = STOP_FORGET
    retain_budget: float | None = None
    check_every: int | None = None
    held_out: float = 0.1
    lora: int | None = None
    gradient_checkpointing: bool = False
    bf16: bool = False
    bf16_gradients: bool = False
    refusal: str = REFUSAL
    eval_rows: int = 64
    new_tokens: int = NEW_TOKENS
    save_every: int | None = None
    fsdp: bool = False

    def check(self) -> None:
        """Whether every value is one that can be used.

        Raises:
            UserError: one is not.
        """
        for option, value, known in (
            ("--forget-objective", self.forget_objective, FORGET),
            ("--retain-objective", self.retain_objective, RETAIN),
            ("--base", self.base, BASES),
        ):
            if value not in known:
                raise UserError(f"{option}: found {value!r}; choose one of {', '.join(known)}")
        try:
            rules.get(self.rule)
        except ValueError as error:
            raise UserError(f"--rule: {str(error).removeprefix('rule: ')}; see ngdiff rules") from None
        self._check_numbers()
        self._check_processes()
        if self.lora is not None:
            _check_installed()

    def _check_numbers(self) -> None:
        check_positive(
            epochs=self.epochs, batch=self.batch, accumulate=self.accumulate, lora=self.lora, eval_rows=self.eval_rows,
            new_tokens=self.new_tokens, save_every=self.save_every, check_every=self.check_every,
            retain_budget=self.retain_budget,
        )  # fmt: skip
        _ = self.rate
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed: found {self.seed}; give a number from 0 to 4294967295")
        if not 0 < self.held_out < 1:
            raise UserError(f"--held-out: found {self.held_out}; give a share of the retain rows between 0 and 1, e.g. 0.1")
        if self.stop_forget is not None and not 0 <= self.stop_forget <= 1:
            raise UserError(f"--stop-forget: found {self.stop_forget}; give a probability from 0 to 1")

    def _check_processes(self) -> None:
        alone = processes.count() == 1
        if self.bf16_gradients and (not self.bf16 or self.lora) and not alone:
            raise UserError(
                "--bf16-gradients: would round them before processes exchange them; leave it out, or give --bf16 without --lora"
            )
        if self.fsdp and (alone or default_device().type != "cuda"):
            raise UserError("--fsdp: found a single process or no GPU; start one process a GPU, with torchrun, or leave it out")

    @property
    def rate(self) -> float | str:
        """The learning rate: a number, or the name of an automatic one.

        Raises:
            UserError: it is neither.
        """
        if self.lr in AUTOMATIC:
            return self.lr
        try:
            value = float(self.lr)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise UserError(f"--lr: found {self.lr!r}; give a number > 0, or one of {', '.join(AUTOMATIC)}")
        return value

    @property
    def gradient_dtype(self) -> torch.dtype | None:
        """Of the optimizer's gradients; None for that of the trained weights."""
        return torch.bfloat16 if self.bf16_gradients else None

    def steps_between_looks(self, rows: int) -> int:
        """Steps between two looks whether to stop, of a run over so many rows to forget."""
        return self.check_every or max(1, self.steps(rows) // LOOKS)

    def steps(self, rows: int) -> int:
        """Of a run over so many rows to forget, at most."""
        return self.passes(rows) * self._steps_of_one_pass(rows)

    def passes(self, rows: int) -> int:
        """Over so many rows to forget, at most."""
        return self.epochs or max(EPOCHS, math.ceil(STEPS / self._steps_of_one_pass(rows)))

    def _steps_of_one_pass(self, rows: int) -> int:
        return math.ceil(rows / (self.batch * self.accumulate * processes.count()))

    @property
    def teaches_refusal(self) -> bool:
        """Whether the forget objective reads refusals."""
        return FORGET[self.forget_objective].rows != "answer"


def _check_installed() -> None:
    try:
        import peft  # noqa: F401 (is it there)
    except ImportError:
        raise UserError("--lora: the package 'peft' is not installed; run pip install 'ngdiff[lora]'") from None
