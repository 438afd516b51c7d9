"""A model whose outputs are in another order than the folder's classes."""

import numpy as np
import pytest
import tf_keras as keras
from PIL import Image

from kdprune import _io
from kdprune.config import parse_recipe
from kdprune.models import load_model, save_model
from kdprune.runner import run as runner

layers = keras.layers
# By name the blue one comes first: what BGR does not make of it.
COLOURS = ("maroon", "olive", "azure")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images of three colours, and a model that knows them in the order of RGB."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 5)):
        for place, name in enumerate(COLOURS):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (8, 8, 3), np.uint8)
                pixels[..., place] += 80
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    inputs = keras.Input((8, 8, 3))
    mean = layers.GlobalAveragePooling2D()(inputs)
    # Brightness in the way of other pixel ranges: right in [0, 1] alone.
    bent = layers.ReLU(max_value=1.0)(mean)
    model = keras.Model(inputs, layers.Dense(3)(bent))
    model.layers[-1].set_weights([20 * np.eye(3), np.zeros(3)])
    save_model(model, root / "model.keras")
    return root


def recipe(files, **keys):
    stage = {"kind": "load", "file": str(files / "model.keras"), **keys}
    data = {"dataset": "folder", "path": str(files), "validation": 60}
    return parse_recipe({"name": "colours", "data": data, "stages": {"net": stage}})


def test_outputs_are_put_into_the_order_of_the_classes(files, tmp_path, caplog):
    caplog.set_level("INFO", "kdprune")
    (files / "labels.txt").write_text("Maroon\nOlive\nAzure\n")
    labels = str(files / "labels.txt")
    runner.run(recipe(files, labels=labels, input_range=[0, 1]), tmp_path / "run")
    record = _io.read_json(tmp_path / "run" / "net" / "record.json")
    assert record["results"]["val_accuracy"] == 1
    assert "its outputs are put into the order of the classes" in caplog.text
    model = load_model(tmp_path / "run" / "net" / "model.keras")
    pixel = np.zeros((1, 8, 8, 3), np.float32)
    pixel[..., 0] = 1
    # Of azure, maroon and olive.
    assert model(pixel).numpy().argmax() == 1

    # The stage's own model is known by its record: nothing has to be said of it.
    (tmp_path / "run" / "net" / "model.keras").rename(tmp_path / "run" / "mine.keras")
    again = recipe(files, file=str(tmp_path / "run" / "mine.keras"), input_range=[0, 1])
    runner.run(again, tmp_path / "again")
    record = _io.read_json(tmp_path / "again" / "net" / "record.json")
    assert record["results"]["val_accuracy"] == 1


def test_a_wrong_order_is_not_taken_in_silence(files, tmp_path):
    with pytest.raises(ValueError, match="labels|order"):
        runner.run(recipe(files), tmp_path / "run")


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (
            ["maroon", "olive", "cyan"],
            "maroon, olive. Received: labels maroon, olive, cy",
        ),
        (["maroon", "olive"], "Received: labels maroon, olive;"),
        ("no.txt", "labels file not found: no.txt"),
    ],
)
def test_names_that_do_not_match(files, tmp_path, labels, fault):
    with pytest.raises((ValueError, FileNotFoundError), match=fault) as caught:
        runner.run(recipe(files, labels=labels), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "net").exists()
