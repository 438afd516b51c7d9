"""Figures of predictions against labels: accuracy, confusion, calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ECE_BINS = 15
# An int8 softmax can give exactly 0; the logarithm is taken of this instead.
SMALLEST_PROBABILITY = 1e-7


def score(scores: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Scores predicted probabilities against the true labels.

    Args:
        scores: Probabilities, shape `(n, classes)`.
        labels: True classes, integers of shape `(n,)`.

    Returns:
        A dictionary of plain Python values:
        `accuracy`: share of images whose largest score is the true class.
        `accuracy_ci`: its Wilson 95 % interval `[low, high]`.
        `per_class`: accuracy on each class, `None` where it has no images.
        `confusion`: counts, `confusion[true][predicted]`.
        `ece`: expected calibration error over 15 bins of equal width.
        `nll`: mean negative log likelihood in nats.
        `test_images`: n.

    Raises:
        ValueError: If the shapes do not match or a label is not a class.
    """
    scores, labels = check_predictions(scores, labels)
    n, classes = scores.shape
    predicted = scores.argmax(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    correct = int(np.trace(confusion))
    of_true = scores[np.arange(n), labels].astype(np.float64)
    return {
        "accuracy": correct / n,
        "accuracy_ci": list(wilson_interval(correct, n)),
        "per_class": [
            int(row[k]) / int(row.sum()) if row.sum() else None
            for k, row in enumerate(confusion)
        ],
        "confusion": confusion.tolist(),
        "ece": expected_calibration_error(scores, labels),
        "nll": float(-np.log(np.maximum(of_true, SMALLEST_PROBABILITY)).mean()),
        "test_images": n,
    }


def expected_calibration_error(
    scores: NDArray, labels: NDArray, bins: int = ECE_BINS
) -> float:
    """Measures how far confidence and accuracy lie apart.

    The mean over bins of |accuracy - mean confidence|, weighted by the images
    in each; bins `(i/bins, (i+1)/bins]` of the largest probability.

    Reference: Guo et al., 2017, https://arxiv.org/abs/1706.04599, equation 5.
    """
    confidence = scores.max(axis=1).astype(np.float64)
    correct = scores.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)
    gaps = np.bincount(index, confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share observed in `n` trials.

    Reference: E. B. Wilson, 1927, "Probable inference, the law of succession,
    and statistical inference". It stays inside [0, 1] and works near both ends.
    """
    interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def check_predictions(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    """Returns both as arrays, or raises `ValueError` if they do not belong together."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(
            "expected scores of shape (n, classes) and labels of shape (n,), n > 0. "
            f"Received: {scores.shape} and {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers. Received: {labels.dtype}")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(
            f"the model has {scores.shape[1]} outputs, but the labels run from "
            f"{labels.min()} to {labels.max()}; use the data it was trained for"
        )
    if not np.isfinite(scores).all():
        raise ValueError("the model's scores contain NaN or infinity")
    return scores, labels
