"""Entries for metrics.json, and the public reference models on the real data."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.data import load_dataset
from kdprune.evaluate import compare_predictions, evaluate_model, predict
from kdprune.models.io import save_model
from kdprune.tflite import describe_file

KEYS = """
    name stage format dtype path accuracy accuracy_ci test_images bytes bytes_gzip
    parameters nonzero_parameters macs latency_ms_p50 latency_ms_p90 threads
    resolver agreement agreement_with ece per_class confusion sparsity_by_layer
""".split()

# Accuracy on all 10,000 test images, bytes, MACs, parameters.
MLPERF = {
    "pretrainedResnet": (0.8719, 318_144, 12_501_632, 77_706),
    "pretrainedResnet_quant": (0.8697, 98_496, 12_501_632, 77_706),
    "pretrainedResnet_large_float": (0.9128, 1_929_208, 76_473_920, 480_330),
    "pretrainedResnet_large_int8": (0.9131, 512_024, 76_473_920, 480_330),
}
LONG = ("pretrainedResnet_large_float",)


@pytest.fixture(scope="module")
def cifar10_test(cifar10_dir):
    return load_dataset("cifar10", data_dir=cifar10_dir).test


def test_an_entry_has_the_keys_of_metrics_json(tiny, tflites, pixels, tmp_path):
    labels = np.arange(64) % 5
    save_model(tiny, tmp_path / "tiny.keras")
    source = evaluate_model(tmp_path / "tiny.keras", pixels, labels)
    result = evaluate_model(
        tflites["int8"],
        pixels,
        labels,
        source=(source.entry["name"], source.scores),
    )
    for entry in (source.entry, result.entry):
        assert list(entry) == KEYS
        assert json.loads(json.dumps(entry)) == entry
    assert source.entry["name"] == "tiny" and source.entry["format"] == "keras"
    for key in ("latency_ms_p50", "threads", "resolver", "agreement", "agreement_with"):
        assert source.entry[key] is None
    entry = result.entry
    assert (entry["name"], entry["stage"]) == (tflites["int8"].stem, None)
    assert entry["path"] == str(tflites["int8"])
    assert entry["agreement"] > 0.85 and entry["agreement_with"] == "tiny"
    assert entry["latency_ms_p50"] > 0
    assert (entry["threads"], entry["resolver"]) == (1, "xnnpack")
    assert entry["test_images"] == 64 == np.sum(entry["confusion"])
    np.testing.assert_array_equal(result.scores, predict(tflites["int8"], pixels))


def test_a_keras_model_is_measured_as_its_file_is(tiny, pixels, tmp_path):
    labels = np.arange(64) % 5
    save_model(tiny, tmp_path / "saved.keras")
    file = evaluate_model(tmp_path / "saved.keras", pixels, labels).entry
    model = evaluate_model(tiny, pixels, labels).entry
    of_files = {key: model.pop(key) for key in ("path", "bytes", "bytes_gzip")}
    assert set(of_files.values()) == {None}
    assert model.pop("name") == tiny.name
    assert model == {key: file[key] for key in model}


def test_what_is_neither_model_nor_file_is_refused_in_one_line(pixels):
    labels = np.arange(64) % 5
    for given in (None, pixels, b"TFL3"):
        with pytest.raises(ValueError, match="expected a built .* Received: ") as error:
            evaluate_model(given, pixels, labels)
        assert "\n" not in str(error.value)


def test_labels_of_another_data_set_are_refused(tflites, pixels):
    with pytest.raises(ValueError, match="has 5 outputs, but the labels run"):
        evaluate_model(tflites["int8"], pixels, np.arange(64) % 6, latency=False)


@pytest.mark.parametrize("name", MLPERF)
def test_the_reference_files_hold_what_is_published(mlperf_dir, name):
    _, size, macs, parameters = MLPERF[name]
    description = describe_file(mlperf_dir / f"{name}.tflite")
    found = tuple(description[key] for key in ("bytes", "macs", "parameters"))
    assert found == (size, macs, parameters)
    assert len(description["sparsity_by_layer"]) == 10
    integers = name.endswith(("quant", "int8"))
    assert (description["float_ops"] == {}) == integers


def test_the_reference_models_score_alike_on_2000_images(mlperf_dir, cifar10_test):
    images, labels = cifar10_test.images[:2000], cifar10_test.labels[:2000]
    scores = [
        predict(
            mlperf_dir / f"pretrainedResnet{kind}.tflite", images, input_range=(0, 255)
        )
        for kind in ("", "_quant")
    ]
    for accuracy, found in zip((0.8719, 0.8697), scores, strict=True):
        # Three standard errors of 2,000 images around the figure of all 10,000.
        assert (found.argmax(axis=1) == labels).mean() == pytest.approx(
            accuracy, abs=0.022
        )
    assert 0.01 < compare_predictions(*scores, labels)["disagreement"] < 0.04


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.soak if name in LONG else pytest.mark.slow)
        for name in MLPERF
    ],
)
def test_the_reference_models_reach_their_accuracy(mlperf_dir, cifar10_test, name):
    path = mlperf_dir / f"{name}.tflite"
    result = evaluate_model(
        path, cifar10_test.images, cifar10_test.labels, input_range=(0, 255)
    )
    assert result.entry["test_images"] == 10_000
    assert result.entry["accuracy"] == pytest.approx(MLPERF[name][0], abs=0.001)
    low, high = result.entry["accuracy_ci"]
    assert low < MLPERF[name][0] < high and high - low < 0.014


@pytest.mark.slow
def test_mlperf_quantization_loses_little_and_disagrees_more(mlperf_dir, cifar10_test):
    scores = [
        predict(
            mlperf_dir / f"pretrainedResnet{kind}.tflite",
            cifar10_test.images,
            input_range=(0, 255),
        )
        for kind in ("", "_quant")
    ]
    result = compare_predictions(*scores, cifar10_test.labels)
    assert result["difference"] == pytest.approx(-0.0022, abs=0.001)
    assert result["disagreement"] == pytest.approx(0.0246, abs=0.001)
    assert result["mcnemar_p"] > 0.05


def test_a_model_that_another_pixel_range_suits_better_is_not_measured_in_this():
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2
    images = np.full((100, 4, 4, 1), 60, np.uint8) + 100 * labels[:, None, None, None]
    images = (images + rng.integers(0, 30, images.shape)).astype(np.uint8)
    source = keras.Input((4, 4, 1))
    mean = keras.layers.GlobalAveragePooling2D()(source)
    brightness = keras.layers.Dense(2, name="scores")
    model = keras.Model(source, brightness(mean))
    brightness.set_weights([np.array([[-0.1, 0.1]]), np.array([12.0, -12.0])])
    entry = evaluate_model(model, images, labels, input_range=(0, 255)).entry
    assert entry["accuracy"] > 0.9
    for given in (None, (0, 1), (-1, 1)):
        with pytest.raises(ValueError, match=r"right on .* \[0, 255\].*give") as e:
            evaluate_model(model, images, labels, input_range=given)
        assert "\n" not in str(e.value)
    unchecked = evaluate_model(model, images, labels, check_range=False)
    assert unchecked.entry["accuracy"] == 0.5


@pytest.mark.parametrize("classes", [None, 4])
def test_a_file_whose_output_is_a_single_number_is_refused(classes, tmp_path):
    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 3], tf.float32)])
    def total(images):
        return tf.reduce_sum(images)

    concrete = [total.get_concrete_function()]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(concrete, total)
    (tmp_path / "total.tflite").write_bytes(converter.convert())
    images, labels = np.zeros((8, 8, 8, 3), np.uint8), np.arange(8) % 4
    with pytest.raises(ValueError, match=r"\(batch, classes\)"):
        evaluate_model(tmp_path / "total.tflite", images, labels, classes=classes)
