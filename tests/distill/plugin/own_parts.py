"""A user's own losses and images, which a recipe names."""

import numpy as np
import tensorflow as tf

from kdprune import register_dataset, register_loss
from kdprune.data import Source, Split
from kdprune.distill import FeatureLoss


@register_loss("squared_logits")
def squared_logits(teacher_logits, student_logits, scale=1.0):
    return scale * tf.reduce_mean((teacher_logits - student_logits) ** 2, axis=1)


@register_loss("channel_means")
class ChannelMeans(FeatureLoss):
    def pair_loss(self, index, teacher, student):
        means = [tf.reduce_mean(x, axis=[1, 2, 3]) for x in (teacher, student)]
        return tf.square(means[0] - means[1])


@register_dataset("halves")
def load_halves(*, data_dir=None, seed=0, count=120):
    """Images that are bright on the left or on the right."""

    def split(stream):
        rng = np.random.default_rng((seed, stream))
        labels = np.arange(count) % 2
        images = rng.integers(0, 99, (count, 32, 32, 3)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, 16 * label : 16 * label + 16] += 150
        return Split(images, labels)

    return Source(
        origin="halves",
        classes=("left", "right"),
        train=split(0),
        read_test=lambda: split(1),
        test_size=count,
    )
