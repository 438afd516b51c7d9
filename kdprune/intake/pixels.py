"""Which numbers a model takes for the bytes of an image, found out and checked.

A model says nothing of it: the same file may want 0..255, [0, 1], [-1, 1] or the
statistics of ImageNet taken off beforehand, and with the wrong numbers it scores at
chance or, worse, somewhat below its best. What stands in its graph is read off;
the rest is found by scoring labelled images in each of the usual ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras as keras
from numpy.typing import NDArray
from scipy import stats

from kdprune import images as pixels_of
from kdprune._graph import is_graph_model, nodes, rebuild

layers = keras.layers

# A range is taken if it beats each other one with this confidence, and chance, too.
CONFIDENCE = 0.99
# Of [0, 1]; what leaves less was made for bytes: a Rescaling leaves 1/255, the
# normalization of bytes, whose deviation is 20 to 100, at most a twentieth.
_LEAST_SPAN = 1 / 10
# More images tell no more about ranges that are so far apart.
MOST_IMAGES = 500


@dataclass(frozen=True)
class PixelRange:
    """How bytes become what a model takes: `byte * scale + offset`, per channel.

    Attributes:
        name: What people call it: "[0, 255]", "ImageNet mean and deviation".
        scale: One number for all channels, or one for each.
        offset: Likewise.
        reverse: Whether the channels are turned around first, to BGR.
    """

    name: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    reverse: bool = False

    @classmethod
    def between(cls, low: float, high: float) -> PixelRange:
        """The range in which black is `low` and white `high`.

        Raises:
            ValueError: If they are not finite numbers in this order.
        """
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(
                "a pixel range is [low, high], what black and white are to the model. "
                f"Received: [{low}, {high}]"
            )
        return cls(f"[{low:g}, {high:g}]", ((high - low) / 255,), (float(low),))

    @property
    def uniform(self) -> bool:
        """Whether it is one range for all channels, which a file's input can carry."""
        same = len(set(self.scale)) == 1 and len(set(self.offset)) == 1
        return same and not self.reverse

    @property
    def bounds(self) -> tuple[float, float]:
        """What black and white become; of a uniform range."""
        return self.offset[0], self.offset[0] + 255 * self.scale[0]

    def apply(self, images: NDArray) -> NDArray[np.float32]:
        """What the model takes for these images.

        Args:
            images: uint8 or float in [0, 1], `(n, height, width, channels)`.

        Returns:
            float32, same shape.
        """
        values = pixels_of.as_float(images) * np.float32(255)
        if self.reverse:
            values = values[..., ::-1]
        scale, offset = (np.asarray(v, np.float32) for v in (self.scale, self.offset))
        return np.asarray(values * scale + offset, np.float32)


UNIT = PixelRange.between(0, 1)
BYTES = PixelRange.between(0, 255)
SIGNED = PixelRange.between(-1, 1)
# What `preprocess_input` of the ResNets, VGG and DenseNet does outside of the model.
IMAGENET = PixelRange(
    "ImageNet mean and deviation",
    tuple(1 / (255 * deviation) for deviation in (0.229, 0.224, 0.225)),
    tuple(
        -m / d
        for m, d in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ),
)
CAFFE = PixelRange(
    "BGR minus ImageNet mean", (1.0,), (-103.939, -116.779, -123.68), reverse=True
)


def usual_ranges(channels: int) -> tuple[PixelRange, ...]:
    """The ranges in use for images of so many channels, the commonest first."""
    plain = (UNIT, BYTES, SIGNED)
    return (*plain, IMAGENET, CAFFE) if channels == 3 else plain


@dataclass(frozen=True)
class Found:
    """A pixel range, and how the others scored beside it.

    Attributes:
        range: The one that was taken.
        accuracies: `{name: share of images that the model gets right}`.
        images: How many images were scored.
    """

    range: PixelRange
    accuracies: dict[str, float]
    images: int


def find_range(
    predict: Callable[[NDArray], NDArray],
    images: NDArray,
    labels: NDArray,
    *,
    given: PixelRange | None = None,
    assumed: PixelRange | None = None,
    candidates: Sequence[PixelRange] | None = None,
) -> Found:
    """Finds the pixel range of a model by scoring labelled images in each.

    Args:
        predict: Gives scores `(n, classes)`, or `(n, 1)` logits of the second of two
            classes, for what the model takes.
        images: uint8 or float in [0, 1], `(n, height, width, channels)`; validation
            images. At most `MOST_IMAGES` are scored.
        labels: Indices of classes, `(n,)`, or 0 and 1 for each label, `(n, labels)`,
            of which scores above 0 say 1.
        given: The range that the user gave; it is checked against the others.
        assumed: The range to take where no other one is surely ahead of it, as of
            models that have always been taken to be of it.
        candidates: The ranges to try; the usual ones of so many channels if None.

    Returns:
        The range that is ahead of every other one with 99 % confidence by a paired
        test (McNemar's, exact), or the given or assumed one, unless another is ahead
        of it.

    Raises:
        ValueError: If no range is ahead of the others and of chance, or another one
            is ahead of the given one: one line with all accuracies.
    """
    images, labels = images[:MOST_IMAGES], np.asarray(labels)[:MOST_IMAGES]
    tried = list(usual_ranges(images.shape[-1]) if candidates is None else candidates)
    if given is not None:
        tried = [given, *(one for one in tried if not _same(one, given))]
    right = {one.name: _right(predict(one.apply(images)), labels) for one in tried}
    accuracies = {name: float(found.mean()) for name, found in right.items()}
    listed = ", ".join(f"{100 * a:.1f} % in {name}" for name, a in accuracies.items())
    told = f"on {len(images)} images the model is right on {listed}"
    best = max(tried, key=lambda one: accuracies[one.name])
    if given is not None:
        if best is not given and _ahead(right[best.name], right[given.name]):
            raise ValueError(
                f"the given pixel range {given.name} is not the model's: {told}; give "
                f"{best.name}, or none to have it found"
            )
        return Found(given, accuracies, len(images))
    if assumed is not None:
        ahead = _ahead(right[best.name], right[assumed.name])
        taken = best if ahead and _above_chance(right[best.name], labels) else assumed
        return Found(taken, accuracies, len(images))
    if not _above_chance(right[best.name], labels):
        raise ValueError(
            f"the model's pixel range can't be found: {told}, none surely above "
            "chance; check that labels are in the model's order, or give the range as "
            "input_range=[low, high]"
        )
    others = [one for one in tried if one is not best]
    if not all(_ahead(right[best.name], right[one.name]) for one in others):
        raise ValueError(
            f"the model's pixel range can't be told from these images: {told}; give it "
            "as input_range=[low, high], or give more images"
        )
    return Found(best, accuracies, len(images))


def to_unit_range(
    model: keras.Model, images: NDArray, labels: NDArray
) -> tuple[keras.Model, Found]:
    """Makes a classifier take pixels in [0, 1], if it does not.

    Arithmetic in front that only brings bytes to [0, 1] is taken off, so that the
    bytes of an image can go into the file made of it as they are.

    Args:
        model: A model that gives logits `(n, classes)`.
        images: Validation images, uint8 or float in [0, 1].
        labels: Their classes, `(n,)`.

    Returns:
        `(model, found)`: a model that takes [0, 1], and the range of the given one:
        [0, 1], or [0, 255] if what stands in front of it makes [0, 1] of that, unless
        another is surely ahead.

    Raises:
        ValueError: If it takes pixels of a range that can't be brought to [0, 1] by
            leaving something out: which, and what to put in front of it.
    """

    def predict(values: NDArray) -> NDArray:
        return model.predict(values, batch_size=100, verbose=0)

    split, scale, offset = split_pixels(model)
    # Where scores can't tell, what stands in front of the model does.
    for_bytes = split is not model and _same(after(BYTES, scale, offset), UNIT)
    assumed = BYTES if for_bytes else UNIT
    found = find_range(predict, images, labels, assumed=assumed)
    if _same(found.range, UNIT):
        return model, found
    if split is not model and _same(after(found.range, scale, offset), UNIT):
        return split, found
    listed = ", ".join(
        f"{100 * share:.1f} % in {name}" for name, share in found.accuracies.items()
    )
    one = found.range
    layer = f"Rescaling({_numbers(255 * s for s in one.scale)}, {_numbers(one.offset)})"
    reverse = " and the channels turned around" if one.reverse else ""
    raise ValueError(
        f"expected a model of pixels in [0, 1]. Received: one of {one.name} (on "
        f"{found.images} validation images it is right on {listed}); save it with "
        f"keras.layers.{layer}{reverse} in front"
    )


def _numbers(values: Iterable[float]) -> str:
    found = [float(f"{value:.7g}") for value in values]
    return f"{found[0]:g}" if len(found) == 1 else str(found)


def split_pixels(model: keras.Model) -> tuple[keras.Model, list[float], list[float]]:
    """Takes the arithmetic on pixels off the front of a model.

    That is a chain of Rescaling and Normalization layers that alone use the input,
    as a Rescaling or what `preprocess_input` left in the graph.

    Args:
        model: A graph model of one image input.

    Returns:
        `(model, scale, offset)`: the model without the chain (itself where there is
        none), and what the chain did to each channel: `pixel * scale + offset`.
    """
    chain, scale, offset = _chain(model)
    split = rebuild(model, bypass=chain) if chain else model
    return split, scale.tolist(), offset.tolist()


def check_unit_range(model: Any, name: str) -> None:
    """Refuses a model that evidently does not take pixels in [0, 1].

    Raises:
        ValueError: If what stands in front of it leaves next to nothing of [0, 1],
            as a `Rescaling(1 / 255)` does, which is made for bytes.
    """
    if not is_graph_model(model) or len(model.inputs[0].shape) != 4:
        return
    chain, scale, _ = _chain(model)
    if chain and np.abs(scale).max() < _LEAST_SPAN:
        first = next(iter(chain)).layer.name
        raise ValueError(
            f"{name}: expected a model of pixels in [0, 1]. Received: one whose layer "
            f"{first!r} makes 0 to {scale.max():.3g} of them, as for pixels of 0 to "
            "255; take that off by kdprune.intake.split_pixels(model)[0], or load the "
            "file in a recipe, which does it"
        )


def _chain(model: keras.Model) -> tuple[dict, NDArray, NDArray]:
    """The calls of arithmetic in front with what each is given, scale and offset."""
    channels = int(model.inputs[0].shape[-1] or 1)
    scale, offset = np.ones(channels), np.zeros(channels)
    tensor, chain = model.inputs[0], {}
    while len(model.inputs) == 1:
        users = [
            node
            for node in nodes(model)
            if any(given is tensor for given in node.keras_inputs)
        ]
        if len(users) != 1 or len(users[0].keras_inputs) != 1:
            break
        step = _affine(users[0].layer, channels)
        if step is None or len(users[0].layer._inbound_nodes) != 1:
            break
        scale, offset = scale * step[0], offset * step[0] + step[1]
        chain[users[0]] = tensor
        tensor = users[0].outputs
    return chain, scale, offset


def after(
    outer: PixelRange, scale: Sequence[float], offset: Sequence[float]
) -> PixelRange:
    """The range behind `pixel * scale + offset` of pixels in another range."""
    channels = len(scale)
    outer_scale = np.broadcast_to(np.asarray(outer.scale, float), (channels,))
    outer_offset = np.broadcast_to(np.asarray(outer.offset, float), (channels,))
    scales = outer_scale * scale
    offsets = outer_offset * scale + offset
    if np.ptp(scales) == 0 and np.ptp(offsets) == 0 and not outer.reverse:
        low = float(offsets[0])
        high = low + 255 * float(scales[0])
        # What a float32 rounded on the way: 0.00392156862745098 * 255 is 1.
        low, high = (float(f"{bound:.7g}") for bound in (low, high))
        if low < high:
            return PixelRange.between(low, high)
    name = f"{outer.name}, normalized per channel"
    return PixelRange(
        name, tuple(scales.tolist()), tuple(offsets.tolist()), outer.reverse
    )


def _affine(layer: Any, channels: int) -> tuple[NDArray, NDArray] | None:
    """`(scale, offset)` of a layer that does no more to each channel, else None."""
    if isinstance(layer, layers.Rescaling):
        found = (np.asarray(layer.scale, float), np.asarray(layer.offset, float))
    elif isinstance(layer, layers.Normalization):
        mean, variance = (np.asarray(v, float) for v in (layer.mean, layer.variance))
        deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
        found = 1 / deviation, -mean / deviation
    else:
        return None
    try:
        scale, offset = (np.broadcast_to(part, (1, 1, 1, channels)) for part in found)
    except ValueError:
        return None  # Other numbers for each pixel.
    return scale.reshape(channels), offset.reshape(channels)


def _right(scores: NDArray, labels: NDArray) -> NDArray[np.bool_]:
    """Which answers are right: of each image, or of each label of each image."""
    scores = np.asarray(scores)
    if labels.ndim == 2:
        return ((scores > 0) == (labels > 0.5)).reshape(-1)
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0) == (labels == 1)
    return scores.argmax(axis=1) == labels


def _ahead(a: NDArray, b: NDArray) -> bool:
    """Whether `a` is right more often than `b`, by McNemar's exact test."""
    gained, lost = int((a & ~b).sum()), int((b & ~a).sum())
    if gained <= lost:
        return False
    test = stats.binomtest(gained, gained + lost, alternative="greater")
    return bool(test.pvalue < 1 - CONFIDENCE)


def _above_chance(right: NDArray, labels: NDArray) -> bool:
    """Whether it beats always saying the commonest class (or, of labels, answer)."""
    values = labels.reshape(-1)
    _, counts = np.unique(values, return_counts=True)
    chance = min(counts.max() / len(values), 0.999)
    test = stats.binomtest(int(right.sum()), len(right), chance, alternative="greater")
    return bool(test.pvalue < 1 - CONFIDENCE)


def _same(a: PixelRange, b: PixelRange) -> bool:
    def numbers(one: PixelRange) -> NDArray:
        return np.concatenate(
            [np.broadcast_to(part, (3,)) for part in (one.scale, one.offset)]
        )

    return a.reverse == b.reverse and np.allclose(numbers(a), numbers(b), rtol=1e-6)
