"""`precision: auto` measures a step once for a machine and network."""

import json

import numpy as np
import pytest
import tf_keras as keras

from kdprune.config import parse_recipe
from kdprune.models import build_model, load_model
from kdprune.runner import run as runner
from kdprune.stages import fitting
from kdprune.training import resolve_precision, setup, speed

layers = keras.layers
RECIPE = {
    "name": "measured",
    "seed": 1,
    "data": {"dataset": "shapes", "train_images": 40, "test_images": 10},
    "stages": {
        "student": {
            "kind": "train",
            "model": {"name": "article_student"},
            "training": {"epochs": 1, "batch_size": 8},
        }
    },
}


def small_model(filters=16):
    convolution = layers.Conv2D(filters, 3)
    pooled = [layers.GlobalAveragePooling2D(), layers.Dense(4)]
    return keras.Sequential([keras.Input((8, 8, 3)), convolution, *pooled])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where times are kept; the processor passes for one with bfloat16."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(setup, "_has_bfloat16", lambda: True)
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    return tmp_path / "cache" / "kdprune" / "step_seconds.json"


@pytest.fixture
def measured(monkeypatch):
    """What was measured, each model by its name."""
    names, measure = [], speed._measure

    def counted(casts, batch_size):
        names.append(casts["float32"].name)
        return measure(casts, batch_size)

    monkeypatch.setattr(speed, "_measure", counted)
    return names


def test_a_network_is_measured_once_whatever_its_layers_are_called(cache, measured):
    chosen = resolve_precision("auto", small_model(), 4)
    (seconds,) = json.loads(cache.read_text()).values()
    assert set(seconds) == {"float32", "mixed_bfloat16"}
    assert min(seconds.values()) > 0
    assert resolve_precision("auto", small_model(), 4) == chosen
    assert len(measured) == 1
    resolve_precision("auto", small_model(), 8)
    assert len(measured) == 2


def test_a_file_of_times_that_was_damaged_is_measured_anew(cache, measured):
    resolve_precision("auto", small_model(), 4)
    (key,) = json.loads(cache.read_text())
    for content in ("{", "[]", json.dumps({key: {"float32": -1.0}})):
        cache.write_text(content)
        resolve_precision("auto", small_model(), 4)
    assert len(measured) == 4


@pytest.mark.parametrize(
    ("filters", "float32", "bfloat16", "chosen"),
    [
        (16, 1.0, 2.0, "float32"),
        (16, 1.0, 1.05, "mixed_bfloat16"),
        (12, 1.0, 0.5, "mixed_bfloat16"),
        (12, 1.0, 0.95, "float32"),
    ],
)
def test_the_rule_of_widths_decides_between_equals(
    filters, float32, bfloat16, chosen, cache, monkeypatch
):
    times = {"float32": float32, "mixed_bfloat16": bfloat16}
    monkeypatch.setattr(speed, "_measure", lambda casts, batch_size: times)
    assert resolve_precision("auto", small_model(filters), 4) == chosen


def test_a_model_that_cannot_compute_in_bfloat16_trains_as_its_widths_say(
    cache, measured
):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3)(image)
    x = layers.Dense(4)(layers.Flatten()(2.0 * layers.ReLU()(x)))
    assert resolve_precision("auto", keras.Model(image, x), 4) == "float32"
    assert not measured


def test_a_home_that_cannot_be_written_is_no_obstacle(cache):
    cache.parent.parent.write_text("a file where a folder should be")
    assert resolve_precision("auto", small_model(), 4) in (
        "float32",
        "mixed_bfloat16",
    )


@pytest.mark.slow
def test_a_stage_that_measured_ends_with_the_weights_of_one_that_knew(
    cache, measured, tmp_path, monkeypatch
):
    monkeypatch.setattr(fitting, "_WORTH_MEASURING", 0.0)
    for name in ("first", "second"):
        runner.run(parse_recipe(RECIPE), tmp_path / name)
    assert len(measured) == 1
    first, second = (
        load_model(tmp_path / name / "student" / "model.keras").get_weights()
        for name in ("first", "second")
    )
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_a_short_training_is_not_worth_measuring(cache, measured, tmp_path):
    runner.run(parse_recipe(RECIPE), tmp_path / "run")
    assert not measured and not cache.exists()


def test_a_plan_tells_how_long_by_what_was_measured(cache, tmp_path):
    recipe = parse_recipe(RECIPE)
    assert "(train): to do, about 1 s" in runner.preview(recipe, tmp_path / "run")
    resolve_precision("auto", build_model("article_student"), 8)
    (key,) = json.loads(cache.read_text())
    seconds = {"float32": 60.0, "mixed_bfloat16": 48.0}
    cache.write_text(json.dumps({key: seconds}))
    # 30 images, in batches of 8.
    assert "(train): to do, about 3 min" in runner.preview(recipe, tmp_path / "run")
