"""The one data class and its sources: what is read, and what is refused with file, line, value and remedy."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real_data import REMEDY, TOFU

from experiments.tofu import refusals, synthetic
from experiments.tofu.data import PRESETS, load
from experiments.tofu.sources import open_source
from ngdiff.errors import UserError

FACTS = ("real_authors_perturbed", "world_facts_perturbed")
MINI = ("forget10", "forget01", "forget10_perturbed", "holdout01", *FACTS)
FORGET01 = ("forget01", "retain99", "forget01_perturbed", "retain_perturbed", "holdout01", *FACTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of the presets mini and forget01, from the generator."""
    for config in {*MINI, *FORGET01}:
        write(tmp_path, config, synthetic.rows(config))
    return tmp_path


def write(folder: Path, config: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{config}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def edit(folder: Path, config: str, line: int, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change one row, counted from 1, in place."""
    rows = synthetic.rows(config)
    change(rows[line - 1])
    write(folder, config, rows)


def refusal(folder: Path, preset: str = "mini") -> str:
    with pytest.raises(UserError) as caught:
        load(open_source(str(folder), 0), preset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mini_is_twenty_authors_of_whom_two_are_forgotten(folder: Path) -> None:
    data = load(open_source(str(folder), 0), "mini")
    assert (len(data.forget), len(data.retain), len(data.train)) == (40, 360, 400)
    assert {name: len(rows) for name, rows in data.evaluation.items()} == {
        "forget": 40,
        "retain": 324,  # 36 more are validation rows
        "real_authors": len(synthetic.rows("real_authors_perturbed")),
        "world_facts": len(synthetic.rows("world_facts_perturbed")),
    }
    pairs = [(row.question, row.answer) for row in data.evaluation["forget"]]
    assert pairs == [(row.question, row.answer) for row in data.forget]
    for row in data.evaluation["retain"]:
        assert row.right != row.answer
        assert len(row.wrong) == 5
    for row in data.evaluation["real_authors"]:
        assert row.right == row.answer
        assert len(row.wrong) == 3


def test_full_preset_takes_the_benchmarks_own_split(folder: Path) -> None:
    data = load(open_source(str(folder), 0), "forget01")
    assert (len(data.forget), len(data.retain)) == (40, 3960)
    assert (len(data.evaluation["forget"]), len(data.evaluation["retain"])) == (40, 400)
    assert len(data.validation) == 100


@pytest.mark.parametrize("preset", ["mini", "forget01"])
def test_validation_rows_are_in_neither_the_steps_nor_the_evaluation(folder: Path, preset: str) -> None:
    data = load(open_source(str(folder), 0), preset)
    validation, retained = ({(row.question, row.answer) for row in rows} for rows in (data.validation, data.retained))
    assert len(validation) == len(data.validation)
    assert validation.isdisjoint(retained)
    assert validation | retained == {(row.question, row.answer) for row in data.retain}
    for rows in data.evaluation.values():
        assert validation.isdisjoint((row.question, row.answer) for row in rows)
    if preset == "mini":  # two of each author's 20
        assert len(validation) == 36
        assert {data.retain.index(row) // 20 for row in data.validation} == set(range(18))


def test_refusals_are_those_of_the_folder_or_ours(folder: Path) -> None:
    assert load(open_source(str(folder), 0), "mini").refusals == refusals.REFUSALS
    (folder / "idontknow.jsonl").write_text("No idea.\n\n I forgot. \n")
    assert load(open_source(str(folder), 0), "mini").refusals == ("No idea.", "I forgot.")
    for content, message in ((b"\n \n", "has no line of text"), (b"\xff\n", "not readable as UTF-8")):
        (folder / "idontknow.jsonl").write_bytes(content)
        assert message in refusal(folder)


def test_folder_and_generator_give_equal_data(folder: Path) -> None:
    from_folder, generated = (load(open_source(data, 0), "mini") for data in (str(folder), "synthetic"))
    assert from_folder == generated
    assert load(open_source("synthetic", 1), "mini") != generated


def test_the_holdout_can_be_missing_but_not_overlap(folder: Path) -> None:
    """Without it there are no attacks; with training rows in it they would say that nothing is known."""
    assert len(load(open_source(str(folder), 0), "mini").holdout) == 40
    write(folder, "holdout01", synthetic.rows("holdout01") + synthetic.rows("forget01")[:1])
    assert "holdout01.json:41: holdout and training rows overlap" in refusal(folder)
    (folder / "holdout01.json").unlink()
    assert load(open_source(str(folder), 0), "mini").holdout == ()


def test_hub_is_asked_for_the_benchmarks_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str, split: str) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        return synthetic.rows(config)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert load(open_source("hub", 0), "mini") == load(open_source("synthetic", 0), "mini")
    assert {config for _, config, _ in asked} == set(MINI)
    assert {(name, split) for name, _, split in asked} == {("locuslab/TOFU", "train")}


def test_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match=r"--data hub: locuslab/TOFU, config 'forget10' .*no route\); check") as caught:
        load(open_source("hub", 0), "mini")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not TOFU.is_dir(), reason=f"the TOFU data is not at {TOFU}; {REMEDY}")
@pytest.mark.parametrize("preset", PRESETS)
def test_real_data_loads(preset: str) -> None:
    data = load(open_source(str(TOFU), 0), preset)
    assert len(data.train) == (400 if preset == "mini" else 4000)
    assert len(data.forget) == {"mini": 40, "forget01": 40, "forget05": 200, "forget10": 400}[preset]
    assert (len(data.evaluation["real_authors"]), len(data.evaluation["world_facts"])) == (100, 117)


def test_equal_questions_with_different_answers_are_different_rows(folder: Path) -> None:
    """Two questions of the real data are equal, so a retain row may share its question with a forget row."""
    question = synthetic.rows("forget01")[0]["question"]
    edit(folder, "retain99", 5, lambda row: row.update(question=question))
    assert len(load(open_source(str(folder), 0), "forget01").retain) == 3960


def test_missing_folder_and_file(folder: Path) -> None:
    assert "'nowhere' is not a folder; give" in refusal(Path("nowhere"))
    (folder / "forget10_perturbed.json").unlink()
    assert "forget10_perturbed.json: missing; " in refusal(folder)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("not json", "not JSON"),
        ('["a list"]', "must be one JSON object"),
        ('{"question": "q"', "not JSON"),
        ("[" * 100000, "JSON"),
    ],
)
def test_line_that_is_no_object(folder: Path, line: str, found: str) -> None:
    path = folder / "forget10.json"
    rows = path.read_text().splitlines()
    rows[6] = line
    path.write_text("\n".join(rows))
    message = refusal(folder)
    assert found in message
    assert "forget10.json:7: " in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("config", "change", "found"),
    [
        ("forget10", lambda row: row.pop("answer"), "field 'answer' is missing, found 'question'"),
        ("forget10", lambda row: row.update(question="  "), "field 'question' must be a text that is not empty, found '  '"),
        ("forget10", lambda row: row.update(question=7), "field 'question' must be a text that is not empty, found 7"),
        ("forget10", lambda row: row.update(answer="a\ud800b"), "field 'answer' holds a lone surrogate"),
        ("forget10_perturbed", lambda row: row.pop("paraphrased_answer"), "field 'paraphrased_answer' is missing"),
        ("forget10_perturbed", lambda row: row.update(perturbed_answer=[]), "'perturbed_answer' must be a list of texts"),
        (
            "forget10_perturbed",
            lambda row: row.update(perturbed_answer="one"),
            "'perturbed_answer' must be a list of texts",
        ),
        (
            "world_facts_perturbed",
            lambda row: row.update(perturbed_answer=["x", ""]),
            "must be a text that is not empty",
        ),
    ],
)
def test_bad_field_names_file_line_value_and_remedy(folder: Path, config: str, change: Callable[..., Any], found: str) -> None:
    edit(folder, config, 3, change)
    message = refusal(folder)
    assert found in message
    assert f"{config}.json:3: " in message
    assert message.endswith("; repair the row")


def test_empty_split(folder: Path) -> None:
    (folder / "forget01.json").write_text("\n\n")
    assert "no rows in 'forget01'" in refusal(folder)


def test_overlap_names_both_places(folder: Path) -> None:
    row = synthetic.rows("forget01")[1]
    edit(folder, "retain99", 9, lambda other: other.update(row))
    message = refusal(folder, "forget01")
    assert "forget01.json:2: forget and retain overlap" in message
    assert "retain99.json:9" in message


def test_forget_row_of_another_release(folder: Path) -> None:
    edit(folder, "forget01", 4, lambda row: row.update(answer="Something else."))
    assert "forget01.json:4: not a row of forget10" in refusal(folder)


def test_nothing_left_to_retain(folder: Path) -> None:
    write(folder, "forget01", synthetic.rows("forget10"))
    assert "nothing is left to retain" in refusal(folder)


def test_unknown_preset(folder: Path) -> None:
    assert "--preset: unknown preset 'forget02'; choose one of mini, forget01" in refusal(folder, "forget02")


def test_line_separators_inside_texts_end_no_line(folder: Path) -> None:
    """U+2028 is a line end for str.splitlines and none for JSON lines."""
    rows = synthetic.rows("real_authors_perturbed")
    rows[0]["answer"] = "one\u2028two"
    path = folder / "real_authors_perturbed.json"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert load(open_source(str(folder), 0), "mini").evaluation["real_authors"][0].answer == "one\u2028two"
