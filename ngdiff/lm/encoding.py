"""From a question and an answer to token ids, by the template that the model was trained with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from ngdiff.errors import UserError
from ngdiff.objectives import IGNORE

SYSTEM = "You are a helpful assistant."
DATE = "10 Apr 2025"  # Llama-3's template prints a date; a fixed one keeps results reproducible (open-unlearning's choice)


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and answer; the first `prompt` of them are not scored.

    Attributes:
        starts: where documents begin, for a row that holds several. They do not see each other, and the first token of each is
            not scored, for nothing predicts it.
        unscored: (first, end) of what is not scored between two answers: the later questions of a conversation.
    """

    ids: tuple[int, ...]
    prompt: int
    starts: tuple[int, ...] = (0,)
    unscored: tuple[tuple[int, int], ...] = ()

    @property
    def labels(self) -> tuple[int, ...]:
        """The ids, with -100 where a token is not scored."""
        labels = [IGNORE] * self.prompt + list(self.ids[self.prompt :])
        for start in self.starts:
            labels[start] = IGNORE
        for first, end in self.unscored:
            labels[first:end] = [IGNORE] * (end - first)
        return tuple(labels)

    @property
    def scored(self) -> int:
        """Number of tokens that are scored."""
        return len(self.ids) - self.prompt - (len(self.starts) - 1) - sum(end - first for first, end in self.unscored)


class Encoder:
    """A tokenizer and a template.

    Args:
        tokenizer: of transformers, a fast one.
        template: "qa" (`Question: ...\\nAnswer: ...`, for base models), "llama2", "chat" (the tokenizer's own), "plain" (the
            question as it is), or "auto": "chat" where the tokenizer has a chat template and "qa" elsewhere.

    Raises:
        UserError: unknown template, or "chat" without a chat template, or no end token.
    """

    def __init__(self, tokenizer: Any, template: str = "auto"):
        if template == "auto":
            template = "chat" if tokenizer.chat_template else "qa"
        if template not in TEMPLATES:
            raise UserError(f"--template: unknown template {template!r}; choose one of auto, {', '.join(TEMPLATES)}")
        if template == "chat" and not tokenizer.chat_template:
            raise UserError("--template: 'chat' needs a tokenizer with a chat template, and this one has none; use 'qa'")
        if tokenizer.eos_token_id is None:
            raise UserError("--model: its tokenizer has no end-of-sequence token, which ends answers; choose another model")
        self.tokenizer = tokenizer
        self.template = template
        self.eos = int(tokenizer.eos_token_id)
        # Padding is masked by lengths, never by comparing ids, so that pad = eos hides no real end token.
        self.pad = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else self.eos
        self._prompt_text = lru_cache(maxsize=8192)(partial(TEMPLATES[template], tokenizer))
        self._prompt_ids = lru_cache(maxsize=8192)(self._encode_prompt)

    def prompt_ids(self, question: str) -> tuple[int, ...]:
        """What generation starts from."""
        return self._prompt_ids(question)

    def example(self, question: str, answer: str) -> Example:
        """Prompt, answer and end token; the answer and the end token are scored.

        The text is tokenised as one piece. Where that merges the last token of the prompt with the answer, the merged token is
        scored too.
        """
        return self.examples([(question, answer)])[0]

    def examples(self, pairs: Sequence[tuple[str, str]]) -> list[Example]:
        """`example` of each question and answer, tokenised together, which takes less time."""
        texts = ["".join(self._prompt_text(question)) + answer for question, answer in pairs]
        return [self._example(question, ids) for (question, _), ids in zip(pairs, self._encode(texts), strict=True)]

    def _example(self, question: str, ids: tuple[int, ...]) -> Example:
        if not ids or ids[-1] != self.eos:
            ids = (*ids, self.eos)
        prompt = self.prompt_ids(question)
        common = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), min(len(prompt), len(ids) - 1))
        return Example(ids, max(common, 1))  # nothing predicts the first token

    def decode(self, ids: list[int]) -> str:
        """Generated ids as text, special tokens dropped, stripped."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _encode_prompt(self, question: str) -> tuple[int, ...]:
        return self._encode([self._prompt_text(question)[0]])[0]

    def _encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of texts that begin a sequence each. A chat template writes its special tokens itself; elsewhere the tokenizer
        adds those that its model was trained with, of which an end token is not wanted yet.
        """
        if not texts:
            return []
        chat = self.template == "chat"
        rows = map(tuple, self.tokenizer(list(texts), add_special_tokens=not chat)["input_ids"])
        added = [not chat and not text.endswith(self.tokenizer.eos_token) for text in texts]
        return [ids[:-1] if ends and ids[-1:] == (self.eos,) else ids for ids, ends in zip(rows, added, strict=True)]


def _qa(tokenizer: Any, question: str) -> tuple[str, str]:
    return f"Question: {question}\nAnswer:", " "


def _llama2(tokenizer: Any, question: str) -> tuple[str, str]:
    return f"[INST] {question} [/INST]", ""


def _plain(tokenizer: Any, prompt: str) -> tuple[str, str]:
    return prompt, ""


def _chat(tokenizer: Any, question: str) -> tuple[str, str]:
    from jinja2 import TemplateError

    user = {"role": "user", "content": question}
    options = {"tokenize": False, "add_generation_prompt": True, "date_string": DATE}
    try:
        return tokenizer.apply_chat_template([{"role": "system", "content": SYSTEM}, user], **options), ""
    except TemplateError:  # templates such as Gemma's and Mistral's refuse a system turn
        return tokenizer.apply_chat_template([user], **options), ""


# tokenizer, question -> (prompt, separator); the separator belongs to the answer, because byte-level tokenizers
# attach a space to the word after it.
TEMPLATES: dict[str, Callable[[Any, str], tuple[str, str]]] = {
    "qa": _qa,
    "llama2": _llama2,
    "chat": _chat,
    "plain": _plain,
}
