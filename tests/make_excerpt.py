"""Writes experiments/excerpt.json: generated rows and what TOFU's definitions make of them, by exact or 50-digit arithmetic.

Run `python tests/make_excerpt.py` to write it again. It shares no code with the metrics it checks: probabilities are
multiplied and not added up as logarithms, the harmonic mean is written out, and the p-value counts lattice paths.
"""

import json
import random
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

from mpmath import mp, mpf

EXCERPT = Path(__file__).parent / "experiments" / "excerpt.json"
ROWS = {"forget": 24, "retain": 12, "real_authors": 8, "world_facts": 8}
WORDS = ["amber", "bridge", "candle", "delta", "ember", "forest", "garden", "harbour", "island", "jasmine", "kettle", "lantern"]


def main() -> None:
    mp.dps = 50
    rng = random.Random("excerpt")
    rows = {model: {name: [_row(rng, name, model) for _ in range(n)] for name, n in ROWS.items()} for model in _MODELS}
    expected: dict[str, Any] = {model: _expected(sets) for model, sets in rows.items()}
    expected |= _forget_quality(*([_truth(r) for r in rows[model]["forget"]] for model in _MODELS))
    EXCERPT.write_text(json.dumps({"rows": rows, "expected": expected}, indent=1) + "\n", encoding="utf-8")


_MODELS = ("unlearned", "reference")


def _row(rng: random.Random, name: str, model: str) -> dict[str, Any]:
    answer = [rng.choice(WORDS) for _ in range(rng.randint(4, 9))]
    generation = [word if rng.random() < 0.6 else rng.choice(WORDS) for word in answer] + rng.sample(WORDS, 2)
    shift = 1.5 if (name, model) == ("forget", "unlearned") else 0.0
    return {
        "question": "",
        "answer": " ".join(answer),
        "generation": " ".join(generation),
        "nll_answer": round(rng.uniform(0.0, 2.0) + shift, 6),
        "nll_right": round(rng.uniform(0.0, 2.0) + shift, 6),
        "nll_wrong": [round(rng.uniform(0.5, 4.0), 6) for _ in range(5 if name in ("forget", "retain") else 3)],
    }


def _probability(nll: float) -> Any:
    return mp.exp(-mpf(str(nll)))


def _truth(row: dict[str, Any]) -> Any:
    product = mpf(1)
    for nll in row["nll_wrong"]:
        product *= _probability(nll)
    return mp.root(product, len(row["nll_wrong"])) / _probability(row["nll_right"])


def _recall(row: dict[str, Any]) -> Fraction:
    """Longest common subsequence over the answer's length, by trying every subsequence of the answer, longest first."""
    answer, generation = row["answer"].split(), row["generation"].split()
    masks = sorted(range(2 ** len(answer)), key=lambda mask: -mask.bit_count())
    best = next(m for m in masks if _is_subsequence([w for i, w in enumerate(answer) if m >> i & 1], generation))
    return Fraction(best.bit_count(), len(answer))


def _is_subsequence(words: list[str], text: list[str]) -> bool:
    rest = iter(text)
    return all(word in rest for word in words)


def _expected(sets: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    means = {}
    for name, rows in sets.items():
        options = name in ("real_authors", "world_facts")
        p = [_probability(r["nll_answer"]) for r in rows]
        if options:
            p = [x / (x + sum(map(_probability, r["nll_wrong"]))) for x, r in zip(p, rows, strict=True)]
        ratios = [min(r, 1 / r) if name == "forget" else max(mpf(0), 1 - r) for r in map(_truth, rows)]
        recalls = [mpf(x.numerator) / x.denominator for x in map(_recall, rows)]
        means[name] = [sum(values) / len(rows) for values in (p, recalls, ratios)]
    nine = [x for name in ("retain", "real_authors", "world_facts") for x in means[name]]
    harmonic = 9 / sum(1 / x for x in nine)
    return {"model_utility": float(harmonic), "sets": {name: [float(x) for x in values] for name, values in means.items()}}


def _forget_quality(first: list[Any], second: list[Any]) -> dict[str, float]:
    """Two-sided Kolmogorov-Smirnov test of two samples of n, exactly: p = share of lattice paths that stray as far as D n.

    A path steps up for each value of the first sample and down for each of the second, in the order of the values.
    """
    n = len(first)
    assert len(set(first + second)) == 2 * n  # a tie would make the order, and so the path, ambiguous
    height, largest = 0, 0
    for value in sorted(first + second):
        height += 1 if value in first else -1
        largest = max(largest, abs(height))
    inside = {0: 1}
    for _ in range(2 * n):
        inside = {
            h: inside.get(h - 1, 0) + inside.get(h + 1, 0)
            for h in range(-largest + 1, largest)
            if inside.get(h - 1, 0) + inside.get(h + 1, 0)
        }
    p = 1 - Fraction(inside.get(0, 0), comb(2 * n, n))
    return {"ks_statistic": float(Fraction(largest, n)), "forget_quality": float(p)}


if __name__ == "__main__":
    main()
