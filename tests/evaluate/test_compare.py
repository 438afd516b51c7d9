"""Two models on the same images."""

import numpy as np
import pytest
from scipy import stats

from kdprune.evaluate import agreement, compare_predictions


def predictions(right, labels, classes=3):
    """Scores that are right where told, and off by one class elsewhere."""
    return np.eye(classes)[np.where(right, labels, (labels + 1) % classes)]


LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
A = predictions(np.array([1, 1, 1, 1, 1, 0, 0, 1, 1, 1], bool), LABELS)
B = predictions(np.array([1, 0, 0, 1, 1, 1, 0, 1, 1, 0], bool), LABELS)


def test_a_worked_example():
    result = compare_predictions(A, B, LABELS)
    assert result["difference"] == -0.2
    assert result["right_to_wrong"] == [1, 2, 9]
    assert result["wrong_to_right"] == [5]
    assert result["disagreement"] == 0.4
    # Differences: -1 three times, +1 once, 0 six times.
    changes = [-1, -1, -1, 1, 0, 0, 0, 0, 0, 0]
    error = stats.sem(changes)
    assert result["standard_error"] == pytest.approx(error)
    assert result["difference_ci"] == pytest.approx(
        [-0.2 - 1.959964 * error, -0.2 + 1.959964 * error]
    )
    # Of four flips at least three one way: 2 * (4 + 1) / 16.
    assert result["mcnemar_p"] == pytest.approx(0.625)
    assert result["per_class"] == [
        {"gained": 0, "lost": 1, "images": 4},
        {"gained": 0, "lost": 1, "images": 3},
        {"gained": 1, "lost": 1, "images": 3},
    ]


def test_the_direction_is_b_minus_a():
    forth, back = compare_predictions(A, B, LABELS), compare_predictions(B, A, LABELS)
    assert forth["difference"] == -back["difference"]
    assert forth["right_to_wrong"] == back["wrong_to_right"]
    assert forth["mcnemar_p"] == back["mcnemar_p"]


def test_a_model_equals_itself():
    result = compare_predictions(A, A, LABELS)
    assert result["difference_ci"] == [0, 0]
    assert result["mcnemar_p"] == 1.0
    assert result["disagreement"] == 0
    assert agreement(A, A) == 1.0


def test_the_interval_holds_the_truth_nineteen_times_of_twenty():
    random, held = np.random.default_rng(0), 0
    labels = np.zeros(500, int)
    for _ in range(400):
        a = random.random(500) < 0.9
        b = np.where(random.random(500) < 0.05, random.random(500) < 0.5, a)
        result = compare_predictions(
            predictions(a, labels), predictions(b, labels), labels
        )
        low, high = result["difference_ci"]
        held += low <= 0.05 * (0.5 - 0.9) <= high
    assert 0.92 < held / 400 < 0.98


def test_scores_of_different_images_are_refused():
    with pytest.raises(ValueError, match=r"Received: \(10, 3\) and \(9, 3\)"):
        compare_predictions(A, B[:9], LABELS)
    with pytest.raises(ValueError, match="one shape"):
        agreement(A[0], B[0])
    with pytest.raises(ValueError, match="labels of shape"):
        compare_predictions(A, B, LABELS[:9])
