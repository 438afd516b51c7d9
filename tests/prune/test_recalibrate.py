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
    return np.random.default_rng(0).normal(3, 2, (count, 6, 6, 3)).astype(np.float32)


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


def test_raw_pixels_and_no_images_are_refused():
    with pytest.raises(ValueError, match="Received: uint8"):
        recalibrate_batch_norm(small(), np.zeros((2, 6, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate_batch_norm(small(), pictures(0))
