"""Knowing when to stop: cross-entropy ascent has no floor (A6), so a run that goes on destroys the model."""

import math
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from ngdiff.distributed import is_sharded, reshard

CHECK_ROWS = 32  # rows of each task at which a run looks, drawn once
STEPS = "steps"
FORGOTTEN = "forget probability at or below the target"
OVER_BUDGET = "retain loss above the budget, best checkpoint restored"
LOST = "retain loss above the budget from the first check, nothing to restore"


@dataclass
class StoppingCriteria:
    """Watches a small batch of each task and says when a run is done. A criterion that is None never fires.

    The retain batch should be held out from the steps; the forget batch cannot be, for all of it is to be forgotten. Call
    `check` before the first step and every few steps from then on. The best checkpoint is the one of the lowest forget
    probability among those whose retain loss was within the budget. If there is a budget, its weights are kept on the CPU: not
    those that are frozen, which are taken to stay as they are, and under FSDP2 the shards of this process alone.

    Args:
        forget_target: stop where the mean answer probability on the forget rows is at or below it; the function of the same
            name proposes one.
        retain_budget: stop where the mean retain loss on held-out rows exceeds it, in nats a token, and restore the best
            checkpoint.

    Attributes:
        fired: which criterion ended the run, None while none has.
        restored: the step whose weights were restored, or None.
        checks: (step, forget probability, retain loss) of every check.

    Raises:
        ValueError: a criterion is out of range.

    Examples:
        >>> stopping = StoppingCriteria(forget_target=0.1, retain_budget=0.5)
        >>> for step in range(steps):
        ...     if step % 10 == 0 and stopping.check(model, step, forget_probability(), retain_loss()):
        ...         break
        ...     take_step()

    Source: ours; why it is needed is A6.
    """

    forget_target: float | None = None
    retain_budget: float | None = None
    fired: str | None = field(default=None, init=False)
    restored: int | None = field(default=None, init=False)
    checks: list[tuple[int, float, float]] = field(default_factory=list, init=False)
    _best: tuple[float, int, dict[str, Tensor]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.forget_target is not None and not 0 <= self.forget_target <= 1:
            raise ValueError(f"forget_target = {self.forget_target}: give a probability from 0 to 1, or None for no target")
        if self.retain_budget is not None and not self.retain_budget > 0:
            raise ValueError(f"retain_budget = {self.retain_budget}: give a loss > 0 in nats a token, or None for no budget")

    @property
    def active(self) -> bool:
        """Whether any criterion could fire."""
        return self.forget_target is not None or self.retain_budget is not None

    def check(self, model: nn.Module, step: int, forget_probability: float, retain_loss: float) -> bool:
        """Whether to stop. Restores the best checkpoint into `model` where the budget is exceeded.

        Args:
            model: as it is after `step` steps.
            step: number of steps taken.
            forget_probability: mean answer probability on forget rows, exp of minus the mean NLL of the answer's tokens.
            retain_loss: mean retain loss on held-out rows; one that is not finite exceeds every budget.

        Returns:
            True where a criterion has fired; `fired` says which.

        Raises:
            ValueError: forget_probability is below 0 or above 1.
        """
        if not (0 <= forget_probability <= 1 or math.isnan(forget_probability)):
            raise ValueError(f"check: forget_probability = {forget_probability}; give exp(-NLL), from 0 to 1")
        self.checks.append((step, forget_probability, retain_loss))
        if self.retain_budget is not None:
            if not retain_loss <= self.retain_budget:  # also where it is NaN
                self._restore(model)
                return True
            if self._best is None or forget_probability < self._best[0] or math.isnan(self._best[0]):
                weights = {name: value.to("cpu", copy=True) for name, value in _changing(model).items()}
                self._best = forget_probability, step, weights
        if self.forget_target is not None and forget_probability <= self.forget_target:
            self.fired = FORGOTTEN
        return self.fired is not None

    def _restore(self, model: nn.Module) -> None:
        if self._best is None:
            self.fired = LOST
            return
        _, self.restored, weights = self._best
        state = model.state_dict()
        for name, value in weights.items():
            _held(state[name]).copy_(value)
        if any(map(is_sharded, model.parameters())):
            reshard()  # what was gathered for a forward pass is of the weights before
        self.fired = OVER_BUDGET

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if uninterrupted."""
        return {"fired": self.fired, "restored": self.restored, "checks": list(self.checks), "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.fired, self.restored, self._best = state["fired"], state["restored"], state["best"]
        self.checks = list(state["checks"])

    def summary(self, steps: int) -> dict[str, Any]:
        """What a report says of the end of a run of `steps` steps."""
        return {"reason": self.fired or STEPS, "steps": steps, "restored_step": self.restored}


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained, and buffers: name -> what this process holds of it."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: _held(value) for name, value in model.state_dict().items() if name not in frozen}


def _held(value: Tensor) -> Tensor:
    """The memory of this process behind a tensor, all or a shard of it."""
    value = value.detach()
    return cast(Any, value).to_local() if is_sharded(value) else value


def forget_target(reference: float | None, paraphrases: float) -> float:
    """The default target: what a model gives the forgotten answers that never saw them.

    Args:
        reference: mean answer probability on the forget rows of a model trained on the retain set alone, if there is one.
        paraphrases: mean probability, before unlearning, of the forget answers in other words: not memorised ones.

    Returns:
        The one that is given, the reference first.

    Raises:
        ValueError: the one that is taken is no probability.
    """
    name, value = ("paraphrases", paraphrases) if reference is None else ("reference", reference)
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"forget_target: {name} = {value}; give a probability from 0 to 1")
    return value
