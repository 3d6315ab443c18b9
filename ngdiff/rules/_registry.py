"""Rules by name, for the command line and configuration files."""

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from ngdiff.gram import Coefficients, Gram, Losses


class Rule:
    """A pure function of the Gram matrix and the losses, which never sees a parameter.

    Subclasses are frozen dataclasses that define `__call__`. It must work on batches (any shape) and must not wait for the
    device, so it branches with `torch.where`.

    Attributes:
        tasks: the tasks whose gradients the rule reads.
        needs_losses: whether `losses` must be given.
    """

    tasks: ClassVar[tuple[str, ...]] = ("retain", "forget")
    needs_losses: ClassVar[bool] = False

    @property
    def kernel(self) -> tuple[str, float] | None:
        """Name and parameter of the same rule among the device rules of ngdiff_kernels, or None if it has no such form.

        A rule that has one takes its step in a single launch; every other one runs between two launches. Read it through
        `device_form`, which knows of subclasses that combine in another way.
        """
        return None

    def __call__(self, gram: Gram, losses: Losses | None = None) -> Coefficients:
        """(c_R, c_F) for the given Gram matrix."""
        raise TypeError(f"{type(self).__name__} defines no __call__(gram, losses)")


def device_form(rule: Rule) -> tuple[str, float] | None:
    """`rule.kernel`, or None if a subclass changed what the rule computes without giving a device form of its own."""

    def owner(attribute: str) -> int:
        return next(i for i, kind in enumerate(type(rule).__mro__) if attribute in vars(kind))

    return rule.kernel if owner("kernel") <= owner("__call__") else None


R = TypeVar("R", bound="type[Rule]")

_RULES: dict[str, type[Rule]] = {}


def register(name: str) -> Callable[[R], R]:
    """Class decorator: make a rule available to `get` under `name`.

    Args:
        name: small letters, digits and hyphens, so that it can stand in a command and in the name of a file.

    Raises:
        ValueError: another rule has that name, or it has other characters; or the rule's `tasks` names none, or another task.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(f"register: rule name {name!r}; take small letters, digits and hyphens, e.g. 'my-rule'")

    def add(rule: R) -> R:
        if name in _RULES:
            raise ValueError(f"register: rule name {name!r} is taken by {_RULES[name].__name__}; choose another")
        if not set(rule.tasks) or set(rule.tasks) - set(Rule.tasks):
            raise ValueError(
                f"register: {rule.__name__}.tasks = {rule.tasks!r}; name the tasks that it reads, e.g. {Rule.tasks}"
            )
        _RULES[name] = rule
        return rule

    return add


def names() -> list[str]:
    """Names of all registered rules."""
    return sorted(_RULES)


def get(spec: str) -> Rule:
    """The rule that a string names: "ngdiff", or with the value of its one parameter, "gdiff-0.9".

    Raises:
        ValueError: unknown name, or a parameter the rule does not take or accept.
    """
    if spec in _RULES:
        return _RULES[spec]()
    # The longest name that it begins with: a parameter may hold hyphens, as in "gdiff-1e-1".
    name = max((known for known in _RULES if spec.startswith(f"{known}-")), key=len, default="")
    text = spec[len(name) + 1 :]
    if not name or not is_dataclass(_RULES[name]) or not fields(_RULES[name]):  # type: ignore[arg-type]
        raise ValueError(f"rule: unknown name {spec!r}; choose one of {', '.join(names())}, e.g. 'ngdiff' or 'gdiff-0.9'")
    try:
        value: Any = float(text)
    except ValueError:
        raise ValueError(f"rule: {spec!r} has {text!r} where a number belongs; write e.g. '{name}-0.5'") from None
    return _RULES[name](value)  # type: ignore[call-arg]
