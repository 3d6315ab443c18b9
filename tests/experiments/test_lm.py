"""Batched, sorted, cached and padded computations against the same things done one row at a time."""

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from experiments.lm import models
from experiments.lm.methods import Method
from experiments.lm.training import FROM_SCRATCH, PRETRAINED, Schedule, answer_loss, finetune, shaken
from experiments.lm.unlearning import Rows, unlearn
from experiments.tofu import synthetic
from ngdiff import rules
from ngdiff.errors import UserError
from ngdiff.lm import generation, scoring
from ngdiff.lm.batches import collate, length_sorted, shuffled_batches
from ngdiff.lm.encoding import Encoder, Example
from ngdiff.lm.objectives import FORGET, TaskLoss
from ngdiff.objectives import IGNORE

ROWS = synthetic.rows("forget01")[:24]
SIZE = models.Size(hidden=64, layers=2, heads=4, intermediate=128, vocabulary=400)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(models.train_tokenizer([row["question"] + row["answer"] for row in ROWS], SIZE.vocabulary))


@pytest.fixture
def model(encoder: Encoder) -> Any:
    """In float64, where batched and single computations agree far below the gaps between logits."""
    torch.manual_seed(0)
    return models.build_llama(SIZE, encoder.tokenizer).double().eval()


@pytest.fixture
def examples(encoder: Encoder) -> list[Example]:
    return [encoder.example(row["question"], row["answer"]) for row in ROWS]


# Encoding


def test_qa_template(encoder: Encoder) -> None:
    example = encoder.example("Who?", "Me.")
    prompt = encoder.tokenizer.decode(example.ids[: example.prompt])
    assert prompt == "<s>Question: Who?\nAnswer:"
    assert encoder.tokenizer.decode(example.ids[example.prompt :]) == " Me.</s>"
    assert example.ids[: example.prompt] == encoder.prompt_ids("Who?")
    assert example.scored == len(example.ids) - example.prompt


def test_end_token_is_not_doubled(encoder: Encoder) -> None:
    assert encoder.example("Who?", "Me.</s>").ids == encoder.example("Who?", "Me.").ids


def test_an_end_token_that_the_tokenizer_adds_is_not_in_the_prompt(encoder: Encoder) -> None:
    """Nor twice in the answer, where the answer ends in one of its own; of texts tokenised together, each by itself."""
    tokenizer = models.train_tokenizer([row["question"] + row["answer"] for row in ROWS], SIZE.vocabulary)
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    adding = Encoder(tokenizer)
    pairs = [("Who?", "Me."), ("Who?", "Me.</s>"), ("Where?", "")]
    assert adding.prompt_ids("Who?") == encoder.prompt_ids("Who?")
    assert [adding.example(*pair) for pair in pairs[::2]] == [encoder.example(*pair) for pair in pairs[::2]]
    assert adding.examples(pairs) == [adding.example(*pair) for pair in pairs]


def test_llama2_template(encoder: Encoder) -> None:
    llama2 = Encoder(encoder.tokenizer, "llama2")
    example = llama2.example("Who?", "Me.")
    assert encoder.tokenizer.decode(example.ids) == "<s>[INST] Who? [/INST]Me.</s>"


CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{{ date_string }}>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT


@pytest.mark.parametrize(("template", "system"), [(CHAT, "system:You are a helpful assistant.;"), (NO_SYSTEM, "")])
def test_chat_template(encoder: Encoder, template: str, system: str) -> None:
    """With a fixed date, and without the system turn where the template refuses one."""
    tokenizer = models.train_tokenizer(["a"], 300)
    tokenizer.chat_template = template
    chat = Encoder(tokenizer)
    assert chat.template == "chat"
    assert tokenizer.decode(chat.example("Who?", "Me.").ids) == f"<s>{system}user:Who?;10 Apr 2025>Me.</s>"


def test_token_merged_over_the_boundary_is_scored() -> None:
    """A tokenizer that merges the prompt's last character with the answer's first one."""
    merging = models.train_tokenizer(["[INST] q [/INST]]", "]]" * 50], 300)
    merging.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    example = Encoder(merging, "llama2").example("q", "]x")
    prompt, answer = (merging.decode(part) for part in (example.ids[: example.prompt], example.ids[example.prompt :]))
    assert prompt + answer == "<s>[INST] q [/INST]]x</s>"
    assert answer.startswith("]]")


# Batches


def test_collate_masks_by_length_and_not_by_id(examples: list[Example]) -> None:
    pad = examples[0].ids[-1]  # the end token, as in tokenizers without a padding token
    batch = collate(examples[:5], pad, CPU)
    for i, example in enumerate(examples[:5]):
        n = len(example.ids)
        assert batch["input_ids"][i, :n].tolist() == list(example.ids)
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (batch["input_ids"].shape[1] - n)
        scored = (batch["labels"][i] != IGNORE).nonzero()[:, 0].tolist()
        assert scored == list(range(example.prompt, n))
    assert "attention_mask" not in collate([examples[0], examples[0]], pad, CPU)


@pytest.mark.parametrize("tokens", [1, 50, 200, 10**6])
def test_length_sorted_covers_all_within_the_budget(tokens: int) -> None:
    lengths = [(7 * i) % 31 + 1 for i in range(50)]
    batches = list(length_sorted(lengths, tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens for batch in batches)
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)


def test_shuffled_batches_cover_all_once_and_depend_on_the_generator() -> None:
    lengths = [(7 * i) % 31 + 1 for i in range(101)]
    first, second, third = (shuffled_batches(lengths, 8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first == second != third
    assert sorted(i for batch in first for i in batch) == list(range(101))
    assert max(map(len, first)) == 8


# Scoring and generation


def test_scores_are_those_of_one_row_at_a_time(
    model: Any, encoder: Encoder, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "TOKENS", 500)  # several batches
    found = scoring.answer_nll(model, examples, encoder.pad)
    for example, nll in zip(examples, found, strict=True):
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        own = -log_p.gather(1, ids[0, 1:, None])[example.prompt - 1 :, 0].mean().item()
        assert nll == pytest.approx(own, rel=1e-5)  # the result passes through float32


def test_destroyed_model_scores_a_large_number(model: Any, encoder: Encoder, examples: list[Example]) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    assert scoring.answer_nll(model, examples[:3], encoder.pad) == [scoring.LARGEST_NLL] * 3


def test_generation_is_that_of_transformers_one_row_at_a_time(
    model: Any, encoder: Encoder, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of different length, some ending early: left padding, cache and shrinking batches change nothing."""
    finetune(model, examples, encoder.pad, Schedule(epochs=30, batch=8, lr=5e-3), torch.Generator().manual_seed(0))
    prompts = [encoder.prompt_ids(row["question"]) for row in ROWS]
    monkeypatch.setattr(
        generation, "CACHE", 8 * (max(map(len, prompts)) + 40) * generation.cache_bytes(model)
    )  # several batches
    rows_read = []
    hook = model.register_forward_pre_hook(lambda _, __, kwargs: rows_read.append(len(kwargs["input_ids"])), with_kwargs=True)
    ways, costs = [], []
    for leave in (1, generation.LEAVE, 0):  # at once, some together, all at the end
        rows_read.clear()
        monkeypatch.setattr(generation, "LEAVE", leave)
        ways.append(generation.greedy(model, prompts, encoder.eos, encoder.pad, 40))
        costs.append(sum(rows_read))
    hook.remove()
    found = ways[0]
    assert ways == [found] * 3
    assert costs[0] < costs[2]
    for prompt, ids in zip(prompts, found, strict=True):
        options = {"do_sample": False, "max_new_tokens": 40, "eos_token_id": encoder.eos, "pad_token_id": encoder.pad}
        input_ids = torch.tensor([prompt])
        own = model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **options)[
            0, len(prompt) :
        ].tolist()
        assert ids == own[: own.index(encoder.eos) if encoder.eos in own else None]
    lengths = set(map(len, found))
    assert min(lengths) < 40 == max(lengths)  # both kinds occurred


def test_rows_whose_text_is_over_leave_with_what_they_wrote(model: Any, encoder: Encoder) -> None:
    """Each with the shortest beginning of its whole answer that is over; the others go on as before."""
    prompts = [encoder.prompt_ids(row["question"]) for row in ROWS]
    whole = generation.greedy(model, prompts, encoder.eos, encoder.pad, 12)
    common = max({i for ids in whole for i in ids}, key=lambda i: sum(i in ids for ids in whole))

    def over(ids: list[int]) -> bool:
        return common in ids

    rows = []
    hook = model.register_forward_pre_hook(lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    found = generation.greedy(model, prompts, encoder.eos, encoder.pad, 12, over)
    hook.remove()
    assert found == [ids[: ids.index(common) + 1] if common in ids else ids for ids in whole]
    assert sum(map(len, found)) < sum(map(len, whole))
    assert rows[-1] < rows[0] or len(rows) < 12


@pytest.mark.parametrize("shots", [0, 1, 3])
def test_a_shared_beginning_is_read_once_and_changes_nothing(model: Any, encoder: Encoder, shots: int) -> None:
    """Few-shot prompts, of which one is the beginning of the others."""
    beginning = [i for row in ROWS[:shots] for i in encoder.example(row["question"], row["answer"]).ids]
    prompts = [[*beginning, *encoder.prompt_ids(row["question"])] for row in ROWS]
    prompts.append([*beginning, encoder.prompt_ids(ROWS[0]["question"])[0]])
    read = []
    hook = model.register_forward_pre_hook(lambda _, __, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True)
    found = generation.greedy(model, prompts, encoder.eos, encoder.pad, 8)
    hook.remove()
    assert found == [generation.greedy(model, [prompt], encoder.eos, encoder.pad, 8)[0] for prompt in prompts]
    if shots == 3:
        assert read[0] == len(beginning)
        assert read[1] < len(prompts) * max(map(len, prompts)) - len(prompts) * len(beginning) + 1


def test_a_batch_of_generations_fits_its_budget(model: Any, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of cache entries, or of the bytes that they take; as many rows as fit with all that is to be written."""
    prompts = [encoder.prompt_ids(row["question"]) for row in ROWS]
    longest = max(map(len, prompts)) + 16
    shapes: list[torch.Size] = []
    hook = model.register_forward_pre_hook(lambda _, __, kw: shapes.append(kw["attention_mask"].shape), with_kwargs=True)
    for name, size in (("TOKENS", 1), ("CACHE", generation.cache_bytes(model))):
        shapes.clear()
        with monkeypatch.context() as patch:
            patch.setattr(generation, name, 5 * longest * size)
            generation.greedy(model, prompts, encoder.eos, encoder.pad, 16)
        assert shapes[0][0] == 5
        assert max(shape.numel() for shape in shapes) <= 5 * longest
    hook.remove()


def test_no_forward_follows_once_all_rows_have_ended(model: Any, encoder: Encoder) -> None:
    prompts = [encoder.prompt_ids(row["question"]) for row in ROWS[:4]]
    calls = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(0))
    found = generation.greedy(model, prompts, encoder.eos, encoder.pad, 12, lambda ids: len(ids) == 3)
    hook.remove()
    assert list(map(len, found)) == [3] * 4
    assert len(calls) == 3


@pytest.fixture
def crowded(model: Any) -> Any:
    """A model that two rows at most fit into memory with."""

    def refuse(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    copy = deepcopy(model)
    copy.register_forward_pre_hook(refuse, with_kwargs=True)
    return copy


def test_generation_ends_where_the_model_has_no_positions_left() -> None:
    """Each row at its own length, as it would alone; with learned positions a token more is an error."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=12, n_embd=16, n_layer=1, n_head=2)).double().eval()
    prompts = [list(range(2, 2 + length)) for length in (12, 10, 4, 3)]
    found = generation.greedy(model, prompts, eos=1, pad=0, max_new_tokens=20)
    assert [len(ids) for ids in found] == [1, 3, 9, 10]  # the last token needs no position of its own
    for prompt, ids in zip(prompts, found, strict=True):
        alone = list(prompt)
        for _ in ids:
            alone.append(int(model(torch.tensor([alone])).logits[0, -1].argmax()))
        assert alone[len(prompt) :] == ids


def test_what_does_not_fit_into_memory_is_generated_in_parts(model: Any, crowded: Any, encoder: Encoder) -> None:
    prompts = [encoder.prompt_ids(row["question"]) for row in ROWS[:5]]
    ways = [generation.greedy(each, prompts, encoder.eos, encoder.pad, 5) for each in (model, crowded)]
    assert ways[0] == ways[1]


@pytest.mark.parametrize("answers", [1, 3])
def test_what_does_not_fit_into_memory_is_scored_in_parts(model: Any, crowded: Any, encoder: Encoder, answers: int) -> None:
    """Rows in one piece; and both the prompts that are read once for three answers each, and the answers to one of them."""
    texts = [row["answer"] for row in ROWS]
    pairs = [(row["question"], text) for i, row in enumerate(ROWS[:3]) for text in texts[i : i + answers]]
    rows = encoder.examples(pairs)
    assert scoring._worthwhile(rows, scoring._groups(rows)) == (answers > 1)
    ways = [scoring.answer_nll(each, rows, encoder.pad) for each in (model, crowded)]
    assert ways[1] == pytest.approx(ways[0], rel=1e-6)  # the results pass through float32


def test_fewer_prompts_are_held_where_answers_find_no_room_beside_them(
    model: Any, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [row["answer"] for row in ROWS]
    rows = encoder.examples([(row["question"], text) for i, row in enumerate(ROWS[:5]) for text in texts[i : i + 3]])
    expected = scoring.answer_nll(model, rows, encoder.pad)
    held: list[int] = []
    continued = scoring._Read.continued

    def crowded(self: Any, *arguments: Any) -> Any:
        held.append(len(self.mask))
        if held[-1] > 2:
            raise torch.OutOfMemoryError
        return continued(self, *arguments)

    monkeypatch.setattr(scoring._Read, "continued", crowded)
    assert scoring.answer_nll(model, rows, encoder.pad) == pytest.approx(expected, rel=1e-6)  # they pass through float32
    assert (max(held), held[-1]) == (5, 1)
    monkeypatch.setattr(scoring._Read, "continued", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError))
    with pytest.raises(UserError, match=r"one row of \d+ tokens does not fit into memory"):
        scoring.answer_nll(model, rows, encoder.pad)


# Training


def test_accumulated_gradient_is_that_of_the_whole_batch(model: Any, encoder: Encoder, examples: list[Example]) -> None:
    answer_loss(model, examples[:7], encoder.pad).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    for parts in (1, 2, 3, 7):
        model.zero_grad()
        loss = TaskLoss(FORGET["nll"], model, examples, None, encoder.pad, None).backward(range(7), parts)
        # Losses are computed in float32 or wider; here float64, about 1e3 roundings.
        assert loss.item() == pytest.approx(answer_loss(model, examples[:7], encoder.pad).item(), rel=1e-6)
        for mine, theirs in zip(model.parameters(), whole, strict=True):
            torch.testing.assert_close(mine.grad, theirs, rtol=1e-9, atol=1e-12)


def test_schedule_warms_up_and_decays() -> None:
    schedule = replace(FROM_SCRATCH, warmup=0.1)
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) <= 1
    assert factors.index(max(factors)) == 9
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 1e-3


@pytest.mark.parametrize(("steps", "warmup"), [(625, 125), (20, 4), (5, 1)])
def test_pretrained_models_decay_as_the_benchmarks_do(steps: int, warmup: int) -> None:
    """After the warm-up as in transformers, which both train with; in the warm-up a step ahead, for theirs begins at 0."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    rates = []
    for _ in range(steps):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    factors = [PRETRAINED.factor(step, steps) for step in range(steps)]
    assert factors[warmup:] == pytest.approx(rates[warmup:])
    assert factors[:warmup] == pytest.approx(rates[1 : warmup + 1])


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_every_step_of_every_schedule_moves_the_weights(decay: Any, steps: int, warmup: float) -> None:
    schedule = replace(FROM_SCRATCH, decay=decay, warmup=warmup)
    assert all(0 < schedule.factor(step, steps) <= 1 for step in range(steps))


def test_constant_schedule_stays_at_the_peak() -> None:
    assert {replace(FROM_SCRATCH, decay="constant", warmup=0.0).factor(step, 9) for step in range(9)} == {1.0}


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_diverging_fine_tuning_is_one_line(model: Any, encoder: Encoder, examples: list[Example], noise: float) -> None:
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(UserError, match=r"--finetune-lr: 0\.002 gave loss nan at step 0"):
        finetune(model, examples, encoder.pad, replace(FROM_SCRATCH, noise=noise), torch.Generator().manual_seed(0))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), before, strict=True))


def test_shaken_weights_differ_by_their_share_and_come_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(scale * torch.randn(20_000)) for scale in (1e-3, 5.0)]
    before = [p.detach().clone() for p in parameters]
    with pytest.raises(KeyError), shaken(parameters, 0.1):
        # The deviation of 20,000 draws is off by 1 / sqrt(40,000) = 0.5 %; 2 % are four times that.
        shares = [(p - b).std().item() / b.square().mean().sqrt().item() for p, b in zip(parameters, before, strict=True)]
        assert shares == pytest.approx([0.1, 0.1], rel=0.02)
        raise KeyError
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_no_noise_draws_nothing() -> None:
    before = torch.get_rng_state()
    parameter = torch.nn.Parameter(torch.ones(3))
    with shaken([parameter], 0.0):
        assert torch.equal(parameter, torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_with_noise_goes_from_the_weights_themselves_along_the_gradient_beside_them(
    model: Any, encoder: Encoder, examples: list[Example]
) -> None:
    before = [p.detach().clone() for p in model.parameters()]
    schedule = Schedule(epochs=1, batch=len(examples), lr=1e-3, decay="constant", warmup=0.0)

    def stepped(noise: float) -> list[torch.Tensor]:
        torch.manual_seed(0)
        copy = deepcopy(model)
        finetune(copy, examples, encoder.pad, replace(schedule, noise=noise), torch.Generator().manual_seed(0))
        return list(copy.parameters())

    plain, noisy = stepped(0.0), stepped(0.5)
    # AdamW's first step moves every weight by the rate at most, to rounding; noise left behind would be hundreds of times that.
    assert all((p - b).abs().max() <= 1.01e-3 for p, b in zip(noisy, before, strict=True))
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(noisy, plain, strict=True))  # some go the other way
    assert all(torch.equal(p, q) for p, q in zip(noisy, stepped(0.5), strict=True))


@pytest.mark.parametrize("rule", ["ngdiff", "ga"])
def test_every_method_sees_the_same_batches(model: Any, encoder: Encoder, examples: list[Example], rule: str) -> None:
    """With a rate so small that nothing changes, the losses tell which rows were drawn."""
    records = [
        list(
            unlearn(
                model,
                Rows(examples[:5], examples[5:], encoder.pad),
                Method(name, "sgd", 1e-30),
                4,
                3,
                torch.Generator().manual_seed(0),
            )
        )
        for name in ("gdiff", rule)
    ]
    for mine, theirs in zip(*records, strict=True):
        assert (mine["retain_loss"], mine["forget_loss"]) == (theirs["retain_loss"], theirs["forget_loss"])
    assert len({record["forget_loss"] for record in records[0]}) == 4


@pytest.mark.parametrize("lr", [1e-2, "gen"])
@pytest.mark.parametrize(("rule", "read"), [("ngdiff", ["retain", "forget"]), ("ga", ["forget"]), ("retain", ["retain"])])
def test_what_a_rule_does_not_read_has_no_backward(
    model: Any,
    encoder: Encoder,
    examples: list[Example],
    rule: str,
    read: list[str],
    lr: float | str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the run is the same as if it had one."""
    if lr == "gen":
        pytest.importorskip("GeN")
    parts: list[int] = []
    backward = TaskLoss.backward
    monkeypatch.setattr(TaskLoss, "backward", lambda self, *a: parts.append(len(self.texts["answer"])) or backward(self, *a))

    def unlearned() -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
        copy, rows = deepcopy(model), Rows(examples[:5], examples[5:], encoder.pad)
        records = list(unlearn(copy, rows, Method(rule, "sgd", lr), 3, 3, torch.Generator().manual_seed(0)))
        return records, [p.detach() for p in copy.parameters()]

    records, weights = unlearned()
    counts = {"retain": len(examples) - 5, "forget": 5}
    assert parts == [counts[task] for task in read] * 3
    unread = {"retain", "forget"} - set(read)
    missing = {f"norm_{task}" for task in unread} | ({"cosine"} if unread else set())
    assert [{name for name, value in record.items() if value is None} for record in records] == [missing] * 3
    monkeypatch.setattr(type(rules.get(rule)), "tasks", ("retain", "forget"))
    both, expected = unlearned()
    for name in ("retain_loss", "forget_loss"):
        assert [record[name] for record in both] == [record[name] for record in records]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights, expected, strict=True))


def test_the_retain_task_may_have_more_rows(model: Any, encoder: Encoder, examples: list[Example]) -> None:
    """All of them in each step, so that the loss is the same throughout; the forget rows stay those of before."""

    def losses(retain_batch: int | None) -> list[dict[str, Any]]:
        rows, method = Rows(examples[:5], examples[5:], encoder.pad), Method("gdiff", "sgd", 1e-30)
        return list(unlearn(model, rows, method, 2, 3, torch.Generator().manual_seed(0), retain_batch=retain_batch))

    few, all_of_them = losses(None), losses(len(examples) - 5)
    assert few[0]["forget_loss"] == all_of_them[0]["forget_loss"]
    assert few[0]["retain_loss"] != few[1]["retain_loss"]
    assert all_of_them[0]["retain_loss"] == pytest.approx(all_of_them[1]["retain_loss"], rel=1e-6)  # summed in another order


def test_forget_rows_come_in_whole_passes() -> None:
    from experiments.lm.unlearning import _passes

    batches = _passes(5, 3, torch.Generator().manual_seed(0))
    rows = [i for _ in range(5) for i in next(batches)]
    assert [sorted(rows[k : k + 5]) for k in (0, 5, 10)] == [list(range(5))] * 3


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_unlearning_forgets_and_keeps(model: Any, encoder: Encoder, examples: list[Example], base: str) -> None:
    model.float()
    finetune(model, examples, encoder.pad, Schedule(epochs=60, batch=8, lr=5e-3), torch.Generator().manual_seed(0))
    forget, retain = examples[:4], examples[4:]
    rows = Rows(forget, retain, encoder.pad)
    list(unlearn(model, rows, Method("ngdiff", base, "auto"), 40, 8, torch.Generator().manual_seed(0)))
    mean = [sum(math.exp(-x) for x in scoring.answer_nll(model, rows, encoder.pad)) / len(rows) for rows in (retain, forget)]
    # Both are 0.98 before.
    assert mean[0] > 0.8
    assert mean[1] < 0.1


def test_gradient_that_is_not_finite_stops_fine_tuning_before_it_is_written(
    model: Any, encoder: Encoder, examples: list[Example]
) -> None:
    weight = model.lm_head.weight
    weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weight.detach().clone()
    with pytest.raises(UserError, match=r"--finetune-lr: 0\.002 gave gradient norm nan at step 0"):
        finetune(model, examples, encoder.pad, FROM_SCRATCH, torch.Generator().manual_seed(0))
    assert torch.equal(weight, before)
