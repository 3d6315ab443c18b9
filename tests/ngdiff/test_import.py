import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MEASURE = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import ngdiff
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "added": sorted(set(sys.modules) - before), "file": ngdiff.__file__}))
"""


def run_python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints; the repository root is its folder, as in `python -m experiments`."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def imports():
    return [json.loads(run_python(MEASURE)) for _ in range(3)]


def test_import_is_fast(imports):
    """The best of three: what else runs on the machine can only add to it."""
    assert min(run["seconds"] for run in imports) < 0.1


def test_import_brings_no_heavy_package(imports):
    added = {name.partition(".")[0] for name in imports[0]["added"]}
    assert Path(imports[0]["file"]).is_relative_to(ROOT)
    assert {"ngdiff", "ngdiff_kernels"} <= added
    assert not added & {"transformers", "datasets", "tokenizers", "accelerate", "triton", "scipy", "matplotlib", "experiments"}


def test_the_folder_kernels_does_not_shadow_the_package_of_that_name(tmp_path):
    """transformers looks for a package called kernels; ours of that name is a folder and must lose against it."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("fake = True\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); sys.path.append(sys.argv[2]); import kernels; print(kernels.__file__)"
    assert run_python(code, str(ROOT), str(tmp_path)).strip() == str(package / "__init__.py")


def test_transformers_does_not_take_the_folder_for_the_package():
    code = """
import importlib.metadata, importlib.util, sys
sys.path.insert(0, sys.argv[1])
from transformers.utils import is_kernels_available
names = {d.metadata["Name"] for d in importlib.metadata.distributions()}
print(is_kernels_available() == ("kernels" in names))
"""
    assert run_python(code, str(ROOT)).strip() == "True"
