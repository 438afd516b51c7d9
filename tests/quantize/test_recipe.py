"""Quantize stages: what a budget tries, and what is refused before any training."""

import json
import re
from types import SimpleNamespace

import pytest
import tf_keras as keras

from kdprune import quantize, tflite
from kdprune.config import parse_recipe
from kdprune.models import build_model, load_model, save_model
from kdprune.runner import run as runner
from kdprune.stages import export
from kdprune.stages.budget import _after_training, _by_training
from kdprune.tflite import convert_tflite

TRAINING = {"epochs": 1, "batch_size": 30, "learning_rate": 1e-3}
AUGMENT = {"crop": 2, "flip": False, "cutout": 3}
LAYERS = [
    {"layer": layer, "weight_low": -1.0, "sqnr_db": decibels}
    for layer, decibels in (("a", 30), ("b", 10), ("c", 20), ("d", 40))
]


@pytest.fixture
def given(tmp_path):
    """The file of a small model."""
    keras.utils.set_random_seed(0)
    save_model(build_model("article_student"), tmp_path / "given.keras")
    path = str(tmp_path / "given.keras")
    return {"kind": "load", "file": path, "input_range": [0, 1]}


def recipe(**stages):
    data = {"dataset": "shapes", "train_images": 100, "test_images": 20}
    return parse_recipe(
        {"name": "small", "data": {**data, "calibration": 12}, "stages": stages}
    )


def node_of(run, stage):
    return next(node for node in run.nodes if node.stage == stage)


def tried(bounds, available=160):
    """Names and calibration images of the attempts, of which some have bounds."""
    measured = {}
    for name, options, count in _after_training(LAYERS, 40, available, measured):
        assert options["correct_bias"] == (" biases corrected" in name)
        assert options.get("equalize", False) == (" equalized" in name)
        yield name, count
        measured[name] = bounds.get(name, 0.5)


@pytest.mark.parametrize("available", [159, 160])
def test_what_is_cheap_is_tried_first(available):
    best = "PTQ, channels equalized, mse ranges, biases corrected"
    more = [(f"{best}, 160 images", 160)] if available == 160 else []
    bounds = {"PTQ, mse ranges": 0.4, "PTQ, channels equalized, mse ranges": 0.3}
    assert list(tried({**bounds, best: 0.2}, available)) == [
        ("PTQ, minmax ranges", 40),
        ("PTQ, percentile ranges", 40),
        ("PTQ, mse ranges", 40),
        ("PTQ, channels equalized, mse ranges", 40),
        (best, 40),
        *more,
        ("PTQ, minmax ranges, biases corrected, in float: b", 40),
        ("PTQ, minmax ranges, biases corrected, in float: b, c", 40),
    ]


def test_what_lowers_accuracy_is_not_taken_along():
    bounds = {"PTQ, percentile ranges": 0.1, "PTQ, mse ranges": 0.2}
    *_, equalized, corrected, more, _, _ = (name for name, _ in tried(bounds))
    assert equalized == "PTQ, channels equalized, percentile ranges"
    assert corrected == "PTQ, percentile ranges, biases corrected"
    assert more == "PTQ, percentile ranges, 160 images"


def test_training_is_tried_on_labels_and_then_under_the_teacher(given, tmp_path):
    auto = {"kind": "quantize", "from": "given", "method": "auto", "max_drop": 0.9}
    soft = {"kind": "soft_labels", "teacher": "given", "augment": AUGMENT}
    run = runner.Run(
        recipe(
            given=given,
            soft=soft,
            untrained=auto,
            alone={**auto, "training": TRAINING},
            taught={**auto, "training": TRAINING, "teacher": "given"},
            stored={**auto, "training": TRAINING, "soft_labels": "soft"},
        ),
        tmp_path,
    )

    def trainings(stage):
        return _by_training(node_of(run, stage), tmp_path)

    assert trainings("untrained") == []
    assert trainings("alone") == [("QAT", node_of(run, "alone"), tmp_path)]
    for stage in ("taught", "stored"):
        (first, node, folder), *last = trainings(stage)
        assert last == [("QAT with distillation", node_of(run, stage), tmp_path)]
        assert (first, node.taught, folder) == ("QAT", False, tmp_path / "labels")
        assert node_of(run, stage).taught
    # Soft labels come with their images' changes, which labels need as well.
    assert node.settings.training.augment == node_of(run, "soft").settings.augment
    assert node.settings.training.epochs == 1


@pytest.mark.slow
def test_both_trainings_are_made_and_recorded(given, tmp_path, monkeypatch):
    meet = quantize.meet_budget

    def only_trainings(attempts, judge, max_drop):
        chosen = [attempt for attempt in attempts if attempt.name.startswith("QAT")]
        # The model is not trained, and so at chance.
        return meet(chosen, lambda made: {**judge(made), "at_chance": False}, 1e-6)

    monkeypatch.setattr(quantize, "meet_budget", only_trainings)
    small = {"kind": "quantize", "from": "given", "method": "auto", "max_drop": 0.9}
    small |= {"teacher": "given", "training": TRAINING}
    runner.run(recipe(given=given, small=small), tmp_path / "run")
    folder = tmp_path / "run" / "small"
    results = json.loads((folder / "record.json").read_text())["results"]
    rows = {row["name"]: row for row in results["attempts"]}
    assert list(rows) == ["QAT", "QAT with distillation"]
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in rows.values())
    assert "can't be met" in results["message"] and results["chosen"] in rows
    history = [
        (folder / name).read_text() for name in ("labels/history.csv", "history.csv")
    ]
    assert history[0] != history[1]


@pytest.mark.slow
def test_the_files_are_made_with_the_images_of_the_attempt_that_was_chosen(
    given, tmp_path, monkeypatch
):
    meet = quantize.meet_budget

    def more_images(attempts, judge, max_drop):
        return meet([a for a in attempts if " images" in a.name], judge, max_drop)

    monkeypatch.setattr(quantize, "meet_budget", more_images)
    small = {"kind": "quantize", "from": "given", "method": "auto", "max_drop": 0.9}
    files = {"kind": "export", "from": "small", "max_disagreement": 0.9}
    files |= {"max_drop": 0.9, "slim": False}
    stages = recipe(given=given, small=small, files=files)
    runner.run(stages, tmp_path / "run")
    plan = quantize.read_plan(tmp_path / "run" / "small")
    assert plan["calibration"] == {"images": 48, "seed": 0}
    run = runner.Run(stages, tmp_path / "run")
    node = node_of(run, "small")
    draw = node.settings.calibration_images
    usual, more = draw(run), draw(run, 48)
    assert (len(usual), len(more)) == (12, 48)
    base = load_model(given["file"])
    content = (tmp_path / "run/files/small.int8.tflite").read_bytes()
    assert content == convert_tflite(base, "int8", more)
    assert content != convert_tflite(base, "int8", usual)


def test_a_budget_that_nothing_could_prove_is_refused_before_training(tmp_path):
    small = {"kind": "quantize", "from": "net", "method": "auto", "max_drop": 0.001}
    net = {"kind": "train", "model": {"name": "article_student"}, "training": TRAINING}
    message = (
        "stages.small.max_drop: expected at least 2,325 validation images.*at most 0.1 "
        "points. Received: 10; give more images"
    )
    with pytest.raises(ValueError, match=message) as caught:
        runner.run(recipe(net=net, small=small), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net").exists()


WHITENED = {"name": "whitened_cnn", "width": 4, "activation": "elu"}


def product(path):
    """A model with ELU, which quantization-aware training refuses."""
    x = keras.layers.Conv2D(4, 3, 4)(inputs := keras.Input((32, 32, 3)))
    x = keras.layers.ELU(name="culprit")(x)
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(x))
    save_model(keras.Model(inputs, outputs), path)
    return str(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("a loaded file", r"layer 'culprit' \(ELU\) .*method: ptq"),
        ("a file trained further", r"layer 'culprit' \(ELU\)"),
        ("a factory", r"7 layers of .* Activation with activation elu"),
    ],
)
def test_a_layer_that_can_not_be_trained_is_named_before_anything_is_trained(
    tmp_path, start, message
):
    path = product(tmp_path / "given.keras")
    given = {"file": path, "input_range": [0, 1]}
    teacher = {"kind": "train", "model": {"name": "resnet8"}, "training": TRAINING}
    net = {
        "a loaded file": {"kind": "load", "file": path},
        "a file trained further": {**teacher, "model": given},
        "a factory": {**teacher, "model": WHITENED},
    }[start]
    sparse = {"kind": "prune", "from": "net", "sparsity": 0.5, "training": TRAINING}
    int8 = {"kind": "quantize", "from": "sparse", "method": "qat"}
    int8 |= {"teacher": "teacher", "training": TRAINING}
    content = recipe(teacher=teacher, net=net, sparse=sparse, int8=int8)
    with pytest.raises(ValueError, match=f"^stages.int8: {message}") as caught:
        runner.run(content, tmp_path / "run")
    assert "\n" not in str(caught.value)
    folders = [path for path in (tmp_path / "run").iterdir() if path.is_dir()]
    assert folders == []


def test_layers_that_the_recipe_can_not_tell_are_left_to_the_stage(tmp_path):
    short = {"kind": "prune_blocks", "from": "net", "count": 1, "training": TRAINING}
    net = {"kind": "train", "model": {"name": "resnet8"}, "training": TRAINING}
    int8 = {"kind": "quantize", "from": "short", "method": "qat", "training": TRAINING}
    text = runner.preview(recipe(net=net, short=short, int8=int8), tmp_path)
    assert "int8 (quantize): to do" in text


def test_a_refused_file_is_kept_with_its_reasons(tmp_path, monkeypatch):
    """A gate that nothing passes: every file is made, kept, and told of at once."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, 4, activation="relu")(inputs)
    x = keras.layers.Dense(10)(keras.layers.Flatten()(x))
    save_model(keras.Model(inputs, 9 * x), tmp_path / "given.keras")
    path = str(tmp_path / "given.keras")
    given = {"kind": "load", "file": path, "input_range": [0, 1]}
    small = {"kind": "quantize", "from": "given", "method": "ptq"}
    files = {"kind": "export", "from": "small", "max_deviation": 1e-6}
    stages = {"given": given, "small": small}
    with pytest.raises(ValueError, match="small.int8.tflite failed") as raised:
        runner.run(recipe(**stages, files=files), tmp_path / "run")
    message = str(raised.value)
    assert "small.uint8.tflite failed" in message and "\n" not in message
    assert "allow it by max_deviation" in message
    assert "the plain converter's file of the same model has" in message
    folder = tmp_path / "run" / "files"
    assert not (folder / "record.json").exists()
    assert sorted(path.name for path in folder.glob("*.tflite")) == [
        "small.int8.rejected.tflite",
        "small.uint8.rejected.tflite",
    ]
    found = json.loads((folder / "small.int8.rejected.json").read_text())
    assert "probabilities deviate" in found["reasons"][0]
    figures = found["figures"]
    # It is what the plain converter makes.
    assert figures["plain_accuracy"] == figures["tflite_accuracy"]
    # Allowed, it is exported, and nothing of the refusal is left.
    files["max_deviation"] = 0.9
    runner.run(recipe(**stages, files=files | {"max_drop": 0.9}), tmp_path / "run")
    names = {path.name for path in folder.iterdir()}
    assert "small.int8.tflite" in names and not any("rejected" in n for n in names)


@pytest.mark.parametrize("refusal", ["stop", "keep"])
@pytest.mark.quick("keep")
def test_a_file_that_can_not_be_made_leaves_the_others(
    tmp_path, caplog, monkeypatch, refusal
):
    """int16x8 has no layer normalization; int8 and float have, of the same model."""
    # No file is measured to stand beside one that is not there.
    monkeypatch.setattr(export, "_plain_accuracy", lambda *_: pytest.fail("measured"))
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, 4, activation="relu")(inputs)
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    save_model(keras.Model(inputs, x), tmp_path / "given.keras")
    path = str(tmp_path / "given.keras")
    stages = {
        "given": {"kind": "load", "file": path, "input_range": [0, 1]},
        "wide": {"kind": "quantize", "from": "given", "method": "int16x8"},
        "files": {"kind": "export", "from": ["wide", "given"], "max_drop": 0.9,
                  "on_refusal": refusal},
    }  # fmt: skip
    folder = tmp_path / "run" / "files"
    told = "wide.int16x8.tflite can't be made: model .* 'norm' is normalized by RSQRT"
    if refusal == "stop":
        with pytest.raises(ValueError, match=told) as raised:
            runner.run(recipe(**stages), tmp_path / "run")
        assert "\n" not in str(raised.value)
        assert not (folder / "record.json").exists()
    else:
        runner.run(recipe(**stages), tmp_path / "run")
        assert re.search(told, caplog.text)
        record = json.loads((folder / "record.json").read_text())
        assert list(record["results"]["files"]) == ["given.float32.tflite"]
        (refused,) = record["results"]["refused"].values()
        assert list(refused) == ["reasons", "message"]
        assert [name for name in record["outputs"] if "wide" in name] == []
    assert [one.name for one in folder.glob("*.tflite")] == ["given.float32.tflite"]


@pytest.mark.slow
def test_a_run_keeps_what_the_conversion_refuses_and_measures_it(tmp_path, caplog):
    """A function that int8 has no operator for is computed in float, and refused."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, 4)(inputs)
    x = keras.layers.ELU(name="elu")(x)
    x = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    save_model(keras.Model(inputs, x), tmp_path / "given.keras")
    path = str(tmp_path / "given.keras")
    stages = {
        "given": {"kind": "load", "file": path, "input_range": [0, 1]},
        "small": {"kind": "quantize", "from": "given", "method": "ptq"},
        "auto": {"kind": "quantize", "from": "given", "method": "auto",
                 "max_drop": 0.5},
        "files": {"kind": "export", "from": ["small", "auto", "given"],
                  "max_drop": 0.9, "on_refusal": "keep"},
        "measured": {"kind": "evaluate", "from": ["given", "files"],
                     "latency": False},
    }  # fmt: skip
    runner.run(recipe(**stages), tmp_path / "run")
    folder = tmp_path / "run" / "files"
    results = json.loads((folder / "record.json").read_text())["results"]
    refused = {f"{one}.{dtype}.tflite" for one in ("small", "auto")
               for dtype in ("int8", "uint8")}  # fmt: skip
    assert set(results["refused"]) == refused
    assert list(results["files"]) == ["given.float32.tflite"]
    for name, one in results["refused"].items():
        assert f"{name} failed the export gate" in caplog.text
        assert "float, first ELU" in one["reasons"][0]
        assert (folder / one["file"]).stat().st_size > 1000
    # What was tried within the budget was measured all the same.
    tried = json.loads((tmp_path / "run/auto/record.json").read_text())["results"]
    assert all(one["bytes"] > 1000 for one in tried["attempts"])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"small_int8_rejected", "auto_uint8_rejected"} <= {
        one["name"] for one in metrics["models"]
    }


def test_a_conversion_that_makes_no_file_that_runs_has_no_content():
    refused = tflite.RefusedFile(["it does not run"], {}, b"content", runs=False)

    def convert():
        raise refused

    with pytest.raises(tflite.RefusedFile):
        tflite.content_of(convert)
    refused.runs = True
    assert tflite.content_of(convert) == b"content"
    assert tflite.content_of(lambda: b"other") == b"other"


def test_a_file_that_is_refused_as_it_is_converted_is_kept_as_well(tmp_path):
    refused = tflite.RefusedFile(["it computes in float"], {"ops": {}}, b"content")
    node = SimpleNamespace(name="files")
    kept = export._keep(tmp_path / "small.int8.tflite", refused, lambda: None, node)
    assert (tmp_path / kept["file"]).read_bytes() == b"content"
    assert "small.int8.tflite failed the export gate: it computes" in kept["message"]
    record = json.loads((tmp_path / "small.int8.rejected.json").read_text())
    assert record["reasons"] == ["it computes in float"]
