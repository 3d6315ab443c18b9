"""MUSE's evaluation of one model: passages continued, questions answered, texts scored, in batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.muse.data import Knowledge, MuseData, Passage, Question, Text
from experiments.muse.metrics import Evaluation, Written, cut, is_over
from experiments.speed import Speed
from ngdiff.lm.encoding import Example
from ngdiff.lm.generation import greedy
from ngdiff.lm.packing import document, encode_text
from ngdiff.lm.scoring import answer_min_k

PASSAGE_TOKENS, ANSWER_TOKENS = 128, 32  # written at most: those of the benchmark
ATTACKED = ("forget", "holdout")  # PrivLeak reads no more


@dataclass(frozen=True)
class Reader:
    """A model with what it takes to let it read and write.

    Attributes:
        model: of transformers, on its device.
        tokenizer: the model's own.
        pad: id to pad with.
        length: tokens of a text that are scored, at most.
    """

    model: Any
    tokenizer: Any
    pad: int
    length: int

    def written(self, prompts: Sequence[str], tokens: int, ends: Callable[[str], bool] | None = None) -> list[list[int]]:
        """At most `tokens` ids after each prompt, and no more once their text `ends`."""
        ids = [encode_text(self.tokenizer, prompt)[:-1] for prompt in prompts]  # begun as the texts are, and not ended
        enough = None if ends is None else lambda found: ends(self.text(found))
        return greedy(self.model, ids, int(self.tokenizer.eos_token_id), self.pad, tokens, enough)

    def text(self, ids: Sequence[int]) -> str:
        """Ids as text, special tokens dropped."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def evaluate(
    reader: Reader, data: MuseData, on_part: Callable[[str], None] = lambda part: None, speed: Speed | None = None
) -> Evaluation:
    """All that MUSE's metrics need of one model.

    Args:
        reader: the model.
        data: the corpus.
        on_part: called with the name of each part before it begins.
        speed: filled in.
    """
    speed = speed or Speed()
    with speed.part("generating", on_part):
        passages, written = continued(reader, data.passages)
        forget, more = answered(reader, data.forget_knowledge)
        seen, most = answered(reader, data.seen_knowledge)
        prompted = {name: answered(reader, knowledge) for name, knowledge in other_prompts(data).items()}
    members = {name: texts for name, texts in data.members.items() if name in ATTACKED}
    with speed.part("scoring", on_part):
        scored = {name: min_k(reader, texts) for name, texts in members.items()}
    speed.tokens = {
        "generating": written + more + most + sum(tokens for _, tokens in prompted.values()),
        "scoring": sum(len(_row(reader, text).ids) for texts in members.values() for text in texts),
    }
    return Evaluation(passages, forget, seen, scored, {name: rows for name, (rows, _) in prompted.items()})


def other_prompts(data: MuseData) -> dict[str, Knowledge]:
    """Metric -> questions of the benchmark after other prompts than its own.

    Its examples for the forget questions are of forget texts. A model that has unlearned may answer nothing after these, and
    all after others.
    """
    return {
        "knowmem_zero_shot": replace(data.forget_knowledge, shots=()),
        "knowmem_kept_shots": replace(data.forget_knowledge, shots=data.seen_knowledge.shots),
        "utility_zero_shot": replace(data.seen_knowledge, shots=()),
    }


def continued(reader: Reader, passages: Sequence[Passage]) -> tuple[list[Written], int]:
    """Passages continued, beside as many tokens of the truth; and the number of tokens written."""
    generated = reader.written([passage.prompt for passage in passages], PASSAGE_TOKENS)
    truths = [
        reader.text(reader.tokenizer(passage.continuation, add_special_tokens=False)["input_ids"][:PASSAGE_TOKENS])
        for passage in passages
    ]
    rows = zip(passages, truths, generated, strict=True)
    return [Written.scored(p.prompt, truth, reader.text(ids)) for p, truth, ids in rows], sum(map(len, generated))


def asked(knowledge: Knowledge, question: Question) -> str:
    """The prompt of a question: the shots, then the question.

    It ends with "Answer:" and no blank, unlike the reference implementation's: byte-level tokenizers attach a blank to the word
    after it, and a lone one would be a token that no text has there.
    """
    shots = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in knowledge.shots)
    return f"{shots}Question: {question.question}\nAnswer:"


def answered(reader: Reader, knowledge: Knowledge) -> tuple[list[Written], int]:
    """Questions answered after the shots; and the number of tokens written."""
    questions = knowledge.evaluated
    generated = reader.written([asked(knowledge, row) for row in questions], ANSWER_TOKENS, is_over)
    rows = zip(questions, generated, strict=True)
    return [Written.scored(row.question, row.answer, cut(reader.text(ids))) for row, ids in rows], sum(map(len, generated))


def min_k(reader: Reader, texts: Sequence[Text]) -> list[float]:
    """Min-K of each text, see `ngdiff.lm.scoring.Recall`."""
    return answer_min_k(reader.model, [_row(reader, text) for text in texts], reader.pad)


def _row(reader: Reader, text: Text) -> Example:
    return document(encode_text(reader.tokenizer, text.text), reader.length)
