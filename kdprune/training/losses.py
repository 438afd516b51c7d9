"""The hard-label loss."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def cross_entropy(labels: Any, logits: Any, label_smoothing: float = 0.0) -> tf.Tensor:
    """Computes the cross-entropy of predictions and true classes.

    Reference for the smoothing: Szegedy et al., 2015, arXiv:1512.00567, section 7.

    Args:
        labels: Class indices, shape `(batch,)` or `(batch, 1)`, or rows of
            probabilities, one-hot or mixed, shape `(batch, classes)`.
        logits: Unnormalised scores, shape `(batch, classes)`.
        label_smoothing: Share in [0, 1) of the target spread evenly over all
            classes.

    Returns:
        Loss per example in nats, float32, shape `(batch,)`.

    Raises:
        ValueError: If `label_smoothing` is out of range or the shapes do not fit.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(
            f"label_smoothing must be in [0, 1). Received: {label_smoothing}"
        )
    log_probabilities = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    labels = tf.convert_to_tensor(labels)
    if log_probabilities.shape.rank not in (None, 2):
        raise ValueError(
            f"logits must have the shape (batch, classes). Received: {logits.shape}"
        )
    if labels.shape.rank == 2 and labels.shape[1] != 1:
        rows = tf.cast(labels, tf.float32)
        if not rows.shape.is_compatible_with(log_probabilities.shape):
            raise ValueError(
                "rows of labels must have the shape of the logits, "
                f"{log_probabilities.shape}. Received: {rows.shape}"
            )
        right = tf.reduce_sum(rows * log_probabilities, axis=1)
    else:
        labels = tf.reshape(tf.cast(labels, tf.int32), [-1])
        right = tf.gather(log_probabilities, labels, axis=1, batch_dims=1)
    if not label_smoothing:
        return -right
    spread = tf.reduce_mean(log_probabilities, axis=1)
    return -(1.0 - label_smoothing) * right - label_smoothing * spread
