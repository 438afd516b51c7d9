"""Labels of which several apply, and a single unit, go through a whole recipe."""

import dataclasses
import json

import numpy as np
import pytest
import tf_keras as keras

import kdprune
from kdprune import data
from kdprune._io import read_json
from kdprune.config import parse_recipe
from kdprune.data import Source, Split
from kdprune.evaluate import predict
from kdprune.runner import run as runner

layers = keras.layers
MARKS = ("red", "green", "blue", "bright", "checked")
CHEQUER = 60 * (2 * (np.indices((8, 8)).sum(axis=0) % 2) - 1)[..., None]
TRAIN, TEST = 900, 400


def draw(count, seed):
    """Images 16 x 16 with any of five marks in them, and which: `(n, 5)`."""
    random = np.random.default_rng(seed)
    marks = (random.random((count, 5)) < (0.5, 0.4, 0.3, 0.5, 0.4)).astype(np.int64)
    images = random.normal(90, 12, (count, 16, 16, 3))
    for image, (red, green, blue, bright, checked) in zip(images, marks, strict=True):
        for channel, there in enumerate((red, green, blue)):
            at = random.integers(0, 12)
            image[at : at + 4, :, channel] += 70 * there
        image[:, :4] += 60 * bright
        if checked:
            y, x = random.integers(0, 9, 2)
            image[y : y + 8, x : x + 8] += CHEQUER
    return np.clip(np.rint(images), 0, 255).astype(np.uint8), marks


@dataclasses.dataclass
class Task:
    """What a recipe is made of, and what its figures must reach."""

    name: str
    classes: tuple[str, ...]
    units: int
    least: float

    def split(self, count, seed):
        images, marks = draw(count, seed)
        return Split(images, marks if self.units > 1 else marks[:, 4])


TASKS = (Task("labels", MARKS, 5, 0.75), Task("binary", ("plain", "checked"), 1, 0.85))


def trained(task, path):
    """A net by plain Keras code, its sigmoid at the end."""
    keras.utils.set_random_seed(3)
    split = task.split(TRAIN, 0)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            *(
                layer
                for filters in (16, 32)
                for layer in (
                    layers.Conv2D(filters, 3, padding="same", use_bias=False),
                    layers.BatchNormalization(momentum=0.9),
                    layers.ReLU(),
                    layers.MaxPooling2D(),
                )
            ),
            layers.GlobalAveragePooling2D(),
            layers.Dense(task.units, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    model.fit(split.images / 255.0, split.labels, 50, 12, verbose=0)
    model.save(path)
    return model


def recipe_of(task, path):
    training = {"optimizer": "adam", "batch_size": 50, "schedule": "constant"}

    def train(epochs, rate):
        return {"epochs": epochs, "learning_rate": rate, **training}

    binary = {"task": "binary"} if task.units == 1 else {}
    return {
        "name": "marks",
        "data": {"dataset": f"marks_{task.name}", "calibration": 100, **binary},
        "baseline": "teacher",
        "flagship": "trained",
        "stages": {
            "teacher": {"kind": "load", "file": str(path)},
            "student": {
                "kind": "distill",
                "teacher": "teacher",
                "model": {"name": "resnet", "filters": [8, 16, 16]},
                "training": train(8, 0.004),
                "temperature": 2.0,
                "soft_weight": 0.5,
            },
            "small": {
                "kind": "prune_channels",
                "from": "student",
                "teacher": "teacher",
                "ratio": 0.3,
                "round_to": 4,
                "importance": "taylor",
                "training": train(4, 0.002),
            },
            "after": {"kind": "quantize", "from": "small"},
            "trained": {
                "kind": "quantize",
                "from": "small",
                "method": "qat",
                "teacher": "teacher",
                "training": train(2, 2e-4),
            },
            "files": {
                "kind": "export",
                "from": ["teacher", "after", "trained"],
                "max_drop": 0.05,
            },
            "measured": {
                "kind": "evaluate",
                "from": ["teacher", "small", "files"],
                "latency": False,
            },
            "kit": {"kind": "kit", "from": "measured", "name": "marks"},
            "report": {"kind": "report", "from": "measured"},
        },
    }


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task.name)
def finished(request, tmp_path_factory):
    """The task, its model with its head, and the folder of the run."""
    task = request.param
    folder = tmp_path_factory.mktemp(task.name)
    model = trained(task, folder / "teacher.keras")
    loader = f"marks_{task.name}"
    data.register_dataset(
        loader,
        lambda: Source(
            origin="marks",
            classes=task.classes,
            train=task.split(TRAIN, 0),
            read_test=lambda: task.split(TEST, 1),
            test_size=TEST,
        ),
    )
    runner.run(parse_recipe(recipe_of(task, folder / "teacher.keras")), folder / "run")
    yield task, model, folder / "run"
    del data.DATASETS[loader]


def entries(run):
    return {m["name"]: m for m in read_json(run / "metrics.json")["models"]}


@pytest.mark.slow
def test_stages_files_and_pages_are_right_for_each_head(finished):
    # One test, or each of two workers would make the run for itself.
    _check_that_every_stage_keeps_what_the_teacher_knows(*finished)
    _check_that_files_score_as_their_keras_models_within_two_steps(*finished)
    _check_that_the_kit_and_the_report_say_what_is_measured(*finished)


def _check_that_every_stage_keeps_what_the_teacher_knows(task, model, run):
    found = entries(run)
    assert set(found) >= {"teacher", "small", "after_int8", "trained_int8"}
    for name, entry in found.items():
        assert entry["task"] == task.name
        figure = entry["macro_f1" if task.units > 1 else "auc"]
        assert figure > task.least, (name, figure)
        if entry["agreement"] is not None:
            assert entry["agreement"] > 0.97


def _check_that_files_score_as_their_keras_models_within_two_steps(task, model, run):
    images, head = task.split(TEST, 1).images, "sigmoid"
    float_file = run / "files" / "teacher.float32.tflite"
    said = model.predict(images / 255.0, verbose=0)
    both = said if task.units > 1 else np.concatenate([1 - said, said], axis=1)
    np.testing.assert_allclose(predict(float_file, images), both, atol=1e-4)
    from kdprune.quantize import load_quantized

    # The quantization-aware model computes as its file does.
    aware = load_quantized(run / "trained")
    expected = predict(aware, images, head=head)
    for dtype in ("int8", "uint8"):
        path = run / "files" / f"trained.{dtype}.tflite"
        graph = kdprune.inspect_tflite(path)
        assert graph["head"] == "sigmoid"
        assert graph["output"]["shape"] == [1, task.units]
        zero = -128 if dtype == "int8" else 0
        assert (graph["output"]["scale"], graph["output"]["zero_point"]) == (
            1 / 256,
            zero,
        )
        apart = np.abs(predict(path, images) - expected)
        assert np.quantile(apart, 0.99) <= 2 / 256 + 1e-6


def _check_that_the_kit_and_the_report_say_what_is_measured(task, model, run):
    kit = run / "kit" / "marks"
    card, report = (kit / "MODEL_CARD.md").read_text(), (run / "report.md").read_text()
    said = ("macro F1 %", "mAP %") if task.units > 1 else ("AUC %",)
    for title in said:
        assert title in card and title in report
    manifest = json.loads((kit / "manifest.json").read_text())
    assert manifest["classes"] == len(task.classes)
    exported = read_json(run / "files" / "record.json")["results"]["files"]
    for figures in exported.values():
        assert (
            figures["drop_interval"][0]
            <= figures["drop"]
            <= figures["drop_interval"][1]
        )
