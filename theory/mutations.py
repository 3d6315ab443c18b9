"""Wrong versions of the library, each of which must make a claim fail: `python -m theory.mutations`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = 60  # problems drawn for each claim: a wrong library fails on most of them
PACKAGES = ("ngdiff", "kernels/ngdiff_kernels", "theory", "experiments")


class Mutation(NamedTuple):
    """A wrong line in a file of the library."""

    name: str
    file: str
    right: str
    wrong: str


REFERENCE, GRAM, RATE = "kernels/ngdiff_kernels/reference.py", "ngdiff/gram.py", "ngdiff/learning_rate.py"
RULE = "ngdiff/rules/_ngdiff.py"
RETAIN, FORGET = "2 * self.c * inverse_norm(gram.retain)", "2 * (1 - self.c) * inverse_norm(gram.forget)"
NGDIFF = f"return Coefficients({RETAIN}, {FORGET})"
SWAPPED = "return Coefficients(2 * self.c * inverse_norm(gram.forget), 2 * (1 - self.c) * inverse_norm(gram.retain))"
ONE = "gram.retain.new_ones(gram.retain.shape)"

MUTATIONS = (
    Mutation("sign of d flipped", REFERENCE, "c_r * r.double() - c_f", "-c_r * r.double() + c_f"),
    Mutation("forget gradient added", REFERENCE, "c_r * r.double() - c_f", "c_r * r.double() + c_f"),
    Mutation("step uphill", REFERENCE, "weights - lr * direction", "weights + lr * direction"),
    Mutation("probe on one side", REFERENCE, "weights + h * direction", "weights + abs(h) * direction"),
    Mutation("square root left out", GRAM, ".rsqrt() * nonzero", ".reciprocal() * nonzero"),
    Mutation(
        "absolute epsilon in the norm", GRAM, "torch.ones_like(square)).rsqrt()", "torch.ones_like(square)).add(1e-12).rsqrt()"
    ),
    Mutation("absolute threshold of zero", GRAM, "torch.finfo(square.dtype).tiny", "1e-16"),
    Mutation(
        "zero gradient not handled", GRAM, "torch.where(nonzero, square, torch.ones_like(square)).rsqrt()", "square.rsqrt()"
    ),
    Mutation("c_t inverted", GRAM, "self.retain / (self.retain", "self.forget / (self.retain"),
    Mutation("cosine without its sign", GRAM, "(self.cross * inverse", "(self.cross.abs() * inverse"),
    Mutation("norm of retain dropped", RULE, NGDIFF, f"return Coefficients({ONE}, {FORGET})"),
    Mutation("norm of forget dropped", RULE, NGDIFF, f"return Coefficients({RETAIN}, {ONE})"),
    Mutation("norms swapped", RULE, NGDIFF, SWAPPED),
    Mutation(
        "weights of GDiff swapped",
        "ngdiff/rules/_gdiff.py",
        "gram.retain, self.c), torch.full_like(gram.forget, 1 - self.c)",
        "gram.retain, 1 - self.c), torch.full_like(gram.forget, self.c)",
    ),
    Mutation("LossNorm multiplies", "ngdiff/rules/_lossnorm.py", ".reciprocal()", ""),
    Mutation(
        "GA keeps the retain gradient", "ngdiff/rules/_ga.py", "torch.zeros_like(gram.retain)", "torch.ones_like(gram.retain)"
    ),
    Mutation("factor 2 in eta*", RATE, "self.slope / self.curvature if", "2 * self.slope / self.curvature if"),
    Mutation("curvature by h and not h^2", RATE, "difference / h**2", "difference / h"),
    Mutation("slope from one side", RATE, "(plus - minus) / (2 * h)", "(plus - zero) / h"),
    Mutation("probes exchanged", RATE, "return loss_at(-h), zero, loss_at(h)", "return loss_at(h), zero, loss_at(-h)"),
    Mutation("noise called curvature", RATE, "floor = 4 * unit_roundoff", "floor = 0.5 * unit_roundoff"),
    Mutation("gradients of the last step kept", "ngdiff/optimizer.py", "fresh = name not in self._ready", "fresh = False"),
    Mutation("random rounding to nearest", REFERENCE, "nearest = seed is None or", "nearest = True or"),
    Mutation("master weights not advanced", REFERENCE, 'advanced["master"] = new', "pass"),
)


class Outcome(NamedTuple):
    """What the claims made of a wrong library: claim -> why it fails, and claim -> what stopped its examination.

    A mutation is caught where a claim fails. One that only crashes is not: any program would notice that.
    """

    mutation: str
    caught_by: dict[str, str]
    crashed: dict[str, str]


def run(mutation: Mutation, examples: int = EXAMPLES) -> Outcome:
    """Examine every claim against a copy of the project with one line changed.

    Raises:
        ValueError: the line to change is not there.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "results", "report"))
        path = folder / mutation.file
        source = path.read_text(encoding="utf-8")
        if mutation.right not in source:
            raise ValueError(f"mutation {mutation.name!r}: {mutation.right!r} is not in {mutation.file}; write it anew")
        path.write_text(source.replace(mutation.right, mutation.wrong), encoding="utf-8")
        # The copy comes first on the path, before an installed ngdiff; `examined` refuses to judge another one.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "kernels")]),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "theory.mutations", "--examine", str(examples)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"mutation {mutation.name!r}: the examination did not run:\n{done.stderr}")
    return Outcome(mutation.name, **json.loads(done.stdout))


def examined(examples: int) -> dict[str, dict[str, str]]:
    """What the claims make of the library beside this file, as an `Outcome` without its name."""
    import torch

    import ngdiff
    from theory.claim import first_failure
    from theory.claims import CLAIMS

    torch.set_num_threads(1)
    if not Path(ngdiff.__file__).is_relative_to(ROOT):
        raise RuntimeError(f"ngdiff comes from {ngdiff.__file__} and not from {ROOT}")
    caught_by, crashed = {}, {}
    for name, claim in CLAIMS.items():
        try:
            if (why := first_failure(claim, examples)) is not None:
                caught_by[name] = why
        except Exception as error:  # a wrong library may raise any
            crashed[name] = f"{type(error).__name__}: {error}"
    return {"caught_by": caught_by, "crashed": crashed}


def run_all() -> Iterator[Outcome]:
    """Every mutation, two at a time, in their order."""
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(run, MUTATIONS)


def main() -> int:
    """Print which claim catches what; exit status 1 if a mutation passes."""
    if sys.argv[1:2] == ["--examine"]:
        print(json.dumps(examined(int(sys.argv[2]))))
        return 0
    escaped = 0
    for outcome in run_all():
        crashed = f"  (crashed: {', '.join(outcome.crashed)})" if outcome.crashed else ""
        print(f"{outcome.mutation:<36} {', '.join(outcome.caught_by) or 'NOT CAUGHT'}{crashed}", flush=True)
        escaped += not outcome.caught_by
    print(f"{len(MUTATIONS) - escaped} of {len(MUTATIONS)} wrong libraries are caught")
    return int(escaped > 0)


if __name__ == "__main__":
    sys.exit(main())
