"""Batch normalization recalibrated: its statistics are those of the data."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.prune import recalibrate_batch_norm

layers = keras.layers


def small():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization(name="first")(inputs)
    x = layers.Conv2D(4, 3, name="conv")(x)
    inner = keras.Sequential(
        [layers.InputLayer((4, 4, 4)), layers.BatchNormalization(name="second")],
        name="inner",
    )
    x = layers.Dropout(0.5)(inner(x))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def pictures(count=300):
    return np.random.default_rng(0).beta(2, 5, (count, 6, 6, 3)).astype(np.float32)


def test_the_statistics_are_those_of_all_the_data():
    model, images = small(), pictures()
    before = {v.name: v.numpy() for v in model.weights}
    recalibrate_batch_norm(model, images)
    first = model.get_layer("first")
    np.testing.assert_allclose(first.moving_mean, images.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(first.moving_variance, images.var((0, 1, 2)), rtol=1e-4)
    for variable in model.weights:
        moved = not np.array_equal(variable.numpy(), before[variable.name])
        assert moved == ("moving_" in variable.name)


def test_one_batch_is_normalized_as_in_training():
    model, images = small(), pictures(64)
    expected = images - images.mean((0, 1, 2))
    expected /= np.sqrt(images.var((0, 1, 2)) + model.get_layer("first").epsilon)
    maps = model.get_layer("conv")(expected).numpy()
    recalibrate_batch_norm(model, (images, np.zeros(64)))
    second = model.get_layer("inner").get_layer("second")
    np.testing.assert_allclose(second.moving_mean, maps.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(second.moving_variance, maps.var((0, 1, 2)), rtol=1e-4)


def test_frozen_layers_and_datasets_of_batches_count_too():
    model, images = small(), pictures()
    model.trainable = False
    batches = tf.data.Dataset.from_tensor_slices(images).batch(70)
    recalibrate_batch_norm(model, batches)
    first = model.get_layer("first")
    np.testing.assert_allclose(first.moving_mean, images.mean((0, 1, 2)), rtol=1e-5)


def test_bytes_are_the_same_images_as_floats():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 6, 3), np.uint8)
    one, other = small(), small()
    other.set_weights(one.get_weights())
    recalibrate_batch_norm(one, pixels)
    recalibrate_batch_norm(other, np.float32(pixels) / 255)
    for weight, same in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(weight, same)


def test_what_are_no_images_is_refused():
    wide = np.full((2, 6, 6, 3), 2.0, np.float32)
    holed = np.full((2, 6, 6, 3), np.nan, np.float32)
    for data in (wide, holed, np.zeros((2, 6, 6, 3), int), [wide]):
        with pytest.raises(ValueError, match="images in data must be ") as error:
            recalibrate_batch_norm(small(), data)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="floats. Received: int64"):
        recalibrate_batch_norm(small(), [np.zeros((2, 108), int)])
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate_batch_norm(small(), pictures(0))


def test_normalization_that_the_graph_does_not_show_is_named(caplog):
    class Hidden(keras.Model):
        def __init__(self):
            super().__init__(name="hidden")
            self.norm = layers.BatchNormalization(name="inside")

        def call(self, inputs):
            return self.norm(inputs)

    inputs = keras.Input((6, 6, 3))
    x = Hidden()(layers.BatchNormalization(name="seen")(inputs))
    model = keras.Model(inputs, x)
    recalibrate_batch_norm(model, pictures(20))
    (record,) = caplog.records
    assert record.getMessage().endswith("is not recalibrated: inside")
    assert np.any(model.get_layer("seen").moving_mean)
