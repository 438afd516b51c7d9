"""What scores answer: the best class, or each label that applies, and what is right.

Labels `(n,)` are indices of classes: an image's answer is the class of its largest
score. Labels `(n, k)` are zeros and ones, of which several or none may be 1: each has a
probability of its own and is answered by whether that is above one half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
