"""Pixels: the one check of images that every public function makes.

Images are arrays of shape `(n, height, width, channels)`, either uint8 or float in
[0, 1], which is the byte divided by 255. Both are taken everywhere. More of them than
memory holds are `Rows`, which are read where they are needed. Needs NumPy alone.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Shape = Sequence[int | None]
# Bytes of the images that are read at a time where all of them are gone through.
_PART = 2**24


class Rows:
    """Images that stay where they are, on a disk, until some of them are asked for.

    They look like a uint8 array `(n, height, width, channels)` of which images are
    chosen: `rows[3]`, `rows[10:20]` and `rows[[3, 1]]` read those into an array,
    `numpy.asarray(rows)` reads all. `select` reads none.

    Attributes:
        shape: `(n, height, width, channels)`.
        dtype: uint8, whatever the images are stored in.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, base: Any, indices: ArrayLike | None = None) -> None:
        """Takes images as they are, without reading one.

        Args:
            base: A memory-mapped array, uint8 or floats in [0, 1]; or anything with
                its `shape` and `take(indices, axis=0)`.
            indices: Which of its images, in which order, shape `(n,)`; None for all.
        """
        # Slices and takes of a np.memmap would be np.memmap as well.
        self._base = base.view(np.ndarray) if isinstance(base, np.memmap) else base
        every = np.arange(len(base)) if indices is None else np.asarray(indices)
        self._indices: NDArray[np.int64] = every.astype(np.int64, copy=False)
        if len(every) and not 0 <= every.min() <= every.max() < len(base):
            raise IndexError(f"expected indices of {len(base)} images")
        self.shape: tuple[int, ...] = (len(every), *base.shape[1:])

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def size(self) -> int:
        """The number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    def select(self, indices: ArrayLike) -> Rows:
        """These of the images, as `rows[indices]`, without reading one."""
        return Rows(self._base, self._indices[np.asarray(indices)])

    def take(
        self, indices: ArrayLike, axis: int = 0, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Reads the images at `indices`, shape `(m,)`, into `out` if that is given."""
        chosen = self._indices[np.asarray(indices)]
        if out is None:
            out = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        if isinstance(self._base, np.ndarray) and self._base.dtype == np.uint8:
            # Without "clip", for which there is no need here, NumPy copies twice.
            self._base.take(chosen, axis=axis, out=out, mode="clip")
        elif len(chosen):
            out[:] = as_uint8(self._base.take(chosen, axis=axis))
        return out

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        if isinstance(key, slice):
            return self.take(np.arange(len(self))[key])
        if np.ndim(key) == 0:
            return self.take([operator.index(key)])[0]
        return self.take(np.arange(len(self))[np.asarray(key)])

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for part in parts(self):
            yield from part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        return self[:].astype(dtype or np.uint8, copy=False)


class _Joined:
    """Images of several arrays, one array after the other, as the base of `Rows`."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])
        self.shape = (int(self._ends[-1]), *arrays[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: NDArray, axis: int = 0) -> NDArray[np.uint8]:
        found = np.empty((len(indices), *self.shape[1:]), np.uint8)
        which = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(which):
            here = which == number
            start = self._ends[number] - len(self._arrays[number])
            found[here] = self._arrays[number].take(indices[here] - start, axis=axis)
        return found


def join(arrays: Sequence[NDArray | Rows]) -> NDArray | Rows:
    """Images of one shape one after the other: copied, or as `Rows` if any are."""
    if not any(isinstance(array, Rows) for array in arrays):
        return np.concatenate(arrays)
    return Rows(_Joined(arrays))


def parts(images: Any) -> Iterator[NDArray]:
    """Yields the images, some megabytes at a time, for what goes through them all."""
    size = max(1, _PART // max(1, int(np.prod(images.shape[1:], dtype=np.int64))))
    for start in range(0, len(images), size):
        yield images[start : start + size]


def check(
    images: ArrayLike, shape: Shape | None = None, name: str = "images"
) -> NDArray:
    """Checks images and returns them as they are, without a copy; `Rows` unread.

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
    try:
        array: Any = images if isinstance(images, Rows) else np.asarray(images)
    except ValueError:
        raise ValueError(
            f"{name} must be one array of images of equal shapes, without labels. "
            f"Received: {type(images).__name__} of arrays of unequal shapes"
        ) from None
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
        return np.asarray(array)
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
