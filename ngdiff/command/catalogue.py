"""What can be chosen, one line each, from the documentation of the library itself."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields

from ngdiff import objectives, rules
from ngdiff.lm.objectives import FORGET, RETAIN

FUNCTIONS = {"activations": "activation_distance"}  # objectives whose function has another name


def lines() -> Iterator[str]:
    """Rules, then the objectives of both tasks: name, what it does, where it is from."""
    yield "rules (--rule):"
    yield from (_line(_with_parameter(name), _documentation(type(rules.get(name)))) for name in rules.names())
    for option, known in (("--forget-objective", FORGET), ("--retain-objective", RETAIN)):
        yield f"\n{option}:"
        for name in known:
            yield _line(name, _documentation(getattr(objectives, FUNCTIONS.get(name, name.replace("-", "_")))))


def _with_parameter(name: str) -> str:
    parameters = fields(rules.get(name))  # type: ignore[arg-type]
    if not parameters:
        return name
    return f"{name}[-{parameters[0].name.upper()}]"


def _documentation(thing: object) -> tuple[str, str]:
    """The first paragraph of the documentation, and the paper that it names as its source."""
    text = inspect.getdoc(thing) or ""
    summary, *rest = text.split("\n\n")
    source = next((part for part in rest if part.startswith("Source:")), "")
    return _joined(summary), _paper(_joined(source.removeprefix("Source:")))


def _joined(text: str) -> str:
    return " ".join(text.split())


def _paper(source: str) -> str:
    """Its numbers on arXiv, or what is written up to the end of the sentence."""
    return ", ".join(re.findall(r"arXiv \d{4}\.\d{4,5}", source)) or source.rstrip(".")


def _line(name: str, documentation: tuple[str, str]) -> str:
    what, paper = documentation
    return f"  {name:<14} {what}" + (f" [{paper}]" if paper else "")
