"""A layer that 8 bits do not suit, left in float: from the budget to the kit."""

import json

import numpy as np
import pytest
import tf_keras as keras
from PIL import Image

from kdprune.config import parse_recipe
from kdprune.data import load_dataset
from kdprune.evaluate import predict
from kdprune.kit import selftest
from kdprune.kit.golden import golden_images
from kdprune.kit.micro import measure_arena
from kdprune.models import load_model, save_model
from kdprune.runner import run as runner
from kdprune.stages.budget import _some_in_float
from kdprune.stages.kit import _generate_shapes
from kdprune.tflite import check_tflite, convert_tflite, inspect_tflite

# Of a whole run; the budget's part is quick in test_conversion.
pytestmark = pytest.mark.slow

layers = keras.layers
CHOSEN = "PTQ, minmax ranges, biases corrected, in float: hard"
DATA = {"dataset": "folder", "test": 0.2, "validation": 0.4, "calibration": 40}


def broken(dataset):
    """A net of which the layer `hard` has weights that 8 bits can't tell apart.

    The last channel of `first` is always 0, and `hard` has large weights for it:
    they change nothing in float, and leave no steps for the other weights in int8.
    Behind ReLU6 no factor of a channel can make the other weights larger.
    """
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input(dataset.image_shape)
    x = layers.Conv2D(16, 3, 2, padding="same", use_bias=False, name="first")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.8, name="norm")(x))
    x = layers.Conv2D(12, 3, 2, padding="same", activation="relu", name="hard")(x)
    x = layers.Conv2D(12, 3, 2, padding="same", activation="relu", name="last")(x)
    x = layers.Dense(len(dataset.classes), name="logits")(layers.Flatten()(x))
    model = keras.Model(inputs, x)

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss)
    images, labels = dataset.train.images / np.float32(255), dataset.train.labels
    model.fit(images, labels, batch_size=40, epochs=8, verbose=0)
    gamma, beta, *moments = model.get_layer("norm").get_weights()
    gamma[-1], beta[-1] = 0.0, -1.0
    model.get_layer("norm").set_weights([gamma, beta, *moments])
    kernel, bias = model.get_layer("hard").get_weights()
    kernel[:, :, -1] = 300.0
    model.get_layer("hard").set_weights([kernel, bias])
    return model


@pytest.fixture(scope="module")
def folder(quadrants, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    for index, (image, label) in enumerate(zip(*quadrants(600, 12, 50), strict=True)):
        path = folder / "images" / f"quadrant{label}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="module")
def dataset(folder):
    options = {key: value for key, value in DATA.items() if key != "dataset"}
    return load_dataset("folder", path=folder / "images", **options)


@pytest.fixture(scope="module")
def run(folder, dataset):
    """A recipe's run: quantized within a budget, exported, measured, and a kit."""
    save_model(broken(dataset), folder / "given.keras")
    stages = {
        "given": {"kind": "load", "file": str(folder / "given.keras")},
        "small": {
            "kind": "quantize",
            "from": "given",
            "method": "auto",
            "max_drop": 0.05,
        },
        "files": {"kind": "export", "from": ["small"]},
        "measured": {"kind": "evaluate", "from": ["given", "files"], "latency": False},
        "kit": {"kind": "kit", "from": "measured", "name": "demo"},
        "page": {"kind": "report", "from": "measured"},
    }
    recipe = {"name": "mixed", "data": {**DATA, "path": str(folder / "images")}}
    recipe |= {"flagship": "small", "stages": stages}
    runner.run(parse_recipe(recipe), folder / "out")
    return folder / "out"


def results_of(run, stage):
    return json.loads((run / stage / "record.json").read_text())["results"]


def test_the_budget_is_met_with_the_worst_layer_in_float_and_not_before(run):
    results = results_of(run, "small")
    rows = {row["name"]: row for row in results["attempts"]}
    *before, last = rows
    assert len(before) == 6 and all(rows[name]["drop"] > 0.1 for name in before)
    assert before[-1] == "PTQ, minmax ranges, 160 images"
    assert last == results["chosen"] == CHOSEN
    assert results["met"] and rows[last]["drop_bound"] <= 0.05
    assert rows[last]["float_layers"] == ["hard"]
    # 1,728 weights of 4 bytes instead of 1, two more operators, a few scales less.
    assert 4500 < rows[last]["float_bytes"] < 6500
    plain = rows["PTQ, minmax ranges"]["bytes"]
    assert rows[last]["float_bytes"] == rows[last]["bytes"] - plain


def test_the_export_follows_the_plan_and_records_what_is_in_float(run, dataset):
    content = (run / "files" / "small.int8.tflite").read_bytes()
    slimmed = results_of(run, "files")["files"]["small.int8.tflite"]["slimmed"]
    made = results_of(run, "small")["attempts"][-1]["bytes"]
    assert (slimmed["bytes_before"], slimmed["bytes"]) == (made, len(content))
    for dtype in ("int8", "uint8"):
        figures = results_of(run, "files")["files"][f"small.{dtype}.tflite"]
        assert figures["float_layers"] == ["hard"]
        assert {row["op"] for row in figures["float_ops"]} == {
            "CONV_2D",
            "QUANTIZE",
            "DEQUANTIZE",
        }
        assert set(figures["kernels"]) == {"xnnpack", "builtin", "reference"}
        assert all(k["largest_deviation"] < 0.2 for k in figures["kernels"].values())
        assert figures["kernels"]["reference"]["images"] == 100
        assert "SOFTMAX" in figures["xnnpack_leaves"]
    metrics = json.loads((run / "metrics.json").read_text())
    found = {model["name"]: model for model in metrics["models"]}
    loss = found["given"]["accuracy"] - found["small_int8"]["accuracy"]
    assert found["given"]["accuracy"] > 0.9 and abs(loss) <= 0.04


def test_the_kit_of_a_mixed_file_proves_itself_and_says_what_it_is(run):
    kit = run / "kit" / "demo"
    assert selftest.find_damage(kit) == []
    assert all(good for _, good in selftest.check_scores(kit))
    with np.load(kit / "golden.npz") as golden:
        images = golden["images"]
    assert len(images) == len(golden_images((12, 12, 3))) + 20
    np.testing.assert_array_equal(images[-20:], _generate_shapes((12, 12, 3)))
    card = (kit / "MODEL_CARD.md").read_text()
    assert "8-bit integers throughout" not in card
    assert "in float: hard" in card
    assert "AddDequantize()" in card


@pytest.mark.parametrize("shape", [(32, 32, 3), (96, 64, 3), (28, 28, 1)])
def test_shapes_are_generated_in_the_size_of_a_models_images(shape):
    images = _generate_shapes(shape)
    assert images.dtype == np.uint8 and images.shape == (20, *shape)
    # Of the size they are drawn in, they are the very images of the data set.
    if shape == (32, 32, 3):
        test = load_dataset("shapes", train_images=100, test_images=20).test
        np.testing.assert_array_equal(images, test.images)
    assert images.std(axis=(1, 2)).min() > 5


def test_tflite_micro_runs_a_mixed_file(run):
    content = (run / "files" / "small.int8.tflite").read_bytes()
    arena = measure_arena(content)
    if arena is None:
        pytest.skip("needs tflite-micro: pip install -e '.[micro]'")
    assert arena > inspect_tflite(content)["peak_activation_bytes"]


def test_the_report_shows_the_layer_and_its_bytes(run):
    page = (run / "report.md").read_text()
    assert "Left in float: hard, which takes" in page
    assert f"**{CHOSEN}** (chosen)" in page
    assert "| small.int8.tflite | int8, 1/255 | int8, 1/256 | hard |" in page


def test_the_gate_refuses_a_layer_in_float_that_was_not_asked_for(run, dataset):
    model = load_model(run / "small" / "base.keras")
    images, labels = dataset.validation.images, dataset.validation.labels
    asked = ["hard", "last"]
    calibration = dataset.calibration.images
    content = convert_tflite(model, "int8", calibration, float_layers=asked)
    expected = predict(model, images)

    def check(names):
        return check_tflite(content, expected, expected, labels, float_layers=names)

    assert check(asked)["float_layers"] == asked
    for names, message in (
        ((), "2 op.s. of the int8 file compute in float, first CONV_2D .*hard"),
        (["hard"], "1 op.s. of the int8 file compute in float beside hard, .*last"),
        (["logits"], "2 op.s. .* beside logits, first CONV_2D"),
    ):
        with pytest.raises(ValueError, match=message):
            check(names)


def test_a_layer_that_computes_nothing_stays_in_integers():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.MaxPooling2D(name="pool")(layers.Conv2D(4, 3, name="conv")(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    content = convert_tflite(model, "int8", images, float_layers=["pool"])
    scores = predict(model, images)
    labels = scores.argmax(axis=1)
    figures = check_tflite(content, scores, scores, labels, float_layers=["pool"])
    assert figures["float_layers"] == figures["float_ops"] == []


@pytest.mark.parametrize(
    ("decibels", "chosen"),
    [
        ([9, 3, 6, 12], [["b"], ["b", "c"]]),
        ([None, 3, None, None], [["b"]]),  # The others are exact.
        ([None] * 4, []),
    ],
)
def test_no_two_attempts_leave_the_same_layers_in_float(decibels, chosen):
    rows = [
        {"layer": layer, "weight_low": -1.0, "sqnr_db": found}
        for layer, found in zip("abcd", decibels, strict=True)
    ]
    assert [options["float_layers"] for options in _some_in_float(rows)] == chosen
