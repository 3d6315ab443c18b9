"""The Trainer: its step is the optimizer's, however the batch is split; everything of transformers works around it."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from ngdiff import AutoLearningRate, NGDiffTrainer, StoppingCriteria, TwoTaskOptimizer
from ngdiff.lm.objectives import FORGET, RETAIN
from ngdiff.lm.pairs import PairCollator, PairedRows, PairSampler
from ngdiff.stopping import FORGOTTEN, OVER_BUDGET

FORGETTING, RETAINING, REFUSALS = tiny.rows(12, 1), tiny.rows(20, 2), tiny.rows(12, 3)
OURS = {"retain_loss", "forget_loss", "grad_norm_retain", "grad_norm_forget", "grad_norm", "cosine", "retain_weight"}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    options: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "num_train_epochs": 2, "logging_steps": 1, "use_cpu": True,
        "save_strategy": "no", "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(**(options | changes))


def trainer(folder: Path, model: Any = None, of_arguments: dict[str, Any] | None = None, **changes: Any) -> NGDiffTrainer:
    options: dict[str, Any] = {"forget_dataset": FORGETTING, "retain_dataset": RETAINING, "refusal_dataset": REFUSALS}
    return NGDiffTrainer(model or tiny.llama(), arguments(folder, **(of_arguments or {})), **(options | changes))


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def equal(a: Any, b: Any) -> bool:
    mine, theirs = weights(a), weights(b)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def distance(a: Any, b: Any) -> float:
    """Between the weights of two models, relative to their size."""
    mine, theirs = (torch.cat([value.flatten() for value in weights(model).values()]) for model in (a, b))
    return float((mine - theirs).norm() / theirs.norm())


# The step


@pytest.mark.parametrize(("base", "rule"), [("sgd", "ngdiff"), ("adamw", "ngdiff"), ("sgd", "lossnorm"), ("adamw", "mgda")])
def test_the_step_is_that_of_the_optimizer(tmp_path: Path, base: str, rule: str) -> None:
    """The same bits as a loop of the user's own over the same batches."""
    mine, theirs = tiny.llama(), tiny.llama()
    trainer(tmp_path, mine, rule=rule, base=base, lr="auto", refusal_dataset=None).train()
    optimizer = TwoTaskOptimizer(theirs.parameters(), rule=rule, base=base, lr="auto")
    sampler, pairs, collate = PairSampler(12, 20, 42), PairedRows(FORGETTING, RETAINING), PairCollator(0)
    nll = RETAIN["nll"]
    for epoch in range(2):
        sampler.epoch = epoch
        order = list(sampler)
        for start in range(0, 12, 4):
            batch = collate([pairs[pair] for pair in order[start : start + 4]])
            losses = []
            for task in ("retain", "forget"):
                with optimizer.task(task):
                    loss = nll.value({"answer": nll.forward(theirs, batch[task])}, {})
                    loss.backward()
                losses.append(loss.detach())
            probe = lambda retain=batch["retain"]: nll.value({"answer": nll.forward(theirs, retain)}, {})  # noqa: E731
            optimizer.step(losses=(losses[0], losses[1]), probe=probe, probe_here=losses[0])
    assert equal(mine, theirs)


@pytest.mark.parametrize(("forget", "rule"), [("nll", "gdiff-0.5"), ("simnpo", "gdiff-0.5"), ("nll", "ngdiff")])
@pytest.mark.parametrize(("batch", "accumulate"), [(3, 2), (2, 3), (1, 6)])
def test_the_gradient_does_not_depend_on_how_the_batch_is_split(
    tmp_path: Path, forget: str, rule: str, batch: int, accumulate: int
) -> None:
    """Rows differ in length, so means of means would differ; a rule that does not normalise sees a wrong scale, too."""
    models = []
    for size, parts in ((6, 1), (batch, accumulate)):
        models.append(tiny.llama())
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "num_train_epochs": 1}
        trainer(tmp_path, models[-1], options, forget=forget, rule=rule, base="sgd", lr=0.1).train()
    # Two steps of rate 0.1 in float32, whose sums are taken in another order.
    assert distance(models[1], tiny.llama()) > 0
    assert distance(models[1], models[0]) < 1e-6


def test_a_last_step_of_fewer_batches_counts_its_own(tmp_path: Path) -> None:
    """12 rows in batches of 4, two a step: the second step has one batch, and takes its mean over that one."""
    split, whole = tiny.llama(), tiny.llama()
    options = {"num_train_epochs": 1, "gradient_accumulation_steps": 2, "lr_scheduler_type": "constant"}
    trainer(tmp_path, split, options, rule="gdiff-0.5", base="sgd", lr=0.1).train()
    optimizer, collate = TwoTaskOptimizer(whole.parameters(), rule="gdiff-0.5", lr=0.1), PairCollator(0)
    order, pairs, nll = list(PairSampler(12, 20, 42)), PairedRows(FORGETTING, RETAINING), RETAIN["nll"]
    for numbers in (order[:8], order[8:]):
        batch = collate([pairs[pair] for pair in numbers])
        for task in ("retain", "forget"):
            with optimizer.task(task):
                nll.value({"answer": nll.forward(whole, batch[task])}, {}).backward()
        optimizer.step()
    assert distance(split, whole) < 1e-6  # as above


@pytest.mark.parametrize("forget", FORGET)
@pytest.mark.parametrize("retain", RETAIN)
def test_every_objective_trains(tmp_path: Path, forget: str, retain: str) -> None:
    model = tiny.llama()
    run = trainer(tmp_path, model, {"num_train_epochs": 1}, forget=forget, retain=retain, rule="gdiff-0.5", lr=1e-3)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logs) == 3
    assert all(math.isfinite(entry[name]) for entry in logs for name in OURS)
    assert not equal(model, tiny.llama())


def test_references_are_those_of_the_model_before_the_first_step(tmp_path: Path) -> None:
    """KL to itself is 0 at the first step and not at the second; NPO begins at -2 log 2 / b."""
    run = trainer(tmp_path, forget="npo", retain="kl", rule="gdiff-0.5", base="sgd", lr=0.5)
    run.train()
    first, second = [entry for entry in run.state.log_history if "loss" in entry][:2]
    # float32 log-probabilities of the same pass in other batches: a few units of 6e-8 times their size.
    assert abs(first["retain_loss"]) < 1e-5 < second["retain_loss"]
    assert first["forget_loss"] == pytest.approx(-2 * math.log(2) / 0.1, rel=1e-5)
    assert second["forget_loss"] != pytest.approx(first["forget_loss"], rel=1e-3)


def test_references_have_the_precision_of_the_steps(tmp_path: Path) -> None:
    """Under autocast too the model is at no distance from itself, to float32's rounding of equal 16-bit logits."""
    for half in (False, True):  # a folder of references that serves both
        run = trainer(tmp_path, retain="kl", rule="gdiff-0.5", base="sgd", lr=0.1, of_arguments={"bf16": half})
        run.train()
        first = next(entry for entry in run.state.log_history if "loss" in entry)
        assert abs(first["retain_loss"]) < 1e-5


# Around the step


def test_logs(tmp_path: Path) -> None:
    run = trainer(tmp_path, base="sgd", lr=0.05)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logs) == 6
    for entry in logs:
        assert entry.keys() >= OURS | {"learning_rate", "skipped_steps", "tokens_per_second"}
        assert entry["loss"] == pytest.approx(entry["retain_loss"] - entry["forget_loss"], abs=1e-5)
        # Two unit vectors apart. The square is a difference of float64 sums of float32 gradients.
        assert entry["grad_norm"] == pytest.approx(math.sqrt(2 - 2 * entry["cosine"]), rel=1e-5)
        assert entry["skipped_steps"] == 0
        assert entry["tokens_per_second"] > 0
    rates = [entry["learning_rate"] for entry in logs]
    assert rates == sorted(rates, reverse=True)  # the linear schedule of TrainingArguments
    assert rates[0] == pytest.approx(0.05)


@pytest.mark.parametrize("lr", ["auto", "paper", AutoLearningRate(initial=1e-3)])
def test_no_schedule_touches_an_automatic_rate(tmp_path: Path, lr: Any) -> None:
    run = trainer(tmp_path, base="sgd", lr=lr, of_arguments={"warmup_steps": 3})
    run.train()
    logged = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    trace = run.own_optimizer.auto.trace
    assert logged[-1] == trace[-1].new == run.optimizer.param_groups[0]["lr"]


def test_the_learning_rate_of_the_arguments(tmp_path: Path) -> None:
    run = trainer(tmp_path, lr=None, of_arguments={"learning_rate": 3e-4, "lr_scheduler_type": "constant"})
    run.train()
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(3e-4)


def test_weight_decay_spares_what_transformers_spares(tmp_path: Path) -> None:
    run = trainer(tmp_path, lr=1e-3, of_arguments={"weight_decay": 0.1})
    decayed, spared = run.create_optimizer().param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0)
    assert all(parameter.dim() == 1 for parameter in spared["params"])
    run.train()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, reentrant: bool) -> None:
    plain, spared = tiny.llama(), tiny.llama()
    trainer(tmp_path, plain, base="sgd").train()
    name = "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
    options = {name: True, f"{name}_kwargs": {"use_reentrant": reentrant}}  # renamed within version 5
    trainer(tmp_path, spared, options, base="sgd").train()
    assert equal(plain, spared)


def test_compiled(tmp_path: Path) -> None:
    """The backend that traces and differentiates as inductor does, and leaves the code to torch."""
    plain, compiled = tiny.llama(), tiny.llama()
    trainer(tmp_path, plain, base="sgd", lr=0.1).train()
    trainer(tmp_path, compiled, {"torch_compile": True, "torch_compile_backend": "aot_eager"}, base="sgd", lr=0.1).train()
    # Decompositions take sums in another order, in float32, over six steps.
    assert distance(compiled, plain) < 1e-5


def test_bfloat16_computation(tmp_path: Path) -> None:
    """Autocast around the tasks' passes, not around the probes of the automatic rate."""
    model, seen = tiny.llama(), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append((torch.is_grad_enabled(), output.dtype)))
    run = trainer(tmp_path, model, {"bf16": True}, base="sgd")
    run.train()
    assert {dtype for grad, dtype in seen if grad} == {torch.bfloat16}
    assert {dtype for grad, dtype in seen if not grad} == {torch.float32}
    assert any(refresh.outcome == "minimum" for refresh in run.own_optimizer.auto.trace)


@pytest.mark.parametrize("low_precision", ["master", "stochastic"])
def test_bfloat16_weights(tmp_path: Path, low_precision: str) -> None:
    model = tiny.llama().to(torch.bfloat16)
    trainer(tmp_path, model, low_precision=low_precision, lr=1e-3).train()
    assert not equal(model, tiny.llama().to(torch.bfloat16))


def test_gradients_of_16_bits(tmp_path: Path) -> None:
    """Accumulated ones too; the run is near that with gradients of 32, and not the same."""
    found = []
    for kept in (None, torch.bfloat16):
        run = trainer(tmp_path, of_arguments={"gradient_accumulation_steps": 2}, base="sgd", lr=1e-2, gradient_dtype=kept)
        run.train()
        found.append(run.model)
    assert 0 < distance(*found) < 0.1 * distance(found[0], tiny.llama())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's, for the newest transformers
def test_lora(tmp_path: Path) -> None:
    """Only the adapters move."""
    peft = pytest.importorskip("peft")
    base = tiny.llama()
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    before = weights(model)
    run = trainer(tmp_path, model, lr=1e-2)
    run.train()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved and all("lora" in name for name in moved)
    assert run.own_optimizer.skipped_steps == 0


def test_evaluation_during_training(tmp_path: Path) -> None:
    rows = {"kept": RETAINING[:5], "forgotten": FORGETTING[:5]}
    run = trainer(tmp_path, eval_dataset=rows, of_arguments={"eval_strategy": "epoch", "per_device_eval_batch_size": 5})
    run.train()
    first, last = (entry for entry in run.state.log_history if "eval_kept_loss" in entry)
    with torch.no_grad():
        batch = PairCollator(0)(rows["kept"])
        assert last.get("eval_kept_loss") == pytest.approx(float(run.model(**batch).loss), rel=1e-5)
    assert any(entry.get("eval_forgotten_loss", 0) > 0 for entry in run.state.log_history)
    assert first["eval_kept_loss"] != last["eval_kept_loss"]


def test_callbacks_see_every_step(tmp_path: Path) -> None:
    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps += 1

    count = Count()
    trainer(tmp_path, callbacks=[count]).train()
    assert count.steps == 6


# What FSDP2 cannot do; accelerate does not take FSDP on a CPU, so it is told afterwards


@pytest.fixture
def fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Trainer.create_accelerator_and_postprocess

    def made(self: Trainer) -> None:
        make(self)
        self.is_fsdp_enabled = True
        plugin = SimpleNamespace(state_dict_type="StateDictType.FULL_STATE_DICT", cpu_ram_efficient_loading=True)
        monkeypatch.setitem(self.accelerator.state._shared_state, "fsdp_plugin", plugin)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", made)


@pytest.mark.usefixtures("fsdp")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"forget": "npo"},
            "forget, retain: found an objective that compares .*, and cpu_ram_efficient_loading, .* set it to false",
        ),
        ({"retain": "kl"}, "forget, retain: found an objective that compares"),
        ({"base": "sgd"}, "fsdp_config: found state_dict_type FULL_STATE_DICT, .*; give SHARDED_STATE_DICT, or momentum"),
    ],
)
def test_what_does_not_go_with_fsdp_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, of_arguments={"save_strategy": "steps"}, **options)


@pytest.mark.usefixtures("fsdp")
def test_frozen_weights_of_16_bits_do_not_go_with_autocast_under_fsdp(tmp_path: Path) -> None:
    model = tiny.llama().bfloat16()
    assert trainer(tmp_path, model, of_arguments={"bf16": True})  # all become 32 bits
    model.model.layers[0].requires_grad_(False)
    assert trainer(tmp_path, model)
    with pytest.raises(ValueError, match=r"bf16: found True and frozen weights of 16 bits, .*; leave it out"):
        trainer(tmp_path, model, of_arguments={"bf16": True})


@pytest.mark.parametrize("options", [{}, {"base": "sgd", "momentum": 0.9}])
@pytest.mark.usefixtures("fsdp")
def test_stopping_criteria_and_accumulation_go_with_fsdp(tmp_path: Path, options: dict[str, Any]) -> None:
    stopping = StoppingCriteria(forget_target=0.1, retain_budget=1.0)
    of_arguments = {"gradient_accumulation_steps": 2, "save_strategy": "steps"}
    assert trainer(tmp_path, of_arguments=of_arguments, stopping=stopping, **options).is_fsdp_enabled


def test_a_model_that_was_sharded_as_it_was_loaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()  # what from_pretrained(distributed_config=...) gives says so of itself
    monkeypatch.setattr(type(model), "is_distributed_loading_by_transformers", True, raising=False)
    with pytest.raises(ValueError, match="model: found one that was sharded as it was loaded; load it whole, and give fsdp"):
        trainer(tmp_path, model)


# Stopping


def test_it_stops_at_the_forget_target(tmp_path: Path) -> None:
    stopping = StoppingCriteria(forget_target=1e-3)
    run = trainer(tmp_path, of_arguments={"num_train_epochs": 40}, base="sgd", stopping=stopping, check_every=2)
    run.train()
    assert stopping.fired == FORGOTTEN
    assert run.state.global_step < 120
    assert [step for step, _, _ in stopping.checks] == list(range(0, run.state.global_step + 1, 2))


def test_looks_are_at_rows_drawn_at_random(tmp_path: Path) -> None:
    """Of 64 rows 32 are looked at. Every other one would be all of one kind where subjects have two rows each."""
    rows = tiny.rows(64, 1)
    run = trainer(tmp_path, forget_dataset=rows, refusal_dataset=None, stopping=StoppingCriteria(forget_target=0.1))
    looked: list[int] = []
    prepare = run._prepare_inputs

    def seen(batch: Any) -> Any:
        looked.append(next(i for i, row in enumerate(rows) if row["input_ids"] == batch["input_ids"][0].tolist()))
        return prepare(batch)

    run._prepare_inputs = seen
    for _ in range(2):
        run._mean_over(rows, torch.exp)
    first, again = looked[:32], looked[32:]
    assert first == again == sorted(set(first))
    assert 8 < sum(i % 2 for i in first) < 24  # drawn evenly: so many with a probability of 0.998


@pytest.mark.parametrize("criteria", [{"forget_target": 1.0}, {"retain_budget": 1e-3}])
def test_it_takes_no_step_where_there_is_nothing_to_do(tmp_path: Path, criteria: dict[str, float]) -> None:
    """Forgotten already, or over the budget from the beginning."""
    model, stopping = tiny.llama(), StoppingCriteria(**criteria)
    run = trainer(tmp_path, model, base="sgd", stopping=stopping)
    run.train()
    assert stopping.fired is not None
    assert run.state.global_step == 0
    assert equal(model, tiny.llama())


def test_it_restores_the_best_weights_when_over_budget(tmp_path: Path) -> None:
    model, stopping = tiny.llama(), StoppingCriteria(retain_budget=6.0)
    run = trainer(tmp_path, model, {"num_train_epochs": 40}, rule="ga", base="sgd", lr=0.3, stopping=stopping, check_every=1)
    run.train()
    assert stopping.fired == OVER_BUDGET
    assert stopping.restored is not None
    before = next(check for check in stopping.checks if check[0] == stopping.restored)
    assert run._mean_over(RETAINING, lambda nll: nll) == pytest.approx(before[2], rel=1e-5)


# Rows


def test_a_pass_has_every_forget_row_once_and_spreads_the_retain_rows() -> None:
    sampler = PairSampler(10, 4, seed=0)
    first = list(sampler)
    assert sorted(i for i, _ in first) == list(range(10))
    assert all(sorted(j for _, j in first[k : k + 4]) == [0, 1, 2, 3] for k in (0, 4))
    assert list(sampler) == first
    sampler.epoch = 1
    assert list(sampler) != first
    assert list(PairSampler(10, 4, seed=1)) != first


def test_padding_is_told_by_length_and_not_by_id() -> None:
    batch = PairCollator(pad=5)([{"input_ids": [5, 5, 7]}, {"input_ids": [3], "labels": [-100]}])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 5, 7], [-100, -100, -100]]
    packed = PairCollator(pad=0)([{"input_ids": [1, 2, 3], "position_ids": [0, 1, 0]}, {"input_ids": [4, 5]}])
    assert packed["position_ids"].tolist() == [[0, 1, 0], [0, 1, 0]]
    assert "attention_mask" not in packed


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forget_dataset": []}, "forget_dataset: found no row"),
        ({"retain_dataset": None}, "retain_dataset: found none"),
        ({"refusal_dataset": REFUSALS[:3]}, "refusal_dataset: found 3 rows for 12 forget rows"),
        ({"refusal_dataset": None, "forget": "idk-nll"}, "refusal_dataset: found none"),
        ({"forget": "nl"}, "forget: unknown objective 'nl'; choose one of nll"),
        ({"retain": "npo"}, "retain: unknown objective 'npo'"),
        ({"rule": "ngdif"}, "ngdif"),
        ({"base": "rmsprop"}, "base = 'rmsprop'"),
        ({"lr": "fast"}, "lr = 'fast'"),
        ({"of_arguments": {"weight_decay": -1.0}}, "weight_decay = -1.0: must be >= 0"),
        ({"gradient_dtype": torch.float16}, "gradient_dtype = torch.float16: give torch.bfloat16"),
        ({"train_dataset": [], "retain": "kl"}, "train_dataset: these objectives"),
        ({"max_skipped_steps": 0}, "max_skipped_steps: found 0"),
        ({"check_every": 0}, "check_every: found 0"),
        ({"optimizers": (None, None)}, "optimizers: found one"),
        ({"of_arguments": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor: found 0.1"),
        ({"retain_dataset": [*RETAINING, {"input_ids": [1, 2], "labels": [1, -100]}]}, "retain_dataset: row 20 has no scored"),
        ({"forget_dataset": [{"input_ids": [5]}]}, "forget_dataset: row 0 has no scored token among 1"),
        ({"forget_dataset": [{"input_ids": [5, 6], "labels": [5]}]}, "row 0 has 1 labels for 2 input_ids"),
        ({"forget_dataset": [{"input_ids": [5, 6], "attention_mask": [0, 1]}]}, "row 0 is padded"),
        ({"of_arguments": {"fp16": True}}, "fp16: found True"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        trainer(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_deepspeed_is_refused_as_an_argument_and_as_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument before its engine is imported, which is not installed here; a plugin comes by accelerate's configuration."""
    asked = arguments(tmp_path)
    asked.deepspeed = {"zero_optimization": {"stage": 2}}
    with pytest.raises(ValueError, match="deepspeed: its engine steps inside backward and keeps one gradient; use FSDP2"):
        NGDiffTrainer(tiny.llama(), asked, forget_dataset=FORGETTING, retain_dataset=RETAINING)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match=r"accelerate: DeepSpeed.*use FSDP2"):
        trainer(tmp_path)
