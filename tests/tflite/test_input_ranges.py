"""Camera bytes go into a file unchanged, whatever range its model was made for."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.evaluate import predict
from kdprune.intake.pixels import (
    BYTES,
    CAFFE,
    IMAGENET,
    SIGNED,
    UNIT,
    PixelRange,
    parse_range,
)
from kdprune.models import take_model
from kdprune.quantize import load_quantized, quantize_model, save_quantized
from kdprune.tflite import (
    check_tflite,
    convert_tflite,
    input_range_of,
    inspect_tflite,
    meant_by_bytes,
)
from kdprune.tflite.interpreter import open_interpreter
from tests.intake.conftest import levels

pytestmark = pytest.mark.slow

layers = keras.layers
INVERTED = PixelRange("white is 0", (-1 / 255,), (1.0,))
# Each with the scale and zero point of a uint8 file's input.
RANGES = {
    "[0, 1]": (UNIT, 1 / 255, 0),
    "[0, 255]": (BYTES, 1.0, 0),
    "[-1, 1]": (SIGNED, 2 / 255, 128),
    "[-0.5, 2]": (PixelRange.between(-0.5, 2), 2.5 / 255, 51),
    "[5, 10]": (PixelRange.between(5, 10), 1 / 255, 0),
    "white is 0": (INVERTED, 1 / 255, 0),
    "imagenet": (IMAGENET, 1 / 255, 0),
    "caffe": (CAFFE, 1 / 255, 0),
    "mean and std": (
        parse_range({"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}),
        1 / 255,
        0,
    ),
}


@pytest.fixture(scope="module")
def learned():
    """Networks that tell levels of red apart, with and without zero padding."""
    images, labels = levels(800, seed=0)
    models = {}
    for padding in ("same", "valid"):
        keras.utils.set_random_seed(0)
        source = keras.Input((8, 8, 3))
        x = layers.Conv2D(8, 3, padding=padding, name="conv")(source)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(8, 3, activation="relu")(x)
        x = layers.GlobalAveragePooling2D()(x)
        model = keras.Model(source, layers.Dense(4)(x), name="levels")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss)
        model.fit(UNIT.apply(images), labels, batch_size=32, epochs=12, verbose=0)
        # Less sure of itself, so that a step of a score is one of a logit, too.
        last = model.layers[-1]
        last.set_weights([weight / 32 for weight in last.get_weights()])
        models[padding] = model
    return models, levels(100, seed=1)


def made_for(model, range_):
    """The model with its first convolution changed to take pixels of another range.

    Exactly the same where nothing is padded: what the network has learned stays.
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    conv = copy.get_layer("conv")
    kernel, bias = (w.astype(np.float64) for w in conv.get_weights())
    if range_.reverse:
        kernel = kernel[:, :, ::-1]
    scale, offset = (
        np.broadcast_to(np.asarray(v, np.float64), (3,))[:, None]
        for v in (range_.scale, range_.offset)
    )
    unit = 1 / (255 * scale)
    bias = bias - (kernel * offset * unit).sum(axis=(0, 1, 2))
    conv.set_weights([kernel * unit, bias])
    return copy


def raw_scores(content, images, dtype):
    """What the runtime says of raw bytes: uint8 as they are, int8 minus 128."""
    interpreter = open_interpreter(content)
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]
    shift = 128 if dtype == "int8" else 0
    found = []
    for image in images:
        interpreter.set_tensor(
            source, (image.astype(np.int16) - shift).astype(dtype)[None]
        )
        interpreter.invoke()
        found.append(interpreter.get_tensor(target)[0].astype(np.int16) + shift)
    return np.array(found) / 256


def check_file(content, model, dtype, scale, zero, images, labels, steps=2):
    figures = inspect_tflite(content)
    shift = 128 if dtype == "int8" else 0
    told = figures["input"]
    assert (told["dtype"], told["scale"]) == (dtype, pytest.approx(scale, rel=1e-6))
    assert told["zero_point"] == zero - shift
    assert figures["float_ops"] == []
    expected = predict(meant_by_bytes(model), images)
    scores = raw_scores(content, images, dtype)
    off = np.abs(scores - expected).max(axis=1)
    assert np.quantile(off, 0.99) <= steps / 256, off.max()
    assert np.mean(expected.argmax(axis=1) == labels) > 0.8
    np.testing.assert_array_equal(scores, save_and_predict(content, images))
    limits = {"max_disagreement": 0.1, "input_range": input_range_of(model)}
    check_tflite(content, expected, scores, labels, **limits)


def save_and_predict(content, images, _cache={}):  # noqa: B006
    import pathlib
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "file.tflite"
        path.write_bytes(content)
        return predict(path, images)


CASES = [
    *("[0, 1]-same", "[0, 255]-valid", "[-1, 1]-same", "[-0.5, 2]-valid"),
    *("[5, 10]-valid", "white is 0-same", "imagenet-same", "caffe-same"),
    "mean and std-valid",
]


def taken(learned, case):
    """A model made for a range, one that takes [0, 1], and what its file says."""
    models, (images, _) = learned
    name, padding = case.rsplit("-", 1)
    range_, scale, zero = RANGES[name]
    user = made_for(models[padding], range_)
    # Zeros around an image mean something else now: what the model says is right.
    labels = user(range_.apply(images)).numpy().argmax(axis=1)
    return user, range_, take_model(user, input_range=range_).model, scale, zero, labels


@pytest.mark.parametrize("case", CASES)
def test_bytes_go_into_a_post_training_file_as_they_are(learned, case):
    user, range_, model, scale, zero, labels = taken(learned, case)
    images = learned[1][0]
    for dtype in ("uint8", "int8"):
        content = convert_tflite(model, dtype, images[:100])
        check_file(content, model, dtype, scale, zero, images, labels)
    again = convert_tflite(user, "int8", images[:100], input_range=range_)
    assert again == content


@pytest.mark.parametrize("case", ["[-1, 1]-same", "[0, 255]-same", "imagenet-same"])
def test_a_file_of_wide_activations_takes_0_to_1_whatever_its_model_takes(
    learned, case
):
    _, _, model, *_, labels = taken(learned, case)
    images = learned[1][0]
    content = convert_tflite(model, "int16x8", images[:50])
    figures = inspect_tflite(content)
    assert figures["input"]["scale"] == pytest.approx(1 / 32767, rel=1e-4)
    assert (figures["input"]["zero_point"], figures["float_ops"]) == (0, [])
    expected, scores = predict(model, images), save_and_predict(content, images)
    assert np.abs(scores - expected).max() < 1 / 256
    check_tflite(content, expected, scores, labels)


@pytest.mark.parametrize("case", ["[-1, 1]-same", "[0, 255]-valid", "imagenet-same"])
def test_bytes_go_into_a_quantization_aware_file_as_they_are(learned, case, tmp_path):
    images = learned[1][0]
    _, _, model, scale, zero, labels = taken(learned, case)
    quantized = quantize_model(model, calibration=images)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    quantized.compile(keras.optimizers.Adam(1e-4), loss, run_eagerly=True)
    quantized.fit(UNIT.apply(images), labels, epochs=1, verbose=0)
    save_quantized(quantized, tmp_path)
    loaded = load_quantized(tmp_path)
    for dtype in ("uint8", "int8"):
        content = convert_tflite(loaded, dtype)
        check_file(content, quantized, dtype, scale, zero, images, labels)
    with pytest.raises(ValueError, match="input_range is for a float model"):
        convert_tflite(loaded, "int8", input_range=(0, 255))
