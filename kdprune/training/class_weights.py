"""Weights of the classes in the loss, where some have few images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray


def balanced_weights(labels: ArrayLike, classes: int) -> NDArray[np.float32]:
    """Weights by which each class counts the same in a loss, whatever its size.

    That is n / (classes * n_c), so that the mean weight of an example is 1.

    Args:
        labels: Class indices of the training images, `(n,)`; -1 where unknown.
        classes: Number of classes.

    Returns:
        A weight for each class, float32 `(classes,)`.

    Raises:
        ValueError: If the labels are no indices of classes, or a class has no image.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            "class weights need one class for each image (n,). Received: labels of "
            f"shape {labels.shape}; leave class_weight out where several may apply"
        )
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    if len(counts) > classes or not counts.all():
        raise ValueError(
            f"expected images of each of {classes} classes. Received: {counts.tolist()}"
        )
    return (counts.sum() / (classes * counts)).astype(np.float32)


def weight_classes(
    loss: Callable[..., tf.Tensor], weights: Sequence[float] | NDArray | None
) -> Callable[..., tf.Tensor]:
    """A loss of labels, logits and options, each example weighted by its class.

    Args:
        loss: `loss(labels, logits, ...)` giving a value for each example.
        weights: A weight for each class; None leaves the loss as it is.

    Returns:
        The weighted loss. Labels are indices `(batch,)`, or rows `(batch, classes)`,
        whose weight is the mean over the classes by their shares.
    """
    if weights is None:
        return loss
    table = tf.constant(weights, tf.float32)

    def weighted(labels: Any, logits: Any, *options: Any, **named: Any) -> tf.Tensor:
        labels = tf.convert_to_tensor(labels)
        if labels.shape.rank == 2 and labels.shape[1] != 1:
            of_each = tf.linalg.matvec(tf.cast(labels, tf.float32), table)
        else:
            # A label that is missing, -1, has a loss that others leave out.
            indices = tf.maximum(tf.reshape(tf.cast(labels, tf.int32), [-1]), 0)
            of_each = tf.gather(table, indices)
        return of_each * loss(labels, logits, *options, **named)

    return weighted
