"""The hard-label loss against its formula."""

import numpy as np
import pytest
import tensorflow as tf

from kdprune.training import cross_entropy


def expected_loss(labels, logits, smoothing):
    """The textbook form: cross-entropy of a smoothed one-hot target, in float64."""
    classes = logits.shape[1]
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
    return -(target * np.log(probabilities)).sum(axis=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_the_cross_entropy_of_the_smoothed_target(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (64, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 64)
    loss = cross_entropy(labels, logits, smoothing)
    assert loss.shape == (64,)
    np.testing.assert_allclose(loss, expected_loss(labels, logits, smoothing), 1e-5)


def test_undecided_predictions_cost_the_logarithm_of_the_classes():
    for smoothing in (0.0, 0.1):
        loss = cross_entropy([0, 3], np.zeros((2, 10), np.float32), smoothing)
        np.testing.assert_allclose(loss, np.log(10), 1e-6)


def test_labels_may_stand_in_a_column_of_any_integer_type():
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    expected = cross_entropy([0, 1, 2, 1], logits)
    for dtype in (np.uint8, np.int32, np.int64, np.float32):
        column = np.array([[0], [1], [2], [1]], dtype)
        np.testing.assert_array_equal(cross_entropy(column, logits), expected)


def test_bfloat16_logits_give_a_float32_loss():
    logits = tf.constant([[2.0, -1.0, 0.5]], tf.bfloat16)
    loss = cross_entropy([1], logits)
    assert loss.dtype == tf.float32
    exact = expected_loss([1], np.array([[2.0, -1.0, 0.5]], np.float32), 0.0)
    np.testing.assert_allclose(loss, exact, 1e-6)


def test_extreme_logits_stay_finite_in_loss_and_gradient():
    logits = tf.Variable([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    with tf.GradientTape() as tape:
        loss = cross_entropy([1, 1], logits, 0.1)
    # The share 0.9 of the target costs 2e4; smoothing adds 0.1 * (2e4 + 1e4) / 3.
    np.testing.assert_allclose(loss, [0.9 * 2e4 + 1e3, 1e3], 1e-5)
    assert np.isfinite(tape.gradient(loss, logits)).all()
