"""What has to happen between two steps of a Trainer."""

from typing import Any

from torch import Tensor
from transformers import TrainerCallback


class Watch(TrainerCallback):
    """Tells the sampler which pass begins, asks the stopping criteria, and ends runs whose steps are all refused.

    Args:
        trainer: the `NGDiffTrainer` that it watches.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.finite: list[Tensor] = []
        self.steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Begin to count, and look at the model as it was."""
        self.finite, self.steps = [], 0
        self.trainer.begin()
        if self.trainer.stopped or (state.global_step == 0 and self.trainer.should_stop()):
            control.should_training_stop = True
        return control

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Which pass, by the state that is saved in checkpoints."""
        if self.trainer.sampler is not None:
            self.trainer.sampler.epoch = int(state.epoch or 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Count a refused step, and look at the model if it is time."""
        self._count(state.global_step)
        due = state.global_step % self.trainer.check_every == 0 or state.global_step >= state.max_steps
        if due and self.trainer.should_stop():
            control.should_training_stop = True
        return control

    def _count(self, step: int) -> None:
        """End the run if all of the last steps were refused.

        One flag a step is read, that of the step before: on a GPU this one's is not there yet, and the host would wait for it.
        """
        self.steps += 1
        limit = self.trainer.max_skipped_steps
        self.finite = [*self.finite[-limit:], self.trainer.own_optimizer.last_step.finite]
        refused = self.finite[:-1]
        if len(refused) == limit:
            self._refuse(refused, step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the last steps too: a run of which none was taken is no success."""
        if self.steps:
            self._refuse(self.finite[-self.trainer.max_skipped_steps :], state.global_step)

    def _refuse(self, flags: list[Tensor], step: int) -> None:
        """Raise RuntimeError if none of these steps was taken."""
        if not any(map(bool, reversed(flags))):
            limit = len(flags)
            raise RuntimeError(
                f"step {step}: gradients or losses were not finite for {limit} steps in a row, and the weights are as before "
                "them; look at the data, lower the learning rate, or compute in bfloat16 or float32"
            )
