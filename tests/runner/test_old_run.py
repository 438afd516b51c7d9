"""A run folder that an earlier version left half done is resumed by this one.

How the folder was made: `old_run/README.md`.
"""

import csv
import os
import platform
import tarfile
from pathlib import Path

import pytest
import yaml

from kdprune import cli, records
from kdprune.config import load_recipe

OLD = Path(__file__).parent / "old_run"
DONE = ["teacher", "soft", "student", "pruned", "int8", "files", "measured"]
KILLED = ["sparse", "anew"]
NOT_BEGUN = ["late", "kit", "page"]
RENAMED = {
    "by": "criterion",
    "beta": "relative_threshold",
    "keep": "save_models",
    "like": "architecture_of",
    "ranges": "range_method",
    "slimming": "bn_l1",
}


@pytest.fixture
def folder(tmp_path):
    with tarfile.open(OLD / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def states(recipe, folder, capsys):
    """What the dry run says of each stage: done, half done, to do."""
    command = ["run", str(recipe), "--output", str(folder), "--dry-run"]
    assert cli.main(command) == 0
    _, _, shown = capsys.readouterr().out.partition("folder: ")
    lines = [line.split(":") for line in shown.splitlines() if line.startswith("  ")]
    stages = yaml.safe_load(recipe.read_text())["stages"]
    return {
        name.split()[0]: state.split(",")[0].strip()
        for name, state, *_ in lines
        if name.split()[0] in stages
    }


EXPECTED = {
    **dict.fromkeys(DONE, "done"),
    **dict.fromkeys(KILLED, "half done"),
    **dict.fromkeys(NOT_BEGUN, "to do"),
}


def test_what_an_earlier_version_did_is_done(folder, capsys):
    assert states(OLD / "recipe.yaml", folder, capsys) == EXPECTED


def test_another_machine_finds_the_same_stages_done(folder, capsys, monkeypatch):
    monkeypatch.setattr(records, "machine", lambda: {"processor": "another"})
    monkeypatch.setattr(records, "versions", lambda: {"python": "3.99"})
    monkeypatch.setattr(platform, "machine", lambda: "another")
    monkeypatch.setattr(platform, "node", lambda: "another")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    moved = folder.rename(folder.with_name("elsewhere"))
    assert states(OLD / "recipe.yaml", moved, capsys) == EXPECTED


def test_a_changed_setting_is_not_taken_for_done(folder, capsys, tmp_path):
    """The states above come from settings, not from which files are there."""
    recipe = tmp_path / "changed.yaml"
    text = (OLD / "recipe.yaml").read_text()
    assert text.count("by: taylor") == text.count("epochs: 8, slimming: null") == 1
    text = text.replace("by: taylor", "by: gradient")
    recipe.write_text(text.replace("epochs: 8, slimming", "epochs: 7, slimming"))
    found = states(recipe, folder, capsys)
    again = ["pruned", "int8", "files", "measured", "sparse", "anew"]
    assert [name for name in found if found[name] != EXPECTED[name]] == sorted(
        again, key=list(found).index
    )


def test_the_keys_of_today_mean_what_the_old_ones_meant(folder, capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    content = yaml.safe_load((OLD / "recipe.yaml").read_text())
    renamed = set()
    recipe.write_text(yaml.safe_dump(with_new_names(content, renamed)))
    assert renamed == set(RENAMED)
    try:
        load_recipe(recipe)
    except ValueError as error:
        pytest.skip(f"the keys are not renamed yet: {error}")
    assert states(recipe, folder, capsys) == EXPECTED


def with_new_names(content, renamed):
    """The recipe with its keys renamed; adds the old name of each to `renamed`."""
    if isinstance(content, list):
        return [with_new_names(item, renamed) for item in content]
    if not isinstance(content, dict):
        return content
    renamed |= RENAMED.keys() & content.keys()
    return {
        RENAMED.get(key, key): with_new_names(value, renamed)
        for key, value in content.items()
    }


@pytest.mark.slow
def test_the_rest_is_resumed_and_nothing_is_run_again(folder, capsys):
    before = {path: path.read_bytes() for path in folder.glob("*/record.json")}
    assert {path.parent.name for path in before} == set(DONE)
    epochs = {name: history(folder / name) for name in KILLED}
    command = ["run", str(OLD / "recipe.yaml"), "--output", str(folder)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.count("resuming after epoch 3 of 8") == 2
    assert {path: path.read_bytes() for path in before} == before
    for name in KILLED:
        assert len(epochs[name]) == 3
        rows = history(folder / name)
        assert [row["epoch"] for row in rows] == list("12345678")
        # Not the time of an epoch alone: the rows are those that were there.
        assert rows[:3] == epochs[name]
    complete = {path.parent.name for path in folder.glob("*/record.json")}
    assert complete == {*DONE, *KILLED, *NOT_BEGUN}


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))
