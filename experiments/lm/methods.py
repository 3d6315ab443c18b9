"""What a method is: forget objective x retain objective x rule, with a base optimizer and a learning rate; and their names."""

import math
from dataclasses import dataclass
from typing import Any

from experiments.lm.gen_optim import check_installed
from ngdiff import AutoLearningRate, TwoTaskOptimizer, rules
from ngdiff.errors import UserError
from ngdiff.lm.objectives import FORGET, RETAIN

AUTO = "auto"
GEN = "gen"  # the rule of the GeN authors' package, on a torch optimizer; see gen_optim
BASES = {"sgd": {}, "momentum": {"base": "sgd", "momentum": 0.9}, "adamw": {}}
# Word before a colon in a rate -> mode of AutoLearningRate.
MODES = {AUTO: "robust", "paper": "paper"}

# Published methods: objectives, and the weights of the two losses as the c of GDiff-c. Weights 1 : 1 are c = 1/2; gamma of the
# forget loss and alpha of the retain loss are c = alpha / (alpha + gamma). Sources: the papers in ngdiff.objectives; the
# weights are open-unlearning's, whose UNDIAL and CE-U have no retain loss.
NAMED = {
    "kl": "nll+kl:gdiff-0.5",
    "npo": "npo:gdiff-0.5",
    "simnpo": f"simnpo:gdiff-{1 / 1.125}",
    "idknll": "idk-nll:gdiff-0.5",
    "idkdpo": "idk-dpo:gdiff-0.5",
    "wga": "wga:gdiff-0.5",
    "satimp": f"satimp:gdiff-{1 / 1.1}",
    "undial": "undial:ga",
    "ceu": "ceu:ga",
    "rmu": "rmu+activations:gdiff-0.5",
}
ALL = ("ngdiff", "npo:ngdiff", "simnpo:ngdiff", "ga", "gdiff-0.5", "lossnorm", *NAMED)


@dataclass(frozen=True)
class Method:
    """One way to unlearn.

    Attributes:
        rule: name of a combination rule.
        base: key of `BASES`.
        lr: a number; or "auto", "paper" or "gen", each with an optional ":initial rate".
        forget, retain: names of objectives.
    """

    rule: str
    base: str
    lr: float | str
    forget: str = "nll"
    retain: str = "nll"

    @property
    def slug(self) -> str:
        """For names of folders."""
        return f"{self.forget}+{self.retain}-{self.rule}-{self.base}-{self.lr}".replace(":", "-from-")

    @property
    def needs_reference(self) -> bool:
        """Whether an objective compares with the model before unlearning."""
        return bool(FORGET[self.forget].reference or RETAIN[self.retain].reference)

    def optimizer(self, model: Any, weight_decay: float = 0.0) -> TwoTaskOptimizer:
        """A fresh optimizer over the model's parameters; weight decay as torch's base of that name has it."""
        lr: float | AutoLearningRate
        if isinstance(self.lr, str):
            word, initial = split_rate(self.lr)
            lr = AutoLearningRate(mode=MODES[word]) if initial is None else AutoLearningRate(initial, mode=MODES[word])
        else:
            lr = self.lr
        options: dict[str, Any] = {"base": self.base, "weight_decay": weight_decay} | BASES[self.base]
        return TwoTaskOptimizer(model.parameters(), rule=self.rule, lr=lr, **options)


def parse(spec: str) -> tuple[dict[str, str], float | str | None]:
    """Objectives, rule and base if there is one, and the learning rate if there is one, of [FORGET[+RETAIN]:]RULE[/BASE][@RATE]
    or NAME[/BASE][@RATE].

    Raises:
        UserError: an unknown name, or a rate that is none.
    """
    method, at, rate = spec.partition("@")
    name, slash, base = method.partition("/")
    objectives, _, rule = NAMED.get(name, name).rpartition(":")
    forget, _, retain = objectives.partition("+")
    parts = {"rule": rule, "forget": forget or "nll", "retain": retain or "nll"}
    for key, known in (("forget", FORGET), ("retain", RETAIN)):
        if parts[key] not in known:
            raise UserError(f"--methods: {spec!r} has {parts[key]!r} as {key} objective; choose one of {', '.join(known)}")
    try:
        rules.get(rule)
    except ValueError as error:
        raise UserError(f"--methods: {spec!r}: {error}; or a published method: {', '.join(NAMED)}") from None
    if slash:
        if base not in BASES:
            raise UserError(f"--methods: {spec!r} has {base!r} as base optimizer; choose one of {', '.join(BASES)}")
        parts["base"] = base
    return parts, parse_rate(spec, rate) if at else None


def parse_rate(spec: str, text: str) -> float | str:
    """A number > 0, or one of the automatic rates with a valid start.

    Raises:
        UserError: it is neither.
    """
    word, _, initial = text.partition(":")
    automatic = word in (*MODES, GEN)
    number = initial if automatic else text
    if word == GEN:
        check_installed()
    if automatic and text == word:
        return text
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(
            f"--methods: {spec!r} has {text!r} where a learning rate > 0, 'auto', 'paper' or 'gen' belongs; "
            "write e.g. 'ga@1e-4'"
        )
    return text if automatic else value


def split_rate(text: str) -> tuple[str, float | None]:
    """("auto", 1e-3) of "auto:1e-3"."""
    word, _, initial = text.partition(":")
    return word, float(initial) if initial else None
