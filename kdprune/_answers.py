"""What scores answer, what is right, and which arrays are labels.

Labels `(n,)` are indices of classes: an image's answer is the class of its largest
score. Labels `(n, k)` are zeros and ones, of which several or none may be 1: each has a
probability of its own and is answered by whether that is above one half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# How far a row of probabilities may be from adding up to 1; bfloat16 has 3 digits.
SUM_TOLERANCE = 1e-2
_STUDENT = "the student"


def of_labels(labels: ArrayLike) -> bool:
    """Whether these are zeros and ones, `(n, k)`, and not indices of classes."""
    return np.ndim(labels) == 2


def answers(scores: NDArray, several: bool) -> NDArray:
    """What a model answers to each image.

    Args:
        scores: Probabilities `(n, k)`; of classes, logits as well.
        several: Whether several labels may apply to an image.

    Returns:
        Indices of classes `(n,)`, or booleans `(n, k)` for labels.
    """
    return scores > 0.5 if several else scores.argmax(axis=1)


def share_right(scores: NDArray, labels: NDArray) -> NDArray[np.float64]:
    """The share of each image's answers that are right, `(n,)`.

    Of classes that is 0 or 1; of k labels a multiple of 1/k.
    """
    found = answers(scores, of_labels(labels)) == labels
    return (found.mean(axis=1) if found.ndim == 2 else found).astype(np.float64)


def disagreement(a: NDArray, b: NDArray, several: bool) -> float:
    """The share of answers, of images or of labels, in which two models differ."""
    return float((answers(a, several) != answers(b, several)).mean())


def f1_by_label(scores: NDArray, labels: NDArray) -> NDArray[np.float64]:
    """The F1 score of each label, `(k,)`: NaN where no image has it.

    That is `2 * TP / (2 * TP + FP + FN)`, the harmonic mean of precision and recall,
    and 0 where a label that is there is never answered.
    """
    said, true = scores > 0.5, labels == 1
    counted = said.sum(axis=0) + true.sum(axis=0)
    found = 2.0 * (said & true).sum(axis=0) / np.maximum(counted, 1)
    return np.where(true.any(axis=0), found, np.nan)


def f1_influence(scores: NDArray, labels: NDArray) -> NDArray[np.float64]:
    """What each image adds to the macro F1 of n images, `(n,)`, with the mean 0.

    To first order, an image that counted twice would move the macro F1 by this, over
    n. The spread of it gives the standard error (the delta method).
    """
    said, true = scores > 0.5, labels == 1
    there = true.any(axis=0)
    counted = (said.astype(float) + true)[:, there]
    both = 2.0 * (said & true)[:, there]
    f1 = both.sum(axis=0) / counted.sum(axis=0)
    each = (both - f1 * counted) / counted.mean(axis=0)
    return each.mean(axis=1)


# --- Labels as they are given ---


def check_classes(
    labels: NDArray, count: int, classes: int | None, owner: str = _STUDENT
) -> None:
    """Checks labels of classes: indices, -1 where one is missing, or rows of shares.

    Args:
        labels: `(n,)` or `(n, 1)` whole numbers, or `(n, classes)` probabilities, all
            0 where a label is missing.
        count: How many images they are for.
        classes: The number of the model's outputs, if it is known.
        owner: What the model is called in errors.

    Raises:
        ValueError: If they are none, not one for each image, or out of range.
    """
    if labels.dtype.kind not in "biuf":
        raise ValueError(
            "labels must be class indices or rows of probabilities. Received: "
            f"{labels.dtype}; number the classes from 0"
        )
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise ValueError(
            f"expected a label for each of {count} images: indices ({count},) or rows "
            f"of probabilities ({count}, {classes or 'classes'}). Received: shape "
            f"{labels.shape}"
        )
    if labels.ndim == 2 and labels.shape[1] != 1:
        if classes is not None and labels.shape[1] != classes:
            raise ValueError(wrong_width(labels.shape[1], classes, owner))
        sums = labels.sum(axis=1, dtype=np.float64)
        ones = np.abs(sums - 1.0) < SUM_TOLERANCE
        if not ((labels >= 0).all() and (ones | (sums == 0)).all()):
            raise ValueError(no_probabilities(sums.min(), sums.max(), owner))
        return
    low, high = labels.min(), labels.max()
    whole = labels.dtype.kind != "f" or bool((labels == np.rint(labels)).all())
    if not (whole and low >= -1 and (classes is None or high < classes)):
        raise ValueError(out_of_range(low, high, classes))


def check_answers(
    labels: NDArray, count: int, classes: int | None, owner: str = _STUDENT
) -> None:
    """Checks labels of which several may apply, or those of a single unit.

    Args:
        labels: `(n, labels)` in [0, 1], of a single unit `(n,)` as well; -1 where one
            is missing, in all of a row.
        count: As for `check_classes`.
        classes: As there.
        owner: As there.

    Raises:
        ValueError: As there.
    """
    if labels.dtype.kind not in "biuf" or len(labels) != count:
        raise ValueError(
            f"expected labels for each of {count} images. Received: {labels.dtype} of "
            f"shape {labels.shape}"
        )
    single = labels.ndim == 1 and classes == 1
    if not single and (labels.ndim != 2 or classes not in (None, labels.shape[1])):
        raise ValueError(no_rows(labels.shape, classes, owner))
    rows = labels.reshape(count, -1).astype(np.float64)
    inside = ((rows >= 0) & (rows <= 1)).all(axis=1)
    if not (inside | (rows == -1).all(axis=1)).all():
        raise ValueError(no_answers(rows.min(), rows.max()))


def out_of_range(low: float, high: float, classes: int | None) -> str:
    """The error of labels from `low` to `high`."""
    last = "classes - 1" if classes is None else classes - 1
    return (
        f"labels must be whole numbers from 0 to {last}, or -1 where one is missing. "
        f"Received: labels from {low:g} to {high:g}"
    )


def no_probabilities(low: float, high: float, owner: str = _STUDENT) -> str:
    """The error of rows of labels whose sums are from `low` to `high`."""
    several = "booleans" if owner != _STUDENT else "Distiller(..., head='sigmoid')"
    return (
        "rows of labels must be probabilities: at least 0, with the sum 1, or all 0 "
        f"where a label is missing. Received: sums from {low:g} to {high:g}; for "
        f"labels of which several may apply, give {several}"
    )


def no_answers(low: float, high: float) -> str:
    """The error of labels, of which several may apply, from `low` to `high`."""
    return (
        "labels must be 1 where one applies and 0 where not, or all -1 where they are "
        f"missing. Received: from {low:g} to {high:g}"
    )


def no_rows(shape: Any, classes: int | None, owner: str = _STUDENT) -> str:
    """The error of labels of another shape than a sigmoid's."""
    wanted = "(batch,)" if classes == 1 else f"(batch, {classes or 'labels'})"
    return (
        f"{owner} has {classes} outputs by sigmoid, so that labels have the shape "
        f"{wanted}, 1 where one applies and 0 where not. Received: shape {shape}"
    )


def wrong_width(width: int, classes: int | None, owner: str = _STUDENT) -> str:
    """The error of rows of labels of another width than the model's outputs."""
    return (
        f"{owner} has {classes} outputs, so that rows of labels have {classes} "
        f"columns. Received: {width}"
    )
