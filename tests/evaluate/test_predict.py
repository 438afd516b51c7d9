"""The same picture means the same thing to every form of a model."""

import time

import numpy as np
import pytest
import tf_keras as keras

from kdprune.benchmark import measure_latency
from kdprune.evaluate import predict
from kdprune.evaluate.prediction import quantize_input, to_probabilities
from kdprune.models.io import save_model


def test_every_form_gives_the_probabilities_of_the_keras_model(tiny, tflites, pixels):
    expected = np.asarray(tiny(pixels.astype("float32") / 255))
    assert np.ptp(expected, axis=0).max() > 0.05  # the pictures differ
    np.testing.assert_allclose(predict(tiny, pixels), expected, atol=1e-6)
    bounds = {"float32": 1e-5, "float16": 2e-3, "int8": 0.03, "uint8": 0.03}
    for kind, bound in bounds.items():
        scores = predict(tflites[kind], pixels)
        assert scores.dtype == np.float32 and scores.shape == (64, 5)
        np.testing.assert_allclose(scores, expected, atol=bound)
    for kind, bound in {"float32": 1e-5, "int8": 0.05, "keras": 1e-5}.items():
        scores = predict(tflites[f"logits_{kind}"], pixels)
        np.testing.assert_allclose(scores, expected, atol=bound)
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_saved_keras_models_predict_alike(tiny, pixels, tmp_path):
    save_model(tiny, tmp_path / "tiny.keras")
    scores = predict(str(tmp_path / "tiny.keras"), pixels)
    np.testing.assert_array_equal(scores, predict(tiny, pixels))


@pytest.mark.parametrize("resolver", ["xnnpack", "builtin", "reference"])
def test_kernels_differ_by_a_few_steps_of_the_output(tflites, pixels, resolver):
    scores = predict(tflites["int8"], pixels, resolver=resolver, threads=2)
    reference = predict(tflites["int8"], pixels, resolver="reference")
    assert np.abs(scores - reference).max() <= 10 / 256


@pytest.mark.parametrize("input_range", [(0, 255), (-1, 1)])
def test_the_input_range_reaches_the_model(pixels, input_range):
    low, high = input_range
    image = keras.Input((8, 8, 3))
    unit = keras.layers.Rescaling(1 / (high - low), -low / (high - low))(image)
    out = keras.layers.Dense(5, name="out")
    model = keras.Model(image, out(keras.layers.Flatten()(unit)))
    plain_image = keras.Input((8, 8, 3))
    plain = keras.Model(plain_image, out(keras.layers.Flatten()(plain_image)))
    np.testing.assert_allclose(
        predict(model, pixels, input_range=input_range),
        predict(plain, pixels),
        atol=1e-5,
    )


def test_pixels_become_exactly_what_training_saw():
    from kdprune.intake.pixels import BYTES, UNIT

    pixels = np.arange(256, dtype=np.uint8)
    unit = UNIT.values(pixels).astype(np.float32)
    np.testing.assert_array_equal(unit, np.arange(256, dtype=np.float32) / 255)
    raw = BYTES.values(pixels)
    np.testing.assert_array_equal(raw, np.arange(256))


@pytest.mark.parametrize("kind", ["keras", "float32", "int8", "uint8"])
def test_floats_score_as_the_bytes_they_are_made_of(tiny, tflites, pixels, kind):
    model = tiny if kind == "keras" else tflites[kind]
    floats = pixels.astype("float32") / np.float32(255)
    np.testing.assert_array_equal(predict(model, floats), predict(model, pixels))


def test_floats_between_bytes_are_not_rounded_for_a_float_model(tflites, pixels):
    between = pixels[:8].astype("float32") / np.float32(255) * np.float32(0.999)
    given = predict(tflites["float32"], between)
    rounded = predict(tflites["float32"], np.rint(between * 255).astype(np.uint8))
    assert np.abs(given - rounded).max() > 1e-6


def test_floats_reach_a_model_of_another_range(tiny, pixels):
    x = image = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 255)(x)
    raw = keras.Model(image, tiny(x))
    floats = pixels.astype("float32") / np.float32(255)
    np.testing.assert_allclose(
        predict(raw, floats, input_range=(0, 255)), predict(tiny, pixels), atol=1e-6
    )


def test_pixels_are_quantized_by_the_files_own_scale():
    raw = {"dtype": np.int8, "quantization": (1 / 255, -128)}
    unit = np.arange(256) / 255
    np.testing.assert_array_equal(quantize_input(raw, unit), np.arange(-128, 128))
    coarse = {"dtype": np.uint8, "quantization": (1 / 100, 3)}
    table = quantize_input(coarse, unit)
    assert table[[0, 1, 2, 255]].tolist() == [3, 3, 4, 103]
    clipped = {"dtype": np.int8, "quantization": (1 / 500, 0)}
    assert quantize_input(clipped, unit)[-1] == 127
    with pytest.raises(ValueError, match="takes uint8 without saying"):
        quantize_input({"dtype": np.uint8, "quantization": (0.0, 0)}, unit)


def test_softmax_is_applied_to_logits_once_and_to_probabilities_never():
    logits = np.array([[1.0, 2.0, 3.0], [0.5, 0.25, 0.25]], np.float32)
    once = to_probabilities(logits)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(once, expected, rtol=1e-6)
    np.testing.assert_array_equal(to_probabilities(once), once)
    huge = to_probabilities(np.array([[1e4, -1e4]], np.float32))
    np.testing.assert_array_equal(huge, [[1, 0]])


def test_probabilities_that_were_rounded_are_no_logits():
    rng = np.random.default_rng(0)
    given = to_probabilities(rng.normal(size=(50, 200)).astype(np.float32))
    for step in (1 / 256, 1 / 1000):  # As of a file whose softmax is made by hand.
        rounded = np.rint(given / step).astype(np.float32) * np.float32(step)
        assert np.abs(rounded.sum(axis=1) - 1).max() > 1e-3
        np.testing.assert_array_equal(to_probabilities(rounded, step), rounded)
    logits = np.rint(rng.normal(size=(50, 4)) / 0.1).astype(np.float32) * 0.1
    assert to_probabilities(logits, 0.1).sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_softmax_in_half_precision_is_not_softened_again(pixels):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Dense(5, kernel_initializer="ones")(keras.layers.Flatten()(image))
    x = keras.layers.Lambda(lambda x: x * np.array([0.1, 0, 0, 0.02, 0]))(x)
    head = keras.layers.Activation("softmax", dtype="bfloat16")
    model = keras.Model(image, head(x))
    outputs = np.asarray(model(pixels / np.float32(255)), np.float32)
    assert np.abs(outputs.sum(axis=1) - 1).max() > 1e-3
    np.testing.assert_array_equal(predict(model, pixels), outputs)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.zeros((2, 9, 9, 3), np.uint8),
            "takes images of 8 x 8 x 3. Received: 9 x 9",
        ),
        (np.zeros((2, 8, 8, 1), np.uint8), "Received: 8 x 8 x 1"),
        (np.full((2, 8, 8, 3), 255.0), r"float64 in \[255, 255\]; divide pixels"),
        (np.full((2, 8, 8, 3), np.nan), r"nan at \(0, 0, 0, 0\)"),
        (np.zeros((2, 8, 8, 3), int), "must be an array of uint8, .* int64"),
        (np.zeros((8, 8, 3), np.uint8), r"image\[None\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "n > 0"),
    ],
)
def test_images_that_do_not_fit_are_refused(tiny, tflites, images, message):
    for model in (tiny, tflites["int8"], tflites["float32"]):
        with pytest.raises(ValueError, match=message):
            predict(model, images)


def test_arguments_that_make_no_sense_are_refused(tflites, pixels, tmp_path):
    with pytest.raises(ValueError, match="resolver must be one of xnnpack, builtin"):
        predict(tflites["int8"], pixels, resolver="fast")
    with pytest.raises(ValueError, match="threads must be an integer >= 1"):
        predict(tflites["int8"], pixels, threads=0)
    with pytest.raises(ValueError, match="pixel range is .low, high"):
        predict(tflites["int8"], pixels, input_range=(1, 0))
    with pytest.raises(FileNotFoundError, match="no model file at"):
        predict(tmp_path / "absent.tflite", pixels)


def test_a_model_that_is_no_classifier_is_refused(pixels):
    image = keras.Input((8, 8, 3))
    with pytest.raises(
        ValueError, match=r"gives \(batch, classes\). Received: \(-1, 6"
    ):
        predict(keras.Model(image, keras.layers.Conv2D(2, 3)(image)), pixels)
    with pytest.raises(ValueError, match="a model of one output, or which"):
        predict(keras.Model(image, [image, image]), pixels)


def test_slow_scoring_says_how_far_it_is(tflites, pixels, monkeypatch, caplog):
    from kdprune import _log

    monkeypatch.setattr(_log.logger, "propagate", True)
    with caplog.at_level("INFO", logger="kdprune"):
        predict(tflites["float32"], pixels)
        assert caplog.messages == []
        monkeypatch.setattr(_log, "_EVERY", 0.0)
        predict(tflites["float32"], pixels)
    assert "float32.tflite: 1 of 64" in caplog.messages


def test_latency_is_measured_for_half_a_second_at_least(tflites, tmp_path):
    start = time.perf_counter()
    result = measure_latency(tflites["int8"], runs=5, warmup=1, resolver="builtin")
    assert time.perf_counter() - start > 0.5
    assert result["runs"] > 5
    assert 0 < result["latency_ms_p50"] <= result["latency_ms_p90"]
    assert (result["threads"], result["resolver"]) == (1, "builtin")
    assert "invoke()" in result["method"]
    assert measure_latency(tmp_path / "any.keras") is None
    with pytest.raises(ValueError, match="runs must be >= 1"):
        measure_latency(tflites["int8"], runs=0)
