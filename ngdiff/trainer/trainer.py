"""The Trainer: two losses and one combination of their gradients a step."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainingArguments

from ngdiff import rules
from ngdiff.distributed import refuse_deepspeed
from ngdiff.learning_rate import AutoLearningRate
from ngdiff.lm.batches import drawn
from ngdiff.lm.objectives import FORGET, RETAIN, Objective, Output, layer
from ngdiff.lm.pairs import PairCollator, PairedRows, PairSampler, Row
from ngdiff.lm.said import Said
from ngdiff.objectives import IGNORE
from ngdiff.optimizer import TASKS, TwoTaskOptimizer
from ngdiff.stopping import CHECK_ROWS, StoppingCriteria
from ngdiff.trainer.criteria import Criteria
from ngdiff.trainer.sealed import SealedTrainer
from ngdiff.trainer.step import Accumulated, Batch, Meter, NoSchedule, StepWithoutArguments
from ngdiff.trainer.watch import Watch

# For each task: text that an objective reads -> part of a batch that has it.
TEXTS = {"retain": {"answer": "retain"}, "forget": {"answer": "forget", "refusal": "refusal"}}


class NGDiffTrainer(SealedTrainer):
    """A Trainer whose step is two losses and one combination of their gradients.

    Everything else is transformers': callbacks, logging, checkpoints, PEFT, mixed precision, compilation, gradient
    checkpointing, evaluation of `eval_dataset` (plain rows, or a mapping of such). One epoch is one pass over the forget rows;
    `per_device_train_batch_size` is the number of rows a task. Of `args`, betas, epsilon, weight decay, schedule and warm-up
    are used; `optim` is not, for `base` is in its place, nor `max_grad_norm`, for the rule bounds the direction.

    Logs beside transformers' own: retain_loss and forget_loss (means since the last log), grad_norm_retain and
    grad_norm_forget, grad_norm (of the combined direction), cosine, retain_weight (the paper's c, of c g_R - (1 - c) g_F) and
    learning_rate, all of the last step; skipped_steps, tokens_per_second (padding included). `loss` is
    retain_loss - forget_loss.

    Checkpoints are whole or absent and carry the hashes of their files. A run that was killed goes on from the newest whole one
    (`resume_from_checkpoint=True`) and, on the same machine with as many threads, ends with the
    same bits as one that was not.

    Args:
        model: of transformers, or a PEFT model, in float32 or bfloat16.
        args: of transformers.
        forget_dataset, retain_dataset: rows of the two tasks, {"input_ids", "labels"}; -100 where a token is not scored.
            "position_ids" that begin anew tell documents that share a row apart.
        refusal_dataset: the questions of the forget rows, each with a refusal, for objectives that teach them.
        train_dataset: in the place of these: a dataset of {"forget": row, "retain": row}, with a `data_collator` for it.
        eval_dataset, processing_class, data_collator, kwargs: as Trainer has them.
        rule: name of a combination rule, or a `Rule`.
        base: "sgd" or "adamw".
        lr: "auto", "paper", an `AutoLearningRate`, a number, or None for the `learning_rate` of `args`. An automatic rate
            leaves no place for a schedule.
        forget, retain: names of objectives.
        reference_folder: where objectives that compare with the model before unlearning keep what it said; None takes
            `output_dir`/_reference.
        momentum, low_precision, gradient_dtype: as `TwoTaskOptimizer` has them.
        max_skipped_steps: this many steps in a row whose gradients or losses are not finite end the run.
        stopping: criteria, looked at every `check_every` steps and after the last, on 32 rows of each task that are drawn once.
        held_out_dataset: retain rows that no step sees, for `stopping`; None takes the retain rows.

    Raises:
        ValueError: an argument is out of range or does not go with the others; the message says which, and the remedy.

    Source: arXiv 2410.22086, Algorithm 1.
    """

    sampler: PairSampler | None = None

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        forget_dataset: Sequence[Row] | None = None,
        retain_dataset: Sequence[Row] | None = None,
        refusal_dataset: Sequence[Row] | None = None,
        train_dataset: Any = None,
        data_collator: Any = None,
        rule: str | rules.Rule = "ngdiff",
        base: str = "adamw",
        lr: float | str | AutoLearningRate | None = "auto",
        forget: str = "nll",
        retain: str = "nll",
        reference_folder: str | Path | None = None,
        momentum: float = 0.0,
        low_precision: str = "master",
        gradient_dtype: torch.dtype | None = None,
        max_skipped_steps: int = 10,
        stopping: StoppingCriteria | None = None,
        check_every: int = 10,
        held_out_dataset: Sequence[Row] | None = None,
        **kwargs: Any,
    ):
        _check_args(args, max_skipped_steps, check_every)
        if getattr(model, "is_distributed_loading_by_transformers", False):
            raise ValueError("model: found one that was sharded as it was loaded; load it whole, and give fsdp=True in args")
        for name in ("optimizers", "optimizer_cls_and_kwargs", "compute_loss_func"):
            if name in kwargs:
                raise ValueError(f"{name}: found one, and the step is this Trainer's own; choose rule, base, lr and objectives")
        self.rule = rules.get(rule) if isinstance(rule, str) else rule
        self.objectives = {"retain": _objective("retain", retain), "forget": _objective("forget", forget)}
        if train_dataset is None:
            train_dataset = _paired(forget_dataset, retain_dataset, refusal_dataset)
        self._check_rows(train_dataset, stopping)
        self.optimizer_options = {
            "base": base, "lr": args.learning_rate if lr is None else lr, "momentum": momentum, "low_precision": low_precision,
            "gradient_dtype": gradient_dtype, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon,
            "seed": args.seed,
        }  # fmt: skip
        # The optimizer is made when training begins; this one refuses now what that one would refuse then.
        TwoTaskOptimizer(
            [torch.nn.Parameter(torch.zeros(1))], self.rule, weight_decay=args.weight_decay, **self.optimizer_options
        )
        # The underscore keeps it from uploads.
        self.reference_folder = Path(reference_folder or Path(str(args.output_dir), "_reference"))
        self.max_skipped_steps, self.stopping, self.check_every = max_skipped_steps, stopping, check_every
        self.held_out = held_out_dataset
        self.meter, self._current = Meter(), Accumulated()
        self._said: Said | None = None
        args = copy.copy(args)
        args.remove_unused_columns = False  # the columns are the tasks
        args.max_grad_norm = 0.0
        self.pad = _pad(kwargs.get("processing_class"), model)
        collator = data_collator or PairCollator(self.pad)
        super().__init__(model=model, args=args, train_dataset=train_dataset, data_collator=collator, **kwargs)
        refuse_deepspeed(self.accelerator)
        if self.is_fsdp_enabled:
            self._check_sharded()
            # It would round weights for the probes too, which then see nothing, and gradients before they are averaged.
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = None
        self.u = torch.rand(model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(args.seed))
        self.add_callback(Watch(self))

    def _check_rows(self, dataset: Any, stopping: StoppingCriteria | None) -> None:
        ours = isinstance(dataset, PairedRows)
        needs = any(objective.reference or objective.rows != "answer" for objective in self.objectives.values())
        if not ours and (needs or (stopping and stopping.active)):
            raise ValueError(
                "train_dataset: these objectives, or stopping criteria, read rows outside of the steps; give forget_dataset, "
                "retain_dataset and, for refusals, refusal_dataset in its place"
            )
        if ours and self.objectives["forget"].rows != "answer" and dataset.refusals is None:
            raise ValueError("refusal_dataset: found none, and the forget objective teaches refusals; give one a forget row")

    def _check_sharded(self) -> None:
        """Refuse what FSDP2 cannot do here, and would do wrong without a word."""
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.cpu_ram_efficient_loading and any(objective.reference for objective in self.objectives.values()):
            raise ValueError(
                "forget, retain: found an objective that compares with the model before unlearning, and "
                "cpu_ram_efficient_loading, with which the first process alone has that model; set it to false"
            )
        if self.args.bf16 and any(not p.requires_grad and p.dtype.itemsize == 2 for p in self.model.parameters()):
            raise ValueError(
                "bf16: found True and frozen weights of 16 bits, beside which accelerate would make the trained ones 32; leave "
                "it out, for such weights compute in 16 bits anyway"
            )
        kind = str(plugin.state_dict_type)
        stateless = self.optimizer_options["base"] == "sgd" and not self.optimizer_options["momentum"]
        if "FULL_STATE_DICT" in kind and stateless and self.args.save_strategy != "no":
            raise ValueError(
                "fsdp_config: found state_dict_type FULL_STATE_DICT, with which torch cannot read a checkpoint of an optimizer "
                "without state, as SGD's; give SHARDED_STATE_DICT, or momentum"
            )

    # What Trainer asks for

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Ours, over the trainable parameters; in two groups where there is weight decay, as Trainer has them."""
        if getattr(self, "optimizer", None) is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model)) if self.args.weight_decay else set()
            split: dict[bool, list[Any]] = {True: [], False: []}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    split[name in decayed].append(parameter)
            groups = [{"params": p, "weight_decay": self.args.weight_decay * decays} for decays, p in split.items() if p]
            self.optimizer = StepWithoutArguments(self._supply, groups, self.rule, **self.optimizer_options)
        return self.optimizer

    @property
    def own_optimizer(self) -> StepWithoutArguments:
        """Without what accelerate puts around it."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        """The schedule of `args`, or none where the rate sets itself."""
        if getattr(self, "lr_scheduler", None) is None and isinstance(self.optimizer_options["lr"], (str, AutoLearningRate)):
            self.lr_scheduler = NoSchedule(optimizer or self.optimizer)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])  # of an automatic one the scheduler knows nothing

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, PairedRows):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.sampler = PairSampler(len(dataset.forget), len(dataset.retain), seed)
        return self.sampler

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The batches of one step, and what each task has in all of them, in all processes: {task: scored tokens or rows}.

        A batch then counts by its share, so that the gradient is that of one large batch, however it is split.
        """
        if self.control.should_training_stop:  # by a criterion, before the first step
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        totals = torch.stack([torch.stack([self._weight(task, batch) for batch in batches]).sum() for task in TASKS])
        return batches, dict(zip(TASKS, self.accelerator.reduce(totals.to(device), "sum"), strict=True))

    def _weight(self, task: str, batch: Mapping[str, Batch]) -> Tensor:
        objective = self.objectives[task]
        return objective.weight(batch[_parts(task, objective)[0]]["labels"])

    def _share(self, task: str, inputs: Mapping[str, Batch], totals: Mapping[str, Tensor] | None) -> Tensor | float:
        """Of one batch in the mean over all that make a step. Processes are averaged over, which their number undoes."""
        return 1.0 if totals is None else self._weight(task, inputs) * self.accelerator.num_processes / totals[task]

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Both backwards of one batch.

        Args:
            model: as Trainer has wrapped it.
            inputs: {"forget": batch, "retain": batch}, each with input_ids, labels and what else the model takes.
            num_items_in_batch: what `get_batch_samples` counted.

        Returns:
            The share of this batch in retain_loss - forget_loss, shape ().
        """
        model.train()
        if self.is_fsdp_enabled:
            # Between the batches of a step Trainer has FSDP keep whole gradients, where those of two tasks would be one.
            model.set_requires_gradient_sync(True)
        inputs = self._prepare_inputs(dict(inputs))
        shares = {task: self._share(task, inputs, num_items_in_batch) for task in TASKS}
        losses = {}
        for task in TASKS:
            with self.own_optimizer.task(task), self.compute_loss_context_manager():
                loss = self.task_loss(model, task, inputs) * shares[task]
                loss.backward()
            losses[task] = loss.detach()
        self._current.add(losses, inputs["retain"], shares["retain"])
        self.meter.tokens += sum(part["input_ids"].numel() for part in inputs.values())
        return losses["retain"] - losses["forget"]

    def task_loss(self, model: Any, task: str, inputs: Mapping[str, Batch]) -> Tensor:
        """The loss of one task on one batch, shape ().

        Args:
            model: wrapped or not.
            task: "retain" or "forget".
            inputs: as `training_step` takes them.
        """
        objective, depth = self.objectives[task], layer(self.accelerator.unwrap_model(model))
        texts = {text: inputs[part] for text, part in TEXTS[task].items() if objective.rows in (text, "both")}
        outputs = {text: self._output(objective, model, batch, depth) for text, batch in texts.items()}
        references: dict[str, Tensor] = {}
        if objective.reference and self._said:
            references = {text: objective.padded(self._said.of(objective, texts[text]), out) for text, out in outputs.items()}
        return objective.value(outputs, references, self.u.to(self.args.device))

    def _output(self, objective: Objective, model: Any, batch: Batch, depth: int) -> Output:
        """One pass, which with `bf16` computes in 16 bits and gives 32: under DDP by what accelerate has put around forward."""
        if not self.is_fsdp_enabled:
            return objective.forward(model, batch, depth)
        with self._autocast():
            out = objective.forward(model, batch, depth)
        deep = None if out.activations is None else out.activations.float()
        return out._replace(logits=out.logits.float(), activations=deep)

    def _autocast(self) -> AbstractContextManager[None]:
        """What accelerate puts around forward under DDP, and under FSDP2 leaves to a precision of its own."""
        # Cached casts would keep the weights of layers that FSDP has let go.
        return self.accelerator.autocast(AutocastKwargs(cache_enabled=False)) if self.is_fsdp_enabled else nullcontext()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Of plain rows the model's own loss, for evaluation; of pairs retain_loss - forget_loss."""
        if "input_ids" in inputs:
            with self._autocast():
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self.task_loss(model, "retain", inputs) - self.task_loss(model, "forget", inputs)
        return (loss, {}) if return_outputs else loss

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Of all parts of a batch."""
        return sum(int(super(NGDiffTrainer, self).floating_point_ops(part)) for part in inputs.values())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with what is ours in the logs of steps."""
        super().log(logs | self.meter.read(self.accelerator, self.own_optimizer) if "loss" in logs else logs, start_time)

    # The step

    def _supply(self) -> tuple[tuple[Tensor, Tensor], Callable[[], Tensor], Tensor | None]:
        """See `ngdiff.trainer.step.Supply`; the losses begin anew."""
        step, self._current = self._current, Accumulated()
        self.meter.add(step.losses)
        plain = self.objectives["retain"] is RETAIN["nll"]

        def probe() -> Tensor:
            with warnings.catch_warnings():
                # Reentrant checkpointing says so where it has nothing to differentiate.
                warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
                return torch.stack([self._retain_nll(batch) * share for batch, share in step.retained]).sum()

        return step.losses, probe, step.losses[0] if plain else None

    def _retain_nll(self, batch: Batch) -> Tensor:
        if self.is_fsdp_enabled:  # whose hooks gather the weights
            return _nll(self.model_wrapped, batch)
        model = self.accelerator.unwrap_model(self.model_wrapped)
        # Without the autocast that accelerate has put around forward: half precision hides slopes.
        return _nll(getattr(model, "_original_forward", model), batch)

    # Before the first step, and between steps

    def before_training(self, checkpoint: Path | None) -> None:
        """Ask the model, as it still is, for all that the objectives will compare with."""
        referring = {task: objective for task, objective in self.objectives.items() if objective.reference}
        if referring and self._said is None:  # a second call would ask a model that has changed
            model = self.accelerator.unwrap_model(self.model)
            self._said = Said(self.reference_folder, model, self.pad, self.accelerator.autocast, self.args.bf16)
            dataset: Any = self.train_dataset
            rows = {"retain": dataset.retain, "forget": dataset.forget, "refusal": dataset.refusals}
            for task, objective in referring.items():
                for part in _parts(task, objective):
                    self._said.ask(objective, rows[part], self.args.per_device_eval_batch_size)
        if (criteria := self._criteria()) and checkpoint is not None:
            criteria.restore(checkpoint)

    def _criteria(self) -> Criteria | None:
        args, sharded = self.args, bool(self.is_fsdp_enabled)
        return None if self.stopping is None else Criteria(self.stopping, args.process_index, args.world_size, sharded)

    def begin(self) -> None:
        """Forget what an interrupted call of `train` has left of a step."""
        self.meter, self._current = Meter(), Accumulated()
        self.own_optimizer.zero_grad()

    @property
    def stopped(self) -> bool:
        """Whether a criterion has fired, in this process or before the checkpoint that the run goes on from."""
        return self.stopping is not None and self.stopping.fired is not None

    def complete(self, checkpoint: Path) -> None:
        """Put into a checkpoint what the stopping criteria have seen."""
        if (criteria := self._criteria()) and (criteria.split or self.args.should_save):
            criteria.save(checkpoint)

    def should_stop(self) -> bool:
        """Whether a stopping criterion fires at the model as it is; one with a budget then restores the best weights."""
        if self.stopping is None or not self.stopping.active:
            return False
        dataset: Any = self.train_dataset
        forget = self._mean_over(dataset.forget, lambda nll: torch.exp(-nll))
        retain = self._mean_over(self.held_out or dataset.retain, lambda nll: nll)
        # Processes must decide alike: roundings may differ between them.
        means = self.accelerator.reduce(torch.tensor([forget, retain], device=self.args.device), "mean").tolist()
        return self.stopping.check(self.accelerator.unwrap_model(self.model), self.state.global_step, *means)

    @torch.no_grad()
    def _mean_over(self, rows: Sequence[Row], of: Callable[[Tensor], Tensor]) -> float:
        """Mean over some of the rows of a function of their NLL."""
        model, collator = self.accelerator.unwrap_model(self.model), PairCollator(self.pad)
        model.eval()
        with self._autocast():
            some = drawn(rows, CHECK_ROWS, self.args.seed)
            values = [of(_nll(model, self._prepare_inputs(collator([row])))) for row in some]
        model.train()
        return float(torch.stack(values).mean())


def _check_args(args: TrainingArguments, max_skipped_steps: int, check_every: int) -> None:
    if args.deepspeed:  # before its engine is imported
        raise ValueError("deepspeed: its engine steps inside backward and keeps one gradient; use FSDP2 (fsdp_version: 2)")
    if args.fp16:
        raise ValueError("fp16: found True, whose loss scaling knows one backward a step; use bf16=True")
    if args.n_gpu > 1:
        raise ValueError(f"n_gpu: found {args.n_gpu} in one process, and DataParallel cannot hold two gradients; use torchrun")
    if args.label_smoothing_factor:
        raise ValueError(f"label_smoothing_factor: found {args.label_smoothing_factor}, which no objective knows; leave it out")
    if args.push_to_hub and str(getattr(args.hub_strategy, "value", args.hub_strategy)) in ("checkpoint", "all_checkpoints"):
        raise ValueError("hub_strategy: uploads of checkpoints may meet half of one; use 'end' or 'every_save'")
    for name, value in (("max_skipped_steps", max_skipped_steps), ("check_every", check_every)):
        if value < 1:
            raise ValueError(f"{name}: found {value}; give a whole number >= 1")


def _objective(task: str, name: str) -> Objective:
    known = RETAIN if task == "retain" else FORGET
    if name not in known:
        raise ValueError(f"{task}: unknown objective {name!r}; choose one of {', '.join(known)}")
    return known[name]


def _paired(forget: Any, retain: Any, refusals: Any) -> PairedRows:
    for name, rows in (("forget", forget), ("retain", retain)):
        if rows is None:
            raise ValueError(f"{name}_dataset: found none; give the rows of both tasks, or a train_dataset of pairs")
    for name, rows in (("forget", forget), ("retain", retain), ("refusal", refusals or ())):
        for i, row in enumerate(rows):
            if wrong := _wrong(row):
                raise ValueError(f"{name}_dataset: row {i} {wrong}")
    return PairedRows(forget, retain, refusals)


def _wrong(row: Row) -> str | None:
    """What is wrong with a row, if anything is."""
    labels = row.get("labels", row["input_ids"])
    if len(labels) != len(row["input_ids"]):
        return f"has {len(labels)} labels for {len(row['input_ids'])} input_ids; give one each"
    if not any(label != IGNORE for label in labels[1:]):  # nothing predicts the first token
        return f"has no scored token among {len(labels)}; leave it out"
    if not all(row.get("attention_mask", ())):
        return "is padded; give it without padding, which batches add"
    return None


def _parts(task: str, objective: Objective) -> list[str]:
    """The parts of a batch that the objective of a task reads."""
    return [part for text, part in TEXTS[task].items() if objective.rows in (text, "both")]


def _pad(processing_class: Any, model: Any) -> int:
    """An id to pad with: any will do, for padding is masked."""
    candidates = (getattr(processing_class, "pad_token_id", None), getattr(model.config, "pad_token_id", None))
    return next((int(i) for i in candidates if isinstance(i, int) and i >= 0), 0)


def _nll(model: Callable[..., Any], batch: Batch) -> Tensor:
    objective = RETAIN["nll"]
    return objective.value({"answer": objective.forward(model, batch)}, {})
