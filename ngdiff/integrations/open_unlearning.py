"""NGDiff as a trainer of open-unlearning, https://github.com/locuslab/open-unlearning: importing this registers it there.

Without a change to that project, from its folder:

    python -m ngdiff.integrations.launch src/train.py --config-name=unlearn.yaml experiment=unlearn/tofu/default \\
        trainer=NGDiff task_name=ngdiff trainer.method_args.forget=simnpo
"""

from collections.abc import Sequence
from typing import Any

from ngdiff.lm.objectives import FORGET
from ngdiff.lm.pairs import PairedRows, Row
from ngdiff.trainer import NGDiffTrainer

try:
    from trainer import TRAINER_REGISTRY  # type: ignore[import-not-found]
    from trainer.unlearn.base import UnlearnTrainer  # type: ignore[import-not-found]
except ImportError as error:
    raise ImportError(
        f"ngdiff.integrations.open_unlearning: open-unlearning's package `trainer` cannot be imported ({error}); start its "
        "script by `python -m ngdiff.integrations.launch src/train.py ...` in its folder, or put its src/ on PYTHONPATH"
    ) from error


class NGDiff(NGDiffTrainer, UnlearnTrainer):
    """`NGDiffTrainer` with open-unlearning's constructor, evaluators and data.

    Args:
        model, args, eval_dataset, data_collator, evaluators, template_args: as its trainers take them.
        train_dataset: its ForgetRetainDataset. Where the forget rows are the anchor, the rows of both tasks are paired anew in
            every pass, by the seed alone, so that a resumed run sees what an uninterrupted one sees.
        tokenizer, processing_class: the tokenizer, by the name of older or newer versions.
        method_args: those of `NGDiffTrainer`: rule, base, lr, forget, retain, momentum, ...
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        tokenizer: Any = None,
        processing_class: Any = None,
        data_collator: Any = None,
        **method_args: Any,
    ):
        self.tokenizer = processing_class or tokenizer  # its evaluation asks for this name
        objective = FORGET.get(method_args.get("forget", "nll"), FORGET["nll"])  # an unknown one is refused below
        pairs = _paired(train_dataset, objective.rows)
        data: dict[str, Any] = {"train_dataset": train_dataset, "data_collator": data_collator} if pairs is None else {}
        data.setdefault("train_dataset", pairs)
        super().__init__(model, args, processing_class=self.tokenizer, **data, **method_args)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """As `NGDiffTrainer`, of batches that carry the numbers of their rows too."""
        known = ("input_ids", "labels", "attention_mask", "position_ids")
        inputs = {task: {name: part[name] for name in known if name in part} for task, part in inputs.items()}
        return super().training_step(model, inputs, num_items_in_batch)


TRAINER_REGISTRY[NGDiff.__name__] = NGDiff


class _Column(Sequence[Row]):
    """One version of rows that have several: the answer and a refusal."""

    def __init__(self, rows: Any, name: str):
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        return self.rows[i][self.name]


def _paired(dataset: Any, texts: str) -> PairedRows | None:
    """The rows of a ForgetRetainDataset, or None where they cannot be had one by one."""
    forget, retain = (getattr(dataset, task, None) for task in ("forget", "retain"))
    if forget is None or retain is None or getattr(dataset, "anchor", "forget") != "forget":
        return None
    if texts == "answer":
        return PairedRows(forget, retain)
    return PairedRows(_Column(forget, "original"), retain, _Column(forget, "alternate"))
