"""What a claim is, and how one is examined."""

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import sympy
from flint import fmpq
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis.strategies import SearchStrategy

from theory.exact import NotANumber, Number, ball, largest


class Measurement(NamedTuple):
    """A number and what the theory says that it cannot exceed.

    Attributes:
        measured, bound: floats, rationals or balls; of two balls the claim holds only if they do not overlap.
        what: which part of the claim this is.
    """

    measured: Number
    bound: Number
    what: str = ""

    @property
    def holds(self) -> bool:
        """measured <= bound, with certainty. False for NaN."""
        return _at_most(self.measured, self.bound)

    @property
    def ratio(self) -> float:
        """measured / bound: how tight the bound is here. 0 where a bound that is not positive holds: a sign has no ratio."""
        if self.holds and not ball(self.bound) > 0:
            return 0.0
        quotient = ball(self.measured) / ball(self.bound)
        return float(quotient.upper()) if quotient.is_finite() else float("inf")


def worst(*parts: Measurement) -> Measurement:
    """The part of a claim that fails; or, where none does, the one with the largest ratio."""
    failed = [part for part in parts if not part.holds]
    return failed[0] if failed else max(parts, key=lambda part: part.ratio)


def sign(value: Number, what: str) -> Measurement:
    """The claim that a number is <= 0, without any tolerance."""
    return Measurement(value, 0.0, what)


def count(number: int, what: str) -> Measurement:
    """The claim that something never happens."""
    return Measurement(float(number), 0.0, what)


class Identity(NamedTuple):
    """A step of a proof: an expression that must be zero for all values of its symbols."""

    name: str
    expression: sympy.Expr

    @property
    def proved(self) -> bool:
        """Whether sympy reduces it to 0."""
        return bool(sympy.simplify(sympy.expand(self.expression)) == 0)


class Counterexample(NamedTuple):
    """A problem that lacks one hypothesis, and on which the conclusion fails.

    Attributes:
        without: the hypothesis, as it stands in the docstring of the claim.
        problem: what the problem is.
        measurement: the conclusion of the claim, which must not hold.
    """

    without: str
    problem: str
    measurement: Measurement


Measure = Callable[[Any], Measurement | None]


class ClaimModule(Protocol):
    """What a module of `theory.claims` offers. `runs` is optional: longer runs, made once and not drawn.

    `measure` and `false_variant` return None for a problem of which the claim says nothing, because it lacks a hypothesis or
    because rounding leaves nothing to measure.
    """

    problems: Callable[[], SearchStrategy[Any]]
    measure: Measure
    false_variant: Measure
    identities: Callable[[], list[Identity]]
    counterexamples: Callable[[], list[Counterexample]]


FIELDS = ("In short", "Statement", "Hypotheses", "Source", "Tight", "Proof", "False variant")


@dataclass(frozen=True)
class Claim:
    """A claim: the functions of its module, and the fields of its docstring."""

    name: str
    title: str
    text: Mapping[str, str]
    module: Any

    @property
    def hypotheses(self) -> list[str]:
        """The hypotheses by name: what stands between semicolons, without the remark in brackets."""
        return [item.split(" (")[0].strip() for item in self.text["Hypotheses"].rstrip(".").split(";")]

    @classmethod
    def of(cls, module: ModuleType) -> "Claim":
        """From a module whose docstring has a title "T1. Name" and a paragraph for each of `FIELDS`.

        Raises:
            ValueError: the docstring lacks one.
        """
        first, *paragraphs = (module.__doc__ or "").strip().split("\n\n")
        name, _, title = first.partition(". ")
        text = {key: " ".join(value.split()) for key, colon, value in (p.partition(":") for p in paragraphs) if colon}
        missing = [key for key in FIELDS if key not in text]
        if missing or not re.fullmatch(r"[TA]\d", name):
            raise ValueError(f"{module.__name__}: found {first!r} without {missing}; see theory.claim.FIELDS")
        return cls(name, title.rstrip("."), text, module)


@dataclass
class Search:
    """What drawing problems for one measurement gave.

    Attributes:
        tried: problems measured.
        silent: problems of which the claim says nothing; they are not among those tried.
        worst: the measurement with the largest ratio, unless one failed.
        refuted: the problem on which it failed, made as simple as hypothesis could, and its measurement.
    """

    tried: int = 0
    silent: int = 0
    worst: Measurement | None = None
    refuted: tuple[Any, Measurement] | None = None


class _Refuted(Exception):
    pass


def search(strategy: SearchStrategy[Any], measure: Measure, examples: int, simplify: bool = True) -> Search:
    """Measure `examples` drawn problems, the same at every call, until one fails; then look for a simpler one that fails.

    Problems of which the claim says nothing are replaced by others.
    """
    result = Search()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink) if simplify else (Phase.generate,),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(strategy)
    def check(problem: Any) -> None:
        try:
            measurement = measure(problem)
        except NotANumber as error:
            measurement = Measurement(math.nan, 0.0, str(error))
        if measurement is None:
            result.silent += 1
            reject()
        result.tried += 1
        if not measurement.holds:
            result.refuted = (problem, measurement)  # the last one is the simplest
            raise _Refuted
        if result.worst is None or measurement.ratio > result.worst.ratio:
            result.worst = measurement

    with suppress(_Refuted):
        check()
    return result


@dataclass
class Verdict:
    """What the examination of one claim found.

    Attributes:
        holds: the search for violations.
        variant: the search for violations of the false variant.
        symbolic: identity -> whether sympy proved it.
        counterexamples: all of them; each must fail.
        runs: measurements of longer runs.
        error: what stopped the examination, if anything did.
    """

    claim: Claim
    holds: Search = field(default_factory=Search)
    variant: Search = field(default_factory=Search)
    symbolic: dict[str, bool] = field(default_factory=dict)
    counterexamples: list[Counterexample] = field(default_factory=list)
    runs: list[Measurement] = field(default_factory=list)
    error: str | None = None

    @property
    def problems(self) -> list[str]:
        """Why the claim does not stand, a line each; empty if it does."""
        found = [self.error] if self.error else []
        if self.holds.refuted:
            problem, measurement = self.holds.refuted
            found.append(f"violated: {describe(measurement)} for {problem}")
        elif not self.holds.tried:
            found.append("no problem was measured")
        if not self.variant.refuted:
            found.append("the false variant was not refuted, so the check cannot tell right from wrong")
        found += [f"not proved: {name}" for name, proved in self.symbolic.items() if not proved]
        if not self.error:
            stated, lacking = self.claim.hypotheses, [c.without for c in self.counterexamples]
            found += [f"hypothesis without a counterexample: {name}" for name in stated if name not in lacking]
            found += [f"counterexample to no hypothesis: {name}" for name in lacking if name not in stated]
        failed = [c for c in self.counterexamples if c.measurement.holds]
        found += [f"no counterexample to {c.without}: {describe(c.measurement)}" for c in failed]
        return found + [f"run: {describe(run)}" for run in self.runs if not run.holds]

    @property
    def stands(self) -> bool:
        """Whether every part of the examination came out as the theory says."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        worst, refuted = self.holds.worst, self.variant.refuted
        return {
            "name": self.claim.name,
            "title": self.claim.title,
            "text": dict(self.claim.text),
            "symbolic": self.symbolic,
            "examples": self.holds.tried,
            "silent": self.holds.silent,
            "worst_ratio": worst.ratio if worst else None,
            "worst": worst.what if worst else None,
            "variant_refuted_by": describe(refuted[1]) if refuted else None,
            "variant_problem": str(refuted[0]) if refuted else None,
            "counterexamples": [
                {
                    "without": c.without,
                    "problem": c.problem,
                    "conclusion": describe(c.measurement),
                    "fails": not c.measurement.holds,
                }
                for c in self.counterexamples
            ],
            "runs": [{"what": describe(run), "holds": run.holds} for run in self.runs],
            "problems": self.problems,
            "stands": self.stands,
        }


def examine(claim: Claim, examples: int) -> Verdict:
    """Everything about one claim. An exception inside is part of the verdict: a wrong library may cause any."""
    module, verdict = claim.module, Verdict(claim)
    try:
        verdict.symbolic = {identity.name: identity.proved for identity in module.identities()}
        verdict.holds = search(module.problems(), module.measure, examples)
        verdict.variant = search(module.problems(), module.false_variant, examples)
        verdict.counterexamples = module.counterexamples()
        verdict.runs = module.runs() if hasattr(module, "runs") else []
    except Exception as error:
        verdict.error = f"{type(error).__name__}: {error}"
    return verdict


def first_failure(claim: Claim, examples: int) -> str | None:
    """Why a claim does not stand, or None: `examine` without algebra and without simplifying, for many libraries in turn.

    Unlike there an exception goes through: a library that crashes is wrong too, but no claim has found that out.
    """
    module = claim.module
    found = search(module.problems(), module.measure, examples, simplify=False)
    if found.refuted:
        return describe(found.refuted[1])
    failed = [f"no counterexample to {c.without}" for c in module.counterexamples() if c.measurement.holds]
    failed += [describe(run) for run in (module.runs() if hasattr(module, "runs") else []) if not run.holds]
    return failed[0] if failed else None


def describe(measurement: Measurement) -> str:
    """One line: what, measured, bound."""
    measured, bound = largest(measurement.measured), largest(measurement.bound)
    digits = 4 if f"{measured:.4g}" != f"{bound:.4g}" else 10
    return f"{measurement.what}: {measured:.{digits}g} against {bound:.{digits}g}"


def _at_most(a: Number, b: Number) -> bool:
    """Rationals are compared as such, everything else as balls, of which that of a float is exact."""
    if isinstance(a, fmpq) and isinstance(b, fmpq):
        return bool(a <= b)
    return bool(ball(a) <= ball(b))
