"""Whether a model's outputs are in the order of the data's classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

# Another order is told if it is right on that much more of the images, and chance makes
# it so once in so many models.
_LEAST_GAIN = 0.03
_BY_CHANCE = 1e-5
# Beyond chance, as a share of what is left: less is no knowledge of any order.
_LEAST_KNOWN = 0.1


def check_order(scores: NDArray, labels: NDArray, classes: Sequence[str]) -> None:
    """Refuses a model that is right far more often with its outputs in another order.

    Of classes whose folders are sorted otherwise than the model's outputs a model knows
    as much as before and says it wrongly, without any other sign.

    Args:
        scores: Probabilities or logits, `(n, classes)`.
        labels: True classes, `(n,)`; or, where several may apply, zeros and ones
            `(n, classes)`.
        classes: The classes' names, in the order of the labels.

    Raises:
        ValueError: If there is such an order, with the classes that change places.
    """
    said = scores > 0.5 if labels.ndim == 2 else scores.argmax(axis=1)
    drawn = np.random.default_rng(0).permutation(len(labels))
    # Chosen on one half, judged on the other: it would fit any few images.
    chosen, judged = drawn[::2], drawn[1::2]
    means = _best_order(said[chosen], labels[chosen], scores.shape[1])
    said, labels = said[judged], labels[judged]
    before = _right(said, labels, np.arange(len(means)))
    after = _right(said, labels, means)
    better, worse = int((after > before).sum()), int((after < before).sum())
    chance = 0.5 if labels.ndim == 2 else 1 / len(means)
    known = after.mean() - chance > _LEAST_KNOWN * (1 - chance)
    if not known or after.mean() - before.mean() < _LEAST_GAIN:
        return
    test = stats.binomtest(better, better + worse, alternative="greater")
    if test.pvalue > _BY_CHANCE:
        return
    moved = [
        f"output {index} is {classes[mean]!r}, not {classes[index]!r}"
        for index, mean in enumerate(means)
        if index != mean
    ]
    shown = "; ".join(moved[:3]) + (f"; and {len(moved) - 3} more" * (len(moved) > 3))
    raise ValueError(
        "its outputs seem to be in another order than the data's classes: right on "
        f"{before.mean():.1%} of {len(labels):,} validation images as they are, on "
        f"{after.mean():.1%} if {shown}. Name the outputs in their order with the key "
        "`labels` or --labels"
    )


def _best_order(said: NDArray, labels: NDArray, outputs: int) -> NDArray:
    """The class that each output means, so that most of what is said is right.

    Reference: the assignment problem, Kuhn, 1955.
    """
    if labels.ndim == 2:
        yes = said.astype(float)
        fits = yes.T @ labels + (1 - yes).T @ (1 - labels)
    else:
        fits = np.zeros((outputs, outputs))
        np.add.at(fits, (said, labels), 1)
    # Where nothing tells otherwise, an output means what it should.
    fits += 0.5 * np.eye(outputs)
    return optimize.linear_sum_assignment(fits, maximize=True)[1]


def _right(said: NDArray, labels: NDArray, means: NDArray) -> NDArray:
    """The share of right answers for each image if outputs mean these classes."""
    if labels.ndim == 2:
        return (said == labels[:, means]).mean(axis=1)
    return (means[said] == labels).astype(float)
