"""How much of an answer a generation repeats."""

from functools import lru_cache
from typing import Any


def rouge_recall(answer: str, generation: str) -> float:
    """rougeL recall with stemming, as rouge_score computes it for (target=answer, prediction=generation)."""
    return float(_scorer().score(target=answer, prediction=generation)["rougeL"].recall)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports a stemmer, half a second

    return RougeScorer(["rougeL"], use_stemmer=True)
