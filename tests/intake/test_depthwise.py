"""Convolutions with a group for each channel become depthwise, and say the same."""

import numpy as np
import tf_keras as keras

from kdprune import take_model
from kdprune._graph import frozen_layers

layers = keras.layers


def network():
    """Two such convolutions, and four that only look like it."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3))
    x = layers.Conv2D(
        *(6, 3),
        **{"groups": 3, "strides": 2, "activation": "relu", "name": "each"},
        bias_initializer="normal",
        kernel_regularizer="l2",
    )(image)
    x = layers.Conv2D(
        *(6, 3),
        **{"groups": 6, "use_bias": False, "padding": "same", "dilation_rate": 2},
        name="frozen",
        trainable=False,
    )(x)
    x = layers.Conv2D(6, 3, groups=2, padding="same", name="pairs")(x)
    x = layers.Conv2D(6, 1, groups=6, strides=(1, 2), name="uneven")(x)
    x = layers.Conv2D(6, 1, groups=6, kernel_constraint="max_norm", name="bound")(x)
    x = layers.Conv2D(1, 1, name="single")(x)
    return keras.Model(image, layers.Dense(4)(layers.Flatten()(x)))


def test_a_group_for_each_channel_is_a_depthwise_convolution():
    model = network()
    images = np.random.default_rng(0).random((5, 12, 12, 3), np.float32)
    taken = take_model(model)
    kinds = {layer.name: type(layer) for layer in taken.model.layers}
    assert kinds["each"] is kinds["frozen"] is layers.DepthwiseConv2D
    for name in ("pairs", "uneven", "bound", "single"):
        assert kinds[name] is layers.Conv2D
    np.testing.assert_allclose(taken.model(images), model(images), atol=1e-6)
    assert np.ptp(model(images)) > 0.01
    assert list(frozen_layers(taken.model)) == ["frozen"]
    assert len(taken.model.losses) == len(model.losses) == 1
    (note,) = [line for line in taken.notes if "DepthwiseConv2D" in line]
    assert note.startswith("each, frozen, with a group")


def test_rows_of_images_are_left_alone():
    image = keras.Input((8, 8, 3))
    x = layers.Reshape((2, 4, 8, 3))(image)
    x = layers.Conv2D(3, 3, groups=3, name="rows")(x)
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(x)))
    assert type(take_model(model).model.get_layer("rows")) is layers.Conv2D
