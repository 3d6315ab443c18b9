"""What has to happen between two steps of a Trainer."""

from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from ngdiff.trainer.step import Meter


class Watch(TrainerCallback):
    """Tells the sampler which pass begins, asks the stopping criteria, and ends runs whose steps are all refused.

    Args:
        trainer: the `NGDiffTrainer` that it watches.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.finite: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Begin to count, and look at the model as it was."""
        self.trainer.meter, self.finite = Meter(), []
        if state.global_step == 0 and self.trainer.should_stop():
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
        limit = self.trainer.max_skipped_steps
        self.finite = [*self.finite[-limit:], self.trainer.own_optimizer.last_step.finite]
        refused = self.finite[:-1]
        if len(refused) == limit and not any(map(bool, reversed(refused))):
            raise RuntimeError(
                f"step {step}: gradients or losses were not finite for {limit} steps in a row, and the weights are as before "
                "them; look at the data, lower the learning rate, or compute in bfloat16 or float32"
            )
