"""MACs and parameters against figures worked out by hand."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras

from kdprune.models.counts import (
    count_macs,
    count_parameters,
    layer_macs,
    model_weights,
)

layers = keras.layers


def chain(*stack, shape=(8, 8, 4)):
    return keras.Sequential([keras.Input(shape), *stack])


def mlperf_resnet8():
    """The MLPerf Tiny image-classification model, from its published source."""

    def conv(x, filters, kernel=3, strides=1):
        return layers.Conv2D(filters, kernel, strides, padding="same")(x)

    def normal(x, relu=True):
        x = layers.BatchNormalization()(x)
        return layers.Activation("relu")(x) if relu else x

    image = keras.Input((32, 32, 3))
    x = normal(conv(image, 16))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = normal(conv(normal(conv(x, filters, 3, strides)), filters), relu=False)
        x = conv(x, filters, 1, strides) if strides > 1 else x
        x = layers.Activation("relu")(layers.Add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return keras.Model(image, layers.Dense(10, activation="softmax")(x))


def separable_model():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(5, name="out")(x))


SEPARABLE_MACS = {"conv": 64 * 108, "depthwise": 64 * 36, "out": 20}


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (layers.Conv2D(6, 3), 6 * 6 * 3 * 3 * 4 * 6),
        (layers.Conv2D(6, 3, strides=2, padding="same"), 4 * 4 * 9 * 4 * 6),
        (layers.Conv2D(6, 3, dilation_rate=2, padding="same"), 64 * 9 * 4 * 6),
        (layers.Conv2D(6, (1, 3), groups=2), 8 * 6 * 3 * 2 * 6),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), 36 * 9 * 4 * 2),
        (layers.SeparableConv2D(6, 3), 36 * (9 * 4 + 4 * 6)),
        (layers.Conv2DTranspose(6, 3, strides=2), 64 * 9 * 4 * 6),
        (layers.Dense(5), 64 * 4 * 5),  # on every pixel
        (layers.BatchNormalization(), 0),
        (layers.PReLU(), 0),
        (layers.LayerNormalization(axis=[1, 2, 3]), 0),
    ],
)
def test_layers_count_kernel_times_positions(layer, macs):
    assert count_macs(chain(layer)) == macs


def test_channels_first_counts_the_same_positions():
    conv = layers.Conv2D(6, 3, data_format="channels_first")
    assert count_macs(chain(conv, shape=(4, 8, 8))) == 36 * 9 * 4 * 6


def test_mlperf_resnet8_has_its_published_figures():
    model = mlperf_resnet8()
    assert count_macs(model) == 12_501_632
    assert count_parameters(model) == 78_666 == model.count_params()


def test_a_shared_layer_counts_per_use_and_its_weights_once():
    image = keras.Input((8, 8, 4))
    conv = layers.Conv2D(4, 3, padding="same", name="shared")
    model = keras.Model(image, conv(conv(image)))
    assert layer_macs(model) == {"shared": 2 * 64 * 144}
    assert count_parameters(model) == 148


def test_nested_models_count_at_the_size_they_are_called_with():
    inner = keras.Sequential(
        [keras.Input((None, None, 4)), layers.Conv2D(2, 1, name="conv")], name="inner"
    )
    image = keras.Input((8, 8, 4))
    small = layers.AveragePooling2D()(image)
    outputs = [layers.Flatten()(inner(image)), layers.Flatten()(inner(small))]
    model = keras.Model(
        image, layers.Dense(3, name="out")(layers.Concatenate()(outputs))
    )
    assert layer_macs(model) == {"inner/conv": (64 + 16) * 8, "out": 160 * 3}


def test_layers_of_a_reused_graph_outside_the_model_do_not_count():
    image = keras.Input((8, 8, 4))
    features = layers.Conv2D(2, 1, name="kept")(image)
    layers.Conv2D(9, 3, name="elsewhere")(features)
    assert layer_macs(keras.Model(image, features)) == {"kept": 64 * 8}


@pytest.mark.parametrize("kind", ["plain", "pruning", "quantization"])
def test_wrappers_change_neither_macs_nor_parameters(kind):
    model = separable_model()
    weights = model.count_params()
    if kind == "pruning":
        model = tfmot.sparsity.keras.prune_low_magnitude(model)
    elif kind == "quantization":
        model = tfmot.quantization.keras.quantize_model(model)
    assert layer_macs(model) == SEPARABLE_MACS
    assert count_parameters(model) == weights == 189
    assert all(np.asarray(weight).dtype == "float32" for weight in model_weights(model))


def test_what_cannot_be_counted_is_named():
    with pytest.raises(ValueError, match="'odd' is a Conv3D, whose MACs cannot be"):
        count_macs(chain(layers.Conv3D(2, 1, name="odd"), shape=(4, 4, 4, 2)))
    with pytest.raises(ValueError, match="'open' has the shape .*input_shape="):
        count_macs(chain(layers.Conv2D(2, 1, name="open"), shape=(None, None, 3)))
    with pytest.raises(ValueError, match="built Functional or Sequential"):
        count_macs(keras.Sequential([layers.Dense(2)]))
