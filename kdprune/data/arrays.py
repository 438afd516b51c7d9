"""Datasets from NumPy arrays, with every pixel and label checked first."""

from collections.abc import Sequence

import numpy as np

from kdprune.data.dataset import Dataset, Source, Split, check_split
from kdprune.data.splits import stratified_split

Pair = tuple[np.ndarray, np.ndarray]


def to_float(images: np.ndarray) -> np.ndarray:
    """Turns 8-bit images into what models take: float32 in [0, 1].

    Args:
        images: uint8, any shape.

    Returns:
        `images / 255`, float32, same shape.

    Raises:
        ValueError: If `images` is not uint8.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"Expected uint8 images. Received: {images.dtype}.")
    return images.astype(np.float32) / np.float32(255)


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
) -> Dataset:
    """Makes a dataset of the user's own images.

    Args:
        images: uint8, or float in [0, 1] (stored as 8 bits), shape
            `(n, height, width, channels)` with 1 or 3 channels, or
            `(n, height, width)`.
        labels: Whole numbers from 0, shape `(n,)` or `(n, 1)`.
        test: The test set as `(images, labels)`, or the share or number of
            images to hold out for it.
        validation: The validation set, in the same ways; a share or number is
            of what the test set leaves.
        calibration: Share or number of the training images to calibrate with.
        classes: Class names in the order of the labels; "0", "1", ... if None.
        seed: Seed of the stratified draws.
        name: What to call the dataset in records and tables.

    Returns:
        The dataset. Nothing given as an argument is changed.

    Raises:
        ValueError: If a pixel is NaN, infinite or out of range, a label has no
            class, a class has no image, or shapes do not fit together.

    Example:
        >>> (x, y), (xt, yt) = keras.datasets.cifar10.load_data()
        >>> dataset = from_arrays(x, y, test=(xt, yt))
    """
    train = _split(images, labels, "training")
    if isinstance(test, tuple):
        test = _split(*test, "test")
    else:
        kept, held_out = stratified_split(train.labels, test, (seed, 2), "test")
        train, test = train.take(kept), train.take(held_out)
    given = _split(*validation, "validation") if isinstance(validation, tuple) else None
    source = Source(
        origin="NumPy arrays",
        classes=_class_names(classes, train.labels),
        train=train,
        read_test=lambda: test,
        test_size=len(test),
        validation=given,
    )
    check_split(test, "test", train.images.shape[1:], source.classes)
    return Dataset(
        name, source, validation=validation, calibration=calibration, seed=seed
    )


def _split(images: np.ndarray, labels: np.ndarray, what: str) -> Split:
    """Checks one set of images and labels and brings it to the common form."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise ValueError(
            f"Expected {what} images of shape (n, height, width, 1 or 3). "
            f"Received: {images.shape}."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"Expected one whole-number label for each of {len(images)} {what} "
            f"images. Received: {labels.dtype} of shape {labels.shape}. "
            "Take argmax(axis=1) of one-hot labels."
        )
    return Split(_eight_bit(images, what), labels.astype(np.int64))


def _eight_bit(images: np.ndarray, what: str) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise ValueError(
            f"Expected {what} images as uint8 or as float in [0, 1]. "
            f"Received: {images.dtype}. Use images.astype('uint8') if they hold 0..255."
        )
    for wrong, fault, fix in (
        (~np.isfinite(images), "NaN or infinite", "Repair or drop those images"),
        (
            (images < 0) | (images > 1),
            "out of range",
            "Divide by 255 if they are 0..255",
        ),
    ):
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"Expected {what} pixels in [0, 1]. Received: {wrong.sum():,} {fault}, "
                f"the first at {first}: {images[first]}. {fix}."
            )
    return np.rint(images * 255).astype(np.uint8)


def _class_names(classes: Sequence[str] | None, labels: np.ndarray) -> tuple[str, ...]:
    """Names the classes, each of which must have a training image."""
    if labels.min() < 0:
        raise ValueError(f"Expected labels from 0. Received: {labels.min()}.")
    counts = np.bincount(labels)
    names = tuple(str(i) for i in range(len(counts))) if classes is None else classes
    names = tuple(names)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"Expected two or more distinct classes. Received: {names}.")
    if len(counts) > len(names):
        raise ValueError(
            f"Expected labels from 0 to {len(names) - 1}, one for each class. "
            f"Received: labels up to {len(counts) - 1}."
        )
    missing = [n for i, n in enumerate(names) if i >= len(counts) or not counts[i]]
    if missing:
        raise ValueError(
            "Expected training images of every class. "
            f"Received: none of {', '.join(missing)}."
        )
    return names
