"""The losses on hard labels: of classes, and of labels that apply or not."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


def cross_entropy(labels: Any, logits: Any, label_smoothing: float = 0.0) -> tf.Tensor:
    """Computes the cross-entropy of predictions and true classes.

    Reference for the smoothing: Szegedy et al., 2015, arXiv:1512.00567, section 7.

    Args:
        labels: Class indices, shape `(batch,)` or `(batch, 1)`, or rows of
            probabilities, one-hot or mixed, shape `(batch, classes)`.
        logits: Unnormalized scores, shape `(batch, classes)`.
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


def binary_cross_entropy(
    labels: Any, logits: Any, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Computes the binary cross-entropy of each output and its label.

    Args:
        labels: 1 where a label applies, 0 where not, or a share between, shape
            `(batch, labels)`; of a single unit `(batch,)` as well.
        logits: Unnormalized scores, shape `(batch, labels)`; their sigmoid is the
            probability of each label.
        label_smoothing: Share in [0, 1) of the target that is spread evenly over
            yes and no.

    Returns:
        Loss per example in nats, the mean over its labels, float32, `(batch,)`.

    Raises:
        ValueError: If `label_smoothing` is out of range or the shapes do not fit.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(
            f"label_smoothing must be in [0, 1). Received: {label_smoothing}"
        )
    logits = tf.cast(logits, tf.float32)
    labels = tf.cast(labels, tf.float32)
    if labels.shape.rank == 1:
        labels = labels[:, tf.newaxis]
    if logits.shape.rank not in (None, 2) or not labels.shape.is_compatible_with(
        logits.shape
    ):
        raise ValueError(
            "labels must have the shape of the logits (batch, labels). Received: "
            f"{labels.shape} and {logits.shape}"
        )
    labels = (1.0 - label_smoothing) * labels + 0.5 * label_smoothing
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
    return tf.reduce_mean(losses, axis=1)


# By what makes probabilities of a model's logits.
HARD_LOSSES = {"softmax": cross_entropy, "sigmoid": binary_cross_entropy}


def accuracy_metric(head: str) -> Any:
    """What Keras's `compile` takes under `metrics` to report "accuracy" of logits.

    That is the share of right classes or, with "sigmoid", of right labels.
    """
    if head == "softmax":
        return "accuracy"
    return keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)
