"""SavedModel folders are scored and converted; a graph that does more is not loaded."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorflow.core.protobuf import saved_model_pb2

import kdprune
from kdprune.evaluate import evaluate_model, predict
from kdprune.models.saved_model import check_saved_model, load_saved_model
from kdprune.tflite import describe_file
from kdprune.training import layers_as_before

layers = keras.layers
BYTES = (0, 255)


def network(end="softmax", units=4):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(6, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Flatten(),
            layers.Dense(units, end),
        ]
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["save", "export"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / request.param
    model = network()
    if request.param == "save":
        tf.saved_model.save(model, str(path))
    else:
        model.export(str(path))
    return path


def test_it_says_what_the_keras_model_says(folder, images):
    expected = np.asarray(network()(images.astype(np.float32)))
    found = predict(folder, images, input_range=BYTES)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    labels = expected.argmax(axis=1)
    entry = evaluate_model(folder, images, labels, input_range=BYTES).entry
    assert entry["accuracy"] == 1 and entry["format"] == "saved_model"
    assert entry["parameters"] == network().count_params() and entry["macs"] is None
    assert entry["bytes"] > 4 * entry["parameters"]


def test_it_becomes_an_int8_file_that_agrees(folder, images, tmp_path):
    content = kdprune.convert_tflite(folder, "int8", images, input_range=BYTES)
    (tmp_path / "model.tflite").write_bytes(content)
    found = predict(tmp_path / "model.tflite", images)
    expected = predict(folder, images, input_range=BYTES)
    assert np.abs(found - expected).max() < 0.05
    description = describe_file(tmp_path / "model.tflite")
    assert description["float_ops"] == {} and description["ops"]["SOFTMAX"] == 1


@pytest.mark.parametrize("end, op", [(None, "SOFTMAX"), ("sigmoid", "LOGISTIC")])
def test_its_head_is_what_its_graph_ends_in(end, op, images, tmp_path):
    network(end).export(str(tmp_path / "saved"))
    model = load_saved_model(tmp_path / "saved")
    activation = getattr(model.layers[-1].activation, "__name__", None)
    assert activation == end
    content = kdprune.convert_tflite(model, "int8", images[:8], input_range=BYTES)
    (tmp_path / "model.tflite").write_bytes(content)
    assert describe_file(tmp_path / "model.tflite")["ops"][op] == 1


def test_dropout_that_keeps_its_random_state_is_no_hindrance(images, tmp_path):
    """As TensorFlow's own switch makes it, and `seed_everything`."""
    backend = keras.backend.experimental
    with layers_as_before():
        backend.enable_tf_random_generator()
        model = network()
    tf.saved_model.save(model, str(tmp_path))
    assert b"RngReadAndSkip" in (tmp_path / "saved_model.pb").read_bytes()
    expected = np.asarray(model(images.astype(np.float32)))
    found = predict(tmp_path, images, input_range=BYTES)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_needs_layers_refuses_it_in_one_line(folder):
    for use in (kdprune.load_model, kdprune.take_model):
        with pytest.raises(ValueError, match="a SavedModel has no layers") as e:
            use(folder)
        assert "\n" not in str(e.value) and "convert_tflite" in str(e.value)
    found = kdprune.diagnose(folder)
    assert found.status == 4 and "a SavedModel has no layers" in str(found)
    with pytest.raises(ValueError, match="cannot be saved"):
        kdprune.save_model(load_saved_model(folder), folder.parent / "again.keras")


class Evil(tf.Module):
    """Reads or writes a file whenever it scores an image."""

    def __init__(self, act):
        super().__init__()
        self.act = act

        @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 3), tf.float32, "x")])
        def score(x):
            with tf.control_dependencies(tf.nest.flatten([self.act()])):
                return {"scores": tf.reduce_mean(x, (1, 2))}

        self.score = score


def write(target):
    return lambda: tf.io.write_file(str(target), "written")


@pytest.mark.parametrize(
    "act, named",
    [
        (write, "WriteFile"),
        (lambda target: lambda: tf.io.read_file(str(target)), "ReadFile"),
        (
            lambda target: lambda: tf.py_function(lambda: 1.0, [], tf.float32),
            "EagerPyFunc",
        ),
        (
            lambda target: (
                lambda: tf.raw_ops.SaveV2(
                    prefix=str(target),
                    tensor_names=["a"],
                    shape_and_slices=[""],
                    tensors=[tf.ones(3)],
                )
            ),
            "SaveV2",
        ),
        (
            lambda target: (
                lambda: tf.raw_ops.RestoreV2(
                    prefix=str(target),
                    tensor_names=["a"],
                    shape_and_slices=[""],
                    dtypes=[tf.float32],
                )
            ),
            "RestoreV2",
        ),
        (
            lambda target: lambda: tf.print("x", output_stream=f"file://{target}"),
            "Print",
        ),
    ],
)
def test_a_graph_that_does_more_than_compute_is_not_loaded(act, named, tmp_path):
    target = tmp_path / "written"
    evil = Evil(act(target))
    signatures = {"serving_default": evil.score}
    tf.saved_model.save(evil, str(tmp_path / "evil"), signatures=signatures)
    with pytest.raises(
        ValueError, match=f"{named}.*only compute; it is not loaded"
    ) as e:
        load_saved_model(tmp_path / "evil")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("written*"))


def fill(x):
    return tf.reduce_mean(tf.fill([1 << 16, 1 << 16], x[0, 0, 0, 0]))


def mask(x):
    return tf.reduce_mean(tf.boolean_mask(x, x > 0.5))


@pytest.mark.parametrize(
    "act, message",
    [
        (fill, "its tensors for one image take 17,.* bytes.*; it is not run"),
        (mask, "operations .*Where.* of a size that only the pixels tell"),
    ],
)
def test_a_graph_whose_memory_has_no_bound_is_not_run(act, message, tmp_path):
    @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 3), tf.float32, "x")])
    def score(x):
        return {"scores": tf.reduce_mean(x, (1, 2)) + act(x)}

    module = tf.Module()
    module.score = score
    signatures = {"serving_default": score}
    tf.saved_model.save(module, str(tmp_path / "large"), signatures=signatures)
    with pytest.raises(ValueError, match=message) as e:
        load_saved_model(tmp_path / "large")
    assert "\n" not in str(e.value)


def test_constants_and_variables_larger_than_their_files_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for data in (copy / "variables").glob("*.data*"):
        data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ValueError, match="its variables take .* it is not run"):
        load_saved_model(copy)
    content = saved_model_pb2.SavedModel()
    content.ParseFromString((folder / "saved_model.pb").read_bytes())
    nodes = content.meta_graphs[0].graph_def.node
    constant = next(node for node in nodes if node.op == "Const")
    sizes = constant.attr["value"].tensor.tensor_shape.dim
    del sizes[:]
    for _ in range(3):
        sizes.add().size = 1 << 14
    (copy / "saved_model.pb").write_bytes(content.SerializeToString())
    with pytest.raises(ValueError, match="its constants take .* it is not run"):
        load_saved_model(copy)


def test_a_graph_with_a_file_of_words_is_not_loaded(tmp_path):
    class Words(tf.Module):
        def __init__(self):
            super().__init__()
            file = tf.saved_model.Asset(str(tmp_path / "words.txt"))
            source = tf.lookup.TextFileInitializer(
                file.asset_path, tf.string, 0, tf.int64, 1, delimiter=" "
            )
            self.table, self.file = tf.lookup.StaticHashTable(source, -1), file

        @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 3), tf.float32, "x")])
        def score(self, x):
            found = self.table.lookup(tf.constant("cat"))
            return {"scores": tf.reduce_mean(x, (1, 2)) + tf.cast(found, tf.float32)}

    (tmp_path / "words.txt").write_text("cat 1\n")
    words = Words()
    tf.saved_model.save(
        words, str(tmp_path / "saved"), signatures={"serving_default": words.score}
    )
    with pytest.raises(ValueError, match="HashTable|LookupTable"):
        check_saved_model(tmp_path / "saved")


def test_forms_that_cannot_be_scored_are_refused_in_one_line(tmp_path):
    image, other = keras.Input((8, 8, 3)), keras.Input((4,))
    flat = layers.Flatten()(image)
    for name, model, message in (
        (
            "two",
            keras.Model([image, other], layers.Dense(2)(flat) + other[:, :2]),
            "one in",
        ),
        (
            "several",
            keras.Model(image, [layers.Dense(2)(flat), layers.Dense(3)(flat)]),
            "a cl",
        ),
        (
            "row",
            keras.Model(other, layers.Dense(2)(other)),
            "expected a SavedModel of one",
        ),
    ):
        tf.saved_model.save(model, str(tmp_path / name))
        with pytest.raises(ValueError, match=message):
            check_saved_model(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no saved_model.pb"):
        check_saved_model(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="damaged"):
        check_saved_model(tmp_path)
