"""What is no model, no images or no number ends in one clear line."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune import quantize

layers = keras.layers
IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    image = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(4, 3, name="conv")(image))
    return keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def aware(model):
    return quantize.quantize_model(model)


def one_line(fault, function, *arguments, **named):
    with pytest.raises(ValueError, match=fault) as error:
        function(*arguments, **named)
    assert "\n" not in str(error.value)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize("wrong", ["model.keras", None, Subclassed(), b"TFL3"])
@pytest.mark.parametrize(
    "function",
    [
        quantize.quantize_model,
        quantize.cluster_weights,
        quantize.strip_clustering,
        lambda model: quantize.calibrate_ranges(model, IMAGES),
    ],
    ids=["quantize_model", "cluster_weights", "strip_clustering", "calibrate_ranges"],
)
def test_what_is_no_model_is_refused(function, wrong):
    one_line("Received: ", function, wrong)


def test_a_path_is_not_saved_as_a_model(tmp_path):
    one_line("save_quantized expects", quantize.save_quantized, "a.keras", tmp_path)


def test_a_quantized_model_is_not_clustered(aware):
    one_line("wrapped for quantization", quantize.cluster_weights, aware)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"clusters": 1}, "clusters must be an integer >= 2. Received: 1"),
        ({"clusters": 2.5}, "clusters must be an integer >= 2. Received: 2.5"),
        ({"clusters": True}, "clusters must be an integer >= 2. Received: True"),
        ({"exclude": "conv"}, "exclude must be a list of names"),
        ({"exclude": ["cnov"]}, "among conv.*did you mean 'conv'"),
    ],
)
def test_arguments_of_clustering(model, arguments, fault):
    one_line(fault, quantize.cluster_weights, model, **arguments)


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        (IMAGES[:0], "calibration images must have the shape .* n > 0"),
        (IMAGES[0], r"for a single image use image\[None\]"),
        (IMAGES[:, :5], "calibration images must have the shape .n, 8, 8, 3."),
        (IMAGES.astype(int), "array of uint8, or of floats"),
        (IMAGES + 255.0, "divide pixels by 255"),
        (IMAGES * np.nan, "nan at"),
        ("images.npy", "calibration images must be an array"),
    ],
)
def test_images_that_do_not_fit_calibrate_nothing(model, aware, images, fault):
    one_line(fault, quantize.calibrate_ranges, aware, images)
    one_line(fault, quantize.quantize_model, model, calibration=images)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8"])
def test_batches_of_no_size_are_refused(aware, batch_size):
    one_line("batch_size must be", quantize.calibrate_ranges, aware, IMAGES, batch_size)


def test_floats_and_bytes_calibrate_alike(model):
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    one, two = (
        quantize.quantize_model(model, calibration=given).get_weights()
        for given in (images, images.astype(np.float32) / np.float32(255))
    )
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda: quantize.affine_parameters(1, 0), "low <= high"),
        (lambda: quantize.affine_parameters(0, np.inf), "finite numbers"),
        (lambda: quantize.affine_parameters(0, 1, bits=4), "bits must be 8 or 16"),
        (lambda: quantize.quantize_affine([np.nan], 0.1), "NaN among them"),
        (lambda: quantize.quantize_affine([1.0], 0.0), "scale must be positive"),
        (lambda: quantize.dequantize_affine([0.5], 0.1), "array of integers"),
        (lambda: quantize.quantize_linear([1.0], 0.1, rounding="up"), "rounding must"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(call, fault):
    one_line(fault, call)


ATTEMPT = quantize.Attempt("PTQ", lambda: b"TFL3")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"attempts": []}, "attempts of different names"),
        ({"attempts": [ATTEMPT, ATTEMPT]}, "attempts of different names"),
        ({"attempts": [lambda: b"TFL3"]}, "expected Attempt objects"),
        ({"judge": 0.5}, "judge must be a function. Received: 0.5"),
        ({"judge": lambda made: {"drop": 0.1}}, "Received: no 'drop_bound'"),
        ({"max_drop": 1.5}, "max_drop is a share of images"),
        ({"max_drop": float("nan")}, "max_drop is a share of images"),
    ],
)
def test_a_budget_needs_attempts_a_judge_and_a_share(arguments, fault):
    given = {
        "attempts": [ATTEMPT],
        "judge": lambda made: {"drop": 0.0, "drop_bound": 0.001},
        "max_drop": 0.01,
        **arguments,
    }
    assert quantize.meet_budget([ATTEMPT], lambda _: {"drop": 0, "drop_bound": 0}, 0.1)
    one_line(fault, quantize.meet_budget, **given)
