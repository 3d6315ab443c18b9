"""What the ranks of the distributed tests run: the same training alone, under DDP, and under FSDP2."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from ranks import SIZE
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ngdiff
import ngdiff.checkpoints
from ngdiff import TwoTaskOptimizer
from ngdiff.distributed import refuse_deepspeed

INF = float("inf")
ROWS = 8  # a batch; half of them a rank


class Net(nn.Module):
    """Every dimension is odd, one parameter has a single row, one is frozen, one tied, and one is used by no task."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.first, self.frozen, self.second = nn.Linear(5, 3), nn.Linear(3, 3), nn.Linear(3, 5)
        self.scale, self.unused = nn.Parameter(torch.rand(1, 5) + 0.5), nn.Parameter(torch.rand(3))
        self.frozen.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.second(torch.tanh(self.frozen(self.first(self.embed(ids) * self.scale)))))


def fresh_model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return Net().to(dtype)


def prepared(
    kind: str, dtype: torch.dtype, make: Callable[[nn.Module], TwoTaskOptimizer]
) -> tuple[nn.Module, TwoTaskOptimizer]:
    """The same model on every rank, and its optimizer.

    Kinds: "alone", "ddp", "fsdp"; "views", DDP with gradients that are views of its buckets; "copied", FSDP2 on a mesh of
    copies and shards; "beside", FSDP2 with one parameter left out; "accelerate ddp", "accelerate fsdp"; "first" and "first,
    original", the first FSDP; "strided", a shard with strides of its own.
    """
    model = fresh_model(dtype)
    if kind.startswith("accelerate"):
        return by_accelerate(kind, model, make(model))
    if kind in ("ddp", "views"):
        model = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=kind == "views")
    if kind in ("fsdp", "copied", "beside"):
        ignored = {model.scale} if kind == "beside" else None
        # One of the two dimensions is of size 1: two ranks hold the same shards, which are not split at all.
        mesh = init_device_mesh("cpu", (SIZE, 1), mesh_dim_names=("copies", "shards")) if kind == "copied" else None
        for module in (model.first, model.second, model):
            fully_shard(module, mesh=mesh, ignored_params=ignored)
    if kind.startswith("first"):
        device = torch.device("cpu")
        model = FullyShardedDataParallel(model.requires_grad_(), use_orig_params=kind.endswith("original"), device_id=device)
    if kind == "strided":
        mesh = init_device_mesh("cpu", (SIZE,))
        model.scale = nn.Parameter(DTensor.from_local(torch.randn(5, 2).t(), mesh, [Shard(0)]))
    return model, make(model)


def by_accelerate(kind: str, model: nn.Module, optimizer: TwoTaskOptimizer) -> tuple[nn.Module, TwoTaskOptimizer]:
    """What accelerate makes of both; the optimizer goes on as it is, the wrapper has neither tasks nor probes."""
    from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    if kind == "accelerate fsdp":  # which accelerate refuses on a CPU, so it is told afterwards
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
        accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    refuse_deepspeed(accelerator)
    model, _ = accelerator.prepare(model, optimizer)
    optimizer.accelerator = accelerator  # for the tests
    return model, optimizer


def rows_of(step: int, task: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the whole batch."""
    draw = torch.Generator().manual_seed(2 * step + (task == "forget"))
    return torch.randint(7, (ROWS,), generator=draw), torch.randint(7, (ROWS,), generator=draw)


def loss_of(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(ids).double(), targets).to(next(model.parameters()).dtype)


def my_rows(kind: str, step: int, task: str, parts: int = 1) -> list[tuple[Tensor, Tensor]]:
    """This rank's share of the batch, in so many pieces of equal size."""
    ids, targets = rows_of(step, task)
    mine = slice(None) if kind == "alone" else slice(dist.get_rank(), None, SIZE)
    return list(zip(ids[mine].chunk(parts), targets[mine].chunk(parts), strict=True))


@contextlib.contextmanager
def gradients_stay_local(model: nn.Module, stay: bool) -> Iterator[None]:
    """Whether the backwards inside leave the exchange of gradients to a later one."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not stay)
    with model.no_sync() if stay and isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
        yield


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): whole(p) for name, p in model.named_parameters()}


class Collectives(TorchDispatchMode):
    """Notes what is exchanged meanwhile: the name of every collective and how many numbers it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function.namespace in ("c10d", "_c10d_functional"):
            tensors = tree_leaves(arguments[0])
            self.seen.append((function.__name__.partition(".")[0], sum(tensor.numel() for tensor in tensors)))
        return function(*arguments, **(options or {}))


class Run:
    """Training by `TwoTaskOptimizer`, a step at a time.

    Args:
        kind: "alone" has the whole batches; "ddp", "fsdp" and others of `prepared` their share.
        parts: backwards a task.
        sync: "last" or "every" one of them exchanges gradients.
        losses: whether a step is given them.
        here: whether it is given `probe_here`.
        look: whether the model is evaluated before each step.
        repad: whether the shards are in other memory when FSDP2 first looks at them, after the optimizer has.
        groups: how many param groups.
        tasks: that have a backward.
        options: of the optimizer.
    """

    def __init__(
        self,
        kind: str,
        *,
        dtype: torch.dtype = torch.float32,
        parts: int = 1,
        sync: str = "last",
        losses: bool = True,
        here: bool = False,
        look: bool = False,
        repad: bool = False,
        groups: int = 1,
        tasks: tuple[str, ...] = ("retain", "forget"),
        **options: Any,
    ):
        self.kind, self.parts, self.sync, self.losses, self.here, self.look = kind, parts, sync, losses, here, look

        def make(model: nn.Module) -> TwoTaskOptimizer:
            parameters = list(model.parameters())
            return TwoTaskOptimizer([{"params": parameters[i::groups]} for i in range(groups)], **options)

        self.tasks = tasks
        self.model, self.optimizer = prepared(kind, dtype, make)
        if repad and self.optimizer.state:
            for parameter in self.model.parameters():
                parameter._local_tensor = parameter._local_tensor.clone()
        self.collectives: list[list[tuple[str, int]]] = []
        self.reports: list[Tensor] = []

    def step(self, step: int, spoil: str = "") -> None:
        """One step; `spoil` says what is infinite on the last rank: "retain", "forget", the "loss", or its "shard"."""
        last = self.kind == "alone" or dist.get_rank() == SIZE - 1
        values = [self.task(step, task, INF if last and spoil == task else 1.0) for task in ("retain", "forget")]
        if last and spoil == "loss":
            values[1] = values[1] * INF
        if last and spoil == "shard":
            next(s for s in self.optimizer._all_segments() if s.theta.numel()).gradients["retain"][0] = INF
        options: dict[str, Any] = {"losses": tuple(values)} if self.losses else {}
        if self.optimizer.auto:
            options["probe"] = lambda: loss_of(self.model, *my_rows(self.kind, step, "retain")[0])
            options |= {"probe_here": values[0]} if self.here else {}
        if self.look:
            with torch.no_grad():
                loss_of(self.model, *my_rows(self.kind, step, "retain")[0])
        with Collectives() as collectives:
            self.optimizer.step(**options)
        self.collectives.append(collectives.seen)
        report = self.optimizer.last_step
        self.reports.append(torch.stack([*report.gram, *report.coefficients, report.finite.double()]))

    def task(self, step: int, task: str, factor: float) -> Tensor:
        """The backwards of one task; its loss."""
        total = torch.zeros(())
        if task not in self.tasks:
            return total
        with self.optimizer.task(task):
            for i, (ids, targets) in enumerate(my_rows(self.kind, step, task, self.parts)):
                with gradients_stay_local(self.model, self.sync == "last" and i < self.parts - 1):
                    loss = loss_of(self.model, ids, targets) / self.parts
                    (factor * loss).backward()
                total = total + loss.detach()
            if self.kind == "beside":  # FSDP2 leaves the gradients of what it ignores to the user
                dist.all_reduce(self.model.scale.grad)
                self.model.scale.grad /= SIZE
        return total

    def result(self) -> dict[str, Any]:
        """All that there is to compare."""
        auto = self.optimizer.auto
        return {
            "weights": weights(self.model),
            "reports": torch.stack(self.reports),
            "skipped": self.optimizer.skipped_steps,
            "collectives": self.collectives,
            "rate": self.optimizer.param_groups[0]["lr"],
            "trace": [tuple(entry) for entry in auto.trace] if auto else None,
            "known": self.optimizer._known_is_exact,
        }


def train(kind: str, steps: int = 3, spoil: dict[int, str] | None = None, **options: Any) -> dict[str, Any]:
    """A few steps; `spoil` says what is not finite at which."""
    run = Run(kind, **options)
    for step in range(steps):
        run.step(step, (spoil or {}).get(step, ""))
    return run.result()


def resume(kind: str, how: str, folder: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run that goes on, and one that starts from what it has saved after two steps."""
    run, resumed = Run(kind, **options), Run(kind, **options)
    for step in range(2):
        run.step(step)
    hand_over(run, resumed, how, folder)
    for step in range(2, 5):
        run.step(step)
        resumed.step(step)
    resumed.reports = run.reports[:2] + resumed.reports
    return run.result(), resumed.result()


def hand_over(run: Run, resumed: Run, how: str, folder: str) -> None:
    resumed.model.load_state_dict(run.model.state_dict())
    if how == "accelerate":
        run.optimizer.accelerator.save_state(folder)
        dist.barrier()  # the first rank has written it
        resumed.optimizer.accelerator.load_state(folder)
        return
    if how == "file":
        file = io.BytesIO()
        torch.save(run.optimizer.state_dict(), file)
        file.seek(0)
        resumed.optimizer.load_state_dict(torch.load(file, weights_only=False))
        return
    whole_state = StateDictOptions(full_state_dict=how == "whole")
    state = get_optimizer_state_dict(run.model, run.optimizer, options=whole_state)
    if how == "checkpoint":
        checkpoint.save({"optimizer": state}, checkpoint_id=folder)
        state = get_optimizer_state_dict(resumed.model, resumed.optimizer)
        checkpoint.load({"optimizer": state}, checkpoint_id=folder)
    set_optimizer_state_dict(resumed.model, resumed.optimizer, state, options=whole_state)


def whole_state(kind: str, **options: Any) -> dict[str, dict[str, Tensor]]:
    """The state of the optimizer after two steps, by names of parameters."""
    run = Run(kind, **options)
    for step in range(2):
        run.step(step)
    state = get_optimizer_state_dict(run.model, run.optimizer, options=StateDictOptions(full_state_dict=True))["state"]
    return {name: {entry: whole(value) for entry, value in entries.items()} for name, entries in state.items()}


def placements_of_state(**options: Any) -> list[bool]:
    """Whether each entry of the state that has dimensions is a DTensor placed as its parameter."""
    run = Run("fsdp", **options)
    run.step(0)
    return [
        (value.placements, value.shape, value.stride()) == (p.placements, p.shape, p.stride())
        for p, entries in run.optimizer.state.items()
        for value in entries.values()
        if value.dim()
    ]


def masters(kind: str, **options: Any) -> dict[str, list[Tensor]]:
    """A run with master weights, into which weights are loaded half way."""
    run = Run(kind, **options)
    start = [whole(p).float() for p in trained(run)]
    run.step(0)
    state = {name: value.clone() for name, value in run.model.state_dict().items()}
    before = [run.optimizer.state[p]["master"].clone() for p in trained(run)]
    run.step(1)
    run.model.load_state_dict(state)
    with run.optimizer.task("retain"):
        pass
    after = [run.optimizer.state[p]["master"] for p in trained(run)]
    return {
        "rounded": [whole(master.bfloat16()) for master in after],
        "parameters": [whole(p) for p in trained(run)],
        "start": start,
        "moved": [whole(master) for master in before],
    }


def trained(run: Run) -> list[nn.Parameter]:
    return [p for p in run.model.parameters() if p.requires_grad]


def seeds(kind: str) -> list[int]:
    run = Run(kind, lr=0.1)
    run.step(0)
    return [run.optimizer._step_seed(segment) for segment in run.optimizer._all_segments()]


def alone_in_its_group(**options: Any) -> dict[str, Any]:
    """Every rank trains by itself, on its share."""
    groups = [dist.new_group([rank]) for rank in range(SIZE)]
    group = groups[dist.get_rank()]
    model = fresh_model(torch.float32)
    optimizer = TwoTaskOptimizer(model.parameters(), "lossnorm", lr=0.1, process_group=group, **options)
    losses = []
    for task in ("retain", "forget"):
        with optimizer.task(task):
            losses.append(loss_of(model, *my_rows("share", dist.get_rank(), task)[0]))
            losses[-1].backward()
    with Collectives() as collectives:
        optimizer.step(losses=tuple(losses))
    expected = torch.stack([1 / loss.detach().double() for loss in losses])
    return {
        "collectives": collectives.seen,
        "error": (torch.stack(optimizer.last_step.coefficients) / expected - 1).abs().max(),
    }


def message(kind: str, group: bool = False, move: bool = False, **options: Any) -> str:
    """What the first steps complain of."""
    if group:
        groups = [dist.new_group([rank]) for rank in range(SIZE)]
        options["process_group"] = groups[dist.get_rank()]
    try:
        run = Run(kind, lr=0.1, **options)
        run.step(0)
        if move:
            run.model.double()
            run.step(1)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def llama(code: str) -> Tensor:
    """The weights of a small Llama after three steps; `code` makes the optimizer, and may shard the model before."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=25,
        hidden_size=12,
        intermediate_size=15,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    names: dict[str, Any] = {"model": LlamaForCausalLM(config).double(), "ngdiff": ngdiff}
    exec(code, names)
    model, optimizer = names["model"], names["optimizer"]
    mine = slice(dist.get_rank(), None, SIZE) if dist.is_initialized() else slice(None)
    batches = {task: torch.randint(25, (4, 6))[mine] for task in ("retain", "forget")}
    for _ in range(3):
        for task, ids in batches.items():
            with optimizer.task(task):
                model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step(probe=lambda: model(input_ids=batches["retain"], labels=batches["retain"]).loss)
    return torch.cat([whole(p).flatten() for p in model.parameters()])


def by_trainer(
    folder: str, batch: int, accumulate: int, best: bool = False, resume: bool = False, sharded: str = "", **options: Any
) -> dict[str, Any]:
    """A Llama after one pass of `NGDiffTrainer`, with what this rank has seen."""
    import tiny
    from accelerate.state import AcceleratorState, GradientState
    from transformers import TrainingArguments

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate, num_train_epochs=1, logging_steps=1,
        use_cpu=True, report_to=[], disable_tqdm=True, lr_scheduler_type="constant", save_strategy="steps", save_steps=1,
        eval_strategy="steps" if best else "no", eval_steps=1, load_best_model_at_end=best, save_total_limit=2,
    )  # fmt: skip
    model, seen = tiny.llama(), []
    options |= {"eval_dataset": tiny.rows(4, 3)} if best else {}
    rows = {"forget_dataset": tiny.rows(16, 1), "retain_dataset": tiny.rows(24, 2)}
    trainer = ngdiff.NGDiffTrainer(model, arguments, **rows, **options)
    if sharded:
        shard(trainer, sharded)
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, items: (  # type: ignore[method-assign]
        seen.append({task: part["input_ids"] for task, part in inputs.items()}),
        step(model, inputs, items),
    )[1]
    trainer.train(resume_from_checkpoint=resume)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    split = [isinstance(parameter, DTensor) for parameter in model.parameters()]
    return {
        "weights": weights(model), "seen": seen, "logs": logs, "rate": trainer.own_optimizer.param_groups[0]["lr"],
        "split": all(split) if sharded else any(split), "checks": trainer.stopping.checks if trainer.stopping else None,
        "restored": trainer.stopping.restored if trainer.stopping else None,
    }  # fmt: skip


def shard(trainer: Any, saved: str) -> None:
    """FSDP2, which accelerate refuses on a CPU, so it is told afterwards; with this type of state in checkpoints."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, cpu_ram_efficient_loading=False, state_dict_type=saved
    )
    trainer.accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def refused_trainer(folder: str, rank: int | None = None, name: str = "", **options: Any) -> str:
    """The error of `by_trainer` on this rank. On `rank`, if given, `name` finds no room for what it writes."""
    from transformers import Trainer

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == rank:
            owners = {"save_model": Trainer, "before_training": ngdiff.NGDiffTrainer}
            patch.setattr(owners.get(name, ngdiff.checkpoints), name, fail)
        with pytest.raises(Exception) as caught:
            by_trainer(folder, 2, 1, **options)
    return f"{type(caught.value).__name__}: {caught.value}"


def resumed_trainer(folder: str, unseen: bool, **options: Any) -> int:
    """How many steps a rank takes in a folder with checkpoints, of which rank 1 sees none if `unseen`."""
    with pytest.MonkeyPatch.context() as patch:
        if unseen and dist.get_rank() == 1:
            patch.setattr(ngdiff.checkpoints, "newest", lambda *_: None)
        return len(by_trainer(folder, 2, 1, resume=True, **options)["seen"])
