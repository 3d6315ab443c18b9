"""What stopping criteria have seen, in the checkpoints of a Trainer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from ngdiff.checkpoints import CheckpointError
from ngdiff.stopping import StoppingCriteria

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Criteria:
    """Stopping criteria of one process of several.

    Attributes:
        stopping: the criteria.
        rank, size: which process this is, and of how many.
        sharded: whether the model is split over them, and with it the best weights that a retain budget keeps.
    """

    stopping: StoppingCriteria
    rank: int
    size: int
    sharded: bool

    @property
    def split(self) -> bool:
        """Whether each process has something else to keep."""
        return self.sharded and self.stopping.retain_budget is not None

    @property
    def name(self) -> str:
        """Of the file in a checkpoint."""
        return f"stopping-{self.rank}-of-{self.size}.pt" if self.split else "stopping.pt"

    def save(self, checkpoint: Path) -> None:
        """Put them into a checkpoint."""
        torch.save(self.stopping.state_dict(), checkpoint / self.name)

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it has those of a run that was split in another way.
        """
        file = checkpoint / self.name
        if file.is_file():
            self.stopping.load_state_dict(torch.load(file, weights_only=True))
        elif any(checkpoint.glob("stopping*.pt")):
            raise CheckpointError(
                f"{file}: missing, for the checkpoint is of a run that splits its best weights over another number of "
                "processes, or does not split them; go on as that run began"
            )
        else:
            logger.warning(f"{file}: missing, for the run had no stopping criteria; they begin with this checkpoint")
