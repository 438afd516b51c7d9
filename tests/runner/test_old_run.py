"""A run folder that an earlier version left half done is resumed by this one.

How the folder was made: `old_run/README.md`.
"""

import csv
import os
import platform
from collections import Counter
from pathlib import Path

import pytest
import yaml

from kdprune import cli, records
from kdprune.config import load_recipe, parse_recipe

RECIPE = Path(__file__).parent / "old_run/recipe.yaml"
DONE = ["teacher", "soft", "student", "pruned", "int8", "files", "measured"]
KILLED = ["sparse", "anew"]
NOT_BEGUN = ["late", "kit", "page"]
EXPECTED = {
    **dict.fromkeys(DONE, "done"),
    **dict.fromkeys(KILLED, "half done"),
    **dict.fromkeys(NOT_BEGUN, "to do"),
}
RENAMED = {
    "by": "criterion",
    "beta": "relative_threshold",
    "keep": "save_models",
    "like": "architecture_of",
    "ranges": "range_method",
    "slimming": "bn_l1",
}


def test_what_an_earlier_version_did_is_done(old_run, states):
    assert states(load_recipe(RECIPE), old_run) == EXPECTED


@pytest.mark.parametrize("content", ["[]", "{", '{"fingerprint": 3}', ""])
def test_records_that_are_none_leave_stages_to_do(old_run, states, content):
    for name in ("record.json", "begun.json"):
        (old_run / "measured" / name).write_text(content)
    found = states(load_recipe(RECIPE), old_run)
    assert found == {**EXPECTED, "measured": "to do"}


def test_another_machine_finds_the_same_stages_done(old_run, states, monkeypatch):
    monkeypatch.setattr(records, "machine", lambda: {"processor": "another"})
    monkeypatch.setattr(records, "versions", lambda: {"python": "3.99"})
    monkeypatch.setattr(platform, "machine", lambda: "another")
    monkeypatch.setattr(platform, "node", lambda: "another")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    moved = old_run.rename(old_run.with_name("elsewhere"))
    assert states(load_recipe(RECIPE), moved) == EXPECTED


def test_the_keys_of_today_mean_what_the_old_ones_meant(old_run, states):
    renamed = set()
    content = with_new_names(yaml.safe_load(RECIPE.read_text()), renamed)
    assert renamed == set(RENAMED)
    assert states(parse_recipe(content), old_run) == EXPECTED


def test_each_old_key_gets_one_line_that_names_the_new_one(caplog):
    caplog.set_level("WARNING", "kdprune")
    load_recipe(RECIPE)
    counts = count_keys(yaml.safe_load(RECIPE.read_text()))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == sum(counts.values()) == 14
    for key, new in RENAMED.items():
        lines = [line for line in said if f"{key} is now {new}" in line]
        assert len(lines) == counts[key] > 0


def count_keys(content):
    """How often each renamed key stands anywhere in the content."""
    if isinstance(content, list):
        return sum((count_keys(item) for item in content), Counter())
    if not isinstance(content, dict):
        return Counter()
    found = Counter({key: 1 for key in RENAMED if key in content})
    return sum((count_keys(item) for item in content.values()), found)


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
def test_the_rest_is_resumed_and_nothing_is_run_again(old_run, capsys):
    before = {path: path.read_bytes() for path in old_run.glob("*/record.json")}
    assert {path.parent.name for path in before} == set(DONE)
    epochs = {name: history(old_run / name) for name in KILLED}
    assert cli.main(["run", str(RECIPE), "--output", str(old_run)]) == 0
    assert capsys.readouterr().out.count("resuming after epoch 3 of 8") == 2
    assert {path: path.read_bytes() for path in before} == before
    for name in KILLED:
        assert len(epochs[name]) == 3
        rows = history(old_run / name)
        assert [row["epoch"] for row in rows] == list("12345678")
        # To the time of each epoch: these are the rows that were there.
        assert rows[:3] == epochs[name]
    complete = {path.parent.name for path in old_run.glob("*/record.json")}
    assert complete == {*DONE, *KILLED, *NOT_BEGUN}


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))
