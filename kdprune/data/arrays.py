"""Datasets from NumPy arrays and streams, with every pixel and label checked first."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdprune import images as pixels
from kdprune.data.cache import Cache
from kdprune.data.dataset import Dataset, Source, Split, check_split, shorten
from kdprune.data.splits import stratified_split

Pair = tuple[np.ndarray, np.ndarray]


def to_float(images: ArrayLike) -> NDArray[np.float32]:
    """Gives images to models: float32 in [0, 1].

    Args:
        images: uint8, or float in [0, 1], shape `(n, height, width, channels)`, n > 0.

    Returns:
        float32, same shape: bytes divided by 255. No copy of what is float32 already.

    Raises:
        ValueError: If the shape or the type is another, or a float is NaN, infinite
            or outside [0, 1].
    """
    return pixels.as_float(images)


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    test: float | int | Pair = 0.2,
    validation: float | int | Pair = 0.1,
    calibration: float | int = 500,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    name: str = "arrays",
    task: str | None = None,
) -> Dataset:
    """Makes a dataset of the user's own images.

    Args:
        images: uint8, or float in [0, 1] (stored as 8 bits), shape
            `(n, height, width, channels)` or `(n, height, width)`. A memory-mapped
            array (`numpy.load(file, mmap_mode="r")`) stays on the disk.
        labels: Whole numbers from 0, shape `(n,)` or `(n, 1)`, or one-hot rows,
            shape `(n, classes)`. Where several labels may apply to an image, rows of
            zeros and ones, shape `(n, labels)`: rows are taken for that if there are
            two ones in any.
        test: The test set as `(images, labels)`, or the share or number of
            images to hold out for it.
        validation: The validation set, in the same ways; a share or number is
            of what the test set leaves.
        calibration: Share or number of the training images to calibrate with.
        classes: Class names in the order of the labels; "0", "1", ... if None.
        seed: Seed of the stratified draws.
        name: What to call the dataset in records and tables.
        task: What the labels mean, see `Dataset.task`; by default what their form
            tells.

    Returns:
        The dataset. Nothing given as an argument is changed.

    Raises:
        ValueError: If a pixel is NaN, infinite or out of range, a label has no
            class, a class has no image, or shapes do not fit together.

    Example:
        >>> (x, y), (xt, yt) = keras.datasets.cifar10.load_data()
        >>> dataset = from_arrays(x, y, test=(xt, yt))
    """
    several = are_several(labels, task)
    train = _split(images, labels, "training", several)
    if isinstance(test, tuple):
        tested = _split(*test, "test", several)
    else:
        kept, held_out = stratified_split(train.labels, test, (seed, 2), "test")
        train, tested = train.take(kept), train.take(held_out)
    given, share = None, 0.1
    if isinstance(validation, tuple):
        given = _split(*validation, "validation", several)
    else:
        share = validation
    source = Source(
        origin="NumPy arrays",
        classes=class_names(classes, train.labels),
        train=train,
        read_test=lambda: tested,
        test_size=len(tested),
        validation=given,
    )
    check_split(tested, "test", train.images.shape[1:], source.classes)
    return Dataset(
        name, source, validation=share, calibration=calibration, seed=seed, task=task
    )


def from_batches(
    batches: Iterable[tuple[Any, Any]],
    *,
    test: Iterable[tuple[Any, Any]] | float | int = 0.2,
    validation: Iterable[tuple[Any, Any]] | float | int = 0.1,
    cache_dir: str | os.PathLike | None = None,
    **options: Any,
) -> Dataset:
    """Makes a dataset of streams of batches, such as `tf.data.Dataset`.

    Their images are written to the cache's disk as they come, once, and read from
    there; the file is gone with the process.

    Args:
        batches: Pairs of images and labels as `from_arrays` takes them: arrays or
            tensors, each with a first axis of images. It has to end.
        test: The test set in the same form, or the share or number of images to hold
            out for it.
        validation: The validation set, in the same ways.
        cache_dir: Where the images are written; by default `KDPRUNE_CACHE_DIR`, else
            `~/.cache/kdprune`.
        **options: Others of `from_arrays`.

    Returns:
        The dataset.

    Raises:
        ValueError: As `from_arrays`, or if the cache's folder can't be written or
            becomes full, or images differ in shape.

    Example:
        >>> train = tf.data.Dataset.from_tensor_slices((x, y)).batch(256)
        >>> dataset = from_batches(train, test=tested)
    """
    cache = Cache.of(cache_dir)
    given: dict[str, Any] = {**options}
    for what, part in (("test", test), ("validation", validation)):
        if isinstance(part, int | float):
            given[what] = part
        else:
            given[what] = _spool(part, cache, what)
    return from_arrays(*_spool(batches, cache, "training"), **given)


def _spool(
    batches: Iterable[tuple[Any, Any]], cache: Cache, what: str
) -> tuple[NDArray, NDArray]:
    """A stream's images, mapped from a file, and its labels."""
    labels: list[NDArray] = []
    shape: tuple[int, ...] = ()

    def read() -> Iterator[NDArray[np.uint8]]:
        nonlocal shape
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(
                    f"Expected {what} batches of (images, labels). "
                    f"Received: {type(batch).__name__}."
                )
            images, of_images = (np.asarray(part) for part in batch)
            if images.ndim == 3:
                images = images[..., np.newaxis]
            images = pixels.as_uint8(images, name=f"{what} images")
            shape = shape or images.shape[1:]
            if images.shape[1:] != shape or of_images.shape[:1] != images.shape[:1]:
                raise ValueError(
                    f"Expected {what} batches of images {shape} and as many labels. "
                    f"Received: {images.shape} and {of_images.shape}."
                )
            labels.append(of_images)
            yield images

    spooled = cache.spool(read())
    if spooled is None:
        raise ValueError(f"Expected {what} batches. Received: none.")
    return spooled.reshape(-1, *shape), np.concatenate(labels)


def are_several(labels: ArrayLike, task: str | None) -> bool:
    """Whether training labels are rows of which several may be 1."""
    labels = np.asarray(labels)
    rows = labels.ndim == 2 and labels.shape[1] > 1
    if task is not None or not rows or labels.dtype.kind not in "biuf":
        return task == "labels"
    return bool((labels == 1).sum(axis=1).max(initial=0) > 1)


def _split(images: np.ndarray, labels: np.ndarray, what: str, several: bool) -> Split:
    """Checks one set of images and labels and brings it to the common form."""
    mapped = isinstance(images, np.memmap)
    images = np.asarray(images)  # Of a mapped array a view.
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if mapped:
        found: Any = pixels.Rows(pixels.check(images, name=f"{what} images"))
    else:
        found = pixels.as_uint8(images, name=f"{what} images")
    return Split(found, read_labels(labels, len(found), what, several))


def read_labels(
    labels: ArrayLike, count: int, what: str, several: bool
) -> NDArray[np.int64]:
    """Brings labels to the form of a `Split`.

    Args:
        labels: As for `from_arrays`.
        count: The number of images.
        what: What errors call them: "training", "test".
        several: What `are_several` says of the training labels.

    Raises:
        ValueError: If they are not of that form.
    """
    read = _rows if several else _indices
    return read(np.asarray(labels), count, what)


def _rows(labels: np.ndarray, count: int, what: str) -> np.ndarray:
    """Zeros and ones, int64 `(count, labels)`."""
    fits = labels.ndim == 2 and labels.shape[0] == count and labels.dtype.kind in "biuf"
    if not fits or not np.isin(labels, (0, 1)).all():
        held = f", from {labels.min()} to {labels.max()}" if fits else ""
        raise ValueError(
            f"Expected zeros and ones as {what} labels ({count}, labels), 1 where a "
            f"label applies. Received: {labels.dtype} of shape {labels.shape}{held}."
        )
    return labels.astype(np.int64)


def _indices(labels: np.ndarray, count: int, what: str) -> np.ndarray:
    """Class indices, int64 `(count,)`, of labels in any form."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if (
        labels.shape[:1] != (count,)
        or labels.ndim > 2
        or labels.dtype.kind not in "biuf"
    ):
        raise ValueError(
            f"Expected one label for each of {count} {what} images: whole numbers "
            f"({count},) or one-hot rows ({count}, classes). "
            f"Received: {labels.dtype} of shape {labels.shape}."
        )
    if labels.ndim == 2:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise ValueError(
                f"Expected one-hot rows as {what} labels, a single 1 in each. "
                f"Received: values from {labels.min():g} to {labels.max():g}. If "
                "several labels or none may apply to an image, give task='labels'; "
                "Distiller.fit takes mixed labels."
            )
        return labels.argmax(axis=1).astype(np.int64)
    indices = labels.astype(np.int64) if np.isfinite(labels).all() else labels
    if labels.dtype.kind == "b" or not np.array_equal(indices, labels):
        raise ValueError(
            f"Expected whole numbers as {what} labels. Received: {labels.dtype}, from "
            f"{labels.min()} to {labels.max()}."
        )
    return indices


def class_names(classes: Sequence[str] | None, labels: np.ndarray) -> tuple[str, ...]:
    """Names the classes, each of which must have a training image."""
    if labels.min() < 0:
        raise ValueError(f"Expected labels from 0. Received: {labels.min()}.")
    most = len(labels) if classes is None else len(classes)
    if labels.ndim == 1 and labels.max() >= most:  # A count of each takes memory.
        of = "as each has a training image" if classes is None else "one for each class"
        raise ValueError(
            f"Expected labels from 0 to {most - 1}, {of}. "
            f"Received: labels up to {labels.max()}."
        )
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels)
    names = tuple(str(i) for i in range(len(counts))) if classes is None else classes
    names = tuple(names)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"Expected two or more distinct classes. Received: {names}.")
    if len(counts) > len(names):
        raise ValueError(
            f"Expected labels from 0 to {len(names) - 1}, one for each class. "
            f"Received: labels up to {len(counts) - 1}."
        )
    missing = [str(n) for i, n in enumerate(names) if i >= len(counts) or not counts[i]]
    if missing:
        raise ValueError(
            "Expected training images of every class. "
            f"Received: none of {shorten(missing)}."
        )
    return names
