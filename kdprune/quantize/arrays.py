"""Quantization of arrays: what a `.tflite` file does to each tensor, in NumPy.

A real value r is stored as an integer q with `r = scale * (q - zero_point)`.

Reference: Jacob et al., 2018, https://arxiv.org/abs/1712.05877, section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDINGS = ("nearest", "truncate")


def affine_parameters(
    low: float,
    high: float,
    bits: int = 8,
    signed: bool = True,
    symmetric: bool = False,
) -> tuple[float, int]:
    """The scale and zero point that spread a range over all integers.

    The range is widened to hold 0, which then is an integer exactly: padding and
    ReLU would otherwise add an error everywhere. Rounding the zero point moves the
    range by up to half a step.

    Args:
        low: Smallest real value.
        high: Largest real value, at least `low`.
        bits: 8 or 16.
        signed: Whether the integers are -2**(bits-1) and up, or 0 and up.
        symmetric: Take the zero point 0, one scale for both signs and integers
            from -(2**(bits-1) - 1): the rule of TFLite for weights, and for the
            activations of 16 bits. Signed only.

    Returns:
        Scale (a positive float) and zero point (an int). The range [0, 0] gives
        the scale 1.

    Raises:
        ValueError: If the range is empty or not finite, or `bits` or `symmetric`
            does not fit.
    """
    minimum, maximum = _limits(bits, signed)
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(
            f"expected a range of finite numbers, low <= high. Received: [{low}, "
            f"{high}]"
        )
    if symmetric and not signed:
        raise ValueError(
            "a symmetric quantization needs signed integers. "
            "Received: symmetric=True, signed=False"
        )
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if low == high:
        return 1.0, 0 if signed else minimum
    if symmetric:
        return max(-low, high) / maximum, 0
    scale = (high - low) / (maximum - minimum)
    return scale, int(np.clip(np.rint(minimum - low / scale), minimum, maximum))


def quantize_affine(
    values: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    bits: int = 8,
    signed: bool = True,
) -> NDArray[Any]:
    """Rounds real values to integers; those out of range become the nearest limit.

    Args:
        values: Real values, any shape.
        scale: Step between two integers, positive; a number, or an array that
            broadcasts to `values` (one scale for each channel).
        zero_point: The integer of 0.0, likewise.
        bits: 8 or 16.
        signed: Whether the integers are signed.

    Returns:
        Integers of that type, the shape of `values`. Ties round to the even one,
        as XNNPACK has it.

    Raises:
        ValueError: If an argument does not fit, or a value is not a number.
    """
    return _to_integers(_steps(values, scale), zero_point, bits, signed, np.rint)


def dequantize_affine(
    integers: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = 0
) -> NDArray[np.float32]:
    """The real values of integers, `scale * (integers - zero_point)`.

    Args:
        integers: What `quantize_affine` or an interpreter returned.
        scale: Step between two integers, positive; a number, or an array that
            broadcasts to `integers`.
        zero_point: The integer of 0.0, likewise.

    Returns:
        float32, the shape of `integers`.

    Raises:
        ValueError: If `scale` is not positive or `integers` are none.
    """
    integers = np.asarray(integers)
    if not np.issubdtype(integers.dtype, np.integer):
        raise ValueError(f"expected an array of integers. Received: {integers.dtype}")
    # The difference of two int8 does not fit an int8.
    differences = integers.astype(np.float64) - np.asarray(zero_point, np.float64)
    return (differences * _positive(scale)).astype(np.float32)


def quantize_linear(
    values: ArrayLike, scale: ArrayLike, bits: int = 8, rounding: str = "nearest"
) -> NDArray[Any]:
    """Divides by a scale and rounds: the articles' linear quantization.

    The articles' code differs from its own rule in three ways, of which the first
    can be had here. It converts with `astype`, which truncates towards 0: the error
    is up to a whole step instead of half of one, always towards 0, so that sums of
    many products shrink. It never clips: 130 steps become the int8 -126. And one
    article multiplies by the scale where it should divide, so that the scale of 0.01
    maps all of [-100, 100] to 0 and ±1.

    Args:
        values: Real values, any shape.
        scale: Step between two integers, positive.
        bits: 8 or 16.
        rounding: "nearest", or "truncate" for the articles' (towards 0).

    Returns:
        Signed integers, the shape of `values`; `dequantize_affine` takes them back.

    Raises:
        ValueError: If an argument does not fit, or a value is not a number.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(
            f"rounding must be one of {', '.join(ROUNDINGS)}. Received: {rounding!r}"
        )
    rounded = np.rint if rounding == "nearest" else np.trunc
    return _to_integers(_steps(values, scale), 0, bits, True, rounded)


def _steps(values: ArrayLike, scale: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values, np.float64)
    if np.isnan(values).any():
        raise ValueError("expected numbers to quantize. Received: NaN among them")
    return values / _positive(scale)


def _to_integers(
    steps: NDArray[np.float64],
    zero_point: ArrayLike,
    bits: int,
    signed: bool,
    rounded: Callable[[Any], Any],
) -> NDArray[Any]:
    minimum, maximum = _limits(bits, signed)
    integers = np.clip(rounded(steps) + np.asarray(zero_point), minimum, maximum)
    return integers.astype(f"{'int' if signed else 'uint'}{bits}")


def _positive(scale: ArrayLike) -> NDArray[np.float64]:
    scale = np.asarray(scale, np.float64)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"scale must be positive and finite. Received: {scale}")
    return scale


def _limits(bits: int, signed: bool) -> tuple[int, int]:
    if bits not in (8, 16):
        raise ValueError(f"bits must be 8 or 16. Received: {bits!r}")
    info = np.iinfo(f"{'int' if signed else 'uint'}{bits}")
    return int(info.min), int(info.max)
