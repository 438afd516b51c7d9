"""Network slimming's penalty on batch normalization's factors."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.models import load_model, save_model
from kdprune.prune import add_bn_l1, strip_bn_l1

layers = keras.layers


def small(**arguments):
    inner = [layers.InputLayer((4, 4, 6)), layers.BatchNormalization(**arguments)]
    return keras.Sequential(
        [
            layers.Conv2D(6, 3, input_shape=(6, 6, 3)),
            layers.BatchNormalization(**arguments),
            keras.Sequential(inner),
            layers.GlobalAveragePooling2D(),
        ]
    )


def test_the_penalty_is_the_sum_of_the_factors(tmp_path):
    model = small(gamma_initializer="random_normal")
    slim = add_bn_l1(model, 0.01)
    images = np.ones((2, 6, 6, 3), np.float32)
    np.testing.assert_allclose(slim(images), model(images), rtol=1e-6)
    gammas = [w for w in model.trainable_weights if "gamma" in w.name]
    expected = 0.01 * sum(np.abs(gamma).sum() for gamma in gammas)
    assert len(gammas) == 2 and not model.losses
    np.testing.assert_allclose(sum(slim.losses), expected, rtol=1e-5)
    save_model(slim, tmp_path / "slim.keras")
    loaded = load_model(tmp_path / "slim.keras")
    np.testing.assert_allclose(sum(loaded.losses), expected, rtol=1e-5)


def test_a_stripped_model_has_no_penalty():
    model = small(gamma_initializer="random_normal")
    stripped = strip_bn_l1(add_bn_l1(model, 0.01))
    images = np.ones((2, 6, 6, 3), np.float32)
    assert not stripped.losses
    np.testing.assert_allclose(stripped(images), model(images), rtol=1e-6)


def test_what_has_no_factors_is_refused():
    with pytest.raises(ValueError, match="scale=True"):
        add_bn_l1(small(scale=False))
    with pytest.raises(ValueError, match="strength must be positive. Received: 0"):
        add_bn_l1(small(), 0)


def test_factors_that_the_graph_does_not_show_are_told(caplog):
    image = keras.Input((4, 6, 3))
    x = layers.BatchNormalization(name="shown")(image)
    inside = layers.BatchNormalization(name="inside")
    x = layers.GlobalAveragePooling2D()(layers.TimeDistributed(inside)(x))
    slim = add_bn_l1(keras.Model(image, x))
    assert len(slim.losses) == 1
    assert caplog.messages == [
        "the penalty does not reach what the graph does not show: inside"
    ]
