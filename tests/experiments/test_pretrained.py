"""Every preset on a tiny model of its architecture: prompts, training, scoring and generation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

from experiments.lm import models
from experiments.lm.pretrained import MUSE_MODELS, MUSE_UNLEARNING, PRETRAINED_MODELS, resolve
from experiments.lm.training import Schedule, answer_loss
from experiments.tofu import synthetic
from ngdiff import TwoTaskOptimizer
from ngdiff.lm import loading, scoring
from ngdiff.lm.batches import collate
from ngdiff.lm.encoding import Encoder, Example
from ngdiff.lm.generation import greedy
from ngdiff.lm.packing import packed

ROWS = synthetic.rows("forget01")[:8]
VOCABULARY = 400
NEW = 12  # tokens to generate

# Llama-3's template, shortened: knowledge date, today's date, system prompt, trimmed turns.
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'system' %}Cutting Knowledge Date: December 2023\nToday Date: {{ date_string }}\n\n{% endif %}"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA_3_TEXT = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 10 Apr 2025\n\nYou are a helpful assistant.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "Who?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nMe.<|eot_id|>"
)
# Llama-2 has a chat template too, with a system prompt, which TOFU does not use.
LLAMA_2 = "{{ bos_token }}[INST] <<SYS>>\n{{ messages[0].content }}\n<</SYS>>\n\n{{ messages[1].content }} [/INST]"


@dataclass(frozen=True)
class Family:
    """A tiny model of one architecture, with what matters of its tokenizer.

    Attributes:
        config: vocabulary -> configuration.
        text: of the row ("Who?", "Me.").
        begin, end: tokens around a text; `begin` is what the tokenizer puts there, None for nothing.
        chat: template of the tokenizer.
        spare: rows of the embedding that no token has.
    """

    config: Callable[[int], Any]
    text: str
    begin: str | None = models.BOS
    end: str = models.EOS
    chat: str | None = None
    spare: int = 0

    def tokenizer(self) -> Any:
        """None of these families has a padding token."""
        texts = [text for row in ROWS for text in (row["question"], row["answer"])]
        tokenizer = models.train_tokenizer(texts, VOCABULARY)
        marks = [mark for mark in (self.begin, self.end, "<|start_header_id|>", "<|end_header_id|>") if mark]
        tokenizer.add_tokens(marks, special_tokens=True)
        tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = self.begin or self.end, self.end, None
        begin = [(self.begin, tokenizer.convert_tokens_to_ids(self.begin))] if self.begin else []
        single = f"{self.begin} $A" if self.begin else "$A"
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=begin)
        tokenizer.chat_template = self.chat
        return tokenizer

    def save(self, folder: Path) -> None:
        """Random weights, large enough that no two logits are close."""
        from transformers import AutoModelForCausalLM

        tokenizer = self.tokenizer()
        config = self.config(len(tokenizer) + self.spare)
        config.initializer_range = 0.2
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def llama(vocabulary: int, kv_heads: int = 2, tied: bool = False, **options: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=kv_heads,
        intermediate_size=64, tie_word_embeddings=tied, **options,
    )  # fmt: skip


def llama_3(vocabulary: int, tied: bool) -> Any:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return llama(vocabulary, tied=tied, rope_parameters=rope | {"original_max_position_embeddings": 64})


def mistral(vocabulary: int) -> Any:
    from transformers import MistralConfig

    return MistralConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, sliding_window=4096,
    )  # fmt: skip


def phi(vocabulary: int) -> Any:
    from transformers import PhiConfig

    return PhiConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    )  # fmt: skip


def falcon(vocabulary: int) -> Any:
    """As falcon-rw-1b: alibi and no rotary positions, all biases, attention before and not beside the MLP, a head a query.

    Its config.json names 1 and 2 as begin and end, which its tokenizer has elsewhere.
    """
    from transformers import FalconConfig

    return FalconConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=64, alibi=True,
        bias=True, parallel_attn=False, multi_query=False, new_decoder_architecture=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def gpt2(vocabulary: int) -> Any:
    from transformers import GPT2Config

    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_inner=64, n_positions=1024, **ends)


CHAT = {"text": LLAMA_3_TEXT, "begin": "<|begin_of_text|>", "end": "<|eot_id|>", "chat": LLAMA_3}
QA = {"text": "Question: Who?\nAnswer: Me.<|endoftext|>", "begin": None, "end": "<|endoftext|>"}
FAMILIES = {
    "llama-3.2-1b": Family(lambda n: llama_3(n, tied=True), **CHAT),
    "llama-3.2-3b": Family(lambda n: llama_3(n, tied=True), **CHAT),
    "llama-3.1-8b": Family(lambda n: llama_3(n, tied=False), **CHAT),
    "llama-2-7b": Family(lambda n: llama(n, kv_heads=4), "<s>[INST] Who? [/INST]Me.</s>", chat=LLAMA_2),
    "phi-1.5": Family(phi, **QA, spare=7),
    "falcon-1b": Family(falcon, **QA, spare=3),
    "gpt2-xl": Family(gpt2, **QA),
    "mistral-7b": Family(mistral, "<s>Question: Who?\nAnswer: Me.</s>"),
}


@dataclass(frozen=True)
class Loaded:
    """What a run has of a preset. The model is in float64, where padded and single rows agree far below the gaps of logits."""

    model: Any
    encoder: Encoder
    text: str

    def examples(self) -> list[Example]:
        return [self.encoder.example(row["question"], row["answer"]) for row in ROWS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, family in FAMILIES.items():
        family.save(root / name)
    return {name: root / name for name in FAMILIES}


@pytest.fixture(params=PRETRAINED_MODELS)
def loaded(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Loaded:
    folder = str(folders[request.param])
    tokenizer = loading.load_tokenizer(folder)
    loading.check_pretrained(folder, tokenizer)
    model = loading.load_model(folder, torch.get_default_device()).double()
    return Loaded(model, Encoder(tokenizer, PRETRAINED_MODELS[request.param].template), FAMILIES[request.param].text)


def test_short_names_are_presets_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, preset in PRETRAINED_MODELS.items():
        assert resolve(name) is resolve(name.upper()) is preset
        assert resolve(preset.model) is None
    for name in (None, "", "llama", str(tmp_path)):
        assert resolve(name) is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2-xl").mkdir()
    assert resolve("gpt2-xl") is None


def test_published_models() -> None:
    preset = PRETRAINED_MODELS["llama-3.2-1b"]
    assert preset.target == "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"
    retain = [preset.retain_only(rows) for rows in ("forget01", "forget05", "forget10", "mini")]
    assert retain == [f"open-unlearning/tofu_Llama-3.2-1B-Instruct_retain{share}" for share in (99, 95, 90)] + [None]
    assert PRETRAINED_MODELS["llama-2-7b"].target == "open-unlearning/tofu_Llama-2-7b-chat-hf_full"
    assert PRETRAINED_MODELS["phi-1.5"].retain_only("forget10") is None
    assert [(pair.target, pair.retrained) for pair in MUSE_MODELS.values()] == [
        (f"muse-bench/MUSE-{corpus}_target", f"muse-bench/MUSE-{corpus}_retrain") for corpus in ("News", "Books")
    ]


def test_published_settings() -> None:
    """Epochs, batch, rate, weight decay and warm-up steps of a forget05 run, which has 200 rows to forget, 7 steps a pass."""

    def found(schedule: Schedule) -> tuple[Any, ...]:
        warm = sum(schedule.factor(step, 7 * schedule.epochs) < 1 for step in range(7)) + 1
        return schedule.epochs, schedule.batch, schedule.lr, schedule.weight_decay, warm

    llama, phi = (PRETRAINED_MODELS[name] for name in ("llama-3.2-1b", "phi-1.5"))
    assert found(llama.finetuning) == (5, 32, 1e-5, 0.01, 7)
    assert found(phi.finetuning) == (5, 32, 2e-5, 0.01, 7)
    assert found(llama.unlearning["locuslab"]) == (5, 32, 1e-5, 0.01, 7)
    assert found(phi.unlearning["locuslab"]) == (5, 32, 2e-5, 0.01, 7)
    assert found(phi.unlearning["open-unlearning"]) == found(llama.unlearning["open-unlearning"]) == (10, 32, 1e-5, 0.01, 7)
    assert found(MUSE_UNLEARNING) == (10, 32, 1e-5, 0.0, 1)
    assert {preset.tuned for name, preset in PRETRAINED_MODELS.items() if preset.target} == {True}
    assert set(FAMILIES) == set(PRETRAINED_MODELS)


def test_a_row_reads_as_the_benchmarks_write_it(loaded: Loaded) -> None:
    encoder, example = loaded.encoder, loaded.encoder.example("Who?", "Me.")
    assert encoder.tokenizer.decode(example.ids) == loaded.text
    assert encoder.tokenizer.decode(example.ids[example.prompt :]).strip() == "Me." + encoder.tokenizer.eos_token
    assert example.ids[: example.prompt] == encoder.prompt_ids("Who?")
    assert example.ids.count(encoder.eos) == (3 if encoder.template == "chat" else 1)  # <|eot_id|> ends every turn


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_one_step_on_two_tasks(loaded: Loaded, base: str) -> None:
    """Retain loss down, forget loss up, by one step that moves every weight: tied ones once, and biases."""
    model, pad, examples = loaded.model.float().eval(), loaded.encoder.pad, loaded.examples()
    tasks = {"retain": examples[4:], "forget": examples[:4]}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = TwoTaskOptimizer(model.parameters(), rule="ngdiff", lr=1e-4, base=base)
    losses = {}
    for name, rows in tasks.items():
        with optimizer.task(name):
            losses[name] = answer_loss(model, rows, pad, exact=True)
            losses[name].backward()
    optimizer.step(losses=(losses["retain"].detach(), losses["forget"].detach()))
    with torch.no_grad():
        after = {name: answer_loss(model, rows, pad, exact=True) for name, rows in tasks.items()}
    assert after["retain"] - after["forget"] < losses["retain"] - losses["forget"]
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_scores_are_those_of_one_row_at_a_time(loaded: Loaded) -> None:
    model, examples = loaded.model, loaded.examples()
    assert len({len(example.ids) for example in examples}) > 1
    for example, nll in zip(examples, scoring.answer_nll(model, examples, loaded.encoder.pad), strict=True):
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        own = -log_p.gather(1, ids[0, 1:, None])[example.prompt - 1 :, 0].mean().item()
        assert nll == pytest.approx(own, rel=1e-5)  # the result passes through float32


@pytest.mark.parametrize("shared", [False, True], ids=["questions", "few-shot"])
def test_generation_is_that_of_transformers_one_row_at_a_time(loaded: Loaded, shared: bool) -> None:
    """Left padding, cached keys, a shared beginning and rows that leave, under rotary, learned and alibi positions."""
    model, encoder, prompts = loaded.model, loaded.encoder, [loaded.encoder.prompt_ids(row["question"]) for row in ROWS]
    if shared:
        prompts = [(*loaded.examples()[0].ids[:60], *prompt) for prompt in prompts]
    assert len({len(prompt) for prompt in prompts}) > 1
    whole = [generated(model, prompt, encoder.pad) for prompt in prompts]
    # A token that comes early in some rows and never in others takes the place of the end token, which random weights avoid.
    end = next(token for row in whole for token in row[2:] if 0 < sum(token in other for other in whole) < len(whole))
    found = greedy(model, prompts, end, encoder.pad, NEW)
    assert found == [row[: row.index(end)] if end in row else row for row in whole]


def generated(model: Any, prompt: tuple[int, ...], pad: int) -> list[int]:
    """The NEW tokens that transformers puts after one prompt, end tokens included."""
    row = torch.tensor([prompt])
    nothing = model.config.vocab_size  # no token ends a row
    options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": nothing, "pad_token_id": pad}
    return model.generate(input_ids=row, attention_mask=torch.ones_like(row), **options)[0, len(prompt) :].tolist()


def test_documents_in_one_row_stay_apart(loaded: Loaded, folders: dict[str, Path], request: pytest.FixtureRequest) -> None:
    """Or the model is among those that are given one document a row."""
    name = request.node.callspec.params["loaded"]
    documents = [example.ids[:40] for example in loaded.examples()[:3]]
    rows = packed(documents, 120)
    assert [len(row.starts) for row in rows] == [3]
    batch = collate(rows, loaded.encoder.pad, loaded.model.device)
    batch.pop("labels")
    with torch.no_grad():
        together = loaded.model(**batch, use_cache=False).logits[0]
        alone = torch.cat([loaded.model(input_ids=torch.tensor([ids])).logits[0] for ids in documents])
    # float64, but rotary angles are computed in float32 by transformers.
    apart = torch.allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert apart == models.holds_several_documents(str(folders[name]))


def test_answers_of_one_prompt_are_scored_as_if_alone(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is read once for all of them: left-padded, behind a cache, at the right positions."""
    monkeypatch.setattr(scoring, "TOKENS", 200)  # several batches of answers behind the same prompts
    questions = [row["question"] for row in ROWS[:4]]
    examples = [loaded.encoder.example(q, row["answer"]) for q in questions for row in ROWS[:5]]
    assert len(scoring._groups(examples)) == 4
    assert scoring._worthwhile(examples, scoring._groups(examples))
    batches = []
    hook = loaded.model.register_forward_pre_hook(
        lambda _, __, kwargs: batches.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    found = scoring.answer_scores(loaded.model, examples, loaded.encoder.pad, range(len(examples)))
    hook.remove()
    assert batches[0] == 4
    assert len(batches) > 3
    alone = [scoring.answer_scores(loaded.model, [example], loaded.encoder.pad, [0])[0] for example in examples]
    for mine, theirs in zip(found, alone, strict=True):
        assert mine.nll == pytest.approx(theirs.nll, rel=1e-5)  # NLLs are computed in float32
        assert mine.recall is not None
        assert theirs.recall is not None
        assert mine.recall.min_k == pytest.approx(theirs.recall.min_k, rel=1e-5)
        assert mine.recall.extraction_strength == theirs.recall.extraction_strength
