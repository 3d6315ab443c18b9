"""Examine several claims at once, each in a process of its own, and the language model beside them."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from theory.claim import examine
from theory.claims import CLAIMS

MODEL = "LM"
TEXT = {
    "In short": "T3 to T6 along an unlearning run of a small Llama: slopes, orders 2 and 3 of the remainders, 2 of eta_hat",
    "Statement": "at every place measured, the slopes are those of T3, the remainders of both losses have the orders of T4 and "
    "T5, and the error of the fitted rate has the order of T6.",
    "Source": "ours: a check of the paper's claims where losses are neither quadratic nor convex",
    "Tight": "orders are fitted within 0.05.",
}


def claims(names: Sequence[str], examples: int, jobs: int) -> Iterator[dict[str, Any]]:
    """The verdict of each claim as JSON values, in the order of the names."""
    if jobs == 1 or len(names) == 1:
        for name in names:
            yield one(name, examples)
        return
    # New processes: forking one that has used torch's threads is not safe.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(one, names, [examples] * len(names))


def one(name: str, examples: int) -> dict[str, Any]:
    """The verdict of one claim."""
    torch.set_num_threads(1)  # the tensors are tiny, and the other processes need the cores
    return examine(CLAIMS[name], examples).as_dict()


def model(size: str) -> dict[str, Any]:
    """The checks along a run of the language model, in the form of a claim's verdict, with the places measured."""
    from theory import language_model  # transformers takes seconds to import

    places = list(language_model.run(**language_model.RUNS[size]))
    checks = [(place.step, check) for place in places for check in place.checks]
    tightest = max((check for _, check in checks), key=lambda check: check.ratio)
    problems = [
        f"step {step}: {check.what}: {check.measured:.3g} against {check.bound:.3g}"
        for step, check in checks
        if not check.holds
    ]
    runs = [
        {
            "what": f"step {p.step}: L_R {p.retain_loss:.3g}, L_F {p.forget_loss:.3g}, cosine {p.cosine:.2f}, "
            f"eta* {p.eta:.2g}, L_R back at {p.crossing:.2f} of T5's limit, "
            f"float32 second differences off by {p.noise:.0f} u L_0",
            "holds": all(check.holds for check in p.checks),
        }
        for p in places
    ]
    return {
        "name": MODEL,
        "title": f"A language model ({size})",
        "text": TEXT,
        "symbolic": {},
        "examples": len(checks),
        "silent": 0,
        "worst_ratio": tightest.ratio,
        "worst": tightest.what,
        "variant_refuted_by": None,
        "variant_problem": None,
        "counterexamples": [],
        "runs": runs,
        "places": [place.as_dict() for place in places],
        "problems": problems,
        "stands": not problems,
    }
