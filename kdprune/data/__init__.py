"""Datasets: CIFAR-10, image folders, generated shapes, and NumPy arrays.

Needs NumPy and Pillow only; the `tf.data` side is in `kdprune.data.batches`.
"""

import inspect
import os

from kdprune.data import cifar10, folder, shapes
from kdprune.data.arrays import from_arrays, to_float
from kdprune.data.dataset import Dataset, Source, Split, join_splits
from kdprune.data.splits import stratified_sample, stratified_split

DATASETS = {"cifar10": cifar10.load, "folder": folder.load, "shapes": shapes.load}

__all__ = [
    "DATASETS",
    "Dataset",
    "Source",
    "Split",
    "from_arrays",
    "join_splits",
    "load_dataset",
    "stratified_sample",
    "stratified_split",
    "to_float",
]


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    validation: float | int = 0.1,
    calibration: float | int = 500,
    seed: int = 0,
    **options,
) -> Dataset:
    """Loads a dataset by name and draws its validation and calibration images.

    Both are drawn from the training files, stratified and seeded. Validation
    shares no image with training; calibration is part of training. The test
    images are read when `Dataset.test` is first accessed.

    Args:
        name: A name in `DATASETS`.
        data_dir: Where the data is; what it may be is said by each loader.
        validation: Share of the training files to hold out, or their number if
            it is an int. Ignored where the data has a validation set.
        calibration: Share of the training images to calibrate with, or their
            number; a number larger than there are takes them all.
        seed: Seed >= 0 of all draws, and of generated images.
        **options: Options of the loader.

    Returns:
        The dataset.

    Raises:
        ValueError: If an argument or the data is not as expected.
        FileNotFoundError: If the data is not there.

    Example:
        >>> dataset = load_dataset("shapes", train_images=1000, test_images=200)
        >>> dataset.train.images.shape
        (900, 32, 32, 3)
    """
    if name not in DATASETS:
        raise ValueError(
            f"Expected a dataset out of {', '.join(DATASETS)}. Received: {name!r}."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"Expected a whole number >= 0 as seed. Received: {seed!r}.")
    load = DATASETS[name]
    known = [
        option.name
        for option in inspect.signature(load).parameters.values()
        if option.name not in ("data_dir", "seed")
    ]
    for option in options:
        if option not in known:
            raise ValueError(
                f"Expected options of dataset {name!r}: {', '.join(known) or 'none'}. "
                f"Received: {option!r}."
            )
    source = load(data_dir=data_dir, seed=seed, **options)
    return Dataset(
        name, source, validation=validation, calibration=calibration, seed=seed
    )
