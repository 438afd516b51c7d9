"""Models made for bytes are trained with first kernels of the usual size."""

import numpy as np
import pytest
import tf_keras as keras
from scipy import special

from kdprune.intake import split_input, take_model
from kdprune.intake.first_kernels import factor_for
from kdprune.intake.pixels import BYTES, CAFFE, IMAGENET, SIGNED, UNIT, PixelRange
from kdprune.quantize import quantize_model
from kdprune.tflite import convert_tflite, inspect_tflite, open_interpreter

layers = keras.layers
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
# What stands between the pixels and the first kernels.
BEFORE = {
    "nothing": (),
    "padding": (layers.ZeroPadding2D(1),),
    "pooling": (layers.MaxPooling2D(2), layers.AveragePooling2D(2)),
    "a normalization": (layers.BatchNormalization(),),
}


def network(*before, flat=False):
    """For pixels of 0 to 255, said nowhere; logits that are neither all alike."""
    keras.utils.set_random_seed(0)
    image = x = keras.Input((8, 8, 3))
    for layer in before:
        x = type(layer).from_config(layer.get_config())(x)
    if flat:
        x = layers.Dense(8, name="first")(layers.Flatten()(x))
    else:
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
        x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(4, name="last")(x))
    kernel, *bias = model.get_layer("first").get_weights()
    model.get_layer("first").set_weights([kernel / 255, *bias])
    return model


def front(model):
    return [one.scale for one in model.layers if isinstance(one, layers.Rescaling)]


@pytest.mark.parametrize(
    ("largest", "factor"), [(1, 1), (3, 1), (151, 128), (255, 256), (0.01, 1 / 128)]
)
def test_the_factor_is_a_power_of_two_and_1_for_usual_ranges(largest, factor):
    assert factor_for(largest) == factor
    assert all(factor_for(one.largest) == 1 for one in (UNIT, SIGNED, IMAGENET))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("before", ["nothing", "padding", "pooling"])
def test_first_kernels_are_of_the_usual_size_and_no_bit_of_a_score_changes(
    before, flat
):
    model = network(*BEFORE[before], flat=flat)
    taken = take_model(model, input_range=(0, 255)).model
    assert front(taken) == [255, 1 / 256]
    grown = taken.get_layer("first").get_weights()[0]
    np.testing.assert_array_equal(
        grown, 256 * model.get_layer("first").get_weights()[0]
    )
    expected = model(IMAGES.astype("float32"))
    found = taken(IMAGES / np.float32(255))
    np.testing.assert_array_equal(found, expected)
    # Taking it again, or apart for a file, changes nothing either.
    assert take_model(taken).model.get_config() == taken.get_config()
    core, said = split_input(taken)
    assert (said.bounds, front(core)) == (pytest.approx((0, 255), rel=1e-6), [])
    for one, other in zip(core.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_has_no_first_kernels_stays_as_it_is():
    taken = take_model(network(BEFORE["a normalization"][0]), input_range=(0, 255))
    assert front(taken.model) == [255]


def test_ranges_of_each_channel_divide_at_once():
    model = network()
    taken = take_model(model, input_range="caffe").model
    assert front(taken) == [255 / 128]
    np.testing.assert_allclose(
        taken(IMAGES / np.float32(255)),
        model(CAFFE.apply(IMAGES)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_range_that_moves_by_half_a_grey_level_keeps_its_kernels():
    model = network()
    taken = take_model(model, input_range=(-127.5, 127.5)).model
    core, said = split_input(quantize_model(taken).quantized_from.base)
    assert said.zero_point == 128 and front(core) == []
    np.testing.assert_array_equal(core.get_weights()[0], model.get_weights()[0])


def learned():
    """A network for bytes that tells how bright images are, and those images."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    images = rng.integers(0, 128, (400, 8, 8, 3)) + 40 * labels[:, None, None, None]
    images = images.astype(np.uint8)
    taken = take_model(network(), input_range=(0, 255)).model
    trained(taken, images, labels, 0.01, epochs=12)
    core, _ = split_input(taken)  # Somebody's network, for bytes again.
    return core, images, labels


def trained(model, images, labels, rate, epochs=1):
    keras.utils.set_random_seed(0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(images / np.float32(255), labels, batch_size=40, epochs=epochs, verbose=0)


def right(model, images, labels):
    scores = model(images / np.float32(255)).numpy()
    return float((scores.argmax(axis=1) == labels).mean())


@pytest.fixture(scope="module")
def raw():
    return learned()


def test_training_goes_as_that_of_the_same_network_for_small_pixels(raw):
    model, images, labels = raw
    taken = take_model(model, input_range=(0, 255)).model
    assert right(taken, images, labels) > 0.9
    # The same network, for pixels of 0 to 255 / 256.
    small = take_model(
        keras.models.clone_model(model), input_range=(0, 255 / 256)
    ).model
    small.set_weights(taken.get_weights())
    for one in (taken, small):
        trained(one, images, labels, 0.003)
    for a, b in zip(taken.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert right(taken, images, labels) > 0.9


@pytest.mark.parametrize("float_layers", [(), ("first",)])
@pytest.mark.quick("float_layers0")
def test_quantization_aware_training_keeps_what_was_learned(raw, float_layers):
    model, images, labels = raw
    taken = take_model(model, input_range=(0, 255)).model
    aware = quantize_model(taken, calibration=images, float_layers=float_layers)
    trained(aware, images, labels, 0.001)
    assert right(aware, images, labels) > 0.9
    content = convert_tflite(aware, "uint8")
    told = inspect_tflite(content)["input"]
    assert (told["scale"], told["zero_point"]) == (pytest.approx(1, rel=1e-6), 0)
    interpreter = open_interpreter(content)
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]
    scores = []
    for image in images[:50]:
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        scores.append(interpreter.get_tensor(target)[0])
    logits = aware(images[:50] / np.float32(255)).numpy()
    off = np.abs(np.array(scores) / 256 - special.softmax(logits, axis=1))
    assert off.max() < 4 / 256


def test_ranges_are_told_by_their_extremes():
    assert PixelRange.between(-2, 1).extent == (-2, 1)
    assert CAFFE.largest == pytest.approx(151.061)
    assert BYTES.times(1 / 256).extent == (0, 255 / 256)
