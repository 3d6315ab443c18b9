"""The learning rate of the GeN authors' own package, gen-optim, on the same direction d: what ours is compared with.

Two things differ from the paper's formula: it probes on another batch than the one that gave the gradient, and moves the rate
by a tenth of the way. As published, a refresh advances the state of momentum and AdamW twice.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ngdiff import Coefficients, Gram, Losses, StepReport, rules
from ngdiff.errors import UserError
from ngdiff.optimizer import TASKS

EVERY = 10


def check_installed() -> None:
    """Find out before a run that the package is there.

    Raises:
        UserError: gen-optim, or scikit-learn, which it imports and does not ask for, is not installed.
    """
    missing = [name for module, name in (("GeN", "gen-optim"), ("sklearn", "scikit-learn")) if _absent(module)]
    if missing:
        raise UserError(f"--methods: the rate 'gen' needs {' and '.join(missing)}; run pip install {' '.join(missing)}")


class GenOptimizer:
    """Takes the place of `TwoTaskOptimizer` in a run: a torch optimizer that steps along d at the rate of `GeN.lr_parabola`.

    Args:
        model: of transformers; its gradients are ours while a task is open.
        rule: name of a combination rule.
        base: "sgd" or "adamw".
        lr: the first rate.
        options: further options of torch's optimizer.

    Raises:
        UserError: as `check_installed`.
    """

    def __init__(self, model: Any, rule: str, base: str, lr: float, **options: Any):
        check_installed()
        from GeN import lr_parabola

        self.lr_parabola: Callable[..., None] = lr_parabola
        self.model, self.rule = model, rules.get(rule)
        kind = torch.optim.AdamW if base == "adamw" else torch.optim.SGD
        # AdamW of torch decays weights by default; ours does not.
        self.inner: Any = kind(model.parameters(), lr=lr, weight_decay=0.0, **options)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.gradients: dict[str, list[Tensor]] = {}
        self.steps = self.refreshes = 0
        self.last_step: StepReport | None = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of torch's optimizer."""
        return self.inner.param_groups

    @contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Backwards inside give the gradient of one task."""
        self.inner.zero_grad()
        yield
        # What a loss does not reach, as RMU's the later layers, has no gradient.
        self.gradients[name] = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in self.parameters]
        self.inner.zero_grad()

    def step(self, losses: tuple[Tensor, Tensor], other_batch: Callable[[], Any]) -> None:
        """One step along d; at every tenth the package looks at `other_batch()` first, a batch with labels.

        A step whose gradients or losses are not finite is not taken, as in `TwoTaskOptimizer`: the package leaves that to its
        user.
        """
        for task in set(TASKS) - set(self.rule.tasks):  # which the rule does not read
            self.gradients.setdefault(task, [torch.zeros_like(p) for p in self.parameters])
        retain, forget = self.gradients["retain"], self.gradients["forget"]
        gram = Gram(_dot(retain, retain), _dot(forget, forget), _dot(retain, forget))
        c_r, c_f = self.rule(gram, Losses(*(loss.double() for loss in losses)))
        for p, r, f in zip(self.parameters, retain, forget, strict=True):
            p.grad = (c_r * r.double() - c_f * f.double()).to(p.dtype)
        finite = torch.stack([gram.retain, gram.forget, gram.cross, *losses]).isfinite().all()
        self.last_step = StepReport(gram, Coefficients(c_r, c_f), finite)
        self.steps += 1
        if not bool(finite):
            return
        if self.steps % EVERY == 0:
            device = str(self.model.device)
            self.lr_parabola(self.model, self.inner, tr_iter=iter([other_batch()]), device=device, task="NLU")
            self.refreshes += 1
        self.inner.step()


def _absent(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ValueError:  # a module that was made unavailable in this process
        return True


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]).sum()
