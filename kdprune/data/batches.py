"""Training batches: shuffled, augmented, and the same again from any epoch.

Everything random is a function of (seed, epoch) alone, so that a resumed run
sees the batches an uninterrupted one would have seen, and a teacher's logits
can be stored for exactly the pixels a student will be shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kdprune.data.dataset import Split
from kdprune.images import Rows

Augment = Mapping[str, Any]

# Which of the replicas that share each batch are here, and how many there are in all.
Replicas = tuple[range, int]

# Batches of 500 that are made beforehand, as long as their images are no more bytes.
_AHEAD, _AHEAD_BYTES = 4, 2**28

_ALIGNED = 64

# Streams of random numbers that must not coincide for one (seed, epoch).
_SHUFFLE, _AUGMENT, _FLIP = 0, 1, 2


def training_batches(
    split: Split,
    batch_size: int,
    *,
    epochs: int,
    seed: int,
    start_epoch: int = 0,
    augment: Augment | None = None,
    soft_labels: Sequence[Any] | None = None,
    replicas: Replicas | None = None,
) -> tf.data.Dataset:
    """Batches of all epochs from `start_epoch` on, in one unbroken stream.

    Args:
        split: Images uint8 `(n, height, width, channels)` and labels `(n,)`.
        batch_size: Images per batch; the rest of each epoch's shuffle that does
            not fill a batch is dropped (another one each epoch).
        epochs: Number of the epoch to stop before.
        seed: Non-negative integer.
        start_epoch: First epoch, for resuming.
        augment: Arguments of `augment_batch`'s parameters: `crop` (pixels),
            `flip` (False, True or "alternating"), `cutout` (pixels). None for
            plain images.
        soft_labels: Teacher logits, an array `(n, classes)` for each view. Epoch e
            then shows view e mod views of the augmentation seeded
            `augment["seed"]`, with the logits the teacher gave to those very
            pixels; of views on a disk only a batch's logits are read at a time.
        replicas: Those of this worker, where several share each batch in equal
            parts: each has a batch of its own then, one after the other.

    Returns:
        A `tf.data.Dataset` of `(images, labels)`, images float32 in [0, 1], or of
        `(images, (labels, teacher_logits))` with `soft_labels`.

    Raises:
        ValueError: If `batch_size` is no whole number above 0, `crop` is not smaller
            than the images, `soft_labels` are not of as many images, or a batch does
            not divide among `replicas`.
    """
    _check(split, batch_size)
    count = len(split.labels)
    batch_size = min(batch_size, count)
    store = _Store(split, augment or {})
    _check_crop(augment, split)
    if replicas and batch_size % replicas[1]:
        raise ValueError(
            f"batch_size must be a multiple of {replicas[1]}, the replicas that share "
            f"a batch. Received: {batch_size}"
        )
    own_size = batch_size // (replicas[1] if replicas else 1)
    stored = () if soft_labels is None else soft_labels
    views = len(stored)
    shape: tuple[int, ...] = np.shape(stored[0]) if views else ()
    if views and (len(shape) != 2 or shape[0] != count):
        raise ValueError(
            f"expected soft labels of the {count} training images, (images, classes). "
            f"Received: shape {shape}; store them for this data again."
        )

    def logits_of(view: Any, index: Any) -> Any:
        logits = tf.numpy_function(
            lambda view, index: np.asarray(stored[view])[index].astype(np.float16),
            [view, index],
            tf.float16,
        )
        return tf.ensure_shape(logits, (own_size, shape[1]))

    def epoch_indices(epoch: Any) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(count), seed=_seed(seed, _SHUFFLE, epoch)
        )
        view = epoch % views if views else epoch
        draws = _draw(count, view, augment or {}, seed)
        rows = {"index": order, **{k: tf.gather(v, order) for k, v in draws.items()}}
        if views:
            rows["view"] = tf.fill([count], view)
        data = tf.data.Dataset.from_tensor_slices(rows)
        if replicas is None:
            return data.batch(batch_size, drop_remainder=True)
        here, shares = replicas
        data = data.take(count // batch_size * batch_size)
        data = data.batch(own_size, drop_remainder=True).enumerate()
        own = (here.start, here.stop)
        return data.filter(
            lambda place, _: (place % shares >= own[0]) & (place % shares < own[1])
        ).map(lambda _, rows: rows)

    def load(rows: dict[str, Any]) -> Any:
        images = store.read(rows, augment or {})
        labels = tf.gather(store.labels, rows["index"])
        if not views:
            return images, labels
        logits = logits_of(rows["view"][0], rows["index"])
        return images, (labels, tf.cast(logits, tf.float32))

    return (
        tf.data.Dataset.range(start_epoch, epochs)
        .flat_map(epoch_indices)
        .map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(4)
    )


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Counts the full batches in an epoch of `training_batches`.

    Args:
        split: As for `training_batches`.
        batch_size: Images per batch.

    Returns:
        The number of steps, at least 1.

    Raises:
        ValueError: If `batch_size` is no whole number above 0.
    """
    _check(split, batch_size)
    return max(len(split.labels) // batch_size, 1)


def view_batches(
    split: Split,
    batch_size: int,
    *,
    view: int,
    seed: int,
    augment: Augment | None = None,
) -> tf.data.Dataset:
    """One augmentation view of every image, in the split's own order.

    The pixels are those `training_batches` shows in an epoch of this view.

    Args:
        split: As for `training_batches`.
        batch_size: Images per batch.
        view: Number of the view, from 0.
        seed: Of the augmentation, unless `augment` has its own.
        augment: As for `training_batches`.

    Returns:
        A `tf.data.Dataset` of images, float32 in [0, 1]; the last batch may be
        smaller.
    """
    _check(split, batch_size)
    store = _Store(split, augment or {})
    _check_crop(augment, split)
    draws = _draw(len(split.labels), tf.constant(view, tf.int64), augment or {}, seed)
    rows = {"index": tf.range(len(split.labels)), **draws}
    ahead = _ahead(split, batch_size)
    return (
        tf.data.Dataset.from_tensor_slices(rows)
        .batch(batch_size)
        .map(lambda rows: store.read(rows, augment or {}), num_parallel_calls=ahead)
        .prefetch(ahead)
    )


def evaluation_batches(
    split: Split, batch_size: int = 500, replicas: Replicas | None = None
) -> tf.data.Dataset:
    """Batches of a split in its own order, without augmentation.

    Args:
        split: Images uint8 `(n, height, width, channels)` and labels `(n,)`.
        batch_size: Images per batch; the last one may be smaller.
        replicas: Those of this worker, as for `training_batches`: all replicas have as
            many batches, and each image is in one of them.

    Returns:
        A `tf.data.Dataset` of `(images, labels)`, images float32 in [0, 1].

    Raises:
        ValueError: If `batch_size` is no whole number above 0.
    """
    _check(split, batch_size)
    if replicas is not None:
        return _parts(split, batch_size, *replicas)
    ahead = _ahead(split, batch_size)
    if not isinstance(split.images, Rows):
        data = tf.data.Dataset.from_tensor_slices((split.images, split.labels))
        data = data.batch(batch_size).map(lambda x, y: (_to_float(x), y))
        return data.prefetch(ahead)
    store = _Store(split, {})
    rows = {"index": tf.range(len(split.labels)), "labels": split.labels}

    def load(rows: dict[str, Any]) -> Any:
        return store.read(rows, {}), rows["labels"]

    data = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
    return data.map(load, num_parallel_calls=ahead).prefetch(ahead)


def _ahead(split: Split, batch_size: int) -> int:
    """How many batches to make beforehand: fewer of large images."""
    size = 4 * batch_size * int(np.prod(split.images.shape[1:]))
    return max(1, min(_AHEAD, _AHEAD_BYTES // size))


def evaluation_steps(split: Split, batch_size: int = 500, replicas: int = 1) -> int:
    """Counts the batches that each replica has of `evaluation_batches`."""
    return -(-len(split.labels) // (replicas * batch_size))


def _parts(split: Split, batch_size: int, here: range, shares: int) -> tf.data.Dataset:
    """The batches of some of the replicas that share a split."""
    count, steps = len(split.labels), evaluation_steps(split, batch_size, shares)
    # The parts are of nearly the same size, and none is empty.
    ends = [count * part // (shares * steps) for part in range(shares * steps + 1)]
    store, labels = _Store(split, {}), tf.constant(split.labels)

    def load(start: Any, stop: Any) -> Any:
        index = tf.range(start, stop)
        return store.read({"index": index}, {}), tf.gather(labels, index)

    own = [step * shares + replica for step in range(steps) for replica in here]
    starts, stops = [ends[part] for part in own], [ends[part + 1] for part in own]
    data = tf.data.Dataset.from_tensor_slices((starts, stops)).map(load)
    return data.prefetch(_ahead(split, batch_size))


def _check(split: Split, batch_size: int) -> None:
    for part in ("images", "labels"):
        if not hasattr(split, part):
            raise ValueError(
                "expected a kdprune.data.Split, such as dataset.train. Received: "
                f"{type(split).__name__}"
            )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            f"batch_size must be a whole number above 0. Received: {batch_size!r}"
        )


def _check_crop(augment: Augment | None, split: Split) -> None:
    # One reflection reaches no further; beyond it lie other images' pixels.
    smallest = min(split.images.shape[1:3])
    if augment and augment.get("crop", 0) >= smallest:
        raise ValueError(
            f"crop must be below the images' smaller side of {smallest} pixels. "
            f"Received: {augment['crop']}"
        )


def _seed(seed: int, stream: int, epoch: Any) -> tf.Tensor:
    """A stateless seed of two int64 for one stream of one epoch."""
    return tf.stack([tf.cast(seed * 8 + stream, tf.int64), tf.cast(epoch, tf.int64)])


def _draw(count: int, view: Any, augment: Augment, seed: int) -> dict[str, Any]:
    """The random choices of one view, a row for every image of the split."""
    seed = augment.get("seed", seed)
    rows = {}
    uniform = tf.random.stateless_uniform([4, count], _seed(seed, _AUGMENT, view))
    if augment.get("crop"):
        reach = 2 * augment["crop"] + 1
        rows["crop"] = tf.cast(tf.transpose(uniform[:2]) * reach, tf.int32)
    if augment.get("cutout"):
        rows["cutout"] = tf.transpose(uniform[2:])
    if augment.get("flip") == "alternating":
        first = tf.random.stateless_uniform([count], _seed(seed, _FLIP, 0)) < 0.5
        rows["flip"] = tf.math.logical_xor(first, view % 2 == 1)
    elif augment.get("flip"):
        rows["flip"] = (
            tf.random.stateless_uniform([count], _seed(seed, _FLIP, view)) < 0.5
        )
    return rows


class _Store:
    """A split's images, read pixel by pixel through index arithmetic.

    Crop, flip, cutout and the choice of images are one gather from the flat array, so
    that augmentation costs about what reading does; padding is by reflection
    and needs no padded copy, and what is cut out is read from a grey pixel at the end.
    The flat array is that of all images, or of `Rows` that of a batch.
    """

    def __init__(self, split: Split, augment: Augment) -> None:
        _, self.height, self.width, self.channels = split.images.shape
        grey = 1 if augment.get("cutout") else 0
        self._grey = np.full((grey, self.channels), 128, np.uint8)
        self._rows = split.images if isinstance(split.images, Rows) else None
        # Half as wide where that is enough, which makes the arithmetic quicker.
        self._index = tf.int32
        if self._rows is None:
            pixels = split.images.reshape(-1, self.channels)
            if grey:
                pixels = np.concatenate([pixels, self._grey])
            self._index = tf.int32 if len(pixels) < 2**31 else tf.int64
            self._pixels = tf.constant(pixels)
        self.labels = tf.constant(np.asarray(split.labels, np.int64))

    def read(self, rows: Mapping[str, Any], augment: Augment) -> tf.Tensor:
        if self._rows is None:
            return self._read(self._pixels, rows["index"], rows, augment)
        pixels = tf.numpy_function(self._gather, [rows["index"]], tf.uint8)
        pixels = tf.ensure_shape(pixels, (None, self.channels))
        if not rows.keys() & {"crop", "flip", "cutout"}:
            shape = (self.height, self.width, self.channels)
            images = tf.reshape(pixels, [-1, *shape])
            return _to_float(tf.ensure_shape(images, (rows["index"].shape[0], *shape)))
        index = tf.range(tf.shape(rows["index"])[0])
        images = self._read(pixels, index, rows, augment)
        return tf.ensure_shape(images, (rows["index"].shape[0], *images.shape[1:]))

    def _gather(self, index: NDArray) -> NDArray[np.uint8]:
        """The pixels of `Rows` at an index, and the grey one behind them."""
        assert self._rows is not None
        shape = (len(index), self.height, self.width, self.channels)
        size = math.prod(shape) + self._grey.size
        # What starts like this, TensorFlow takes without copying it.
        room = np.empty(size + _ALIGNED, np.uint8)
        found = room[-room.ctypes.data % _ALIGNED :][:size]
        self._rows.take(index, out=found[: math.prod(shape)].reshape(shape))
        found[math.prod(shape) :] = self._grey.ravel()
        return found.reshape(-1, self.channels)

    def _read(
        self, pixels: Any, index: Any, rows: Mapping[str, Any], augment: Augment
    ) -> tf.Tensor:
        """Gathers a batch; `pixels` are those of images that `index` counts through."""
        y = tf.range(self.height)[None, :]
        x = tf.range(self.width)[None, :]
        if "crop" in rows:
            y = _reflect(y + rows["crop"][:, :1] - augment["crop"], self.height)
            x = _reflect(x + rows["crop"][:, 1:] - augment["crop"], self.width)
        if "flip" in rows:
            x = tf.where(rows["flip"][:, None], self.width - 1 - x, x)
        y, x = tf.cast(y, self._index), tf.cast(x, self._index)
        start = tf.cast(index, self._index)[:, None] * self.height
        place = ((start + y) * self.width)[:, :, None] + x[:, None]
        if "cutout" in rows:
            square = self._square(rows["cutout"], augment["cutout"])
            grey = tf.shape(pixels, out_type=self._index)[0] - 1
            place = tf.where(square, grey, place)
        return _to_float(tf.gather(pixels, place))

    def _square(self, centre: Any, size: int) -> tf.Tensor:
        """Which pixels lie in the square to cut out, `(batch, height, width)`."""

        def near(position: Any, length: int) -> tf.Tensor:
            first = tf.cast(position * (length + 1.0), tf.int32) - size // 2
            offset = tf.range(length)[None, :] - first[:, None]
            return (offset >= 0) & (offset < size)

        rows, columns = near(centre[:, 0], self.height), near(centre[:, 1], self.width)
        return rows[:, :, None] & columns[:, None, :]


def _reflect(index: Any, length: int) -> Any:
    """Mirrors positions outside [0, length) back inside, edges not repeated."""
    return (length - 1) - tf.abs((length - 1) - tf.abs(index))


def _to_float(images: Any) -> tf.Tensor:
    return tf.cast(images, tf.float32) / 255.0
