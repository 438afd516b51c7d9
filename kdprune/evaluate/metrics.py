"""Figures of predictions against labels: accuracy, confusion, calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from kdprune._answers import f1_by_label, f1_influence

ECE_BINS = 15
# From here on the accuracy is above all that on the largest classes.
UNEVEN = 1.5
# An int8 softmax can give exactly 0; the logarithm is taken of this instead.
SMALLEST_PROBABILITY = 1e-7
# Two-sided 95 % quantile of the normal distribution.
Z95 = float(stats.norm.ppf(0.975))


def score(scores: ArrayLike, labels: ArrayLike, binary: bool = False) -> dict[str, Any]:
    """Scores predicted probabilities against the true labels.

    Args:
        scores: Probabilities, shape `(n, classes)`.
        labels: True classes, integers of shape `(n,)`; or, where several labels may
            apply to an image, zeros and ones, `(n, labels)`.
        binary: Whether a single unit gave them, the second of two classes.

    Returns:
        A dictionary of plain Python values:
        `accuracy`: share of images whose largest score is the true class; of labels
        the share of all labels of all images that are right.
        `accuracy_ci`: its Wilson 95 % interval `[low, high]`, of labels by images.
        `per_class`: accuracy on each class, `None` where it has no images; of labels
        each one's accuracy over all images.
        `confusion`: counts, `confusion[true][predicted]`; None of labels.
        `ece`: expected calibration error over 15 bins of equal width; of labels that
        of all answers.
        `nll`: mean negative log likelihood in nats; of labels the mean over them.
        `test_images`: n.

        Where the largest class has at least `UNEVEN` times the images of the smallest,
        also `balanced_accuracy`, the mean of the accuracies on each class.

        Of `binary` also `task`, "binary", and `auc`, the area under the receiver
        operating characteristic, None where one class has no image.

        Of labels also `task`, "labels"; `macro_f1` and `macro_f1_ci`, the mean F1 score
        of the labels and its 95 % interval; `mean_average_precision`, the mean over the
        labels of the area under the steps of precision and recall; and `f1_by_label`
        and `average_precision_by_label`, `None` where no image has a label, which the
        means leave out.

    Raises:
        ValueError: If the shapes do not match or a label is not a class.
    """
    scores, labels = check_predictions(scores, labels)
    if labels.ndim == 2:
        return _score_labels(scores, labels)
    n, classes = scores.shape
    predicted = scores.argmax(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    correct = int(np.trace(confusion))
    of_true = scores[np.arange(n), labels].astype(np.float64)
    found: dict[str, Any] = {
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
    sizes = confusion.sum(axis=1)
    sizes = sizes[sizes > 0]
    if len(sizes) > 1 and sizes.max() >= UNEVEN * sizes.min():
        shares = [share for share in found["per_class"] if share is not None]
        found["balanced_accuracy"] = float(np.mean(shares))
    if binary:
        found |= {"task": "binary", "auc": area_under_curve(scores[:, 1], labels)}
    return found


def _score_labels(scores: NDArray, labels: NDArray) -> dict[str, Any]:
    n = len(labels)
    right = (scores > 0.5) == labels
    share = float(right.mean())
    f1 = f1_by_label(scores, labels)
    precision = np.array(
        [average_precision(*pair) for pair in zip(scores.T, labels.T, strict=True)]
    )
    error = float(f1_influence(scores, labels).std()) / n**0.5
    macro = float(np.nanmean(f1))
    # Of every answer: how sure it is, and whether it is right.
    sure = np.maximum(scores, 1 - scores).astype(np.float64)
    of_true = np.where(labels == 1, scores, 1 - scores).astype(np.float64)
    return {
        "task": "labels",
        "accuracy": share,
        # An image's answers are not independent: as if it were one.
        "accuracy_ci": list(_wilson(share, n)),
        "macro_f1": macro,
        "macro_f1_ci": [max(macro - Z95 * error, 0.0), min(macro + Z95 * error, 1.0)],
        "mean_average_precision": float(np.nanmean(precision)),
        "per_class": right.mean(axis=0).tolist(),
        "f1_by_label": _none_for_nan(f1),
        "average_precision_by_label": _none_for_nan(precision),
        "confusion": None,
        "ece": _calibration_error(sure.ravel(), right.ravel(), ECE_BINS),
        "nll": float(-np.log(np.maximum(of_true, SMALLEST_PROBABILITY)).mean()),
        "test_images": n,
    }


def area_under_curve(scores: NDArray, labels: NDArray) -> float | None:
    """The area under the receiver operating characteristic.

    That is how often an image of the second class has a higher score than one of the
    first, ties counting one half (the Mann-Whitney statistic).

    Args:
        scores: Scores of the second class, `(n,)`.
        labels: 0 or 1, `(n,)`.

    Returns:
        A share in [0, 1], or None where a class has no image.
    """
    positive = labels == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return None
    ranks = stats.rankdata(scores)
    above = float(ranks[positive].sum()) - ones * (ones + 1) / 2
    return above / (ones * zeros)


def average_precision(scores: NDArray, labels: NDArray) -> float:
    """The precision at each score, weighted by what it adds to the recall.

    Images of one score count as one step.

    Args:
        scores: Scores of a label, `(n,)`.
        labels: 0 or 1, `(n,)`.

    Returns:
        A share in [0, 1]; NaN where no image has the label.
    """
    if not labels.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, values = labels[order].astype(np.float64), scores[order]
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    hits = np.cumsum(ranked)[last]
    added = np.diff(hits, prepend=0.0) / ranked.sum()
    return float((added * hits / (last + 1)).sum())


def _none_for_nan(values: NDArray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def expected_calibration_error(
    scores: NDArray, labels: NDArray, bins: int = ECE_BINS
) -> float:
    """Measures how far confidence and accuracy lie apart.

    The mean over bins of |accuracy - mean confidence|, weighted by the images
    in each; bins `(i/bins, (i+1)/bins]` of the largest probability.

    Reference: Guo et al., 2017, https://arxiv.org/abs/1706.04599, equation 5.
    """
    confidence = scores.max(axis=1).astype(np.float64)
    return _calibration_error(confidence, scores.argmax(axis=1) == labels, bins)


def _calibration_error(
    confidence: NDArray[np.float64], correct: NDArray, bins: int
) -> float:
    index = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)
    gaps = np.bincount(index, confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(correct))


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share observed in `n` trials.

    Reference: E. B. Wilson, 1927, "Probable inference, the law of succession,
    and statistical inference". It stays inside [0, 1] and works near both ends.
    """
    interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _wilson(share: float, n: int) -> tuple[float, float]:
    """`wilson_interval` of a share that need not be a whole number of images."""
    square = Z95**2
    middle = share + square / (2 * n)
    half = Z95 * (share * (1 - share) / n + square / (4 * n * n)) ** 0.5
    return (middle - half) / (1 + square / n), (middle + half) / (1 + square / n)


def check_predictions(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    """Returns both as arrays, or raises `ValueError` if they do not belong together."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if labels.ndim == 2 and scores.ndim == 2 and len(labels):
        return _check_rows(scores, labels)
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


def _check_rows(scores: NDArray, labels: NDArray) -> tuple[NDArray, NDArray]:
    if labels.shape != scores.shape:
        raise ValueError(
            f"the model has {scores.shape[1]} outputs for {len(scores)} images, but "
            f"the labels have the shape {labels.shape}; use a model of these labels"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(
            "labels (n, labels) must be zeros and ones. Received: values from "
            f"{labels.min():g} to {labels.max():g}"
        )
    if not labels.any():
        raise ValueError(
            "expected labels of which some apply to some image. Received: zeros only"
        )
    if not np.isfinite(scores).all():
        raise ValueError("the model's scores contain NaN or infinity")
    return scores, labels.astype(np.int64)
