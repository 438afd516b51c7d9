"""What tests of distillation share: images in four classes, a model without a graph."""

import numpy as np
import pytest
import tf_keras as keras

layers = keras.layers


@pytest.fixture(scope="session")
def data():
    """64 images of 8 by 8 pixels, the brighter the higher their class, and labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 4
    images = rng.random((64, 8, 8, 3), np.float32) * 0.5
    images += labels[:, None, None, None].astype(np.float32) / 8
    return images, labels


class Subclassed(keras.Model):
    """A network without a graph."""

    def __init__(self, classes=4, activation=None):
        super().__init__()
        self.flatten = layers.Flatten()
        self.head = layers.Dense(classes, activation=activation)

    def call(self, inputs, training=None):
        return self.head(self.flatten(inputs))


@pytest.fixture
def subclassed():
    """Makes a model without a graph: `subclassed(classes=4, activation=None)`."""
    return Subclassed
