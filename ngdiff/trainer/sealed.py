"""A Trainer whose runs survive: one run a folder, and checkpoints that are whole, proved so, or absent."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.utils import logging

from ngdiff import checkpoints
from ngdiff.checkpoints import CheckpointError
from ngdiff.files import unwritten
from ngdiff.processes import RankError, decided_by_first, together

logger = logging.get_logger(__name__)
TRAINER_STATE = "trainer_state.json"


class SealedTrainer(Trainer):
    """Trainer with a lock on its output folder, and checkpoints that appear when all of them is on disk.

    Of several processes the first holds the lock, chooses the checkpoint to go on from and publishes new ones; what fails there
    fails in all.
    """

    _staged: Path | None = None
    say: Callable[[str], None] = staticmethod(logger.warning)  # where a run goes on from, and which checkpoint is damaged

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As Trainer's; the output folder is locked meanwhile.

        Args:
            resume_from_checkpoint: a checkpoint, which must be whole; or True for the newest whole one, and where there is
                none for a start from the beginning.
            kwargs: of Trainer.

        Raises:
            CheckpointError: another run holds the folder, a checkpoint is damaged, or one cannot be written. Where FSDP2 cannot
                write its shards or the optimizer's state, torch's own error comes through, or the launcher ends the others.
        """
        with self._locked():
            checkpoint = self._chosen(resume_from_checkpoint)
            with together():
                self.before_training(None if checkpoint is None else Path(checkpoint))
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def before_training(self, checkpoint: Path | None) -> None:
        """For subclasses: called with the model as it was given, and the checkpoint that the run is about to go on from."""

    def complete(self, checkpoint: Path) -> None:
        """For subclasses: put files of their own into a checkpoint, before it is sealed. Called in each process."""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as held:
            with _all_or_none():
                if self.is_world_process_zero():
                    held.enter_context(checkpoints.locked(Path(self.args.output_dir)))
            yield

    def _chosen(self, resume: str | bool | None) -> str | None:
        """The checkpoint that all processes go on from, whole on each machine; None for a start from the beginning."""

        def choose() -> str | None:
            found = self._found(resume)
            if self.args.save_strategy != "no":
                checkpoints.check_unused(Path(str(self.args.output_dir)), None if found is None else Path(found))
            return found

        with _all_or_none():
            checkpoint = decided_by_first(choose)
            if checkpoint is not None and self.is_local_process_zero() and not self.is_world_process_zero():
                checkpoints.check(Path(checkpoint))  # of this machine, which may have a copy of its own
        return checkpoint

    def _found(self, resume: str | bool | None) -> str | None:
        if isinstance(resume, str | os.PathLike):
            checkpoints.check(Path(resume))
            return str(resume)
        found = checkpoints.newest(Path(self.args.output_dir), self.say) if resume else None
        if resume:
            none = f"{self.args.output_dir}: no whole checkpoint; the run starts from the beginning"
            self.say(none if found is None else f"{found}: the run goes on from here")
        return None if found is None else str(found)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's. Of a checkpoint it fails in all processes or in none, for there they wait for each other after it."""
        with together() if self._staged else nullcontext():
            super().save_model(output_dir, _internal_call)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staged or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer's, into a hidden folder; it gets its name when all of it is on disk."""
        run, name = Path(super()._get_output_dir(trial)), f"{checkpoints.PREFIX}{self.state.global_step}"
        self._staged = run / checkpoints.STAGING
        try:
            with together():  # each process writes its random state
                super()._save_checkpoint(model, trial)
                self.complete(self._staged / name)
                if self.state.best_model_checkpoint == str(self._staged / name):  # each process will look there
                    self.state.best_model_checkpoint = str(run / name)
            with together():
                if self.args.should_save:
                    self._publish(self._staged / name, run / name)
        except Exception as error:  # of the system, torch or safetensors
            reason = str(error) if isinstance(error, RankError) else unwritten(error, run)
            raise CheckpointError(
                f"{run / name}: cannot be written ({reason}); make room or mend that and resume: what was saved is whole"
            ) from error
        finally:
            if self.args.should_save:
                checkpoints.discard(self._staged)
            self._staged = None
        self.accelerator.wait_for_everyone()

    def _publish(self, staged: Path, final: Path) -> None:
        if self.state.best_model_checkpoint == str(final):
            self.state.save_to_json(str(staged / TRAINER_STATE))
        checkpoints.publish(staged, final)
        best = self.state.best_model_checkpoint
        checkpoints.rotate(final.parent, self.args.save_total_limit, Path(best) if best else None)


@contextmanager
def _all_or_none() -> Iterator[None]:
    """As `together`, where what is raised in other processes is a fault of a checkpoint too."""
    try:
        with together():
            yield
    except RankError as error:
        raise CheckpointError(str(error)) from None
