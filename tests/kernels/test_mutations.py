"""Every check of the kernels can fail: each of these wrong kernels turns tests/kernels/test_triton.py red."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import ngdiff_kernels
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it exists for Linux alone")
if torch.cuda.is_available():
    pytest.skip("the tests that must fail are those under the interpreter", allow_module_level=True)

TESTS = Path(__file__).with_name("test_triton.py")


class Mutation(NamedTuple):
    """A wrong line in a file of device code, and the tests that look at it (to find them fast; any failure counts)."""

    file: str
    right: str
    wrong: str
    tests: str


MUTATIONS = {
    "mask of the products dropped": Mutation("products", "inside = offsets < n - start", "inside = offsets < TILE", "outside"),
    "mask of the update dropped": Mutation(
        "updates", "inside = None if WHOLE else offsets < n - start", "inside = None", "outside"
    ),
    "last block left out of the products": Mutation("products", "program == whole % programs", "n < 0", "gram_of_every_size"),
    "last block left out of the update": Mutation("updates", "program == whole % programs", "n < 0", "torch_optim"),
    "first block left out of the update": Mutation("updates", "for i in range(mine)", "for i in range(1, mine)", "torch_optim"),
    "a program takes its neighbour's block": Mutation(
        "products", "range(program, whole, programs)", "range(program + 1, whole, programs)", "gram_of_every_size"
    ),
    "rows of both gradients scaled alike": Mutation(
        "products", "row_exponents(r), row_exponents(f)", "row_exponents(r), row_exponents(r)", "overflows"
    ),
    "rows not scaled back": Mutation("products", "* r_unit * f_unit", "* r_unit * r_unit", "all_scales"),
    "sign of the combination": Mutation("updates", "* m_r - (f", "* m_r + (f", "test_combine"),
    "coefficients in float32": Mutation(
        "updates", "(c * power_of_two(-exponent)).to(tl.float32)", "c.to(tl.float32)", "beyond"
    ),
    "sign of momentum": Mutation("updates", "buffer = momentum * buffer + d", "buffer = momentum * buffer - d", "torch_optim"),
    "nesterov looks at the old buffer": Mutation(
        "updates", "return d + momentum * buffer, buffer", "return buffer, buffer", "optim"
    ),
    "bias correction one step late": Mutation(
        "updates", "tl.exp(step * tl.load(hyper + LOG_BETA2)", "tl.exp((step + 1) * tl.load(hyper + LOG_BETA2)", "torch_optim"
    ),
    "weight decay dropped": Mutation(
        "updates", "d += tl.load(hyper + WEIGHT_DECAY)", "d += 0 * tl.load(hyper + WEIGHT_DECAY)", "torch_optim"
    ),
    "random bits of the neighbour": Mutation("updates", "+ start // WIDTH)", "+ start // WIDTH + 1)", "grid"),
    "random bits follow the program": Mutation(
        "updates", "+ start // WIDTH)", "+ start // WIDTH * tl.num_programs(0))", "grid"
    ),
    "rounding cuts off": Mutation(
        "updates", "tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits)", "bits", "rounded_master"
    ),
    "step although not finite": Mutation("kernels", "if tl.load(finite):", "if tl.load(finite) | True:", "refused_step"),
    "step although the limit is passed": Mutation(
        "coefficients", "* tl.sqrt(ff) < limit", "* tl.sqrt(ff) < 1e300", "refused_fused"
    ),
    "losses not looked at": Mutation("coefficients", "& is_finite(retain_loss) & is_finite(forget_loss)", "", "refused_fused"),
    "absolute epsilon in the norm": Mutation("coefficients", "1.0 / tl.sqrt(", "1.0 / tl.sqrt(1e-12 + ", "device_rules"),
    "norms swapped": Mutation(
        "coefficients", "return inverse_norm(rr), inverse_norm(ff)", "return inverse_norm(ff), inverse_norm(rr)", "device_rules"
    ),
    "programs do not wait": Mutation("kernels", "    wait(barrier, before)", "    before = 0", "meet"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """The tests of each mutation, run in processes of their own."""
    package = Path(ngdiff_kernels.__file__).parent

    def run(name: str) -> subprocess.CompletedProcess[str]:
        mutation = MUTATIONS[name]
        folder = tmp_path_factory.mktemp("mutation")
        shutil.copytree(package, folder / "ngdiff_kernels", ignore=shutil.ignore_patterns("__pycache__"))
        path = folder / "ngdiff_kernels" / "gpu" / f"{mutation.file}.py"
        source = path.read_text()
        assert mutation.right in source, f"{name}: the line to break is no longer there"
        path.write_text(source.replace(mutation.right, mutation.wrong))
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile", "unshrunk"]
        command = [sys.executable, "-m", "pytest", *options, str(TESTS), "-k", mutation.tests]
        environment = os.environ | {"PYTHONPATH": str(folder), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(MUTATIONS, pool.map(run, MUTATIONS), strict=True))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_kernel_is_seen(outcomes, name):
    outcome = outcomes[name]
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr  # 1: tests failed; others: they did not run
    assert "failed" in outcome.stdout
