"""The distillation loss against its formula."""

import numpy as np
import pytest
import tensorflow as tf

from kdprune.distill import distillation_loss


def expected_loss(teacher, student, temperature):
    """`T**2 * sum p * log(p / q)` by the textbook, in float64."""

    def softmax(logits):
        scaled = np.asarray(logits, np.float64) / temperature
        scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return scaled / scaled.sum(axis=1, keepdims=True)

    p, q = softmax(teacher), softmax(student)
    return temperature**2 * (p * np.log(p / q)).sum(axis=1)


def random_logits(seed, scale=3.0, shape=(32, 10)):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, shape).astype(np.float32)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_the_divergence_times_the_squared_temperature(temperature):
    teacher, student = random_logits(0), random_logits(1)
    loss = distillation_loss(teacher, student, temperature)
    assert loss.shape == (32,) and loss.dtype == tf.float32
    expected = expected_loss(teacher, student, temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    teacher = tf.cast(random_logits(0), dtype)
    student = tf.cast(random_logits(1), dtype)
    loss = distillation_loss(teacher, student, 4.0)
    assert loss.dtype == tf.float32
    exact = expected_loss(tf.cast(teacher, tf.float32), tf.cast(student, tf.float32), 4)
    np.testing.assert_allclose(loss, exact, rtol=1e-4)


def test_it_is_zero_where_the_predictions_agree():
    logits = random_logits(0)
    np.testing.assert_array_equal(distillation_loss(logits, logits), 0)
    # A constant added to all of an image's logits changes no prediction.
    np.testing.assert_allclose(distillation_loss(logits, logits + 7), 0, atol=2e-5)
    assert (distillation_loss(logits, random_logits(1)).numpy() > 0).all()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_extreme_logits_stay_finite_in_loss_and_gradient(temperature):
    student = tf.Variable([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]])
    teacher = tf.constant([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
    with tf.GradientTape() as tape:
        loss = distillation_loss(teacher, student, temperature)
    # The teacher is certain of what the student holds e^(-2e4 / T) likely.
    expected = [0, temperature * 2e4, temperature**2 * np.log(3)]
    np.testing.assert_allclose(loss, expected, 1e-5)
    assert np.isfinite(tape.gradient(loss, student)).all()


def test_the_gradient_keeps_its_scale_over_temperatures():
    def size(temperature):
        student = tf.Variable(random_logits(1, 0.5))
        with tf.GradientTape() as tape:
            loss = distillation_loss(random_logits(0, 0.5), student, temperature)
        return float(tf.norm(tape.gradient(loss, student)))

    sizes = [size(temperature) for temperature in (1.0, 2.0, 4.0, 8.0, 16.0)]
    assert max(sizes) < 1.25 * min(sizes)
    # Without the factor T**2 it would fall 256-fold.


def test_the_gradient_is_the_difference_of_softened_predictions_times_t():
    teacher, student = random_logits(0), tf.Variable(random_logits(1))
    with tf.GradientTape() as tape:
        loss = distillation_loss(teacher, student, 3.0)
    expected = 3.0 * (tf.nn.softmax(student / 3.0) - tf.nn.softmax(teacher / 3.0))
    np.testing.assert_allclose(tape.gradient(loss, student), expected, atol=1e-5)


def test_what_can_not_be_compared_is_refused():
    with pytest.raises(ValueError, match="above 0. Received: 0"):
        distillation_loss(random_logits(0), random_logits(1), 0)
    with pytest.raises(ValueError, match=r"teacher \(32, 10\), student \(32, 5\)"):
        distillation_loss(random_logits(0), random_logits(1, shape=(32, 5)))
