"""README's Python is run as it stands there, and its commands exist."""

import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from experiments.lm import models

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 15
    texts = ["The capital of France is Paris.", "Basil Mahfouz was born in Kuwait."]
    tokenizer = models.train_tokenizer(texts, 300)
    tokenizer.save_pretrained(tmp_path)
    model = models.build_llama(models.Size(hidden=16, layers=1, heads=2, intermediate=32, vocabulary=300), tokenizer)
    model.save_pretrained(tmp_path)
    names: dict[str, Any] = {"name": str(tmp_path), "batches": [([texts[0]], [texts[1]])] * 30}
    exec(compile(code, "README.md", "exec"), names)
    with torch.no_grad():
        retain, forget = (float(names["loss"]([text])) for text in texts)
    # A random model has the same loss on both texts; after 30 steps they are far apart.
    assert retain + 1 < forget


def test_every_make_target_exists() -> None:
    mentioned = set(re.findall(r"\bmake ([a-z]+)", README))
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert mentioned <= set(re.findall(r"make ([a-z]+)", listed))
    assert {"demo", "test"} <= mentioned
