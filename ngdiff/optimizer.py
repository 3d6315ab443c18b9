"""The optimizer: two backwards, three inner products, one step."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from ngdiff_kernels import BASES, LOW_PRECISION, Backend, FusedBackend, backend_for, largest_direction, state_shapes
from torch import Tensor

from ngdiff import rules
from ngdiff.backward_gram import BackwardGram
from ngdiff.distributed import Ranks, ShardedSegment, is_sharded, reshard
from ngdiff.flat import Segment, segments
from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.learning_rate import AutoLearningRate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

TASKS = ("retain", "forget")
AUTOMATIC = {"auto": "robust", "paper": "paper"}  # lr -> mode of AutoLearningRate
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Probe = Callable[[], Tensor]


class StepReport(NamedTuple):
    """What one step did, as tensors of shape () on the device: looking at them is the only wait.

    Attributes:
        gram: inner products of the two gradients, float64.
        coefficients: (c_R, c_F), float64.
        finite: False if the step was refused and nothing was written.
    """

    gram: Gram
    coefficients: Coefficients
    finite: Tensor


class TwoTaskOptimizer(torch.optim.Optimizer):
    """theta <- theta - lr base(c_R g_R - c_F g_F), with (c_R, c_F) from a combination rule.

    When the first task begins, the trainable parameters are moved into one flat buffer and become views of it; the model must
    have reached its device and dtype by then. That adds one gradient buffer a task and the state of the base: 2 n elements
    for SGD, 4 n for AdamW. Backwards inside `task` accumulate; `step` consumes both gradients. A step whose gradients or
    losses are not finite, or whose direction would overflow, changes neither parameters nor state; it is counted in
    `skipped_steps`.

    Under torch.distributed the step is that of one process with the batches of all ranks, if these are equally large, and the
    same on every rank. Works with DDP and with FSDP2, whose shards stay where they are. Losses and probes are those of a rank;
    the optimizer averages them. The last backward of every task must synchronize gradients, and under FSDP2 every one if the
    tasks take turns: what is not synchronized would go to both.

    Args:
        params: parameters or param groups, as for torch.optim. Frozen parameters are left out.
        rule: a name (`ngdiff.rules.names()`) or a `Rule`.
        base: "sgd" or "adamw".
        lr: a number, or "auto", or "paper", or an `AutoLearningRate`; "paper" is the automatic rate without our guards. An
            automatic rate is common to all param groups and leaves no place for a scheduler.
        momentum, nesterov: of SGD.
        betas, eps: of AdamW.
        weight_decay: coupled for SGD and decoupled for AdamW, as in torch.optim.
        low_precision: how parameters of bfloat16 or float16 keep updates smaller than half their spacing. "master" computes
            with a float32 copy of them, n more elements of state; "stochastic" rounds at random, unbiased and without a copy.
        seed: of the random bits of "stochastic"; equal seeds give equal runs.
        gradient_dtype: torch.bfloat16 keeps both gradients in 2 bytes an element, rounded to nearest, whatever the parameters
            have; None keeps them in the parameters' dtype. A gradient is rounded in every backward, so of many accumulated ones
            the small are lost, and inside a task `.grad` is None: there is nothing to clip or to clear. While an automatic rate
            is chosen, one buffer of the parameters' dtype is added for the probes, which keep no activations. For one process
            only: DDP and FSDP2 reduce in the parameters' own.
        gram_during_backward: take the inner products during the backward of the second task, from gradients still in cache,
            instead of in a sweep of their own. For one process only: with several, gradients are not yet reduced then.
        process_group: the ranks that take a step together. None: those that hold the shards of FSDP2, or all there are.

    Raises:
        ValueError: an argument is out of range, or a trainable parameter has a dtype other than these three or float64.

    Examples:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = TwoTaskOptimizer(model.parameters(), rule="ngdiff", lr=0.1)
        >>> for task in ("retain", "forget"):
        ...     with optimizer.task(task):
        ...         model(torch.randn(4, 2)).square().mean().backward()
        >>> optimizer.step()

    Source: arXiv 2410.22086, Algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: str | rules.Rule = "ngdiff",
        base: str = "sgd",
        lr: float | str | AutoLearningRate = "auto",
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        low_precision: str = "master",
        seed: int = 0,
        gradient_dtype: torch.dtype | None = None,
        gram_during_backward: bool = False,
        process_group: "ProcessGroup | None" = None,
    ):
        if gradient_dtype not in (None, torch.bfloat16):
            raise ValueError(f"gradient_dtype = {gradient_dtype}: give torch.bfloat16, or None for the parameters' own")
        self.rule = rules.get(rule) if isinstance(rule, str) else rule
        self.auto = _automatic(lr)
        self.last_step: StepReport | None = None
        self._built = False  # whether what follows has been made, see _build
        self._segments: list[list[Segment]] = []  # one list a param group
        self._products: dict[Segment, BackwardGram] | None = {} if gram_during_backward else None
        self._process_group = process_group
        self._gradient_dtype = gradient_dtype
        self._ready: set[str] = set()  # tasks that have a gradient since the last step
        self._open: str | None = None
        self._seed = seed
        self._steps = 0
        self._skipped: Tensor | int = 0
        self._known_is_exact: bool | None = None  # whether `probe_here` is what a probe gives; None until one has told
        defaults = {"lr": self.auto.initial if self.auto else lr, "base": base, "momentum": momentum, "nesterov": nesterov}
        more = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "low_precision": low_precision, "dampening": 0.0}
        # Always 0, and there only so that torch.optim.SGD can go on from this optimizer's state_dict.
        super().__init__(params, defaults | more)
        self._check_trainable()

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """As in torch.optim, but there before the first step: whoever looks at it makes it."""
        self._build()
        return self.__dict__["state"]  # where torch.optim.Optimizer.__setstate__ puts it

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.__dict__["state"] = state

    @property
    def skipped_steps(self) -> int:
        """How many steps were refused because a gradient or a loss was not finite. Waits for the device."""
        return int(self._skipped)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch.optim."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _validate(group)
            _validate_parameters(group)
        except ValueError:
            self.param_groups.pop()
            raise
        if self._built:
            self._add_segments(group)
            self._ranks = self._find_ranks()

    def _build(self) -> None:
        """Make the buffers, once they are needed and not before.

        Until then the model may be moved, and accelerate may replace the parameters of all groups by shards.
        """
        if self._built:
            return
        self._check_trainable()
        self._built = True
        try:
            for group in self.param_groups:
                _validate_parameters(group)
                self._add_segments(group)
            self._ranks = self._find_ranks()
        except BaseException:
            self._discard()
            raise

    def _add_segments(self, group: dict[str, Any]) -> None:
        trained = [parameter for parameter in group["params"] if parameter.requires_grad]
        whole = [parameter for parameter in trained if not is_sharded(parameter)]
        members = list(segments(whole, TASKS, self._gradient_dtype))
        self._segments.append([*members, *(ShardedSegment(parameter, TASKS) for parameter in trained if is_sharded(parameter))])
        for segment in self._segments[-1]:
            segment.add_state(state_shapes(group, segment.theta.dtype))
            self._publish_state(segment)
            if self._products is not None:
                self._products[segment] = BackwardGram(segment)

    def _find_ranks(self) -> Ranks:
        ranks = Ranks(self._all_segments(), self._process_group)
        kept = self._gradient_dtype
        alone = {
            "gram_during_backward = True: reads": self._products is not None,
            f"gradient_dtype = {kept}: rounds": any(kept not in (None, s.theta.dtype) for s in self._all_segments()),
        }
        for what, asked in alone.items():
            if asked and (ranks.sharded or ranks.size > 1):
                raise ValueError(f"{what} gradients before they are reduced over {ranks.size} ranks; leave it out")
        return ranks

    def _discard(self) -> None:
        """Undo `_build`; the parameters stay where they are."""
        self._segments, self._built = [], False
        self._ready.clear()
        self.state = defaultdict(dict)
        if self._products is not None:
            self._products.clear()

    def _check_trainable(self) -> None:
        if not any(parameter.requires_grad for group in self.param_groups for parameter in group["params"]):
            raise ValueError("params: every parameter is frozen; pass at least one with requires_grad=True")

    def _check_parameters(self) -> None:
        """Raise RuntimeError if the groups no longer hold the parameters that the buffers were made for."""
        held = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        if any(id(parameter) not in held for segment in self._all_segments() for parameter in segment.parameters):
            raise RuntimeError(
                "params: the parameters of param_groups were replaced after the optimizer was first used; prepare or shard the "
                "model before the first task and before load_state_dict"
            )

    @contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Backwards inside this context add to the gradient of one task.

        An exception inside discards what the task has accumulated since the last step.

        Args:
            name: "retain" or "forget".

        Raises:
            ValueError: another name.
            RuntimeError: a task is open already, a gradient lies outside its buffer, or the parameters were moved.
        """
        if name not in TASKS:
            raise ValueError(f"task: unknown task {name!r}; choose one of {', '.join(TASKS)}")
        if self._open:
            raise RuntimeError(f"task: {name!r} opened inside {self._open!r}; close that one first")
        self._build()
        self._check_parameters()
        fresh = name not in self._ready
        self._ready.discard(name)
        with ExitStack() as stack:
            for segment in self._all_segments():
                segment.attach(name, fresh)
                stack.callback(segment.detach)
            for products in (self._products or {}).values():  # after the gradient is in its place: hooks run in order
                products.begin(taking=bool(self._ready), fresh=fresh)
                stack.callback(products.end)
            self._open = name
            stack.callback(setattr, self, "_open", None)
            yield
            for segment in self._all_segments():
                segment.settle(name)
        self._ready.add(name)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Discard what both tasks have accumulated; not needed after `step`.

        Raises:
            RuntimeError: inside a task that has moved gradients to buffers of another dtype, where they would stay.
        """
        if self._open and any(segment.has_taken for segment in self._all_segments()):
            raise RuntimeError(
                f"zero_grad: called inside task {self._open!r}, which has gradients already; call it before or after"
            )
        self._ready.clear()
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        losses: tuple[Tensor, Tensor] | None = None,
        probe: Probe | None = None,
        probe_here: Tensor | None = None,
    ) -> Any:
        """Combine the two gradients and take one step.

        Args:
            closure: runs both tasks and returns a loss, as in torch.optim.
            losses: (retain, forget), shape (); needed by rules that read them, and a non-finite one refuses the step. With
                several ranks, those of this rank's batches; all ranks must pass them, or none.
            probe: evaluates the retain loss at the model's current weights, outside autocast; needed by lr="auto", which calls
                it three times at a refresh, more often at the first, each time with the same random state. With several ranks,
                on this rank's batch.
            probe_here: what `probe` would return at these weights, shape (), if a pass of the retain task has given it already:
                saves one of the three. The first one is compared with the probe, and if they differ in any bit, as by dropout,
                autocast or another order of summation, all probes are made: the difference would drown the second difference.

        Returns:
            What `closure` returned, else None.

        Raises:
            RuntimeError: a task that the rule reads has no gradient since the last step.
            ValueError: `probe` or `losses` is missing.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._build()
        self._check_ready(losses, probe)
        if losses is not None and not self._ranks.sharded:  # where it is, they are averaged with the sum of the products
            losses = self._averaged(losses)
        due = self.auto is not None and self.auto.due(self._steps)
        report = None if due else self._fused_step(losses)
        if report is None:
            report = self._combine(losses)
            if due and bool(report.finite):
                assert probe is not None  # by _check_ready
                self._refresh_and_step(report, probe, probe_here)
            else:
                self._plain_step(report)
        if self._ranks.sharded:
            reshard()
        self._skipped = self._skipped + (~report.finite).long()
        self._steps += 1
        self._ready.clear()
        self.last_step = report
        return result

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim, with per-parameter state by torch's names, and the state of the automatic rate beside it."""
        extra = {
            "steps": self._steps,
            "skipped": self.skipped_steps,
            "seed": self._seed,
            "known_is_exact": self._known_is_exact,
            "auto": self.auto.state_dict() if self.auto else None,
        }
        built, self._built = self._built, True  # before the first task there is no state, and no reason to make it
        try:
            result = super().state_dict()
        finally:
            self._built = built
        # Scalars are shared by all parameters of a buffer here; an optimizer of torch that loads them counts each by itself.
        result["state"] = {
            i: {name: value if value.dim() else value.clone() for name, value in state.items()}
            for i, state in result["state"].items()
        }
        # Once more in a group, because torch.distributed.checkpoint carries nothing else beside the state, and as one string,
        # because it takes lists apart and expects them to be as long as before.
        result["param_groups"][0]["ngdiff"] = json.dumps(extra)
        return result | {"ngdiff": extra}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch.optim.

        Raises:
            ValueError: the dict comes from another optimizer, base or precision, or from another kind of learning rate.
        """
        extra = state_dict.get("ngdiff") or json.loads(state_dict["param_groups"][0].get("ngdiff", "null"))
        if extra is None or (extra["auto"] is None) != (self.auto is None) or not self._same_state(state_dict):
            raise ValueError(
                "load_state_dict: the state is not from a TwoTaskOptimizer with the same base, precision and kind of "
                "learning rate; build this optimizer with the arguments of the saved one"
            )
        if state_dict["state"]:
            self._build()
        else:  # saved before the first task
            self._discard()
        super().load_state_dict(state_dict)
        self.param_groups[0].pop("ngdiff", None)
        saved = self._saved_states(state_dict)  # not what torch made of it: it rounds all state to the parameter's dtype
        for segment in self._all_segments():
            segment.load_state([saved[p] for p in segment.parameters])
            self._publish_state(segment)
        self._steps, self._skipped, self._seed = extra["steps"], extra["skipped"], extra.get("seed", self._seed)
        self._known_is_exact = extra.get("known_is_exact")
        if self.auto:
            self.auto.load_state_dict(extra["auto"])

    def _saved_states(self, state_dict: dict[str, Any]) -> dict[Tensor, dict[str, Tensor]]:
        """The saved state of each parameter; torch counts parameters through all groups, in order."""
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        mine = [parameter for group in self.param_groups for parameter in group["params"]]
        return {parameter: state_dict["state"].get(number, {}) for number, parameter in zip(numbers, mine, strict=False)}

    def _same_state(self, state_dict: dict[str, Any]) -> bool:
        """Whether every saved parameter has the entries that are kept here: those of base, momentum and master weights.

        Before the first task there are no entries, and the groups tell which there would be.
        """
        saved, unused = self._saved_states(state_dict), not state_dict["state"]
        for theirs, group in zip(state_dict["param_groups"], self.param_groups, strict=False):
            for parameter in group["params"]:
                trained = parameter.requires_grad
                kept = state_shapes(group, parameter.dtype) if trained else {}
                found = state_shapes(theirs, parameter.dtype) if unused and trained else saved.get(parameter, {})
                if set(found) != set(kept):
                    return False
        return True

    def _all_segments(self) -> Iterator[Segment]:
        return (segment for group in self._segments for segment in group)

    def _publish_state(self, segment: Segment) -> None:
        """Show the flat state a parameter at a time, so that state_dict() looks as torch's does."""
        for parameter, state in zip(segment.parameters, segment.state_views(), strict=True):
            self.state[parameter] = state

    def _check_ready(self, losses: tuple[Tensor, Tensor] | None, probe: Probe | None) -> None:
        for task in TASKS:
            if task in self.rule.tasks and task not in self._ready:
                raise RuntimeError(f"step: no gradient for task {task!r}; call backward inside `with optimizer.task({task!r})`")
            if task not in self._ready:  # not read by the rule, but it must not carry over from an earlier step
                for segment in self._all_segments():
                    segment.gradients[task].zero_()
                for products in (self._products or {}).values():
                    products.forget()
        if self.rule.needs_losses and losses is None:
            raise ValueError(f"step: rule {type(self.rule).__name__} reads the losses; pass losses=(retain_loss, forget_loss)")
        if self.auto and probe is None:
            raise ValueError("step: lr='auto' needs probe=, a function that returns the retain loss; or give lr a number")

    def _averaged(self, losses: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean losses of all ranks. One all-reduce of two numbers."""
        if self._ranks.size == 1:
            return losses
        device = next(self._all_segments()).theta.device
        values = torch.stack([loss.detach().to(device, torch.float64) for loss in losses])
        retain, forget = self._ranks.mean(values).unbind()
        return retain, forget

    def _sums(self, losses: tuple[Tensor, Tensor] | None) -> Tensor:
        """The three inner products, and the two losses if there are any, of all ranks, shape (3,) or (5,), float64."""
        vectors = [self._inner_products(segment) for segment in self._all_segments()]
        if self._ranks.sharded:
            vectors = [v * self._ranks.share(segment) for v, segment in zip(vectors, self._all_segments(), strict=True)]
        vector = torch.stack([v.to(vectors[0].device) for v in vectors]).sum(0)
        if losses is not None:
            values = torch.stack([loss.detach().to(vector) for loss in losses])
            vector = torch.cat([vector, values / self._ranks.size if self._ranks.sharded else values])
        return self._ranks.sum(vector) if self._ranks.sharded else vector

    def _combine(self, losses: tuple[Tensor, Tensor] | None) -> StepReport:
        sums = self._sums(losses)
        finite = sums.isfinite().all()
        gram = Gram.from_vector(sums[:3])
        on_device = None if losses is None else Losses(*sums[3:].unbind())
        coefficients = self.rule(gram, on_device)
        # ||d|| is at most this, so one comparison tells that no element of d leaves its dtype.
        reach = coefficients.retain.abs() * gram.retain.sqrt() + coefficients.forget.abs() * gram.forget.sqrt()
        limit = min(_limit(group, segment) for group, segment in self._grouped())
        return StepReport(gram, coefficients, finite & (reach < limit))

    def _inner_products(self, segment: Segment) -> Tensor:
        if self._products is not None:
            return self._products[segment].total()
        return _backend(segment).gram(segment.gradients["retain"], segment.gradients["forget"])

    def _fused_step(self, losses: tuple[Tensor, Tensor] | None) -> StepReport | None:
        """The whole step in one launch, where parameters, rule and backend allow it; otherwise None, and nothing is done."""
        (group, segment), *others = self._grouped()
        backend = _backend(segment)
        form = rules.device_form(self.rule)
        if others or self._ranks.sharded or self._products is not None or form is None or not hasattr(backend, "fused_step_"):
            return None
        name, parameter = form
        theta, gradients = segment.theta, segment.gradients
        values = torch.zeros(2, dtype=torch.float64, device=theta.device)
        if losses is not None:
            values = torch.stack([loss.detach().to(values) for loss in losses])
        limit = _limit(group, segment)
        report = cast(FusedBackend, backend).fused_step_(
            theta, gradients["retain"], gradients["forget"], segment.state, group, group["lr"], name, parameter, values, limit,
            self._step_seed(segment),
        )  # fmt: skip
        return StepReport(Gram.from_vector(report[:3]), Coefficients(report[3], report[4]), report[5].bool())

    def _plain_step(self, report: StepReport) -> None:
        for group, segment in self._grouped():
            _backend(segment).step_(*_arguments(segment, report), segment.state, group, group["lr"], self._step_seed(segment))

    def _refresh_and_step(self, report: StepReport, probe: Probe, here: Tensor | None) -> None:
        """Probe along the direction of this step, choose the rate from what was seen, and take the step."""
        assert self.auto is not None
        self._ready.clear()  # the buffers serve the probes from here on, whatever happens
        for segment in self._all_segments():
            _, retain, forget, coefficients, _ = _arguments(segment, report)
            _backend(segment).combine_(retain, forget, coefficients)
        known = None if here is None or self._known_is_exact is False else self._mean_of(float(here))
        lr = self.auto.refresh(self._steps, self.param_groups[0]["lr"], lambda h: self._loss_at(h, probe, known))
        for group, segment in self._grouped():
            group["lr"] = lr
            theta, d, _, _, finite = _arguments(segment, report)
            _backend(segment).base_step_(theta, d, finite, segment.state, group, lr, self._step_seed(segment))

    def _loss_at(self, h: float, probe: Probe, known: float | None) -> float:
        """The retain loss at theta + h base(d), at h = 0 the known one once it has proved to be what a probe gives."""
        if h == 0 and known is not None and self._known_is_exact:
            return known
        value = self._probe(h, probe)
        if h == 0 and known is not None and self._known_is_exact is None:
            self._known_is_exact = value == known
        return value

    def _probe(self, h: float, probe: Probe) -> float:
        """The retain loss at theta + h base(d), on all ranks the same.

        Nothing is written but a buffer, at which the model looks meanwhile; shards exchange their contents with it and back.
        It is g_F's, no longer needed once d is formed, unless that is too narrow for weights.
        """
        cuda = {s.theta.device for s in self._all_segments() if s.theta.is_cuda}
        try:
            for group, segment in self._grouped():
                out = torch.empty_like(segment.theta) if segment.rounds else segment.gradients["forget"]
                length = h * self._growth(group)
                _backend(segment).probe_(out, segment.theta, segment.gradients["retain"], segment.state, group, length)
                segment.point_at(out)
            self._forget_copies()
            with torch.random.fork_rng(devices=cuda):  # the same dropout mask in every probe of a refresh
                return self._mean_of(float(probe()))
        finally:
            for segment in self._all_segments():
                segment.point_at(segment.theta)
            self._forget_copies()

    def _forget_copies(self) -> None:
        """The weights have changed: autocast keeps them cast to half precision, and FSDP2 may keep them gathered."""
        torch.clear_autocast_cache()
        if self._ranks.sharded:
            reshard()

    def _mean_of(self, value: float) -> float:
        """The mean of a number over all ranks: what they choose from it must be the same."""
        if self._ranks.size == 1:
            return value
        return float(self._ranks.mean(torch.tensor(value, dtype=torch.float64)))

    def _growth(self, group: dict[str, Any]) -> float:
        """By how much momentum will still lengthen the direction: the rate is chosen for what it will come to mean.

        Velocity becomes 1 / (1 - momentum) directions long and is shorter at first, as AdamW's moments are before they are
        corrected. The formula of the paper takes the direction as it is.
        """
        assert self.auto is not None
        if group["base"] != "sgd" or self.auto.mode == "paper":
            return 1.0
        taken = self._steps - self.skipped_steps + 1
        return 1 / (1 - group["momentum"] ** (taken + group["nesterov"]))

    def _step_seed(self, segment: Segment) -> int:
        """A seed of its own for every step, segment and shard, but the same on ranks that hold the same values."""
        number = next(i for i, other in enumerate(self._all_segments()) if other is segment)
        shard = segment.shard * 0xD1B54A32D192ED03 if isinstance(segment, ShardedSegment) else 0
        return ((self._seed * 0x9E3779B97F4A7C15 + self._steps) * 0x10000 + number + shard) % 2**63

    def _grouped(self) -> Iterator[tuple[dict[str, Any], Segment]]:
        for group, members in zip(self.param_groups, self._segments, strict=True):
            for segment in members:
                yield group, segment


def _backend(segment: Segment) -> Backend:
    return backend_for(segment.theta.device, segment.theta.dtype)


def _arguments(segment: Segment, report: StepReport) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """theta, g_R, g_F, (c_R, c_F), finite: what step_ begins with."""
    device = segment.theta.device
    coefficients = torch.stack(report.coefficients).to(device)
    return segment.theta, segment.gradients["retain"], segment.gradients["forget"], coefficients, report.finite.to(device)


def _limit(group: dict[str, Any], segment: Segment) -> float:
    """The norm of d at which a step is refused: d is written over a gradient, and added to the weights."""
    return min(largest_direction(group, dtype) for dtype in (segment.gradients["retain"].dtype, segment.theta.dtype))


def _automatic(lr: float | str | AutoLearningRate) -> AutoLearningRate | None:
    if isinstance(lr, AutoLearningRate):
        return lr
    if isinstance(lr, str):
        if lr not in AUTOMATIC:
            raise ValueError(f"lr = {lr!r}: give a number > 0, or {' or '.join(map(repr, AUTOMATIC))}")
        return AutoLearningRate(mode=AUTOMATIC[lr])
    return None


def _validate(group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    checks = {
        f"base = {group['base']!r}: unknown; choose one of {', '.join(BASES)}": group["base"] in BASES,
        f"lr = {group['lr']}: must be finite and >= 0": math.isfinite(group["lr"]) and group["lr"] >= 0,
        f"momentum = {group['momentum']}: must be in [0, 1)": 0 <= group["momentum"] < 1,
        "nesterov = True: needs momentum > 0": not group["nesterov"] or group["momentum"] > 0,
        f"betas = {group['betas']}: both must be in [0, 1)": 0 <= beta1 < 1 and 0 <= beta2 < 1,
        f"eps = {group['eps']}: must be > 0": group["eps"] > 0,
        f"weight_decay = {group['weight_decay']}: must be >= 0": group["weight_decay"] >= 0,
        f"low_precision = {group['low_precision']!r}: choose one of {', '.join(LOW_PRECISION)}": group["low_precision"]
        in LOW_PRECISION,
    }
    for message, holds in checks.items():
        if not holds:
            raise ValueError(message)


def _validate_parameters(group: dict[str, Any]) -> None:
    for parameter in group["params"]:
        if parameter.requires_grad and parameter.dtype not in DTYPES:
            raise ValueError(
                f"params: a trainable parameter of shape {tuple(parameter.shape)} is {parameter.dtype}; load the model in "
                "float32, bfloat16 or float16"
            )
        if hasattr(parameter, "_fsdp_flattened"):
            raise ValueError(
                f"params: a parameter of shape {tuple(parameter.shape)} is in FullyShardedDataParallel, which keeps one "
                "gradient of its own; use FSDP2, torch.distributed.fsdp.fully_shard"
            )
