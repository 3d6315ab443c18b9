"""Looking at a model while it unlearns, and keeping some of its states."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

Look = Mapping[str, float]
Better = Callable[[Look, Look | None], bool]


class _State(NamedTuple):
    step: int
    look: Look
    weights: dict[str, Tensor]


class Monitor:
    """Looks at the model every few steps. It changes nothing of the run: no random number is drawn, no weight is written.

    Args:
        every: steps from one look to the next; the last of the planned steps is looked at too.
        look: from a model to what is measured of it, cheap enough to be done often.
        keep: name of a state -> whether a look is better than that of the state kept so far, None in the beginning.
        until: the state of which the first look to keep it is the last one.

    Attributes:
        looks: of every look the step and what was measured.
    """

    def __init__(
        self,
        every: int,
        look: Callable[[Any], Look],
        keep: Mapping[str, Better] | None = None,
        until: str | None = None,
    ):
        self.every, self.look, self.keep, self.until = every, look, dict(keep or {}), until
        self.looks: list[dict[str, float]] = []
        self._states: dict[str, _State] = {}

    @property
    def kept(self) -> dict[str, int]:
        """Name of a state -> the step that it is of."""
        return {name: state.step for name, state in self._states.items()}

    def __call__(self, model: Any, step: int, steps: int) -> None:
        """Look, if it is time, at the model as it is after `step` of `steps` steps; leaves it in training mode."""
        if step == 0 or (step % self.every and step < steps) or self.until in self._states:
            return
        model.eval()
        found = self.look(model)
        model.train()
        self.looks.append({"step": step, **found})
        chosen = [name for name, better in self.keep.items() if better(found, self._best(name))]
        if chosen:
            weights = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
            self._states |= dict.fromkeys(chosen, _State(step, found, weights))

    def _best(self, name: str) -> Look | None:
        return self._states[name].look if name in self._states else None

    def restore(self, model: Any, name: str) -> None:
        """Give the model the weights of a state.

        Raises:
            ValueError: it was not kept.
        """
        if name not in self._states:
            raise ValueError(f"Monitor.restore: no state {name!r} was kept; look at `kept` first")
        model.load_state_dict(self._states[name].weights)
