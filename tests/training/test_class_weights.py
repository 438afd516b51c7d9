"""Classes weighted in the loss, where some have few images."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.distill import Distiller
from kdprune.training import balanced_weights, cross_entropy, weight_classes

LABELS = np.array([0, 0, 0, 1, 0, 2, 0, 1])


def test_each_class_counts_the_same():
    weights = balanced_weights(LABELS, 3)
    np.testing.assert_allclose(weights, [8 / 15, 8 / 6, 8 / 3], rtol=1e-6)
    sums = [weights[label] * (label == LABELS).sum() for label in range(3)]
    np.testing.assert_allclose(sums, sums[0])
    assert weights[LABELS].mean() == pytest.approx(1)
    np.testing.assert_array_equal(balanced_weights([*LABELS, -1, -1], 3), weights)


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (LABELS, "images of each of 4 classes. Received: .5, 2, 1, 0"),
        (LABELS + 2, "images of each of 4 classes"),
        (np.eye(4, dtype=int), "class_weight out where several may apply"),
    ],
)
def test_what_has_no_weights(labels, fault):
    with pytest.raises(ValueError, match=fault):
        balanced_weights(labels, 4)


def test_a_weighted_loss():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 3)).astype(np.float32)
    plain = cross_entropy(LABELS, logits, 0.1).numpy()
    loss = weight_classes(cross_entropy, [0.5, 2.0, 3.0])
    expected = np.array([0.5, 2.0, 3.0])[LABELS] * plain
    for labels in (LABELS, LABELS[:, None], np.eye(3)[LABELS]):
        np.testing.assert_allclose(loss(labels, logits, 0.1), expected, rtol=1e-5)
    assert weight_classes(cross_entropy, None) is cross_entropy


def test_a_distiller_weights_the_labels_loss_alone():
    inputs = keras.Input((2, 2, 1))
    student = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
    teacher = keras.models.clone_model(student)
    images = np.random.default_rng(0).random((8, 2, 2, 1), np.float32)
    weights = [0.5, 2.0, 3.0]
    found = {}
    for given in (None, weights):
        distiller = Distiller(student, teacher)
        distiller.compile(keras.optimizers.SGD(0.0), class_weights=given)
        found[given is None] = distiller.train_on_batch(
            tf.constant(images), LABELS, return_dict=True
        )
        assert distiller.get_compile_config()["class_weights"] == given
    plain = cross_entropy(LABELS, student(images)).numpy()
    assert found[True]["hard_loss"] == pytest.approx(plain.mean(), rel=1e-5)
    weighted = (np.array(weights)[LABELS] * plain).mean()
    assert found[False]["hard_loss"] == pytest.approx(weighted, rel=1e-5)
    assert found[False]["kl_loss" if "kl_loss" in found[True] else "loss"] > 0
