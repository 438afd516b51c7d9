"""Values that change over the course of training."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

Value = float | Sequence[Sequence[float]]


class Schedule:
    """A value over the course of training: constant, or linear between points.

    Soft labels first and hard ones after is `[(0, 1), (0.5, 1), (0.5, 0), (1, 0)]` as
    a `soft_weight`: of two points at one place the second holds from there on.

    Args:
        value: A number, or points `(share of training in [0, 1], value)` in order.
        steps: Optimizer steps of the whole training; needed for points.
        name: What it is called in errors.
        low, high: The range its values must be in; `low` itself only if `closed`.
        closed: Whether `low` is allowed.

    Raises:
        ValueError: If a value is out of range or no number, the shares are not in
            order, or points come without `steps`.
    """

    def __init__(
        self,
        value: Value,
        steps: int | None = None,
        *,
        name: str,
        low: float = 0.0,
        high: float | None = None,
        closed: bool = True,
    ) -> None:
        constant = not isinstance(value, list | tuple)
        points: Any = [(0.0, value)] if constant else value
        if not _are_points(points):
            raise ValueError(
                f"{name} must be a number or points (share of training, value), the "
                f"shares rising within [0, 1]. Received: {value!r}"
            )
        self.points: tuple[tuple[float, float], ...] = tuple(map(tuple, points))
        self.steps = steps
        self._constant = constant
        if not constant and not steps:
            raise ValueError(
                f"{name} changes over training, whose length is not known: give "
                "`steps`, the optimizer steps of the whole training"
            )
        for number in self.values:
            above = number >= low if closed else number > low
            below = high is None or number <= high
            if not (math.isfinite(number) and above and below):
                bound = f"in [{low:g}, {high:g}]" if high is not None else "above 0"
                raise ValueError(f"{name} must be {bound}. Received: {number}")

    @property
    def values(self) -> list[float]:
        """The values at the points."""
        return [value for _, value in self.points]

    @property
    def config(self) -> float | list[list[float]]:
        """What it was made of, JSON-able."""
        return self.values[0] if self._constant else [list(p) for p in self.points]

    def at(self, step: Any) -> Any:
        """The value at an optimizer step: a float, or a float32 tensor."""
        if len(set(self.values)) == 1:
            return float(self.values[0])
        share = tf.cast(step, tf.float32) / float(self.steps or 1)
        value = tf.constant(float(self.points[0][1]))
        for (start, first), (end, last) in zip(
            self.points, self.points[1:], strict=False
        ):
            inside = (share - start) / max(end - start, 1e-9)
            between = first + (last - first) * tf.clip_by_value(inside, 0.0, 1.0)
            value = tf.where(share >= start, between, value)
        return value


def _are_points(points: Any) -> bool:
    """Whether these are pairs of numbers, the first ones rising within [0, 1]."""
    pairs = all(
        isinstance(point, list | tuple)
        and len(point) == 2
        and all(
            isinstance(number, numbers.Real) and not isinstance(number, bool)
            for number in point
        )
        for point in points
    )
    if not points or not pairs:
        return False
    shares = [point[0] for point in points]
    return shares == sorted(shares) and 0 <= shares[0] <= shares[-1] <= 1
