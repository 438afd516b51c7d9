"""Pixels that a Distiller is given, held against the range that its models take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdprune.intake import PixelRange, range_of
from kdprune.intake.first_kernels import factor_for
from kdprune.intake.taking import input_arithmetic

# Told in a step; found again in what TensorFlow makes of it.
WRONG_PIXELS = "expected other pixels"
# Of models whose range is not known, what has larger pixels is given bytes.
LEAST_OF_BYTES = 16.0
# Augmentation may leave the range by so much of its span; another range by more.
_SLACK = 0.5


def known_ranges(
    models: Sequence[keras.Model], given: PixelRange | None
) -> list[tuple[str, PixelRange]]:
    """`(model's name, range)` of each: as given, else as its front tells; else none."""
    if given is not None:
        return [(model.name, given) for model in models[:1]]
    return [
        (model.name, range_of(model))
        for model in models
        if input_arithmetic(model) is not None
    ]


def fault(
    ranges: Sequence[tuple[str, PixelRange]], low: float, high: float
) -> str | None:
    """What is wrong with pixels from `low` to `high`, in a line; None if nothing."""
    for name, range_ in ranges:
        if not _fits(range_, low, high):
            return (
                f"model {name!r} takes pixels of {range_.name}, by its first layers or "
                f"input_range=. Received: pixels from {low:g} to {high:g}; give them "
                "as it takes them, or the model as kdprune.take_model(model).model, "
                "which takes [0, 1]"
            )
    return None


def explain(ranges: Sequence[tuple[str, PixelRange]], message: str) -> str | None:
    """The error, in one line, of `checked` within a step."""
    found = re.search(rf"\[{WRONG_PIXELS}\] \[(\S+)\] \[(\S+)\]", message)
    return found and fault(ranges, float(found[1]), float(found[2]))


def checked(images: Any, ranges: Sequence[tuple[str, PixelRange]]) -> Any:
    """A batch of images, which is refused within the step if it does not fit."""
    if not ranges or not isinstance(images, tf.Tensor):
        return images
    low, high = extremes(images)
    fits = tf.reduce_all([_fits(range_, low, high) for _, range_ in ranges])
    check = tf.debugging.Assert(fits, [WRONG_PIXELS, low, high])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(images)


def extremes(images: Any) -> tuple[Any, Any]:
    """The least and the largest number of a batch of images."""
    values = tf.cast(images, tf.float32)
    return tf.reduce_min(values), tf.reduce_max(values)


def _fits(range_: PixelRange, low: Any, high: Any) -> Any:
    """Of numbers as of tensors; an empty batch, from inf to -inf, fits."""
    least, most = range_.extent
    slack = _SLACK * (most - least)
    inside = (low >= least - slack) & (high <= most + slack)
    if factor_for(range_.largest) == 1:
        return inside
    # Pixels in [0, 1] for a model of bytes: all of them next to black.
    return inside & ((high > 1.0) | (low < 0.0) | (high <= 0.0))
