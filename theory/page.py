"""What an examination found, for the terminal and as a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from experiments.manifest import commit
from ngdiff.files import write_json, write_text
from ngdiff.machine import versions

Verdict = dict[str, Any]  # as made by `theory.claim.Verdict.as_dict`, or for the language model by `theory.examination.model`
HEADERS = ("claim", "statement", "source", "symbolic", "examples", "worst ratio", "counterexamples", "verdict")
PACKAGES = ("torch", "transformers", "scipy", "numpy", "sympy", "hypothesis", "python-flint")
SILENT = "lack a hypothesis or drown in rounding"

CAPTIONS = {
    "cone": "T3. Along -v both tasks improve if and only if v lies in the shaded cone. NGDiff's d always does; "
    "whether GDiff's does depends on the ratio of the norms.",
    "trajectories": "A5 and T2. The same runs among the parameters and among the losses. NGDiff ends on the Pareto set "
    "without a weight to choose; where GDiff ends depends on its weight.",
    "unreachable": "T1 and T2. On a concave front most Pareto optimal points minimise no static scalarization. "
    "NGDiff reaches them.",
    "parabola": "T6. The learning rate from three losses; T5's limit is twice as long.",
    "probe_error": "T6 and A7. The error of the fitted rate falls with the square of the probe step until rounding takes over.",
    "bounded_steps": "A3. NGDiff cannot leave faster than 2 eta a step, whatever the losses do; GA and GDiff can.",
    "no_convergence": "A6. Cross-entropy ascent on an over-parameterised model has no end.",
}


def cells(verdict: Verdict) -> tuple[str, ...]:
    """One row of the table."""
    symbolic, counterexamples = verdict["symbolic"], verdict["counterexamples"]
    proved = f"{sum(symbolic.values())} of {len(symbolic)} proved" if symbolic else "not attempted: a network has no formula"
    failing = f"{sum(c['fails'] for c in counterexamples)} of {len(counterexamples)}" if counterexamples else "none"
    ratio = "" if verdict["worst_ratio"] is None else f"{verdict['worst_ratio']:.3g}"
    source = verdict["text"]["Source"].split(" (")[0].split(". ")[0].split(", with")[0].split(":")[0].rstrip(".")
    verdict_text = "stands" if verdict["stands"] else "FAILS"
    return (
        f"{verdict['name']} {verdict['title']}",
        verdict["text"]["In short"],
        source,
        proved,
        f"{verdict['examples']}" + (f" (+ {verdict['silent']} silent)" if verdict["silent"] else ""),
        ratio,
        failing,
        verdict_text,
    )


def table(verdicts: Sequence[Verdict]) -> Table:
    """For the terminal, also for one of 80 columns: the claim takes what the other columns leave."""
    result = Table("claim", "symbolic", "examples", "worst\nratio", "counter-\nexamples", "verdict", show_lines=True)
    result.expand = True
    for column, width in zip(result.columns, (None, 9, 8, 6, 8, 7), strict=True):
        column.width, column.ratio = width, None if width else 1
    for verdict in verdicts:
        name, statement, source, symbolic, examples, ratio, counterexamples, last = cells(verdict)
        first = f"[bold]{escape(name)}[/]\n{escape(statement)}\n[dim]{escape(source)}[/]"
        colour = "green" if verdict["stands"] else "bold red"
        result.add_row(first, symbolic, examples, ratio, counterexamples, f"[{colour}]{last}[/]")
    return result


def details(verdict: Verdict) -> str:
    """Everything about one claim, for the terminal."""
    lines = [f"{verdict['name']}. {verdict['title']}", ""]
    lines += [f"{key}: {value}" for key, value in verdict["text"].items()]
    lines += ["", *(f"{'proved' if ok else 'NOT PROVED'}: {name}" for name, ok in verdict["symbolic"].items())]
    lines += [f"tightest of {verdict['examples']} examples: {verdict['worst']}, ratio {verdict['worst_ratio']}"]
    lines += [f"silent about {verdict['silent']} more, which {SILENT}"] if verdict["silent"] else []
    lines += [f"false variant refuted: {verdict['variant_refuted_by']}"] if verdict["variant_refuted_by"] else []
    lines += [f"without {c['without']!r}: {c['problem']}: {c['conclusion']}" for c in verdict["counterexamples"]]
    lines += [f"run: {run['what']}" for run in verdict["runs"]]
    lines += ["", *(f"PROBLEM: {problem}" for problem in verdict["problems"])]
    return "\n".join([*lines, "stands" if verdict["stands"] else "FAILS"])


def manifest(command: str) -> dict[str, Any]:
    """What the verdicts are made with; to be asked before anything is written, which the commit would show as a change."""
    return {"project": "ngdiff", "commit": commit(), "command": command, "versions": versions(PACKAGES)}


def write(folder: Path, verdicts: Sequence[Verdict], figures: Sequence[str], made_with: dict[str, Any]) -> None:
    """claims.json and README.md, beside the figures."""
    write_json(folder / "claims.json", {"manifest": made_with, "claims": list(verdicts)})
    packages = ", ".join(f"{name} {version}" for name, version in made_with["versions"].items())
    made = f"Made by `{made_with['command']}` at commit `{made_with['commit']}` with {packages}."
    parts = ["# The claims, checked", made, _markdown_table(verdicts), "## Figures"]
    parts += [f"![{CAPTIONS[Path(f).stem]}]({f})\n\n{CAPTIONS[Path(f).stem]}" for f in figures]
    parts += [_section(verdict) for verdict in verdicts]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _markdown_table(verdicts: Sequence[Verdict]) -> str:
    rows = [HEADERS, tuple("---" for _ in HEADERS), *map(cells, verdicts)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _section(verdict: Verdict) -> str:
    lines = [f"## {verdict['name']}. {verdict['title']}", ""]
    lines += [f"- *{key}*: {_escaped(value)}" for key, value in verdict["text"].items() if key != "In short"]
    lines += [f"- *Symbolic*: {'; '.join(_escaped(name) for name in verdict['symbolic'])}"] if verdict["symbolic"] else []
    if verdict["worst"]:
        lines += [
            f"- *Tightest of {verdict['examples']} examples*: {_escaped(verdict['worst'])}, ratio {verdict['worst_ratio']:.6g}"
        ]
    if verdict["silent"]:
        lines += [f"- *Silent* about {verdict['silent']} more, which {SILENT}."]
    if verdict["variant_refuted_by"]:
        lines += [f"- *False variant refuted*: {_escaped(verdict['variant_refuted_by'])}, by `{verdict['variant_problem']}`"]
    if verdict["counterexamples"]:
        lines += ["", "| without | problem | conclusion, which fails |", "| --- | --- | --- |"]
        lines += [
            f"| {_escaped(c['without'])} | {_escaped(c['problem'])} | {_escaped(c['conclusion'])} |"
            for c in verdict["counterexamples"]
        ]
    if verdict["runs"]:
        lines += ["", *(f"- {_escaped(run['what'])}" for run in verdict["runs"])]
    lines += [f"- **{_escaped(problem)}**" for problem in verdict["problems"]]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in "|*_<>[]" else c for c in text)


def to_json(verdicts: Sequence[Verdict]) -> str:
    """For other programs."""
    return json.dumps(list(verdicts), indent=1, allow_nan=False)
