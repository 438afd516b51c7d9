"""Stored soft labels in a run: of which images, what counts as the same, warnings."""

import json
import shutil

import numpy as np
import pytest
import yaml

from kdprune import _io, records
from kdprune.config import parse_recipe
from kdprune.runner import run as runner
from tests.conftest import eager_functions

RECIPE = """
name: stored
seed: 1
data: {dataset: shapes, train_images: 300, test_images: 50}
stages:
  teacher: {kind: train, model: &net {name: article_student}, training: &t {epochs: 1}}
  soft: {kind: soft_labels, teacher: teacher, images: train+validation, views: 2,
    augment: {crop: 2}}
  student:
    kind: distill
    model: *net
    soft_labels: soft
    temperature: 2
    training: {<<: *t, images: train+validation}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    with eager_functions():
        runner.run(parse_recipe(yaml.safe_load(RECIPE)), folder)
    return folder


def record(folder, stage):
    return json.loads((folder / stage / "record.json").read_text())


def test_students_learn_from_the_validation_images_too(finished):
    sizes = record(finished, "soft")["data"]["sizes"]
    view = np.load(finished / "soft" / "view-000.npy")
    assert len(view) == sizes["train"] + sizes["validation"]
    # Nothing is left to judge an epoch by.
    assert "val_accuracy" not in record(finished, "student")["results"]


def test_what_the_soft_labels_say_is_recorded(finished):
    figures = record(finished, "soft")["results"]["by_temperature"]
    assert set(figures) == {"1", "2", "4"}
    assert figures["1"]["entropy"] < figures["2"]["entropy"] < figures["4"]["entropy"]
    assert 0 < figures["2"]["beyond_labels"] < np.log(10)


def test_a_store_made_again_on_another_machine_is_the_same(finished):
    """Its last bits differ there, and students that learned from it stay done."""
    folder = finished / "soft"
    path = folder / "view-001.npy"
    view = np.load(path)
    np.save(path, np.nextafter(view, np.float16(np.inf)))
    content = record(finished, "soft")
    content["outputs"]["view-001.npy"]["sha256"] = _io.sha256(path)
    content["outputs"]["view-001.npy"]["bytes"] = path.stat().st_size
    _io.write_json(folder / "record.json", records.sealed(content))
    recipe = parse_recipe(yaml.safe_load(RECIPE))
    preview = runner.preview(recipe, finished)
    assert (
        "soft (soft_labels): done" in preview and "student (distill): done" in preview
    )
    # Other views are another store.
    other = yaml.safe_load(RECIPE)
    other["stages"]["soft"]["seed"] = 2
    assert "student (distill): to do" in runner.preview(parse_recipe(other), finished)


def test_soft_labels_that_hold_next_to_nothing_are_warned_of(
    finished, tmp_path, caplog
):
    content = yaml.safe_load(RECIPE)
    content["stages"]["student"]["temperature"] = 100.0
    # The teacher stays, and is asked once more.
    shutil.copytree(finished / "teacher", tmp_path / "teacher")
    with caplog.at_level("WARNING", logger="kdprune"):
        runner.run(parse_recipe(content), tmp_path, until="soft")
    (line,) = [r.getMessage() for r in caplog.records if "next to nothing" in r.message]
    assert "at temperature 100 " in line and "they hold most at temperature" in line
