"""Pixels: the one check of images that every public function makes.

Images are arrays of shape `(n, height, width, channels)`, either uint8 or float in
[0, 1], which is the byte divided by 255. Both are taken everywhere. Needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Shape = Sequence[int | None]


def check(
    images: ArrayLike, shape: Shape | None = None, name: str = "images"
) -> NDArray:
    """Checks images and returns them as they are, without a copy.

    Args:
        images: uint8, or float in [0, 1], shape `(n, height, width, channels)`, n > 0.
        shape: `(height, width, channels)` that they must have; None, as a whole or
            for one of the three, allows any.
        name: What they are called in the error: "calibration images".

    Returns:
        An array of `images`, of the same type.

    Raises:
        ValueError: If the shape or the type is another, or a float is NaN, infinite
            or outside [0, 1].
    """
    array = np.asarray(images)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        known = array.dtype.kind in "iub"
        received = str(array.dtype) if known else type(images).__name__
        hint = "; use images.astype('uint8') if they hold 0 to 255" if known else ""
        raise ValueError(
            f"{name} must be an array of uint8, or of floats in [0, 1]. "
            f"Received: {received}{hint}"
        )
    wanted = (None, None, None) if shape is None else tuple(shape)
    fits = array.ndim == 4 and all(
        size in (None, got) for size, got in zip(wanted, array.shape[1:], strict=True)
    )
    if not fits or not array.size:
        one = array.ndim == 3 and array.size
        hint = "; for a single image use image[None]" if one else ""
        raise ValueError(
            f"{name} must have the shape {_describe(wanted)}, n > 0. "
            f"Received: {array.shape}{hint}"
        )
    # Two passes over the data and no array as large as it. NaN fails both comparisons.
    if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(_describe_fault(array, name))
    return array


def as_float(
    images: ArrayLike, shape: Shape | None = None, name: str = "images"
) -> NDArray[np.float32]:
    """Checks images and gives them to models: float32 in [0, 1].

    Args:
        images: As for `check`.
        shape: As for `check`.
        name: As for `check`.

    Returns:
        float32, same shape: bytes divided by 255. No copy of what is float32 already.

    Raises:
        ValueError: As `check`.
    """
    array = check(images, shape, name)
    if array.dtype == np.uint8:
        return np.divide(array, np.float32(255), dtype=np.float32)
    return array.astype(np.float32, copy=False)


def as_uint8(
    images: ArrayLike, shape: Shape | None = None, name: str = "images"
) -> NDArray[np.uint8]:
    """Checks images and gives them to files of bytes.

    Args:
        images: As for `check`.
        shape: As for `check`.
        name: As for `check`.

    Returns:
        uint8, same shape. Floats are rounded to the nearest multiple of 1/255: exact
        for those made of bytes, at most 1/510 off for others. No copy of what is
        uint8 already.

    Raises:
        ValueError: As `check`.
    """
    array = check(images, shape, name)
    if array.dtype == np.uint8:
        return array
    return np.rint(array * 255).astype(np.uint8)


def _describe(shape: Shape) -> str:
    names = ("height", "width", "channels")
    sizes = [
        n if size is None else str(size) for n, size in zip(names, shape, strict=True)
    ]
    return f"(n, {', '.join(sizes)})"


def _describe_fault(images: NDArray, name: str) -> str:
    """Says which pixel is wrong, and what to do; one image at a time is looked at."""
    for index, image in enumerate(images):
        wrong = ~np.isfinite(image)
        if wrong.any():
            place = (index, *(int(i) for i in np.argwhere(wrong)[0]))
            return (
                f"{name} must be floats in [0, 1]. Received: {images[place]} at "
                f"{place}; repair or drop that image"
            )
    return (
        f"{name} must be uint8, or floats in [0, 1]. Received: {images.dtype} in "
        f"[{images.min():g}, {images.max():g}]; divide pixels by 255"
    )


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Which of `count` images stand for all of them where few are enough.

    The first ones would not: those of a folder stand in the order of their classes.

    Returns:
        The indices of at most `most` images, evenly spaced, in rising order.
    """
    return np.linspace(0, count, min(count, most), endpoint=False).astype(np.int64)
