"""Arrays of images and labels from one `.npz` file, read as data, never as pickles."""

from __future__ import annotations

import math
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdprune._io import first_line
from kdprune._log import logger
from kdprune.data.arrays import are_several, class_names, read_labels
from kdprune.data.dataset import Source, Split
from kdprune.data.folder import SPLITS
from kdprune.data.splits import stratified_split

# What arrays are called beside their split: x_train, train_images, X_test, ….
_IMAGES = ("x", "image", "images", "data", "inputs")
_LABELS = ("y", "label", "labels", "target", "targets")
_CLASSES = ("classes", "classnames", "labelnames", "names")
# The most that deflate makes of a byte is about this.
MAX_EXPANSION = 1_100
MAX_LABEL_BYTES = 2**30
_CHUNK = 2**24
# What zipfile, zlib and NumPy raise on damaged content.
_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    SyntaxError,
    tokenize.TokenError,  # Of a header, which is a Python literal.
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


def load(
    *,
    path: str | os.PathLike | None = None,
    range: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    test: float | int = 0.2,
    task: str | None = None,
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
) -> Source:
    """Reads the arrays `x_train`, `y_train`, `x_test`, `y_test` of an `.npz` file.

    `x_validation` and `y_validation` are taken as validation set if they are there.
    Other usual names do as well: `train_images`, `test_labels`, `X_val`, or `images`
    and `labels` alone, of which a test set is then held out. Images are
    `(n, height, width)` or `(n, height, width, channels)` of any channels, so that
    spectrograms and stacks of bands are images, too. Pickled arrays are refused.

    Values are kept as bytes: uint8 as they are, others as 256 equal steps from the
    lower to the upper end of their range, which is what an int8 model sees of them.

    Args:
        path: The file, relative to `data_dir` if that is given.
        range: `(low, high)` that values lie in; [0, 1] of floats, [0, 255] of
            uint8 if None.
        classes: Class names in the order of the labels; by default those in the file
            (an array of text, `classes`), else "0", "1", ….
        test: Share or number of images to hold out where there is no test set.
        task: What the labels mean, see `Dataset.task`; by default what their form
            tells.
        data_dir: Where `path` is relative to.
        seed: Seed of the held-out share.

    Returns:
        The source; the test images are read when it is asked for them.

    Raises:
        ValueError: If the file is damaged or claims to be far too large, names, shapes
            or types are not as above, or values are not in the range.
        FileNotFoundError: If it is not there.
    """
    if path is None:
        raise ValueError("Expected the option path, an .npz file. Received: none.")
    file = Path(data_dir or "", path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"Expected a file of arrays. Received: {file}.")
    bounds = _check_range(range)
    found = _find_arrays(file)
    images, labels = found.images, found.labels
    for split in ("train", "test", "validation"):
        if (split in images) != (split in labels) or "train" not in images:
            raise ValueError(
                f"Expected images and labels in {file}, such as x_train and y_train, "
                f"and both of each split. Received: {', '.join(found.names) or 'none'}."
            )
    shape = images["train"].image_shape("training images")
    for split, array in images.items():
        if (other := array.image_shape(f"{split} images")) != shape:
            raise ValueError(
                f"Expected {split} images of shape {shape}, as in training. "
                f"Received: {other} in {file}."
            )
    of_training = labels["train"].read()
    if classes is None and found.classes is not None:
        classes = [_text(name) for name in found.classes.read().ravel()]
    by_name = of_training.dtype.kind in "US"
    if by_name:
        if classes is None:
            classes = sorted({_text(name) for name in of_training.ravel()})
        of_training = _indices_of(of_training, classes, "training")
    several = are_several(of_training, task)

    def read(split: str, what: str) -> Split:
        of_split = of_training
        if split != "train":
            of_split = labels[split].read()
            if by_name:
                of_split = _indices_of(of_split, classes or (), what)
        pixels = images[split].read_pixels(bounds, what)
        return Split(pixels, read_labels(of_split, len(pixels), what, several))

    train = read("train", "training")
    if bounds is None and images["train"].dtype == np.uint8 and train.images.max() < 2:
        logger.warning(
            "%s: bytes up to %d are next to black; give range: [0, 1] if 1 is white",
            file,
            train.images.max(),
        )
    names = class_names(classes, train.labels)
    validation = read("validation", "validation") if "validation" in images else None
    if "test" in images:
        size = images["test"].shape[0]

        def read_test() -> Split:
            return read("test", "test")

    else:
        kept, drawn = stratified_split(train.labels, test, (seed, 2), "test")
        held_out, train = train.take(drawn), train.take(kept)
        size = len(held_out)

        def read_test() -> Split:
            return held_out

    told = "" if bounds is None else f", values in [{bounds[0]:g}, {bounds[1]:g}]"
    return Source(
        origin=f"arrays of {file.name!r}{told}",
        classes=names,
        train=train,
        read_test=read_test,
        test_size=size,
        validation=validation,
        unread={f"array {name!r}": 1 for name in found.unread},
        value_range=bounds,
    )


@dataclass(frozen=True)
class _Array:
    """One array of the file: its header, and how to read the rest."""

    file: Path
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    in_rows: bool

    @property
    def name(self) -> str:
        return self.info.filename.removesuffix(".npy")

    def image_shape(self, what: str) -> tuple[int, ...]:
        """`(height, width, channels)`; checks that it holds images."""
        shape = (*self.shape, 1) if len(self.shape) == 3 else self.shape
        received = f"Received: {self.dtype} of shape {self.shape}, {self.name!r}"
        if len(shape) != 4 or not all(shape) or self.dtype.kind not in "biuf":
            raise ValueError(
                f"Expected {what} (n, height, width, channels) or (n, height, width) "
                f"of numbers. {received} in {self.file}."
            )
        if shape[1] in (1, 3) and shape[2] == shape[3] and shape[2] > 4:
            raise ValueError(
                f"Expected {what} with the channels last. {received}; save "
                f"{self.name}.transpose(0, 2, 3, 1)."
            )
        return shape[1:]

    def read(self) -> NDArray:
        """The whole array as it is: of labels."""
        if self.info.file_size > MAX_LABEL_BYTES:
            raise ValueError(
                f"Expected labels of at most {MAX_LABEL_BYTES:,} bytes. Received: "
                f"{self.info.file_size:,} in {self.name!r} of {self.file}."
            )
        rows = [part.copy() for part in self._parts()]
        if not rows:
            raise ValueError(f"Expected labels in {self.file}. Received: none.")
        return np.concatenate(rows)

    def read_pixels(self, bounds: tuple[float, float] | None, what: str) -> NDArray:
        """Images as bytes, `(n, height, width, channels)`, a few at a time."""
        shape = self.image_shape(what)
        size = math.prod(self.shape)
        if size > _memory():
            raise ValueError(
                f"Expected {what} images that fit into memory. Received: {size:,} "
                f"bytes in {self.name!r} of {self.file}; use fewer or smaller ones."
            )
        pixels = np.empty((self.shape[0], *shape), np.uint8)
        start = 0
        for part in self._parts():
            rows = slice(start, start + len(part))
            part = part.reshape(-1, *shape)
            pixels[rows] = _to_bytes(part, bounds, f"{what} images", start)
            start += len(part)
        return pixels

    def _parts(self) -> Iterator[NDArray]:
        """Yields the rows, some megabytes at a time; all at once if in columns."""
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        count = max(_CHUNK // max(row, 1), 1) if self.in_rows else self.shape[0]
        try:
            with zipfile.ZipFile(self.file) as archive, archive.open(self.info) as data:
                _read_header(data)
                for start in range(0, self.shape[0], max(count, 1)):
                    rows = min(count, self.shape[0] - start)
                    content = data.read(rows * row)
                    if len(content) != rows * row:
                        raise EOFError("the array ends early")
                    part = np.frombuffer(content, self.dtype)
                    shape = (rows, *self.shape[1:])
                    if self.in_rows:
                        yield part.reshape(shape)
                    else:
                        yield part.reshape(shape[::-1]).T
                data.read(1)  # The end, where the checksum is compared.
        except _DAMAGE as error:
            raise _damaged(self.file, error) from error


@dataclass
class _Found:
    """The arrays of a file by what they are."""

    images: dict[str, _Array] = field(default_factory=dict)
    labels: dict[str, _Array] = field(default_factory=dict)
    classes: _Array | None = None
    names: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def _find_arrays(file: Path) -> _Found:
    found = _Found()
    try:
        with zipfile.ZipFile(file) as archive:
            arrays = [_describe(file, archive, info) for info in archive.infolist()]
    except _DAMAGE as error:
        raise _damaged(file, error) from error
    for array in arrays:
        found.names.append(array.name)
        role, split = _role(array.name)
        if role == "classes" and array.dtype.kind in "US":
            found.classes = array
            continue
        table = {"images": found.images, "labels": found.labels}.get(role)
        if table is None:
            found.unread.append(array.name)
            continue
        if split in table:
            raise ValueError(
                f"Expected one array of {split} {role} in {file}. Received: both "
                f"{table[split].name!r} and {array.name!r}."
            )
        table[split] = array
    return found


def _describe(file: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Array:
    """Reads an array's header and holds it against the sizes in the archive."""
    with archive.open(info) as data:
        shape, in_columns, dtype = _read_header(data)
        header = data.tell()
    if dtype.hasobject:
        raise ValueError(
            f"array {info.filename!r} holds Python objects, which are never unpickled; "
            "save numbers"
        )
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or header + size != info.file_size:
        raise ValueError(f"array {info.filename!r} is not of the size that it says")
    if info.file_size > MAX_EXPANSION * max(info.compress_size, 1):
        raise ValueError(f"array {info.filename!r} unpacks to {info.file_size:,} bytes")
    return _Array(file, info, shape, dtype, not in_columns)


def _read_header(data: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(data)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    return read[version](data)


def _damaged(file: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"Expected a file of arrays as numpy.savez writes it. Received: {file}, which "
        f"cannot be read ({first_line(error)})."
    )


def _role(name: str) -> tuple[str, str]:
    """What an array is ("images", "labels", "classes" or "") and of which split."""
    letters = re.sub("[^a-z]", "", name.lower())
    if letters in _CLASSES:
        return "classes", ""
    names = [(alias, split) for split, all_ in SPLITS.items() for alias in all_]
    for alias, split in [*sorted(names, key=lambda n: -len(n[0])), ("", "train")]:
        for rest in (letters.removeprefix(alias), letters.removesuffix(alias)):
            if alias and rest == letters:
                continue
            if rest in _IMAGES:
                return "images", split
            if rest in _LABELS:
                return "labels", split
    return "", ""


def _to_bytes(
    values: NDArray, bounds: tuple[float, float] | None, what: str, start: int
) -> NDArray[np.uint8]:
    """Values in a range as 256 equal steps; uint8 without one as they are."""
    if bounds is None and values.dtype == np.uint8:
        return values
    low, high = (0.0, 1.0) if bounds is None else bounds
    kind: Any = np.float32 if values.dtype.kind == "f" else np.float64
    numbers: NDArray[Any] = values.astype(kind)
    least, most = float(numbers.min()), float(numbers.max())
    if not (low <= least and most <= high):
        wrong = np.argwhere(~np.isfinite(numbers))
        if len(wrong):
            place = (start + int(wrong[0][0]), *map(int, wrong[0][1:]))
            raise ValueError(
                f"Expected finite numbers as {what}. Received: "
                f"{numbers[tuple(wrong[0])]} at {place}; repair or drop that image."
            )
    if (bounds is None and values.dtype.kind != "f") or not (
        low <= least and most <= high
    ):
        raise ValueError(
            f"Expected {what} of uint8, or of values in [{low:g}, {high:g}]. Received: "
            f"{values.dtype} from {least:g} to {most:g}; give range: [low, high] "
            "that holds all values."
        )
    return np.rint((numbers - low) * (255 / (high - low))).astype(np.uint8)


def _memory() -> float:
    """Bytes of memory of this machine; without end where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return math.inf


def _check_range(given: Sequence[float] | None) -> tuple[float, float] | None:
    if given is None:
        return None
    try:
        low, high = map(float, given)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(high - low) and low < high):
        raise ValueError(
            "Expected range as [low, high], what the lowest and the highest byte "
            f"stand for. Received: {given!r}."
        )
    return low, high


def _indices_of(labels: NDArray, classes: Sequence[str], what: str) -> NDArray:
    """Class indices, int64, of labels that are names."""
    place = {name: index for index, name in enumerate(classes)}
    names = [_text(label) for label in labels.reshape(len(labels), -1)[:, 0]]
    if unknown := sorted(set(names) - set(place)):
        raise ValueError(
            f"Expected {what} labels out of {', '.join(classes)}. Received: "
            f"{', '.join(unknown)}."
        )
    return np.array([place[name] for name in names], np.int64)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
