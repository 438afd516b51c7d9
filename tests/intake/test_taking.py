"""Whatever form a classifier comes in, it ends as one graph of pixels in [0, 1]."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.evaluate.prediction import predict, to_probabilities
from kdprune.intake.pixels import (
    BYTES,
    CAFFE,
    IMAGENET,
    SIGNED,
    UNIT,
    PixelRange,
    parse_range,
    usual_ranges,
)
from kdprune.models import take_model
from tests.intake.conftest import levels

layers = keras.layers
MEANS, DEVIATIONS = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def network(*first, padding="same", name="net"):
    """A small network behind the layers, with weights that tell channels apart."""
    keras.utils.set_random_seed(3)
    source = x = keras.Input((8, 8, 3))
    for layer in first:
        x = layer(x)
    if padding == "zeros":
        x, padding = layers.ZeroPadding2D(1)(x), "valid"
    x = layers.Conv2D(6, 3, padding=padding, activation="relu", name="conv")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(source, layers.Dense(4, name="logits")(x), name=name)


def pictures(count=5):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def front(model):
    """The layers between the input and the first convolution."""
    names = [layer.name for layer in model.layers]
    return [type(layer).__name__ for layer in model.layers[1 : names.index("conv")]]


def agree(taken, user, range_, atol=1e-4):
    images = pictures()
    np.testing.assert_allclose(
        taken.model(UNIT.apply(images)),
        user(range_.apply(images), training=False),
        atol=atol,
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    "given", [*usual_ranges(3), PixelRange.between(-0.5, 2), parse_range("imagenet")],
    ids=lambda range_: range_.name,
)  # fmt: skip
@pytest.mark.parametrize("padding", ["same", "zeros"])
def test_a_given_range_stands_in_front(given, padding):
    user = network(padding=padding)
    taken = take_model(user, input_range=given)
    agree(taken, user, given)
    padded = ["ZeroPadding2D"] * (padding == "zeros")
    # Of bytes, one more: for first kernels of the usual size.
    count = (given != UNIT) + (given == BYTES)
    assert front(taken.model) == ["Rescaling"] * count + padded
    assert taken.range == given
    assert all("\n" not in note for note in taken.notes)
    assert bool(taken.notes) == (given != UNIT)


@pytest.mark.parametrize(
    "first, range_, left",
    [
        ([layers.Rescaling(1 / 255)], BYTES, 0),
        ([layers.Rescaling(1 / 127.5, -1)], BYTES, 1),
        ([layers.Rescaling(2.0, -1.0)], UNIT, 1),
        ([layers.Rescaling(1 / 255), layers.Rescaling(2.0, -1.0)], BYTES, 1),
        ([layers.Normalization(mean=MEANS, variance=[0.1] * 3)], UNIT, 1),
        ([layers.Normalization(mean=[120.0], variance=[900.0])], BYTES, 1),
        (
            [
                layers.RandomFlip(),
                layers.Rescaling(1 / 255),
                layers.Normalization(mean=MEANS, variance=[0.1] * 3),
            ],
            BYTES,
            1,
        ),
    ],
)
def test_what_stands_in_front_is_read_off_and_merged(first, range_, left):
    user = network(*first)
    taken = take_model(user)
    agree(taken, user, range_)
    assert taken.range == range_ and front(taken.model) == ["Rescaling"] * left
    random = [layer for layer in first if isinstance(layer, layers.RandomFlip)]
    assert list(taken.augmentation) == random


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50", "densenet"])
@pytest.mark.parametrize("padding", ["same", "zeros"])
def test_preprocess_input_in_the_graph_is_read_off(name, padding):
    keras.utils.set_random_seed(1)
    source = keras.Input((8, 8, 3))
    x = getattr(keras.applications, name).preprocess_input(source)
    user = keras.Model(source, network(padding=padding)(x))
    taken = take_model(user)
    agree(taken, user, BYTES, atol=2e-3)
    padded = ["ZeroPadding2D"] * (padding == "zeros")
    assert taken.range == BYTES and front(taken.model) == ["Rescaling", *padded]


def test_channels_that_no_convolution_can_turn_around_are_turned_in_front():
    source = keras.Input((8, 8, 3))
    x = layers.AveragePooling2D()(source)
    user = keras.Model(source, layers.Dense(4)(layers.Flatten()(x)))
    taken = take_model(user, input_range="caffe")
    agree(taken, user, CAFFE, atol=1e-2)
    again = take_model(taken.model)
    assert [type(one).__name__ for one in taken.model.layers[1:3]] == [
        "Rescaling",
        "Conv2D",
    ]
    agree(again, user, CAFFE, atol=1e-2)


def test_what_was_taken_is_taken_as_it_is():
    for given in usual_ranges(3):
        once = take_model(network(padding="same"), input_range=given).model
        twice = take_model(once)
        assert twice.range == UNIT and not twice.notes
        agree(twice, once, UNIT, atol=1e-6)
        assert [one.name for one in twice.model.layers] == [
            one.name for one in once.layers
        ]


def with_range(model, given):
    """The same knowledge in a model that takes pixels of another range."""
    back = layers.Rescaling(
        (1 / (255 * np.float32(given.scale))).tolist(),
        (-np.float32(given.offset) / (255 * np.float32(given.scale))).tolist(),
    )
    # Nothing at the front tells the range: a convolution is no arithmetic.
    same = layers.DepthwiseConv2D(
        1, depthwise_initializer="ones", use_bias=False, name="conv"
    )
    return keras.Sequential([keras.Input((8, 8, 3)), same, back, model])


@pytest.mark.parametrize("given", [BYTES, SIGNED, IMAGENET], ids=lambda r: r.name)
def test_the_range_is_found_on_labelled_images(learned, given):
    model, (images, labels) = learned
    user = with_range(model, given)
    taken = take_model(user, images=images, labels=labels)
    assert taken.range == given and taken.found.images == len(images)
    scores = taken.model(UNIT.apply(images)).numpy()
    assert np.mean(scores.argmax(axis=1) == labels) > 0.8
    assert f"{100 * taken.found.accuracies[given.name]:.1f} % in" in taken.notes[-1]
    wrong = SIGNED if given is BYTES else BYTES
    with pytest.raises(ValueError, match="is not the model's.*give") as caught:
        take_model(user, input_range=wrong, images=images, labels=labels)
    assert given.name in str(caught.value) and "\n" not in str(caught.value)


def test_where_nothing_tells_the_range_it_is_asked_for(learned):
    images, labels = levels(40, seed=3)
    for user in (network(), network(layers.Conv2D(3, 1))):
        with pytest.raises(ValueError, match="give .*input_range="):
            take_model(user, images=images, labels=labels)
        taken = take_model(user, input_range=[0, 1], images=images, labels=labels)
        assert taken.range == UNIT
    # What stands in front tells, where scores can't.
    taken = take_model(network(layers.Rescaling(1 / 255)), images=images, labels=labels)
    assert taken.range == BYTES


def test_a_final_activation_is_split_off_and_models_inside_are_entered():
    inner = network(name="inner")
    source = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255)(source)
    x = layers.Dropout(0.5)(inner(x))
    user = keras.Model(source, layers.Softmax()(x))
    taken = take_model(user)
    assert taken.head.activation == "softmax" and taken.head.units == 4
    assert not any(isinstance(layer, keras.Model) for layer in taken.model.layers)
    told = " ".join(taken.notes)
    assert "'inner'" in told and "Dropout" in told and "softmax" in told
    scores = taken.model(UNIT.apply(pictures())).numpy()
    expected = user(BYTES.apply(pictures()), training=False).numpy()
    np.testing.assert_allclose(to_probabilities(scores), expected, atol=1e-5)


def test_one_of_several_outputs_is_chosen_by_name():
    source = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(source)
    kinds, colours = layers.Dense(3, name="kind")(x), layers.Dense(5, name="colour")(x)
    user = keras.Model(source, [kinds, colours])
    assert take_model(user, output="colour").head.units == 5
    with pytest.raises(ValueError, match="of one output.*Received: kind, colour"):
        take_model(user)
    with pytest.raises(ValueError, match="one of kind, colour. Received: 'size'"):
        take_model(user, output="size")


@pytest.mark.parametrize(
    "given, message",
    [
        ([255, 0], "what black and white are to the model"),
        ([0, 1, 2], "input_range must be .*Received"),
        ("bgr", "imagenet, caffe.*Received: 'bgr'"),
        ({"mean": [0.5]}, "input_range must be"),
        ({"mean": [0.5], "std": [0.0]}, "above 0"),
        ({"mean": [0.5] * 4, "std": [0.5] * 4}, "of 4 channels.*images with 3"),
    ],
)
def test_a_range_that_is_none_is_refused_in_a_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        take_model(network(), input_range=given)
    assert "\n" not in str(caught.value)


def test_a_layer_that_says_something_else_each_time_is_refused_by_name():
    source = keras.Input((8, 8, 3))
    x = layers.Flatten()(source)
    x = layers.Dropout(0.5, name="monte_carlo")(x, training=True)
    with pytest.raises(ValueError, match="'monte_carlo' .*training=True"):
        take_model(keras.Model(source, layers.Dense(2)(x)))
    normal = layers.BatchNormalization(name="by_batch")
    x = layers.Flatten()(normal(source, training=True))
    with pytest.raises(ValueError, match="'by_batch' .*training=True"):
        take_model(keras.Model(source, layers.Dense(2)(x)))


# --- Images without an axis of channels ---


def without_channels(reshape):
    image = keras.Input((12, 10))
    if reshape:
        x = layers.Rescaling(1 / 255)(layers.Reshape((12, 10, 1))(image))
        x = layers.Conv2D(4, 3, activation="relu")(x)
        x = layers.GlobalAveragePooling2D()(x)
    else:
        x = layers.Conv1D(4, 3, activation="relu")(image)
        x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(image, layers.Dense(1, "sigmoid")(x))


@pytest.mark.parametrize("reshape", [pytest.param(True, marks=pytest.mark.slow), False])
def test_images_of_height_and_width_alone_get_a_channel(reshape, tmp_path):
    model = without_channels(reshape)
    model.save(tmp_path / "grey.keras")
    # The original of either takes the same form; a process of its own is enough.
    taken = take_model(tmp_path / "grey.keras", compare=reshape)
    assert taken.model.input_shape == (None, 12, 10, 1)
    assert any("an axis of 1 channel" in note for note in taken.notes)
    assert taken.range.name == (BYTES if reshape else UNIT).name
    if reshape:
        assert taken.comparison.agrees and taken.comparison.deviation is not None
    grey = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 1)).astype(np.uint8)
    logits = taken.model(UNIT.apply(grey)).numpy()
    expected = model(taken.range.apply(grey)[..., 0]).numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected, atol=1e-6)
    second = predict(tmp_path / "grey.keras", grey)[:, 1:]
    np.testing.assert_allclose(second, expected, atol=1e-6)
