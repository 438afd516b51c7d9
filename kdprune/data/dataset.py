"""What a dataset is: four sets of 8-bit images and a description of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from kdprune import images as pixels
from kdprune._log import logger
from kdprune.data.splits import stratified_sample, stratified_split

# What labels may mean; see `Dataset.task`.
TASKS = ("classes", "labels", "binary")
_FORMS = {
    "classes": "one index of a class for each image (n,)",
    "labels": "zeros and ones (n, labels)",
    "binary": "0 or 1 for each image (n,)",
}


@dataclass(frozen=True)
class Split:
    """Images and their labels, checked to belong together.

    Attributes:
        images: uint8, shape `(n, height, width, channels)`: an array, or
            `kdprune.images.Rows`, which stay on a disk; a memory-mapped array becomes
            that.
        labels: int64 class indices, shape `(n,)`; or, where several labels may apply
            to an image, zeros and ones, shape `(n, labels)`.
    """

    images: Any
    labels: np.ndarray

    def __post_init__(self):
        if isinstance(self.images, np.memmap):
            object.__setattr__(self, "images", pixels.Rows(self.images))
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 4:
            raise ValueError(
                "Expected uint8 images of shape (n, height, width, channels). "
                f"Received: {self.images.dtype} of shape {shape}."
            )
        labels = self.labels
        fits = labels.ndim in (1, 2) and labels.shape[:1] == shape[:1]
        if labels.dtype != np.int64 or not fits:
            raise ValueError(
                f"Expected one int64 label for each of {shape[0]} images, or a row of "
                f"zeros and ones. Received: {labels.dtype} of shape {labels.shape}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """Returns the images and labels at `indices`, shape `(m,)`.

        Images in memory are copied, `Rows` are not read.
        """
        if isinstance(self.images, pixels.Rows):
            return Split(self.images.select(indices), self.labels[indices])
        return Split(self.images[indices], self.labels[indices])

    def sha256(self) -> str:
        """Returns the digest of the shape, the pixels and the labels."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        for part in pixels.parts(self.images):
            digest.update(np.ascontiguousarray(part).data)
        if self.labels.ndim == 2:
            digest.update(repr(self.labels.shape).encode())
        digest.update(np.ascontiguousarray(self.labels, "<i8").data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """What a loader found, before validation and calibration are drawn.

    Attributes:
        origin: What the data is, in words; no path, for it goes into records.
        classes: Class names, in the order of the labels.
        train: The training files.
        read_test: Reads the test images; called at the first access only.
        test_size: Number of test images, known without opening them.
        validation: The validation set, where the source comes with one.
        unlabelled: Images without labels, each -1, where the source has some.
        unread: How many files of other kinds lie there, by what their names end in.
        skipped: Files that could not be used and were left out, with the reason; the
            test images' come in when those are read.
        resize: "stretch", "crop" or "pad", how images came to one size; None if they
            had it.
        value_range: What the bytes 0 and 255 stand for, if not for black and white.
        task: What the labels mean, one of `TASKS`; None to tell it from their form.
    """

    origin: str
    classes: tuple[str, ...]
    train: Split
    read_test: Callable[[], Split]
    test_size: int
    validation: Split | None = None
    unlabelled: Split | None = None
    unread: Mapping[str, int] = field(default_factory=dict)
    skipped: Sequence[str] = ()
    resize: str | None = None
    value_range: tuple[float, float] | None = None
    task: str | None = None


class Dataset:
    """A classification dataset in four parts, the test set read last.

    Attributes:
        name: The name it was loaded by.
        classes: Class names, in the order of the labels.
        task: "classes": each image shows one of the classes. "labels": several of
            them, or none, may apply to an image, and labels are zeros and ones,
            `(n, labels)`. "binary": two classes, told by models of a single unit,
            the probability of the second.
        train: What models learn from.
        validation: What choices are made on; shares no image with `train`.
        calibration: Training images that set the ranges of int8 activations.
        unlabelled: Images without labels, each -1, that a teacher shows its student
            as well; None if there are none.
        description: What this data is, as JSON-able values: `name`, `source`,
            `classes`, `image_shape`, `sizes`, `seed`, `sha256` of all labelled but
            the test images, `unlabelled_sha256` where there are such images, `task`
            unless it is "classes", and of image files `resize`, `value_range`,
            `unread` and `skipped` (see `Source`) if there is something to say.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        *,
        validation: float | int = 0.1,
        calibration: float | int = 500,
        seed: int = 0,
        task: str | None = None,
    ):
        """Draws validation and calibration images from the training files.

        Args:
            name: What to call the dataset.
            source: Training images, and how to read the test images.
            validation: Share (a fraction) or number (an int) of the training
                files to hold out. Ignored if the source has its own.
            calibration: Share or number of the remaining training images;
                a number larger than there are takes them all.
            seed: Seed of both draws.
            task: What the labels mean, one of `TASKS`; by default what their form
                tells: "labels" of rows, else "classes".

        Raises:
            ValueError: If a share is out of range, a class has too few images, or the
                labels are not of that task.
        """
        self.name = name
        self.classes = source.classes
        self.task = _task_of(source, task)
        if source.validation is not None:
            self.train, self.validation = source.train, source.validation
        else:
            kept, held_out = stratified_split(
                source.train.labels, validation, seed, "validation"
            )
            self.train = source.train.take(kept)
            self.validation = source.train.take(held_out)
        drawn = stratified_sample(
            self.train.labels, calibration, (seed, 1), "calibration"
        )
        self.calibration = self.train.take(drawn)
        check_split(self.train, "training", self.image_shape, self.classes)
        check_split(self.validation, "validation", self.image_shape, self.classes)
        self.unlabelled = source.unlabelled
        if self.unlabelled is not None and self.task == "labels":
            missing = np.full((len(self.unlabelled), len(self.classes)), -1)
            self.unlabelled = Split(self.unlabelled.images, missing)
        self._source = source
        self.description = self._describe(source, seed)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.train.images.shape[1:]

    @property
    def head(self) -> str | None:
        """What makes probabilities of logits of this data, where units can't tell it.

        It is given as `head` to all that takes a model that gives logits.
        """
        return "sigmoid" if self.task == "labels" else None

    @cached_property
    def shown(self) -> Split:
        """What a teacher shows its student: `train`, then `unlabelled` if any."""
        if self.unlabelled is None:
            return self.train
        return join_splits(self.train, self.unlabelled)

    @cached_property
    def test(self) -> Split:
        """The test set, read at the first access and kept from then on."""
        test = self._source.read_test()
        check_split(test, "test", self.image_shape, self.classes)
        skipped = self.description["sizes"]["test"] - len(test)
        if skipped > 0:  # Files are known to be unreadable only now.
            self.description["sizes"]["test"] = len(test)
            self.description["skipped"] = list(self._source.skipped)
            logger.warning(
                "%d of the test images could not be used and were skipped: %s",
                skipped,
                shorten(list(self._source.skipped)[-skipped:]),
            )
        return test

    def check_test(self) -> None:
        """Reads the test images, for what is wrong with them to be known in time.

        Raises:
            ValueError: If some can't be used, or do not fit the training images.
        """
        _ = self.test

    @property
    def summary(self) -> str:
        """One line for people: classes, images of each split, what was not read."""
        sizes = self.description["sizes"]
        several = self.task == "labels"
        labels = self.train.labels
        if several:
            counts = labels.sum(axis=0)
        else:
            counts = np.bincount(labels, minlength=len(self.classes))
        least, most = int(counts.argmin()), int(counts.argmax())
        what = "labels, of which several may apply," if several else "classes"
        each = f"{counts[least]:,} of each {'label' if several else 'class'}"
        if counts[least] < counts[most]:
            each = (
                f"{counts[least]:,} of {self.classes[least]} to {counts[most]:,} of "
                f"{self.classes[most]}"
            )
        parts = [
            f"{len(self.classes)} {what} of {_by(self.image_shape)}: "
            f"{sizes['train']:,} training images ({each}), "
            + ", ".join(f"{sizes[part]:,} {part}" for part in sizes if part != "train")
        ]
        if unread := self.description.get("unread"):
            listed = [f"{count:,} {name}" for name, count in unread.items()]
            parts.append(f"not read: {shorten(listed, 8)}")
        if skipped := self.description.get("skipped"):
            parts.append(f"skipped: {len(skipped):,}, {shorten(skipped)}")
        return "; ".join(parts)

    def __repr__(self) -> str:
        sizes = self.description["sizes"]
        return f"Dataset({self.name!r}, {len(self.classes)} classes, {sizes})"

    def _describe(self, source: Source, seed: int) -> dict:
        digest = hashlib.sha256(repr(self.classes).encode())
        for split in (self.train, self.validation, self.calibration):
            digest.update(split.sha256().encode())
        sizes = {
            "train": len(self.train),
            "validation": len(self.validation),
            "calibration": len(self.calibration),
            "test": source.test_size,
        }
        unlabelled = {}
        if self.unlabelled is not None:
            sizes["unlabelled"] = len(self.unlabelled)
            unlabelled = {"unlabelled_sha256": self.unlabelled.sha256()}
        found = {
            "resize": source.resize,
            "value_range": source.value_range and list(source.value_range),
            "unread": {name: n for name, n in source.unread.items() if n},
            "skipped": list(source.skipped),
        }
        task = {} if self.task == "classes" else {"task": self.task}
        return {
            "name": self.name,
            "source": source.origin,
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "sizes": sizes,
            "seed": seed,
            "sha256": digest.hexdigest(),
            **unlabelled,
            **{key: value for key, value in found.items() if value},
            **task,
        }


def _task_of(source: Source, task: str | None) -> str:
    """What the labels mean: as told, or by their form."""
    rows = source.train.labels.ndim == 2
    found = task or source.task or ("labels" if rows else "classes")
    if found not in TASKS:
        raise ValueError(
            f"Expected a task out of {', '.join(TASKS)}. Received: {found!r}."
        )
    if (found == "labels") != rows:
        raise ValueError(
            f"Expected labels of task {found}, {_FORMS[found]}. Received: training "
            f"labels of shape {source.train.labels.shape}."
        )
    if found == "binary" and len(source.classes) != 2:
        raise ValueError(
            "Expected two classes for task binary, for a single output unit. "
            f"Received: {len(source.classes)}."
        )
    return found


def join_splits(*splits: Split) -> Split:
    """Puts splits of one image shape one after the other."""
    return Split(
        pixels.join([split.images for split in splits]),
        np.concatenate([split.labels for split in splits]),
    )


def check_split(
    split: Split, what: str, image_shape: tuple[int, int, int], classes: tuple[str, ...]
) -> None:
    """Raises a ValueError unless `split` fits the dataset it is to be part of."""
    if not len(split):
        raise ValueError(f"Expected {what} images. Received: none.")
    if split.images.shape[1:] != image_shape:
        raise ValueError(
            f"Expected {what} images of shape {image_shape}, as in training. "
            f"Received: {split.images.shape[1:]}."
        )
    low, high = split.labels.min(), split.labels.max()
    if split.labels.ndim == 2:
        if low < 0 or high > 1 or split.labels.shape[1] != len(classes):
            raise ValueError(
                f"Expected {what} labels (n, {len(classes)}), 1 where a label applies "
                f"and 0 where not. Received: shape {split.labels.shape}, from {low} to "
                f"{high}."
            )
        return
    if low < 0 or high >= len(classes):
        raise ValueError(
            f"Expected {what} labels from 0 to {len(classes) - 1}, one for each "
            f"class. Received: labels from {low} to {high}."
        )


def shorten(names: Sequence[str], shown: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    more = len(names) - shown
    listed = ", ".join(names[:shown])
    return f"{listed} and {more:,} more" if more > 0 else listed


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
