"""Outputs in another order than the data's classes are found out."""

import numpy as np
import pytest

from kdprune.intake.order import check_order


def classifier(n, classes, accuracy, seed=0):
    """Scores of a model that is right on that share of n images, and their labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    said = np.where(random.random(n) < accuracy, labels, random.integers(0, classes, n))
    return np.eye(classes)[said], labels


def names(count):
    return [f"class {index}" for index in range(count)]


@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_reversed_order_is_told_and_the_right_one_is_not(classes, accuracy):
    scores, labels = classifier(2000, classes, accuracy)
    check_order(scores, labels, names(classes))
    with pytest.raises(ValueError, match="another order than the data's classes"):
        check_order(scores[:, ::-1], labels, names(classes))


def test_two_classes_that_changed_places_are_named():
    scores, labels = classifier(2000, 10, 0.7)
    order = np.arange(10)
    order[[3, 5]] = 5, 3
    with pytest.raises(ValueError) as error:
        check_order(scores[:, order], labels, names(10))
    said = "output 3 is 'class 5', not 'class 3'; output 5 is 'class 3', not 'class 5'"
    assert said in str(error.value)
    assert "more" not in str(error.value).split("Name the outputs")[0].split(said)[1]


def test_labels_that_apply_together_are_put_in_order_as_well():
    random = np.random.default_rng(0)
    labels = (random.random((600, 5)) < [0.1, 0.3, 0.5, 0.5, 0.7]).astype(np.int64)
    flips = random.random(labels.shape) < 0.1
    scores = np.where(flips, 1 - labels, labels) * 0.8 + 0.1
    check_order(scores, labels, names(5))
    with pytest.raises(ValueError, match="output 2 is 'class 3', not 'class 2'"):
        check_order(scores[:, [0, 1, 3, 2, 4]], labels, names(5))


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.5])
def test_no_order_is_made_out_of_chance(classes, accuracy):
    # Few images of each class: the best order for them would be right by chance.
    for seed in range(20):
        scores, labels = classifier(300, classes, accuracy, seed)
        check_order(scores, labels, names(classes))


def test_a_model_that_says_always_the_same_is_not_told_to_be_in_another_order():
    _, labels = classifier(500, 4, 1.0)
    check_order(np.tile([0.1, 0.7, 0.1, 0.1], (500, 1)), labels, names(4))
