"""Models saved by plain Keras 3 load as tf_keras models that say the same."""

import json
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tf_keras as keras

from kdprune import convert_tflite
from kdprune._graph import frozen_layers
from kdprune.intake import build_keras3, take_model
from kdprune.models import load_model, save_model
from kdprune.tflite import read_tflite
from kdprune.tflite.names import layers_of

SMALL = (
    *("tutorial", "arithmetic", "nested", "shared", "activations", "half"),
    *("reversed_channels", "convnext"),
)
APPLICATIONS = (
    "MobileNetV2",
    "MobileNetV3Small",
    "EfficientNetB0",
    "ResNet50",
    "VGG16",
    "DenseNet121",
    "Xception",
    "InceptionV3",
)


def assert_the_same(model, saved, tolerance=1e-5):
    with np.load(saved) as arrays:
        x, y = arrays["x"], arrays["y"]
    np.testing.assert_allclose(
        model(x, training=False), y, atol=tolerance * np.abs(y).max(), rtol=0
    )


@pytest.mark.parametrize("form", ["keras", "h5"])
@pytest.mark.parametrize("name", SMALL)
def test_a_keras_3_model_says_the_same_after_loading(keras3_files, name, form):
    model = load_model(keras3_files / f"{name}.{form}")
    # Half precision computes with three digits, the rebuilt model in float32.
    tolerance = 2e-3 if name == "half" else 1e-5
    assert_the_same(model, keras3_files / f"{name}.npz", tolerance)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


@pytest.mark.parametrize("form", ["keras", "h5"])
def test_what_is_frozen_in_keras_3_stays_frozen(keras3_files, form):
    model = load_model(keras3_files / f"nested.{form}")
    assert {path.split("/")[1] for path in frozen_layers(model)} == {"base"}
    taken = take_model(model)
    assert any(note.startswith("4 frozen layers") for note in taken.notes)
    assert len(frozen_layers(taken.model)) == 4
    before = [w.numpy() for w in taken.model.non_trainable_weights]
    taken.model.compile("adam", "mse", run_eagerly=True)
    taken.model.fit(np.ones((4, 32, 32, 3)), np.zeros((4, 1)), verbose=0)
    for old, new in zip(before, taken.model.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_group_for_each_channel_is_depthwise_and_named_in_the_file(keras3_files):
    model = take_model(load_model(keras3_files / "convnext.keras")).model
    names = [layer.name for layer in model.layers if "depthwise_conv" in layer.name]
    assert len(names) == 5
    graph = read_tflite(convert_tflite(model))
    found = [
        layer
        for op in graph.ops
        if op.name == "DEPTHWISE_CONV_2D"
        for layer in layers_of(graph.tensors[op.outputs[0]].name)
    ]
    assert found == names


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_keras_applications_say_the_same_after_loading(name, keras3_applications):
    folder = keras3_applications
    # What differs in an .h5 file is where the arrays are.
    for form in ("keras", "h5") if name == "DenseNet121" else ("keras",):
        model = load_model(folder / f"{name}.{form}")
        assert_the_same(model, folder / f"{name}.npz")


@pytest.mark.parametrize("name", ["nested", "arithmetic", "activations"])
def test_the_loaded_model_is_one_of_ours(keras3_files, tmp_path, name):
    """Saved again, it is a tf_keras file that loads like any other."""
    model = load_model(keras3_files / f"{name}.keras")
    assert isinstance(model, keras.Model) and not model._is_compiled
    save_model(model, tmp_path / "again.keras")
    again = load_model(tmp_path / "again.keras")
    assert_the_same(again, keras3_files / f"{name}.npz")
    # The same bytes each time, though activations are shared by several layers.
    save_model(load_model(keras3_files / f"{name}.keras"), tmp_path / "twice.keras")
    save_model(again, tmp_path / "third.keras")
    first = (tmp_path / "again.keras").read_bytes()
    assert (tmp_path / "twice.keras").read_bytes() == first
    assert (tmp_path / "third.keras").read_bytes() == first


def test_layers_keep_their_names_and_what_may_be_trained(keras3_files):
    model = load_model(keras3_files / "nested.keras")
    base = next(x for x in model._flatten_layers() if x.name == "base")
    assert not base.trainable and not base.trainable_weights
    assert model.layers[-1].trainable_weights
    twice = load_model(keras3_files / "shared.keras").get_layer("twice")
    assert len(twice._inbound_nodes) == 2


def rewritten(source, target, change):
    """A copy of a `.keras` file whose configuration was changed."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def layer_of(config, kind):
    layers = config["config"]["layers"]
    return next(one for one in layers if one["class_name"] == kind)


def set_key(kind, **values):
    return lambda config: layer_of(config, kind).update(values)


def configure(kind, **values):
    return lambda config: layer_of(config, kind)["config"].update(values)


_FUNCTION = {"class_name": "function", "config": "act", "module": "canary_module"}


@pytest.mark.parametrize(
    "change, message",
    [
        (set_key("Conv2D", class_name="Lambda"), "is a Lambda, which is code"),
        (set_key("Conv2D", class_name="StringLookup"), "'StringLookup', which cannot"),
        (set_key("Conv2D", class_name="MyConv"), "'MyConv', which cannot be read"),
        (configure("Conv2D", activation="relv"), "'relv' .*did you mean 'relu'"),
        (configure("Conv2D", activation=_FUNCTION), "'act' is not an activation"),
        (configure("Conv2D", kernel_initializer=_FUNCTION), "'function' is not a ker"),
        (configure("Conv2D", kernel_regularizer="act"), "'act' is not a kernel_regu"),
        (configure("Conv2D", filters={"class_name": "function"}), "more than numbers"),
        (configure("Conv2D", data_format="channels_first"), "channels first"),
        (configure("Conv2D", lora_rank=4), "lora_rank=4"),
        (configure("Conv2D", dtype="int8"), "computing in 'int8'"),
        (
            configure("Dense", dtype={"class_name": "QuantizedDTypePolicy"}),
            "QuantizedDTypePolicy.*before it is quantized",
        ),
        (configure("Conv2D", filters=10**9), "they need more than the"),
        (configure("Conv2D", filters=-3), "layer 'conv2d"),
        (configure("Dense", units=9), "shapes|need more"),
        (configure("InputLayer", batch_shape=[None, None, None, 3]), "of one size"),
        (set_key("Flatten", config="x"), "no class and settings"),
        (lambda config: config.update(class_name="Tutorial"), "subclassed model"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(
    keras3_files, tmp_path, monkeypatch, change, message
):
    trace = tmp_path / "imported"
    (tmp_path / "canary_module.py").write_text(f"open({str(trace)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    path = rewritten(keras3_files / "tutorial.keras", tmp_path / "bad.keras", change)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not trace.exists() and "canary_module" not in sys.modules


def test_all_that_is_not_known_is_said_at_once(keras3_files, tmp_path):
    def change(config):
        first, second = (
            one for one in config["config"]["layers"] if one["class_name"] == "Conv2D"
        )
        first["class_name"] = "Fancy"
        second["config"]["activation"] = "fancier"

    path = rewritten(keras3_files / "tutorial.keras", tmp_path / "bad.keras", change)
    with pytest.raises(ValueError, match="'Fancy'.*; layer .*'fancier'"):
        load_model(path)


def as_keyword(node):
    node["kwargs"] = {"training": True}


def as_argument(node):
    node["args"].append(True)


@pytest.mark.parametrize("how", [as_keyword, as_argument])
@pytest.mark.parametrize("kind", ["SpatialDropout2D", "GaussianNoise"])
def test_a_layer_that_stays_in_training_is_refused(keras3_files, tmp_path, kind, how):
    def change(config):
        how(layer_of(config, kind)["inbound_nodes"][0])

    path = rewritten(keras3_files / "shared.keras", tmp_path / "on.keras", change)
    with pytest.raises(ValueError, match="training=True, so that the model"):
        load_model(path)


def test_an_operation_without_a_layer_is_named(keras3_files, tmp_path):
    def change(config):
        entry = layer_of(config, "TrueDivide")
        entry["inbound_nodes"][0]["args"].reverse()  # 127.5 / x

    path = rewritten(keras3_files / "arithmetic.keras", tmp_path / "op.keras", change)
    with pytest.raises(ValueError, match=r"operation TrueDivide \('true_divide'\) has"):
        load_model(path)


def test_models_nested_without_end_are_refused():
    config = {"class_name": "Sequential", "config": {"name": "m", "layers": []}}
    for _ in range(400):
        config = {
            "class_name": "Sequential",
            "config": {"name": "m", "layers": [config]},
        }
    with pytest.raises(ValueError, match="nested more than 8 deep"):
        build_keras3(config)


def test_a_graph_that_never_starts_is_refused(keras3_files, tmp_path):
    def change(config):
        entry = layer_of(config, "TrueDivide")
        tensor = entry["inbound_nodes"][0]["args"][0]["config"]
        tensor["keras_history"] = ["true_divide", 0, 0]

    path = rewritten(keras3_files / "arithmetic.keras", tmp_path / "loop.keras", change)
    with pytest.raises(ValueError, match="is called on what is never made"):
        load_model(path)


@pytest.mark.parametrize("form", ["keras", "h5"])
def test_weights_that_are_no_numbers_are_refused_by_layer(keras3_files, tmp_path, form):
    path = tmp_path / f"nan.{form}"
    if form == "h5":
        path.write_bytes((keras3_files / "tutorial.h5").read_bytes())
        weights = path
    else:
        with zipfile.ZipFile(keras3_files / "tutorial.keras") as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        weights = tmp_path / "weights.h5"
        weights.write_bytes(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        spoil_dense_kernel(file)
    if form == "keras":
        members["model.weights.h5"] = weights.read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    with pytest.raises(ValueError, match="layer 'dense.*not finite"):
        load_model(path)


def spoil_dense_kernel(file):
    found = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and "dense" in name and item.ndim == 2:
            if "optimizer" not in name:
                found.append(name)

    file.visititems(visit)
    file[found[0]][0, 0] = np.nan


def test_a_layer_whose_weights_are_missing_is_named(keras3_files, tmp_path):
    def change(config):
        layers = config["config"]["layers"]
        extra = json.loads(json.dumps(layer_of(config, "BatchNormalization")))
        extra["config"]["name"] = "one_more"
        layers.insert(-1, extra)

    path = rewritten(keras3_files / "tutorial.keras", tmp_path / "more.keras", change)
    with pytest.raises(ValueError, match="layer 'one_more' has no weights|need more"):
        load_model(path)
