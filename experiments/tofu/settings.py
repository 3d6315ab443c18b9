"""What a TOFU run depends on, checked before anything is loaded or written."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from experiments import checks
from experiments.lm.methods import ALL, AUTO, BASES, Method, parse
from experiments.lm.models import SIZES
from experiments.lm.pretrained import PRETRAINED_MODELS, Pretrained, resolve
from experiments.lm.training import Schedule
from experiments.own_rules import load_rules
from experiments.tofu.data import PRESETS
from experiments.tofu.evaluate import METRICS
from experiments.tofu.monitoring import BEST
from ngdiff import rules
from ngdiff.errors import UserError

PUBLISHED = "published"
TARGETS = ("auto", "paraphrases")  # of `stop_forget`, beside numbers
# Rates for the methods without an automatic one when none are asked for: all of them in the comparison of all methods, where
# each is to be at its best, and else the first.
GRIDS = {"adamw": (1e-4, 3e-4, 1e-3), "sgd": (1e-1, 3e-2, 3e-1), "momentum": (1e-2, 3e-3, 3e-2)}


@dataclass(frozen=True)
class Settings:
    """All inputs of a run but the folder it writes to. Field names are the options of the command line.

    Attributes:
        data: "synthetic", "hub" or a folder of json files.
        preset: rows to use, see `data.PRESETS`.
        model: hub id or folder of a pretrained model, or a short name of `pretrained.PRETRAINED_MODELS`; None trains one from
            scratch.
        recipe: "locuslab" or "open-unlearning": their epochs, batch, rate, warm-up, decay and weight decay, in the place of
            `steps`, `batch` and `rates`; for models with a short name.
        template: of the prompt, see `encoding.TEMPLATES`; auto takes that of a model with a short name.
        size: of the model trained from scratch, see `models.SIZES`.
        epochs, finetune_batch, finetune_lr: fine-tuning; None takes the schedule of the kind of model.
        methods: each [FORGET[+RETAIN]:]RULE, or the name of a published method, with an optional "/base" and "@rate": "ngdiff",
            "npo:ngdiff/sgd", "simnpo", "ga@1e-4", "ngdiff@auto:1e-3"; or "all" for every published one, see `methods.ALL`.
        own_rules: Python file that registers rules of the user's own, for `methods`.
        bases: base optimizers.
        rates: learning rates to try for the methods without one; the best is kept. Empty takes those of the base, see `GRIDS`.
        steps, batch: of unlearning; `batch` rows a task.
        stop_forget: stop where the forget probability is at or below this number; "auto" for that of the retain-only model,
            "paraphrases" for that of the forget answers in other words before unlearning; None never stops.
        retain_budget: stop where the loss on the validation rows, in nats a token, exceeds this, and restore the best weights.
        check_every: steps from one look at the two to the next.
        new_tokens: length of a generation at most.
        eval_rows: rows a set to evaluate, from the first; None takes all.
        metrics: which to compute, see `evaluate.METRICS`.
        eval_every: steps from one look at the model to the next while it unlearns; None for no looks.
        eval_subset: rows a task that such a look sees.
        keep_best: what the state that is kept and evaluated is best by, see `monitoring.BEST`; None keeps the last one.
        target: hub id or folder of a model that already knows all rows, to unlearn from in the place of a fine-tuned one; or
            "published" for the one that goes with a short name, which brings the next one along.
        retrained: of the one that knows the retain rows alone, to compare with; used with `target`.
        general_ability: tasks of lm-evaluation-harness to run on every model.
        task_folder: of tasks of the user's own, for `general_ability`.
        ability_rows: rows of a task, from the first; None takes all.
        seed: of everything random.
    """

    data: str = "synthetic"
    preset: str = "mini"
    model: str | None = None
    recipe: str | None = None
    template: str = "auto"
    size: str = "1m"
    epochs: int | None = None
    finetune_batch: int | None = None
    finetune_lr: float | None = None
    methods: tuple[str, ...] = ("ngdiff", "ga", "gdiff-0.9", "gdiff-0.5", "gdiff-0.1", "lossnorm")
    own_rules: str | None = None
    bases: tuple[str, ...] = ("adamw",)
    rates: tuple[float, ...] = ()
    steps: int = 120
    batch: int = 16
    stop_forget: str | None = None
    retain_budget: float | None = None
    check_every: int = 10
    new_tokens: int = 200
    eval_rows: int | None = None
    metrics: str = "all"
    eval_every: int | None = None
    eval_subset: int = 32
    keep_best: str | None = None
    target: str | None = None
    retrained: str | None = None
    general_ability: tuple[str, ...] = ()
    task_folder: str | None = None
    ability_rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("preset", PRESETS), ("size", SIZES), ("metrics", METRICS)):
            checks.one_of(name, getattr(self, name), choices)
        for base in self.bases:
            checks.one_of("bases", base, BASES)
        checks.whole(self, ("epochs", "finetune_batch", "steps", "batch", "check_every", "new_tokens"))
        checks.whole(self, ("eval_rows", "eval_every", "eval_subset", "ability_rows"))
        checks.rates("finetune_lr", [self.finetune_lr])
        checks.rates("rates", self.rates)
        for name in ("methods", "bases", "rates"):
            checks.distinct(name, getattr(self, name))
        for name in ("methods", "bases"):
            checks.some(name, getattr(self, name))
        checks.seed(self.seed)
        self._check_states()
        self._check_models()
        if self.own_rules:
            load_rules(self.own_rules)
        self.trials()

    def _check_states(self) -> None:
        """What chooses the state that is evaluated."""
        if self.retain_budget is not None and not (math.isfinite(self.retain_budget) and self.retain_budget > 0):
            raise UserError(f"--retain-budget: found {self.retain_budget}; give a loss > 0 in nats a token")
        if self.stop_forget not in (None, *TARGETS):
            _probability(self.stop_forget)
        if self.keep_best is None:
            return
        checks.one_of("keep_best", self.keep_best, BEST)
        if self.eval_every is None:
            raise UserError("--keep-best: found without --eval-every; give the steps from one look at the model to the next")
        if self.stop_forget or self.retain_budget:
            raise UserError("--keep-best: found with --stop-forget or --retain-budget, which choose a state too; give one")

    def _check_models(self) -> None:
        for name, needed in (("task_folder", "general_ability"), ("ability_rows", "general_ability")):
            if getattr(self, name) and not getattr(self, needed):
                raise UserError(f"{checks.option(name)}: found without {checks.option(needed)}; give both, or none")
        if self.retrained and not self.target:
            raise UserError("--retrained: found without --target; give both, or none to fine-tune them here")
        if self.target and not self.model:
            raise UserError("--target: found without --model; give the model whose tokenizer and template it has")
        if self.target == PUBLISHED and not (self.known and self.known.target):
            having = ", ".join(name for name, known in PRETRAINED_MODELS.items() if known.target)
            raise UserError(f"--target: found 'published', and none is for --model {self.model}; choose one of {having}")
        if self.recipe is not None:
            if self.known is None:
                raise UserError(
                    f"--recipe: needs a --model with published settings; choose one of {', '.join(PRETRAINED_MODELS)}"
                )
            checks.one_of("recipe", self.recipe, self.known.unlearning)
            if (self.steps, self.batch, self.rates) != (Settings.steps, Settings.batch, Settings.rates):
                raise UserError("--recipe: found with --steps, --batch or --rates, which it sets; leave them out")
            if self.bases != ("adamw",) or any("/" in spec for spec in self.methods):
                raise UserError("--recipe: found with a base optimizer, and its rates are those of AdamW; leave it out")

    @property
    def known(self) -> Pretrained | None:
        """What is published about the model, if it goes by a short name."""
        return resolve(self.model)

    @property
    def base_model(self) -> str | None:
        """Hub id or folder of the pretrained model, which has the tokenizer."""
        return self.known.model if self.known else self.model

    @property
    def unlearning(self) -> Schedule | None:
        """The schedule of the recipe, if one was asked for."""
        return self.known.unlearning[self.recipe] if self.known and self.recipe else None

    def given(self) -> tuple[str | None, str | None]:
        """Hub ids or folders of the models that know all rows and the retain rows alone; None where they are made here."""
        if self.target != PUBLISHED or self.known is None:
            return self.target, self.retrained
        return self.known.target, self.retrained or self.known.retain_only(self.preset)

    def trials(self) -> dict[str, list[Method]]:
        """Method name -> what to try for it. The name carries the base if there are several.

        Raises:
            UserError: an unknown rule or a learning rate that is none.
        """
        result: dict[str, list[Method]] = {}
        seen = []  # "gdiff" and "gdiff-0.5" are one rule
        for base in self.bases:
            for spec in self._specs():
                own = "/" in spec  # its own base: tried once, whatever the others' bases
                if own and base != self.bases[0]:
                    continue
                name = spec if own or len(self.bases) == 1 else f"{spec} {base}"
                trials = self._trials(spec, base)
                key = [(rules.get(method.rule), method.base, method.lr, method.forget, method.retain) for method in trials]
                if key in seen:
                    raise UserError(f"--methods: {spec!r} is the same as another one of the list; name each once")
                seen.append(key)
                result[name] = trials
        return result

    def _specs(self) -> tuple[str, ...]:
        return ALL if self.methods == ("all",) else self.methods

    def _trials(self, spec: str, base: str) -> list[Method]:
        parts, rate = parse(spec)
        if rate is None and parts["rule"].startswith("ngdiff"):
            rate = AUTO
        base = parts.pop("base", base)
        if self.unlearning:
            return [Method(base=base, lr=rate or self.unlearning.lr, **parts)]
        grid = self.rates or (GRIDS[base] if self.methods == ("all",) else GRIDS[base][:1])
        return [Method(base=base, lr=lr, **parts) for lr in ([rate] if rate else grid)]

    def pretrained(self) -> list[str]:
        """Hub ids and folders of the models that are loaded and not made here."""
        given = (*self.given(), self.base_model) if self.target else (self.base_model,)
        return list(dict.fromkeys(source for source in given if source))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for config.yaml and hashes."""
        return checks.plain(asdict(self))


def _probability(text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"--stop-forget: found {text!r}; give a probability from 0 to 1, or {' or '.join(TARGETS)}")
    return value
