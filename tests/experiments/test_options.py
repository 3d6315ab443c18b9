"""The folder of a run that names none: by its options, and never that of a run with others."""

from pathlib import Path

import pytest

from experiments.options import folder

USUAL = {"seed": 0, "steps": 120}


@pytest.mark.parametrize(("data", "source"), [("synthetic", "synthetic"), ("hub", "hub"), ("some/where/tofu", "tofu")])
def test_a_usual_run_goes_by_name_data_and_seed(data: str, source: str) -> None:
    assert folder("tofu-mini", data, 3, USUAL, USUAL) == Path("runs") / f"tofu-mini-{source}-3"


def test_other_settings_get_folders_of_their_own() -> None:
    found = {folder("tofu-mini", "hub", 0, USUAL | {"steps": steps}, USUAL) for steps in (120, 40, 200)}
    assert len(found) == 3
    assert all(str(path).startswith("runs/tofu-mini-hub-0") for path in found)
    again = folder("tofu-mini", "hub", 0, USUAL | {"steps": 40}, USUAL)
    assert again in found  # the same command finds its run again
