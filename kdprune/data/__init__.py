"""Data sets: CIFAR-10, image folders, generated shapes, NumPy arrays, and your own.

Needs NumPy and Pillow only; the `tf.data` side is in `kdprune.data.batches`.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

from kdprune import _registry
from kdprune._log import logger
from kdprune.data import cifar10, folder, npz, shapes
from kdprune.data.arrays import from_arrays, from_batches, to_float
from kdprune.data.cache import Cache
from kdprune.data.dataset import TASKS, Dataset, Source, Split, join_splits
from kdprune.data.splits import stratified_sample, stratified_split

Loader = Callable[..., Source]

DATASETS: dict[str, Loader] = {
    "cifar10": cifar10.load,
    "folder": folder.load,
    "npz": npz.load,
    "shapes": shapes.load,
}

# What every loader is given, if it takes it; the rest are its own options.
_GIVEN = ("data_dir", "seed", "task")

__all__ = [
    "DATASETS",
    "TASKS",
    "Dataset",
    "Source",
    "Split",
    "from_arrays",
    "from_batches",
    "join_splits",
    "load_dataset",
    "register_dataset",
    "stratified_sample",
    "stratified_split",
    "to_float",
]


def register_dataset(
    name: str, loader: Loader | None = None, *, replace: bool = False
) -> Any:
    """Makes a data set known by a name, to `load_dataset` and to recipes.

    A loader reads the training images and returns a `Source`, whose `read_test` reads
    the test images when they are first asked for, and not before. If it has parameters
    named `data_dir`, `seed` and `task`, it is given those of `load_dataset`; its other
    parameters are the options of the data set and need defaults or a value in each
    recipe.

    Args:
        name: Lower-case letters, digits and underscores.
        loader: The function; None to use this as a decorator.
        replace: Whether a data set of this name may be replaced.

    Returns:
        `loader`, or a decorator.

    Raises:
        ValueError: If the name is taken or not fit, or the loader not callable.

    Example:
        >>> @register_dataset("digits")
        ... def load_digits(*, data_dir=None, split="balanced"):
        ...     images, labels = read_digits(data_dir, split)
        ...     return Source(
        ...         origin="digits",
        ...         classes=tuple("0123456789"),
        ...         train=Split(images, labels),
        ...         read_test=lambda: Split(*read_digits(data_dir, "test")),
        ...         test_size=10_000,
        ...     )
    """
    if loader is None:
        return functools.partial(register_dataset, name, replace=replace)
    return _registry.add(DATASETS, "data set", name, loader, replace)


def load_dataset(
    name: str | Loader,
    *,
    data_dir: str | os.PathLike | None = None,
    validation: float | int = 0.1,
    calibration: float | int = 500,
    seed: int = 0,
    task: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    cache_limit: float | None = None,
    **options: Any,
) -> Dataset:
    """Loads a data set by name and draws its validation and calibration images.

    Both are drawn from the training files, stratified and seeded. Validation
    shares no image with training; calibration is part of training. The test
    images are read when `Dataset.test` is first accessed. One line of the log says
    what there is: classes, images of each split, what was skipped.

    Args:
        name: A name in `DATASETS`, a file of arrays, `FILE.npz`, or a loader (see
            `register_dataset`).
        data_dir: Where the data is; see each loader for what it may be.
        validation: Share of the training files to hold out, or their number if
            it is an int. Ignored where the data has a validation set.
        calibration: Share of the training images to calibrate with, or their
            number; a number larger than there are takes them all.
        seed: Seed >= 0 of all draws, and of generated images.
        task: "binary" if models are to tell two classes by a single unit; by default
            what the labels' form says. See `Dataset.task`.
        cache_dir: Where the decoded images of a large folder are kept; by default
            `KDPRUNE_CACHE_DIR`, else `~/.cache/kdprune`.
        cache_limit: GiB of decoded images above which they are decoded each time they
            are used; by default `KDPRUNE_CACHE_LIMIT`, else 200.
        **options: Options of the loader: `path`, `image_size`, `resize`, `channels`,
            `on_error`, `test` of "folder"; `train_images`, `test_images`,
            `unlabelled_images`, `image_size` of "shapes"; `range`, `classes`, `test`
            of "FILE.npz".

    Returns:
        The data set.

    Raises:
        ValueError: If an argument or the data is not as expected.
        FileNotFoundError: If the data is not there.

    Example:
        >>> dataset = load_dataset("shapes", train_images=1000, test_images=200)
        >>> dataset.train.images.shape
        (900, 32, 32, 3)
    """
    load = name if callable(name) else DATASETS.get(name)
    if isinstance(name, str) and name.endswith(".npz"):
        load = npz.load
    if load is None:
        raise ValueError(
            f"Expected a data set out of {', '.join(DATASETS)} or FILE.npz. "
            f"Received: {name!r}"
            f"{_registry.nearest(name, DATASETS)}."
        )
    called = getattr(name, "__name__", type(name).__name__) if callable(name) else name
    given: dict[str, Any] = {"data_dir": data_dir, "seed": seed, "task": task}
    cache = Cache.of(cache_dir, cache_limit)
    if load is folder.load:
        given["cache"] = cache
    if load is npz.load:
        # The file may stand for both: `dataset: FILE.npz`.
        if name == "npz":
            called = os.path.basename(options.get("path") or called)
        else:
            given["path"], called = name, os.path.basename(called)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"Expected a whole number >= 0 as seed. Received: {seed!r}.")
    parameters = inspect.signature(load).parameters
    known = [o for o in parameters if o not in _GIVEN and o not in given]
    for option in options:
        if option not in known:
            takes = ", ".join(known) or "none"
            raise ValueError(
                f"Expected options of data set {called!r}: {takes}. Received: "
                f"{option!r}"
                f"{_registry.nearest(option, [*known, 'validation', 'calibration'])}."
            )
    given = {key: value for key, value in given.items() if key in parameters}
    source = load(**given, **options)
    if not isinstance(source, Source):
        raise ValueError(
            f"Expected a kdprune.data.Source from the loader of data set {called!r}. "
            f"Received: {type(source).__name__}."
        )
    dataset = Dataset(
        called,
        source,
        validation=validation,
        calibration=calibration,
        seed=seed,
        task=task,
    )
    logger.info("%s: %s", called, dataset.summary)
    return dataset
