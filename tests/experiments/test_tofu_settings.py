"""Options of a TOFU run that are wrong, or do not go together, are one line."""

from typing import Any

import pytest

from experiments.tofu.settings import Settings
from ngdiff.errors import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "some"}, "--metrics: unknown value 'some'; choose one of tofu, all"),
        ({"keep_best": "score"}, "--keep-best: found without --eval-every"),
        ({"keep_best": "best", "eval_every": 2}, "--keep-best: unknown value 'best'"),
        ({"keep_best": "score", "eval_every": 2, "retain_budget": 1.0}, "--keep-best: found with --stop-forget or --retain"),
        ({"eval_every": 0}, "--eval-every: found 0"),
        ({"retrained": "x"}, "--retrained: found without --target"),
        ({"target": "x"}, "--target: found without --model"),
        ({"target": "published", "model": "mistral-7b"}, "--target: found 'published', and none is for --model mistral-7b"),
        ({"recipe": "locuslab"}, "--recipe: needs a --model with published settings"),
        ({"recipe": "mine", "model": "phi-1.5"}, "--recipe: unknown value 'mine'"),
        ({"recipe": "locuslab", "model": "phi-1.5", "steps": 3}, "--recipe: found with --steps"),
        ({"recipe": "locuslab", "model": "phi-1.5", "bases": ("sgd",)}, "--recipe: found with a base optimizer"),
        ({"ability_rows": 3}, "--ability-rows: found without --general-ability"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Settings(**options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
