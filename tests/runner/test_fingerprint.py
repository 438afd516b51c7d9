"""What makes a stage run again, and what becomes of the folder it had."""

from pathlib import Path

import pytest
import tf_keras as keras
import yaml

from kdprune.config import parse_recipe
from kdprune.models import save_model
from kdprune.runner import run as runner

OLD_RUN = Path(__file__).parent / "old_run"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Paths of two models that differ in their weights alone."""
    folder = tmp_path_factory.mktemp("models")
    for number in range(2):
        keras.utils.set_random_seed(number)
        image = keras.Input((16, 16, 3))
        x = keras.layers.GlobalAveragePooling2D()(image)
        model = keras.Model(image, keras.layers.Dense(10)(x))
        save_model(model, folder / f"{number}.keras")
    return [folder / f"{number}.keras" for number in range(2)]


DATA = {"dataset": "shapes", "image_size": 16, "train_images": 100, "test_images": 20}


@pytest.fixture(scope="module")
def measured(models, tmp_path_factory):
    """A recipe that measures two models and a file of one, and its run's folder."""
    stages = {
        "one": {"kind": "load", "file": str(models[0]), "input_range": [0, 1]},
        "two": {"kind": "load", "file": str(models[1]), "input_range": [0, 1]},
        "int8": {"kind": "quantize", "from": "one"},
        "files": {"kind": "export", "from": "int8"},
        "measured": {
            "kind": "evaluate",
            "from": ["one", "two", "files"],
            "latency": False,
        },
    }
    stages["files"] |= {"max_drop": 0.9, "max_disagreement": 0.9}
    content = {"name": "measured", "data": DATA, "stages": stages}
    content |= {"baseline": "one", "flagship": "int8", "save_models": ["one"]}
    folder = tmp_path_factory.mktemp("measured") / "run"
    runner.run(parse_recipe(content), folder)
    return content, folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "other"),
        ("baseline", "two"),
        ("flagship", None),
        ("save_models", ["two"]),
    ],
)
def test_the_measurement_depends_on_what_the_recipe_names(key, value, measured, states):
    content, folder = measured
    before = states(parse_recipe(content), folder)
    assert set(before.values()) == {"done"}
    after = states(parse_recipe({**content, key: value}), folder)
    assert after == {**before, "measured": "to do"}


@pytest.mark.parametrize(
    ("stage", "again"),
    [
        ("sparse", {"sparse"}),
        ("pruned", {"pruned", "anew", "int8", "files", "measured"}),
    ],
)
def test_a_changed_setting_is_neither_done_nor_half_done(stage, again, old_run, states):
    """The stage itself, and all that builds on it."""
    content = yaml.safe_load((OLD_RUN / "recipe.yaml").read_text())
    before = states(parse_recipe(content), old_run)
    content["stages"][stage]["beta"] = 0.06
    after = states(parse_recipe(content), old_run)
    assert {name for name in after if after[name] != before[name]} == again
    assert {after[name] for name in again} == {"to do"}


def loading(path, **more):
    """A recipe of a stage that loads the file, and of one that starts from it."""
    training = {"epochs": 1, "precision": "float32"}
    given = {"file": str(path), "input_range": [0, 1]}
    stages = {
        "given": {"kind": "load", **given, **more},
        "further": {"kind": "train", "from": "given", "training": training},
        "direct": {"kind": "train", "model": given, "training": training},
    }
    return parse_recipe({"name": "loading", "data": DATA, "stages": stages})


@pytest.mark.usefixtures("eagerly")
def test_a_model_file_replaced_by_another_is_loaded_again(models, tmp_path, states):
    path, folder = tmp_path / "given.keras", tmp_path / "run"
    path.write_bytes(models[0].read_bytes())
    runner.run(loading(path), folder, until="given")
    runner.run(loading(path), folder, until="direct")
    (folder / "direct/record.json").unlink()
    expected = {"given": "done", "further": "to do", "direct": "half done"}
    assert states(loading(path), folder) == expected
    path.write_bytes(models[1].read_bytes())
    expected = {"given": "to do", "further": "to do", "direct": "to do"}
    assert states(loading(path), folder) == expected
    before = (folder / "given/model.keras").read_bytes()
    runner.run(loading(path), folder, until="given")
    assert (folder / "given/model.keras").read_bytes() != before


@pytest.mark.parametrize("complete", [True, False])
def test_a_stage_of_other_settings_starts_with_an_empty_folder(
    complete, models, tmp_path
):
    folder = tmp_path / "run"
    runner.run(loading(models[0]), folder, until="given")
    if not complete:
        (folder / "given/record.json").unlink()
    (folder / "given/left").touch()
    runner.run(loading(models[0], seed=9), folder, until="given")
    assert not (folder / "given/left").exists()


def test_a_complete_stage_that_lost_a_file_starts_with_an_empty_folder(
    models, tmp_path
):
    folder = tmp_path / "run"
    runner.run(loading(models[0]), folder, until="given")
    (folder / "given/model.keras").unlink()
    (folder / "given/left").touch()
    runner.run(loading(models[0]), folder, until="given")
    assert (folder / "given/model.keras").exists()
    assert not (folder / "given/left").exists()


def test_a_half_done_stage_keeps_what_it_has(models, tmp_path):
    folder = tmp_path / "run"
    runner.run(loading(models[0]), folder, until="given")
    (folder / "given/record.json").unlink()
    (folder / "given/left").touch()
    runner.run(loading(models[0]), folder, until="given")
    assert (folder / "given/left").exists()
