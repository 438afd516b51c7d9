"""The rule of pruning on an array: small weights are zeroed, or taken out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def prune_weights(
    weights: ArrayLike, threshold: float, remove: bool = False
) -> np.ndarray:
    """Zeroes the weights with `|w| < threshold`, or deletes them.

    A weight as large as the threshold stays. Zeros change neither the shape nor
    the size of the array; what they save is bytes after compression. To do the same
    to a model, and keep the zeros while it learns, see `weight_masks` and
    `apply_masks`.

    Args:
        weights: Numbers, an array of any shape or nested lists; not changed.
        threshold: Zero or more, in the unit of the weights.
        remove: Delete the small weights instead. What is left is one-dimensional,
            in the order of the rows, since rows may lose different numbers.

    Returns:
        An array of the weights' type: of their shape, or `(kept,)` with `remove`.

    Raises:
        ValueError: If `threshold` is negative or not a number.

    Example:
        >>> prune_weights([0.2, -0.01, 0.05, -0.6], 0.05)
        array([ 0.2 ,  0.  ,  0.05, -0.6 ])
        >>> prune_weights([0.2, -0.01, 0.05, -0.6], 0.05, remove=True)
        array([ 0.2 ,  0.05, -0.6 ])
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must be zero or more. Received: {threshold}")
    weights = np.asarray(weights)
    small = np.abs(weights) < threshold
    if remove:
        return weights[~small]
    return np.where(small, np.zeros_like(weights), weights)
