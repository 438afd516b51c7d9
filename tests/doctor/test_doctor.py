"""The diagnosis: all obstacles at once, a row for each layer, the exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
from PIL import Image

import kdprune
from kdprune import cli, quantize
from kdprune.doctor import Obstacle, diagnose

layers = keras.layers
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).parent / "keras3_models.py"


def save(folder, *names):
    environment = dict(os.environ, KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
    environment.pop("TF_USE_LEGACY_KERAS", None)
    command = [sys.executable, str(SCRIPT), str(folder), *names]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    names = ("tutorial", "hopeless", "mobilenetv2")
    return save(tmp_path_factory.mktemp("models"), *names)


@pytest.fixture(scope="module")
def model():
    """A tutorial's network: pixels of 0 to 255, augmentation, dropout, softmax."""
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.RandomFlip("horizontal", name="flip"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, activation="relu", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.MaxPooling2D(name="pool"),
            layers.Conv2D(32, 3, activation="relu", name="second"),
            layers.Flatten(),
            layers.Dropout(0.5, name="drop"),
            layers.Dense(10, activation="softmax", name="scores"),
        ]
    )


@pytest.fixture(scope="module")
def tutorial(model):
    return diagnose(model)


def small(*last, inputs=(16, 16, 3), units=4, activation=None):
    return keras.Sequential(
        [
            keras.Input(inputs),
            layers.Conv2D(8, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            *last,
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(units, activation, name="dense"),
        ]
    )


def write_images(folder, classes=2, each=30, size=32):
    random = np.random.default_rng(0)
    for label in range(classes):
        place = folder / f"class{label}"
        place.mkdir(parents=True)
        for index in range(each):
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{index}.png")
    return folder


def row(found, name):
    return next(one for one in found.rows if one.name == name)


def problems(found, stage=None):
    return [str(one) for one in found.obstacles if stage in (None, one.stage)]


# --- A model that can be compressed ---


def test_a_tutorials_network_is_fine(tutorial):
    assert tutorial.status == 0, tutorial.obstacles
    assert tutorial.facts["pixel range"] == "[0, 255]"
    assert tutorial.facts["output"] == "one of 10 classes (softmax)"
    told = " ".join(tutorial.rewrites)
    assert "softmax" in told and "flip" in told and "drop" in told
    assert tutorial.proof.original == "the model as loaded"
    assert tutorial.proof.deviation < 1e-5 and tutorial.proof.images == 2


@pytest.mark.slow
def test_outputs_are_proven_to_be_those_of_keras_3(files):
    pytest.importorskip("keras")
    found = diagnose(files / "tutorial.keras")
    assert found.proof.original == "Keras 3" and found.status == 0
    assert found.proof.deviation < 1e-5 and found.proof.images == 2
    assert found.facts["pixel range"] == "[0, 255]"


def test_a_row_says_what_each_layer_costs_and_what_becomes_of_it(tutorial):
    found = row(tutorial, "second")
    # 32 filters of 3 x 3 x 16 at 13 x 13 places.
    assert found.macs == 13 * 13 * 32 * 9 * 16
    assert found.parameters == 32 * 9 * 16 + 32
    assert found.channels == (32, 32) and found.weights == 32 * 9 * 16
    assert (found.int8, found.qat) == ("int8", True)
    assert (found.xnnpack, found.gpu, found.micro) == (True, True, True)
    assert row(tutorial, "scores").channels == (0, 10)
    assert row(tutorial, "pool").channels is None


def test_the_int8_file_is_looked_into(tutorial):
    assert tutorial.file["float_layers"] == [] and tutorial.file["not_on_micro"] == []
    assert "SOFTMAX" in tutorial.file["ops"]
    # Its weights in a byte each, and little more.
    weights = sum(one.parameters for one in tutorial.rows)
    assert weights < tutorial.file["bytes"] < 1.5 * weights + 20_000


def test_the_estimate_grows_with_the_images(tutorial, model):
    assert tutorial.estimate["images"] == 5_000
    assert min(tutorial.estimate.values()) > 0
    images = np.zeros((60, 32, 32, 3), np.uint8)
    fewer = diagnose(model, (images, np.arange(60) % 10))
    assert fewer.estimate["images"] == 60
    assert fewer.estimate["epoch_seconds"] < tutorial.estimate["epoch_seconds"] / 50


def test_it_prints_and_becomes_json(tutorial):
    text = str(tutorial)
    assert "nothing stands in the way (status 0)" in text
    assert "second" in text and "32 of 32" in text and "as loaded" in text
    content = json.loads(json.dumps(tutorial.to_json()))
    assert content["status"] == 0 and len(content["rows"]) == len(tutorial.rows)


def test_models_in_memory_are_taken_as_files_are():
    found = kdprune.diagnose(small(), input_range=(0, 255))
    assert found.status == 0 and found.proof.original == "the model as loaded"
    assert found.proof.deviation < 1e-5
    assert found.facts["pixel range"] == "[0, 255]"


@pytest.mark.parametrize(
    ("units", "told"),
    [
        (5, "any of 5 labels (sigmoid)"),
        (1, "one of two classes, by one unit (sigmoid)"),
    ],
)
def test_sigmoid_heads_are_fine(units, told):
    model = small(layers.Conv2D(4, 1), units=units, activation="sigmoid")
    found = diagnose(model, input_range=(-1, 1))
    assert found.status == 0, found.obstacles
    assert found.facts["output"] == told and "LOGISTIC" in found.file["ops"]
    assert found.proof.deviation < 1e-5


# --- Warnings ---


def test_a_range_that_nothing_tells_is_asked_for():
    found = diagnose(small())
    assert found.status == 3
    assert "--input-range" in problems(found, "pixel range")[0]


def test_what_quantization_aware_training_refuses_is_a_warning(monkeypatch):
    refused = [("relu", "ReLU: use another"), ("dense", "Dense: use another")]
    monkeypatch.setattr(quantize, "qat_obstacles", lambda m: refused)
    found = diagnose(small(), input_range=(0, 1))
    assert found.status == 3 and len(found.obstacles) == 2
    assert row(found, "relu").qat is False and row(found, "conv").qat is True


def test_channels_that_stay_are_counted():
    model = small(layers.Permute((3, 1, 2)))
    found = diagnose(model, input_range=(0, 1))
    assert row(found, "conv").channels == (0, 8)
    assert found.status == 3 and "it moves the channels" in problems(found)[0]


# --- What will fail ---


@pytest.mark.slow
def test_of_a_hopeless_model_everything_is_said_at_once(files):
    found = diagnose(files / "hopeless.keras")
    assert found.status == 4 and found.rows == ()
    told = "\n".join(problems(found))
    for part in ("code", "mine", "2 inputs", "2 outputs, first, second", "always"):
        assert part in told, told
    assert all(one.fatal and one.stage == "loading" for one in found.obstacles)


def test_of_a_tf_keras_file_everything_is_said_at_once(tmp_path):
    class Mine(layers.Layer):
        def call(self, inputs):
            return inputs

    image, other = keras.Input((8, 8, 3)), keras.Input((4,))
    x = layers.Lambda(lambda t: t, name="code")(layers.Conv2D(4, 3)(image))
    x = layers.GlobalAveragePooling2D()(Mine(name="mine")(x))
    x = layers.Dropout(0.5, name="always")(x, training=True)
    x = layers.Dense(4, name="scores")(layers.Concatenate()([x, other]))
    keras.Model([image, other], x).save(tmp_path / "hopeless.keras")
    found = diagnose(tmp_path / "hopeless.keras")
    told = {one.where: str(one) for one in found.obstacles}
    assert set(told) == {"code", "mine", "always", ""} and found.status == 4
    assert "is code" in told["code"] and "Keras has" in told["mine"]
    assert "2 inputs" in told[""] and "training=True" in told["always"]


def test_an_output_is_chosen_among_several():
    image = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(image))
    ends = [layers.Dense(n, name=name)(x) for n, name in ((10, "kind"), (2, "wet"))]
    model = keras.Model(image, ends)
    found = diagnose(model)
    assert found.status == 4 and "--model-output kind" in problems(found)[0]
    chosen = diagnose(model, output="wet", input_range=(0, 1))
    assert chosen.status == 0 and "one of 2 classes" in chosen.facts["output"]
    assert chosen.proof.deviation < 1e-5
    wrong = diagnose(model, output="dry")
    assert wrong.status == 4 and "kind, wet" in problems(wrong)[0]


def test_what_stays_in_float_fails():
    found = diagnose(small(layers.ELU(name="elu")), input_range=(0, 1))
    (in_float,) = [one for one in found.obstacles if "int8" in one.stage]
    assert in_float.where == "elu" and "ELU" in in_float.problem
    assert found.status == 4 and found.file["float_layers"] == ["elu"]
    assert row(found, "elu").int8 == "float" and row(found, "conv").int8 == "int8"


def test_a_draft_that_xnnpack_does_not_run_is_a_warning(monkeypatch):
    def refuse(_):
        raise ValueError("the runtime (xnnpack) cannot run it")

    for module in ("export.xnnpack_leaves", "layers.xnnpack_left"):
        monkeypatch.setattr(f"kdprune.doctor.{module}", refuse)
    found = diagnose(small(), input_range=(0, 1))
    assert found.status == 3 and "cannot run it" in problems(found)[0]
    assert row(found, "conv").xnnpack is None and row(found, "conv").gpu is True


def test_weights_that_are_no_numbers_fail():
    model = small()
    model.get_layer("dense").bias.assign([np.nan] * 4)
    found = diagnose(model)
    assert found.status == 4 and found.obstacles[0].where == "dense"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: small(inputs=(None, None, 3)), "images of one size"),
        (lambda: keras.Sequential([keras.Input((8,)), layers.Dense(2)]), "images of"),
        (
            lambda: keras.Sequential([keras.Input((8, 8, 3)), layers.ReLU()]),
            "classifier",
        ),
        (lambda: type("Own", (keras.Model,), {})(), "subclassed"),
    ],
)
def test_other_models_fail_with_what_to_do(model, told):
    found = diagnose(model())
    assert found.status == 4 and told in problems(found)[0]


def test_a_text_file_called_keras_fails(tmp_path):
    path = tmp_path / "text.keras"
    path.write_text("not a model")
    found = diagnose(path)
    assert found.status == 4 and "not a complete .keras file" in problems(found)[0]
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    assert "SavedModel" in problems(diagnose(tmp_path / "saved"))[0]


# --- Images ---


def test_images_of_other_classes_fail(model, tmp_path):
    images = write_images(tmp_path / "images", classes=3)
    found = diagnose(model, images)
    assert found.status == 4
    assert any("3 classes, the model 10 outputs" in line for line in problems(found))
    assert found.facts["labels"].startswith("class0, class1, class2")
    assert "90 to train on, 3 classes" in found.facts["images"]
    assert found.rows  # The rest is told as well.


def test_a_given_range_is_checked_and_found_on_images():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    images = np.where(labels[:, None, None, None], 200, 60) + random.integers(
        -20, 20, (400, 8, 8, 3)
    )
    images = images.astype(np.uint8)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 1, name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, name="dense"),
        ]
    )
    # Says class 1 of a mean above 130, which of 0..1 is never and of 0..255 right.
    model.get_layer("conv").set_weights([np.full((1, 1, 3, 4), 1 / 3), np.zeros(4)])
    kernel = np.array([[-0.25, 0.25]] * 4)
    model.get_layer("dense").set_weights([kernel, np.array([130.0, -130.0])])
    found = diagnose(model, (images, labels))
    assert found.facts["pixel range"].startswith("[0, 255]; right on"), found
    assert found.status == 0, found.obstacles
    wrong = diagnose(model, (images, labels), input_range=(0, 1))
    assert wrong.status == 4 and problems(wrong, "pixel range")


def test_broken_images_are_named(model, tmp_path):
    images = write_images(tmp_path / "images", classes=10, each=2)
    (images / "class1" / "0.png").write_text("no image")
    found = diagnose(model, images)
    assert found.status == 4 and "class1/0.png" in problems(found, "images")[0]


def test_a_wrong_call_raises(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file"):
        diagnose(tmp_path / "none.keras")
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        diagnose(model, tmp_path / "none")
    (tmp_path / "a.tflite").write_bytes(b"x")
    with pytest.raises(ValueError, match="kdprune fits"):
        diagnose(tmp_path / "a.tflite")
    with pytest.raises(ValueError, match="expected a model of Keras"):
        diagnose(3)


def test_obstacles_read_as_lines():
    one = Obstacle("images", "conv", "it is odd", "make it even")
    assert str(one) == "images: conv: it is odd; make it even"


# --- Whole processes, and whole networks ---


@pytest.mark.slow
def test_the_command_ends_with_each_status(files, tmp_path, monkeypatch):
    out = tmp_path / "diagnosis.json"
    monkeypatch.chdir(files)
    for arguments, status in (
        (["tutorial.keras", "--json", str(out)], 0),
        (["mobilenetv2.keras"], 3),
        (["none.keras"], 2),
    ):
        assert cli.main(["doctor", *arguments]) == status
    assert json.loads(out.read_text())["status"] == 0
    # And so does its process.
    done = subprocess.run(
        [sys.executable, "-m", "kdprune", "doctor", "hopeless.keras"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done.stderr


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mobilenetv2", marks=pytest.mark.slow),
        *(
            pytest.param(name, marks=pytest.mark.soak)
            for name in ("mobilenetv3", "efficientnetb0", "resnet50")
        ),
    ],
)
def test_networks_as_they_are_published(tmp_path, files, name):
    folder = files if name == "mobilenetv2" else save(tmp_path, name)
    found = diagnose(folder / f"{name}.keras")
    assert found.status in (0, 3), found.obstacles
    assert found.proof.original == "Keras 3" and found.proof.deviation < 1e-5
    assert found.file["not_on_micro"] == [] and found.file["float_layers"] == []
    free = sum(one.channels[0] for one in found.rows if one.channels)
    every = sum(one.channels[1] for one in found.rows if one.channels)
    assert free > 0.9 * every
