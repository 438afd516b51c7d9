"""The hard-label loss."""

import tensorflow as tf


def cross_entropy(labels, logits, label_smoothing=0.0):
    """Measures how surprised the predictions are by the true classes.

    Reference for the smoothing: Szegedy et al., 2015, arXiv:1512.00567, section 7.

    Args:
        labels: Class indices, shape `(batch,)`.
        logits: Unnormalised scores, shape `(batch, classes)`.
        label_smoothing: Share in [0, 1) of the target spread evenly over all
            classes.

    Returns:
        Loss per example in nats, float32, shape `(batch,)`.
    """
    log_probabilities = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    labels = tf.reshape(tf.cast(labels, tf.int32), [-1])
    right = tf.gather(log_probabilities, labels, axis=1, batch_dims=1)
    if not label_smoothing:
        return -right
    spread = tf.reduce_mean(log_probabilities, axis=1)
    return -(1.0 - label_smoothing) * right - label_smoothing * spread
