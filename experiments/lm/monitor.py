"""Looking at a model while it unlearns, and keeping one of its states."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Look = Mapping[str, float]


class Monitor:
    """Looks at the model every few steps. It changes nothing of the run: no random number is drawn, no weight is written.

    Args:
        every: steps from one look to the next; the last of the planned steps is looked at too.
        look: from a model to what is measured of it, cheap enough to be done often.
        better: whether a look is better than that of the state kept so far, None in the beginning; without it no state is kept.
        until_kept: whether the look at which a state is kept is the last one.

    Attributes:
        looks: of every look the step and what was measured.
        step: of the state that is kept, None while there is none.
    """

    def __init__(
        self,
        every: int,
        look: Callable[[Any], Look],
        better: Callable[[Look, Look | None], bool] | None = None,
        until_kept: bool = False,
    ):
        self.every, self.look, self.better, self.until_kept = every, look, better, until_kept
        self.looks: list[dict[str, float]] = []
        self.step: int | None = None
        self._best: Look | None = None
        self._weights: dict[str, Tensor] = {}

    def __call__(self, model: Any, step: int, steps: int) -> None:
        """Look, if it is time, at the model as it is after `step` of `steps` steps; leaves it in training mode."""
        if step == 0 or (step % self.every and step < steps) or (self.until_kept and self.step is not None):
            return
        model.eval()
        found = self.look(model)
        model.train()
        self.looks.append({"step": step, **found})
        if self.better and self.better(found, self._best):
            self._best, self.step = found, step
            self._weights = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}

    def restore(self, model: Any) -> None:
        """Give the model the weights that were kept.

        Raises:
            ValueError: none were.
        """
        if self.step is None:
            raise ValueError("Monitor.restore: no state was kept; look at `step` first")
        model.load_state_dict(self._weights)
