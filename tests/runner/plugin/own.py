"""A data set, a network, a loss and an importance that are not part of kdprune."""

import numpy as np
import tensorflow as tf
from tf_keras import layers

import kdprune
from kdprune.data import Source, Split


@kdprune.register_dataset("stripes")
def stripes(*, seed=0, period=4, count=120):
    """Stripes across or along images of 12 x 12 pixels."""

    def draw(count, seed):
        random = np.random.default_rng(seed)
        labels = np.arange(count) % 2
        phase = random.integers(0, period, count)
        wave = (np.arange(12) + phase[:, None]) // (period // 2) % 2
        images = np.where(
            labels[:, None, None] == 0, wave[:, :, None], wave[:, None, :]
        )
        noise = random.integers(0, 60, (count, 12, 12))
        pixels = (np.broadcast_to(images, (count, 12, 12)) * 180 + noise)[..., None]
        return Split(pixels.astype(np.uint8), labels.astype(np.int64))

    return Source(
        origin=f"stripes of period {period}",
        classes=("across", "along"),
        train=draw(count, seed),
        read_test=lambda: draw(40, seed + 1),
        test_size=40,
    )


@kdprune.register_model("two_convolutions")
def two_convolutions(images, filters=8):
    x = layers.Conv2D(filters, 3, activation="relu", name="first")(images)
    x = layers.Conv2D(filters, 3, activation="relu", name="second")(x)
    return layers.GlobalAveragePooling2D()(x)


scales = []  # Of each time that the loss was traced, for the test.


@kdprune.register_loss("squared_logits")
def squared_logits(teacher_logits, student_logits, scale=1.0):
    scales.append(scale)
    return scale * tf.reduce_mean((teacher_logits - student_logits) ** 2, axis=1)


@kdprune.register_importance("last_first")
def last_first(group, statistics):
    """Removes the channels of the highest index first."""
    return -np.arange(len(group.roots), dtype=float)
