"""What a MUSE run depends on, checked before anything is loaded or written."""

from dataclasses import asdict, dataclass
from typing import Any

from experiments import checks
from experiments.lm import methods
from experiments.lm.methods import AUTO, BASES, Method, parse
from experiments.lm.models import SIZES
from experiments.lm.pretrained import MUSE_CHUNK, MUSE_TOKENIZER, MUSE_UNLEARNING
from experiments.muse.sources import HUB_IDS
from experiments.own_rules import load_rules
from ngdiff.errors import UserError
from ngdiff.lm.objectives import FORGET

# Of small models: tokens of a row, forget rows a step, retain rows to each of them, passes, the rate of methods without one.
# Such models lose what they know by heart at every step along a rough gradient, and more rows to keep steady it.
LENGTH, BATCH, RETAIN_FOR_ONE, PASSES, RATE = 192, 3, 3, 9, 1e-4
# Every published method but those that teach refusals: a text is no question.
ALL = tuple(name for name in methods.ALL if FORGET[parse(name)[0]["forget"]].rows == "answer")
PUBLISHED = "published"  # in the place of a model: the one that the benchmark's authors put on the hub


@dataclass(frozen=True)
class Settings:
    """All inputs of a run but the folder it writes to. Field names are the options of the command line.

    Attributes:
        data: "synthetic", "hub" or a folder of json files.
        corpus: "news" or "books".
        model: hub id or folder of a pretrained model; None trains one from scratch.
        size: of the model trained from scratch, see `models.SIZES`.
        epochs, finetune_batch, finetune_lr: training of target and retrained model; None takes the schedule of the kind.
        target, retrained: models in their place: hub ids, folders, or "published".
        length: tokens of a row at most; None takes 2048, or 192 for models from scratch.
        methods: as `experiments.tofu.settings.Settings`, but for those that teach refusals.
        own_rules: Python file that registers rules of the user's own, for `methods`.
        base: base optimizer of the methods without one.
        rate: learning rate of the methods without one; None takes MUSE's 1e-5, or 1e-4 for models from scratch.
        unlearn_epochs: passes over the forget rows; None takes MUSE's 10, or 9 for models from scratch.
        batch: rows of the forget task in each step; None takes MUSE's 32, or 3 for models from scratch.
        retain_batch: rows of the retain task in each step; None takes as many as of the forget task, or three times as many
            for models from scratch.
        fold_methods: those of `methods` that unlearn the folds too; empty leaves scalability and sustainability out, None takes
            the first.
        seed: of everything random.
    """

    data: str = "synthetic"
    corpus: str = "news"
    model: str | None = None
    size: str = "1m"
    epochs: int | None = None
    finetune_batch: int | None = None
    finetune_lr: float | None = None
    target: str | None = None
    retrained: str | None = None
    length: int | None = None
    methods: tuple[str, ...] = ("ceu:ngdiff/sgd", "ga", "gdiff-0.5")
    own_rules: str | None = None
    base: str = "adamw"
    rate: float | None = None
    unlearn_epochs: int | None = None
    batch: int | None = None
    retain_batch: int | None = None
    fold_methods: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("corpus", HUB_IDS), ("size", SIZES), ("base", BASES)):
            checks.one_of(name, getattr(self, name), choices)
        checks.whole(self, ("epochs", "finetune_batch", "unlearn_epochs", "batch", "retain_batch"))
        checks.whole(self, ("length",), least=2)  # the first token of a row is not scored
        checks.rates("finetune_lr", [self.finetune_lr])
        checks.rates("rate", [self.rate])
        checks.some("methods", self.methods)
        checks.distinct("methods", self.methods)
        checks.distinct("fold_methods", self.folded)
        checks.seed(self.seed)
        self._check_models()
        if self.own_rules:
            load_rules(self.own_rules)
        self._check_methods()

    def _check_models(self) -> None:
        if (self.target is None) != (self.retrained is None):
            raise UserError("--target, --retrained: found one of the two; give both, or none to train them here")
        if self.target and not self.model:
            raise UserError(f"--target: found without --model; give the model whose tokenizer it has, MUSE's {MUSE_TOKENIZER}")

    def _check_methods(self) -> None:
        for spec, method in self.chosen().items():
            if FORGET[method.forget].rows != "answer":
                raise UserError(f"--methods: {spec!r} teaches refusals, and a text is no question; leave it out")
        if len({(m.rule, m.forget, m.retain, m.base, m.lr) for m in self.chosen().values()}) < len(self.methods):
            raise UserError(f"--methods: found {','.join(self.methods)}, two of which are the same; name each once")
        for name in self.folded:
            if name not in self.methods:
                raise UserError(f"--fold-methods: {name!r} is not among --methods; name some of {', '.join(self.methods)}")

    def chosen(self) -> dict[str, Method]:
        """Name -> method.

        Raises:
            UserError: an unknown name, or a rate that is none.
        """
        found = {}
        for spec in self.methods:
            parts, rate = parse(spec)
            automatic = AUTO if parts["rule"].startswith("ngdiff") else None
            fixed = self.rate or (MUSE_UNLEARNING.lr if self.model else RATE)
            found[spec] = Method(base=parts.pop("base", self.base), lr=rate or automatic or fixed, **parts)
        return found

    @property
    def folded(self) -> tuple[str, ...]:
        """Methods that unlearn the folds too."""
        if self.fold_methods is None:
            return self.methods[:1]
        return self.fold_methods

    @property
    def row_length(self) -> int:
        """Tokens of a row at most."""
        return self.length or (MUSE_CHUNK if self.model else LENGTH)

    @property
    def passes(self) -> int:
        """Epochs of unlearning."""
        return self.unlearn_epochs or (MUSE_UNLEARNING.epochs if self.model else PASSES)

    @property
    def batches(self) -> tuple[int, int]:
        """Rows of the forget and of the retain task in each step."""
        forget = self.batch or (MUSE_UNLEARNING.batch if self.model else BATCH)
        return forget, self.retain_batch or forget * (1 if self.model else RETAIN_FOR_ONE)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for config.yaml and hashes."""
        return checks.plain(asdict(self))
