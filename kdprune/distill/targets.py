"""Targets of `Distiller.fit`: labels in every form, stored logits, and their checks.

Labels are class indices `(batch,)` or `(batch, 1)`, -1 where one is missing, or rows of
probabilities `(batch, classes)`: one-hot, or mixed as Mixup and CutMix do, all zeros
where a label is missing. Arrays are checked before training, all of them; what streams
from a `tf.data.Dataset` is checked batch by batch, as it trains.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kdprune._answers import (
    SUM_TOLERANCE,
    check_answers,
    check_classes,
    no_answers,
    no_probabilities,
    no_rows,
    out_of_range,
    wrong_width,
)

# Messages of the checks within a training step; `explain` makes errors of them.
PROBABILITIES = "expected logits, got probabilities"
OUT_OF_RANGE = "expected labels within the classes"
NO_PROBABILITIES = "expected rows of probabilities"
NO_ANSWERS = "expected labels from zero to one"


class Labels(NamedTuple):
    """Labels of a batch in both forms.

    Attributes:
        indices: int32 `(batch,)`, -1 where a label is missing; of a row of
            probabilities, the likeliest class.
        rows: float32 `(batch, classes)` if they came as rows, else None.
    """

    indices: Any
    rows: Any = None

    @property
    def hard(self) -> Any:
        """What the hard loss compares predictions to; missing ones count as 0."""
        return tf.maximum(self.indices, 0) if self.rows is None else self.rows


def from_lists(given: Any) -> Any:
    """Labels in a list as an array, and the pair of targets as a tuple."""
    if not isinstance(given, list) or not given:
        return given
    if len(given) == 2 and all(np.ndim(part) for part in given):
        return tuple(given)
    return np.asarray(given)


def split_targets(targets: Any) -> tuple[Any, Any]:
    """Labels and stored teacher logits; None for what is not there.

    Raises:
        ValueError: If there are more than these two.
    """
    if not isinstance(targets, tuple | list):
        return targets, None
    if len(targets) != 2:
        raise ValueError(
            "targets must be labels, or the pair (labels, teacher_logits). Received: "
            f"{len(targets)} parts"
        )
    return targets[0], targets[1]


def as_labels(labels: Any, classes: int | None, head: str = "softmax") -> Labels:
    """Brings a batch's labels to their forms, and checks them as the step runs.

    Args:
        labels: In one of the forms above.
        classes: The number of logits, if it is known.
        head: "sigmoid" where several labels may apply to an example, or a single unit
            tells two classes apart. Labels are then rows of numbers in [0, 1], `(batch,
            labels)`, those of a single unit `(batch,)` as well, and -1 where one is
            missing, in all of a row. `Labels.indices` is 0 where they are known.

    Returns:
        `Labels`, which can only be used if they are in range.

    Raises:
        ValueError: If shape or type are those of no labels.
    """
    labels = tf.convert_to_tensor(labels)
    if labels.dtype not in (tf.bool, *_NUMBERS):
        raise ValueError(
            f"labels must be class indices or rows of probabilities. Received: "
            f"{labels.dtype.name}"
        )
    rank, width = labels.shape.rank, labels.shape[-1] if labels.shape.rank else None
    if head == "sigmoid":
        if rank != 2 and classes == 1:
            labels, width = tf.reshape(labels, [-1, 1]), 1
        elif rank != 2 or (width is not None and classes not in (None, width)):
            raise ValueError(no_rows(labels.shape, classes))
        return _from_answers(tf.cast(labels, tf.float32))
    if classes == 1:
        raise ValueError(
            "expected head='sigmoid' for a student of a single unit: "
            "Distiller(..., head='sigmoid'). Received: softmax, which is always 1"
        )
    if rank == 2 and width != 1:
        if width is not None and classes is not None and width != classes:
            raise ValueError(wrong_width(width, classes))
        return _from_rows(tf.cast(labels, tf.float32))
    if rank not in (None, 1, 2):
        raise ValueError(
            "labels must be class indices (batch,) or rows of probabilities (batch, "
            f"classes). Received: shape {labels.shape}"
        )
    labels = tf.reshape(labels, [-1])
    indices = tf.cast(labels, tf.int32)
    in_range = tf.reduce_all(indices >= -1)
    if classes is not None:
        in_range &= tf.reduce_all(indices < classes)
    if labels.dtype.is_floating:
        in_range &= tf.reduce_all(tf.cast(indices, labels.dtype) == labels)
    (indices,) = _checked(in_range, OUT_OF_RANGE, labels, indices)
    return Labels(indices)


def check_arrays(
    images: Any,
    targets: Any,
    classes: int | None,
    image_shape: Any = None,
    head: str = "softmax",
) -> None:
    """Checks what is given to `fit` or `evaluate` as arrays, before anything is run.

    Args:
        images: Images. What is neither an array nor a tensor passes.
        targets: Labels, or labels and teacher logits; None passes.
        classes: The number of logits, if it is known.
        image_shape: `(height, width, channels)` that the student takes, if it is known.
        head: As in `as_labels`.

    Raises:
        ValueError: If images are none, of another shape or NaN, if labels are not one
            for each image or out of range, or logits do not fit or are not finite.
    """
    if isinstance(images, tf.data.Dataset):
        spec = images.element_spec
        spec = spec[0] if isinstance(spec, tuple) else spec
        if isinstance(spec, tf.TensorSpec) and spec.shape.rank is not None:
            _check_shape(tuple(spec.shape), image_shape)
    if not isinstance(images, np.ndarray | tf.Tensor):
        return
    images = np.asarray(images)
    if images.dtype.kind in "OSU":
        raise ValueError(f"images must be numbers. Received: {images.dtype}")
    if not images.size:
        raise ValueError(f"expected images. Received: none, shape {images.shape}")
    _check_shape(images.shape, image_shape)
    if images.dtype.kind == "f" and not np.isfinite(images.min() + images.max()):
        raise ValueError("images must be finite. Received: NaN or infinity among them")
    labels, logits = split_targets(targets)
    if labels is not None:
        check = check_answers if head == "sigmoid" else check_classes
        check(np.asarray(labels), len(images), classes)
    if logits is not None:
        _check_logits(np.asarray(logits), len(images), classes)


_NUMBERS = (
    *(tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64),
    *(tf.float16, tf.bfloat16, tf.float32, tf.float64),
)


def _from_rows(rows: Any) -> Labels:
    sums = tf.reduce_sum(rows, axis=1)
    given = sums > 0.5
    ones = tf.abs(sums - 1.0) < SUM_TOLERANCE
    valid = tf.reduce_all(rows >= 0.0) & tf.reduce_all(ones | tf.equal(sums, 0.0))
    likeliest = tf.argmax(rows, axis=1, output_type=tf.int32)
    indices = tf.where(given, likeliest, -1)
    return Labels(*_checked(valid, NO_PROBABILITIES, sums, indices, rows))


def _from_answers(rows: Any) -> Labels:
    missing = tf.reduce_all(tf.equal(rows, -1.0), axis=1)
    inside = tf.reduce_all((rows >= 0.0) & (rows <= 1.0), axis=1)
    valid = tf.reduce_all(inside | missing)
    indices = tf.where(missing, -1, 0)
    return Labels(*_checked(valid, NO_ANSWERS, rows, indices, tf.maximum(rows, 0.0)))


def _checked(condition: Any, message: str, shown: Any, *values: Any) -> list[Any]:
    """The values, which need the condition to be computed."""
    limits = tf.reduce_min(shown), tf.reduce_max(shown)
    check = tf.debugging.Assert(condition, [message, *limits])
    with tf.control_dependencies([check] if check is not None else []):
        return [tf.identity(value) for value in values]


def _check_shape(shape: Any, expected: Any) -> None:
    # Keras adds an axis of one channel itself.
    shapes = shape[1:], (*shape[1:], 1)
    if expected and not any(_fits(each, expected) for each in shapes):
        hint = "; for a single image use image[None]" if len(shape) == 3 else ""
        raise ValueError(
            f"the student takes images of shape (n, {', '.join(map(str, expected))})"
            f". Received: {shape}{hint}"
        )


def _check_logits(logits: np.ndarray, count: int, classes: int | None) -> None:
    expected = f"({count}, {classes or 'classes'})"
    if logits.dtype.kind != "f" or not _fits(logits.shape, (count, classes)):
        raise ValueError(
            f"stored teacher logits must be floats of shape {expected}. Received: "
            f"{logits.dtype} of shape {logits.shape}"
        )
    if not np.isfinite(logits.min() + logits.max()):
        raise ValueError(
            "stored teacher logits must be finite. Received: NaN or infinity among them"
        )


def explain(message: str, classes: int | None) -> str | None:
    """The error, in one line, of a check within a step; None if it is of another."""
    found = re.search(r"\[(expected [a-z ]+)\] \[(\S+)\] \[(\S+)\]", message)
    if found is None:
        return None
    low, high = float(found[2]), float(found[3])
    if found[1] == NO_PROBABILITIES:
        return no_probabilities(low, high)
    if found[1] == NO_ANSWERS:
        return no_answers(low, high)
    return out_of_range(low, high, classes)


def _fits(shape: Any, expected: Any) -> bool:
    return len(shape) == len(expected) and all(
        None in (size, given) or size == given
        for given, size in zip(shape, expected, strict=True)
    )
