"""The articles' toy: outputs of shape (3, 2) that descend towards a teacher's."""

import numpy as np
import pytest
import tensorflow as tf

from kdprune.distill import distillation_loss, fit_outputs
from kdprune.training import cross_entropy

TEACHER = np.array([[2.0, 0.0], [-1.0, 1.5], [0.5, -0.5]])
STUDENT = np.array([[0.1, 0.4], [0.3, 0.2], [-0.6, 0.9]])
LABELS = np.array([0, 1, 1])


def centred(logits):
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_outputs_arrive_at_the_teachers_but_for_a_constant(temperature):
    outputs, losses = fit_outputs(STUDENT, TEACHER, temperature=temperature, steps=300)
    assert outputs.shape == (3, 2) and losses.shape == (301,)
    np.testing.assert_allclose(centred(outputs), centred(TEACHER), atol=1e-6)
    np.testing.assert_allclose(outputs.sum(axis=1), STUDENT.sum(axis=1))
    assert losses[0] > 0.3 and losses[-1] < 1e-10


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("learning_rate", [0.1, 1.0, 3.9])
def test_every_step_lowers_the_loss(labels, learning_rate):
    for scale in (1.0, 20.0):
        _, losses = fit_outputs(
            scale * STUDENT, scale * TEACHER, labels, learning_rate=learning_rate
        )
        assert (np.diff(losses) <= 1e-12).all()
        assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("soft_weight", [0.0, 0.3, 1.0])
def test_its_gradient_is_that_of_the_losses_of_training(temperature, soft_weight):
    outputs, losses = fit_outputs(
        STUDENT,
        TEACHER,
        LABELS,
        temperature=temperature,
        soft_weight=soft_weight,
        learning_rate=0.5,
        steps=1,
    )
    student = tf.Variable(STUDENT, dtype=tf.float32)
    with tf.GradientTape() as tape:
        soft = distillation_loss(TEACHER, student, temperature)
        hard = cross_entropy(LABELS, student)
        loss = soft_weight * soft + (1 - soft_weight) * hard
    gradient = tape.gradient(loss, student)
    np.testing.assert_allclose((STUDENT - outputs) / 0.5, gradient, atol=1e-5)
    np.testing.assert_allclose(losses[0], tf.reduce_mean(loss), rtol=1e-5)


def test_labels_alone_win_over_a_teacher_that_is_wrong():
    outputs, losses = fit_outputs(STUDENT, TEACHER, LABELS, soft_weight=0, steps=200)
    np.testing.assert_array_equal(outputs.argmax(axis=1), LABELS)
    assert losses[-1] < 0.01
    halfway, _ = fit_outputs(STUDENT, TEACHER, LABELS, soft_weight=0.5, steps=200)
    # The teacher holds class 0 of the third example for likelier, the label says 1:
    # between softmax(1) = 0.73 and 0 the outputs settle in the middle.
    probability = 1 / (1 + np.exp(halfway[2, 1] - halfway[2, 0]))
    assert probability == pytest.approx(0.7311 / 2, abs=1e-3)


def test_what_is_given_stays_as_it_was():
    student = STUDENT.copy()
    outputs, losses = fit_outputs(student, TEACHER, steps=0)
    np.testing.assert_array_equal(outputs, STUDENT)
    assert outputs is not student and losses.shape == (1,)
    fit_outputs(student, TEACHER, steps=5)
    np.testing.assert_array_equal(student, STUDENT)


def test_extreme_outputs_stay_finite():
    outputs, losses = fit_outputs(-1e4 * TEACHER, 1e4 * TEACHER, LABELS, steps=5)
    assert np.isfinite(outputs).all() and np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teacher": TEACHER[:, :1]}, r"teacher \(3, 1\), student \(3, 2\)"),
        ({"teacher": TEACHER[:1]}, r"teacher \(1, 2\), student \(3, 2\)"),
        ({"temperature": 0}, "above 0. Received: 0"),
        ({"temperature": np.nan}, "above 0. Received: nan"),
        ({"soft_weight": 1.5}, r"in \[0, 1\]. Received: 1.5"),
        ({"learning_rate": 4}, "below 4, .* Received: 4"),
        ({"learning_rate": 0}, "above 0 .* Received: 0"),
        ({"labels": np.eye(2)[LABELS]}, r"not one-hot. Received: shape \(3, 2\)"),
        ({"labels": [0, 1, 2]}, r"labels must be in \[0, 2\). Received: 0 to 2"),
        ({"labels": [0, -1, 1]}, r"labels must be in \[0, 2\). Received: -1 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        fit_outputs(**{"student": STUDENT, "teacher": TEACHER, **changed})
