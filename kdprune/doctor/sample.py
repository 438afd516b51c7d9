"""A few of the user's images: enough to find a pixel range by."""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdprune import data
from kdprune.data import folder
from kdprune.data.decode import Reader
from kdprune.doctor.findings import Obstacle
from kdprune.intake import Head
from kdprune.intake.pixels import MOST_IMAGES


@dataclass(frozen=True)
class Sample:
    """Images and their labels.

    Attributes:
        images: uint8, `(n, height, width, channels)`.
        labels: Classes `(n,)`, or zeros and ones `(n, labels)`.
        classes: Their names, None where not known.
        total: How many images there are to train on.
        words: What there is, in a line.
    """

    images: NDArray
    labels: NDArray
    classes: tuple[str, ...] | None
    total: int
    words: str


def draw(
    images: Any, shape: tuple[int, int, int], data_dir: str | None = None
) -> tuple[Sample | None, list[Obstacle]]:
    """Reads up to 500 images of the training part, stratified, resized as needed.

    Args:
        images: A folder, a file `.npz`, a data set's name, or `(images, labels)`.
        shape: `(height, width, channels)` of what the model takes.
        data_dir: Where a data set is that is given by name.

    Returns:
        `(sample, obstacles)`; None where there are no images to be had.

    Raises:
        FileNotFoundError: If there is no such folder or file.
    """
    try:
        sample = _draw(images, shape, data_dir)
    except ValueError as error:
        return None, [Obstacle("images", "", str(error))]
    if sample.images.shape[1:] != shape:
        problem = (
            f"images are of shape {sample.images.shape[1:]}, the model takes {shape}"
        )
        return None, [Obstacle("images", "", problem, "resize them")]
    return sample, _uneven(sample)


def _draw(images: Any, shape: tuple[int, int, int], data_dir: str | None) -> Sample:
    if isinstance(images, str | os.PathLike):
        path = pathlib.Path(images)
        if path.is_dir():
            return _of_folder(path, shape)
        if path.suffix == ".npz" and not path.is_file():
            raise FileNotFoundError(f"no images at {path}")
        if path.suffix != ".npz" and str(images) not in data.DATASETS:
            raise FileNotFoundError(f"no folder of images at {path}")
        dataset = data.load_dataset(str(images), data_dir=data_dir)
        split, classes = dataset.validation, tuple(dataset.classes)
        total = len(dataset.train.labels) + len(split.labels)
        return _of_arrays(split.images, split.labels, classes, total)
    pixels, labels = images
    return _of_arrays(np.asarray(pixels), np.asarray(labels), None, len(labels))


def _of_folder(root: pathlib.Path, shape: tuple[int, int, int]) -> Sample:
    parts = folder.find_parts(root)
    train = parts["train"]
    classes = folder.class_names(train)
    files = folder.find_images(train, classes, root)
    labels = np.array([label for _, label in files])
    chosen = _stratified(labels)
    height, width, channels = shape
    reader = Reader(root, channels, (height, width))
    split = reader.read({"training": [files[i] for i in chosen]})["training"]
    counts = Counter(labels.tolist())
    return _of_arrays(split.images, split.labels, classes, len(files), counts)


def _of_arrays(
    images: NDArray,
    labels: NDArray,
    classes: tuple[str, ...] | None,
    total: int,
    counts: Counter[int] | None = None,
) -> Sample:
    if labels.ndim == 1:
        chosen = _stratified(labels)
        images, labels = images[chosen], labels[chosen]
        counts = counts or Counter(labels.tolist())
        names = classes or tuple(map(str, sorted(counts)))
        most = max(counts, key=lambda label: counts[label])
        least = min(counts, key=lambda label: counts[label])
        words = (
            f"{total:,} to train on, {len(names)} classes; {len(images)} were looked at"
        )
        if counts[most] != counts[least]:
            words += (
                f"; largest class {names[most]} ({counts[most]:,}), smallest "
                f"{names[least]} ({counts[least]:,})"
            )
    else:
        images, labels = images[:MOST_IMAGES], labels[:MOST_IMAGES]
        words = f"{total:,} to train on, {labels.shape[1]} labels each"
    return Sample(images, labels, classes, total, words)


def _stratified(labels: NDArray) -> NDArray:
    """Which images to look at: as many of each class, at most `MOST_IMAGES`."""
    random = np.random.default_rng(0)
    order = random.permutation(len(labels))
    seen: Counter[int] = Counter()
    rank = np.empty(len(labels), np.int64)
    for i in order:
        rank[i] = seen[int(labels[i])]
        seen[int(labels[i])] += 1
    return np.sort(order[np.argsort(rank[order], kind="stable")][:MOST_IMAGES])


def _uneven(sample: Sample) -> list[Obstacle]:
    if sample.total >= 50:
        return []
    problem = f"there are {sample.total} images"
    remedy = "hundreds of each class are needed to prove what a file loses"
    return [Obstacle("images", "", problem, remedy, fatal=False)]


def check_labels(
    sample: Sample, head: Head, names: Sequence[str] | None
) -> list[Obstacle]:
    """Whether the images' classes are the model's."""
    found = []
    if sample.labels.ndim == 2:
        count, what = sample.labels.shape[1], "labels"
    else:
        known = sample.classes
        count = len(known) if known else int(sample.labels.max()) + 1
        what = "classes"
    expected = 2 if head.kind == "binary" else head.units
    if count != expected:
        problem = f"the images have {count} {what}, the model {head.units} outputs"
        remedy = "give the images that it was trained on, a folder for each class"
        found.append(Obstacle("images", "", problem, remedy))
    elif names is not None and sample.classes is not None:
        if sorted(names) != sorted(sample.classes):
            problem = (
                f"the labels are {', '.join(names)}; the folders "
                f"{', '.join(sample.classes)}"
            )
            found.append(Obstacle("images", "", problem, "name them alike"))
    return found
