"""Which numbers a model takes for the bytes of an image, found out and checked.

A model says nothing of it: the same file may want 0..255, [0, 1], [-1, 1] or the
statistics of ImageNet taken off beforehand, and with the wrong numbers it scores at
chance or, worse, somewhat below its best. What stands in its graph is read off;
the rest is found by scoring labelled images in each of the usual ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tf_keras as keras
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from kdprune import images as pixels_of
from kdprune._graph import nodes, rebuild
from kdprune.intake.first_kernels import (
    factor_for,
    first_kernels,
    is_power_of_two,
    scale_first_kernels,
)

layers = keras.layers

# A range is taken if it beats each other one with this confidence, and chance, too.
CONFIDENCE = 0.99
# Of [0, 1]; what leaves less was made for bytes: a Rescaling leaves 1/255, the
# normalization of bytes, whose deviation is 20 to 100, at most a twentieth.
_LEAST_SPAN = 1 / 10
# From 0, in spans of [0, 1]: of BGR minus mean, it is a hundred.
_FARTHEST = 10
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

    @property
    def extent(self) -> tuple[float, float]:
        """The least and the largest number that a pixel can become."""
        low = np.asarray(self.offset, float)
        ends = np.array([low, low + 255 * np.asarray(self.scale)])
        return float(ends.min()), float(ends.max())

    @property
    def largest(self) -> float:
        """The largest magnitude of what a pixel can become."""
        return max(map(abs, self.extent))

    def times(self, factor: float) -> PixelRange:
        """The range of the same pixels, multiplied by a number."""
        return PixelRange(
            self.name,
            tuple(factor * value for value in self.scale),
            tuple(factor * value for value in self.offset),
            self.reverse,
        )

    def values(self, images: NDArray) -> NDArray[np.float64]:
        """What the model takes for these images, in double precision: see `apply`."""
        array = np.asarray(images)
        bytes_ = array.dtype == np.uint8
        values = array.astype(np.float64) if bytes_ else array * np.float64(255)
        if self.reverse:
            values = values[..., ::-1]
        scale, offset = (np.asarray(v, float) for v in (self.scale, self.offset))
        return np.asarray(values * scale + offset)

    def apply(self, images: NDArray) -> NDArray[np.float32]:
        """What the model takes for these images.

        Args:
            images: uint8 or float in [0, 1], `(n, height, width, channels)`.

        Returns:
            float32, same shape.
        """
        array = pixels_of.check(images)
        found, done = np.empty(array.shape, np.float32), 0
        for part in pixels_of.parts(array):  # Double precision is eight times a byte.
            found[done : done + len(part)] = self.values(part)
            done += len(part)
        return found


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


# Names by which recipes and calls give a range.
_NAMES = {"imagenet": IMAGENET, "caffe": CAFFE}
Given = (
    PixelRange
    | Sequence[float]
    | str
    | Mapping[Literal["mean", "std"], Sequence[float]]
)


def parse_range(given: Given) -> PixelRange:
    """The pixel range that a user means.

    Args:
        given: `(low, high)`, what black and white are to the model; "imagenet" (mean
            and deviation taken off outside of the model, as PyTorch and the DenseNets
            of Keras do) or "caffe" (BGR minus ImageNet's mean, as the ResNets and VGG
            of Keras); or `{"mean": …, "std": …}` of pixels in [0, 1], a number for
            each channel.

    Returns:
        A `PixelRange`.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(given, PixelRange):
        return given
    if isinstance(given, str):
        if given in _NAMES:
            return _NAMES[given]
    elif isinstance(given, Mapping):
        if set(given) == {"mean", "std"}:
            return _standardized(given["mean"], given["std"])
    elif len(bounds := list(given)) == 2:
        return PixelRange.between(*(float(bound) for bound in bounds))
    raise ValueError(
        "input_range must be [low, high], what black and white are to the model, one "
        f"of {', '.join(_NAMES)}, or {{'mean': [...], 'std': [...]}} of pixels in "
        f"[0, 1]. Received: {given!r}"
    )


def _standardized(mean: Sequence[float], deviation: Sequence[float]) -> PixelRange:
    means, deviations = (np.ravel(np.asarray(v, float)) for v in (mean, deviation))
    if len(means) != len(deviations) or not (deviations > 0).all():
        raise ValueError(
            "input_range needs as many means as deviations, and those above 0. "
            f"Received: mean {means.tolist()}, std {deviations.tolist()}"
        )
    return PixelRange(
        f"mean {means.tolist()} and deviation {deviations.tolist()}",
        tuple((1 / (255 * deviations)).tolist()),
        tuple((-means / deviations).tolist()),
    )


def check_channels(range_: PixelRange, channels: int) -> None:
    """Raises a `ValueError` if a range is one of images of other channels."""
    sizes = {len(range_.scale), len(range_.offset)} - {1, channels}
    if sizes or (range_.reverse and channels != 3):
        raise ValueError(
            f"the pixel range {range_.name} is of {max(sizes, default=3)} channels. "
            f"Received: a model of images with {channels}"
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
    chosen = pixels_of.spread(len(images), MOST_IMAGES)
    images, labels = images[chosen], np.asarray(labels)[chosen]
    tried = list(usual_ranges(images.shape[-1]) if candidates is None else candidates)
    if given is not None:
        tried = [given, *(one for one in tried if not _same(one, given))]
    right = {one.name: _right(predict(one.apply(images)), labels) for one in tried}
    accuracies = {name: float(found.mean()) for name, found in right.items()}
    listed = ", ".join(f"{100 * a:.1f} % in {name}" for name, a in accuracies.items())
    told = f"on {len(images)} images the model is right on {listed}"
    best = max(tried, key=lambda one: accuracies[one.name])
    if given is not None:
        if best is not given and surely_ahead(right[best.name], right[given.name]):
            raise ValueError(
                f"the given pixel range {given.name} is not the model's: {told}; give "
                f"{best.name}, or none to have it found"
            )
        return Found(given, accuracies, len(images))
    if assumed is not None:
        ahead = surely_ahead(right[best.name], right[assumed.name])
        taken = best if ahead and _above_chance(right[best.name], labels) else assumed
        return Found(taken, accuracies, len(images))
    if not _above_chance(right[best.name], labels):
        raise ValueError(
            f"the model's pixel range can't be determined: {told}, none surely above "
            "chance; check that labels are in the model's order, or give the range as "
            "input_range=[low, high]"
        )
    others = [one for one in tried if one is not best]
    if not all(surely_ahead(right[best.name], right[one.name]) for one in others):
        raise ValueError(
            f"the model's pixel range can't be determined from these images: {told}; "
            "give it as input_range=[low, high], or give more images"
        )
    return Found(best, accuracies, len(images))


@dataclass(frozen=True)
class Chain:
    """The arithmetic on pixels at the front of a model.

    Attributes:
        model: The model it stands in.
        calls: Its calls, with the tensor that each is given.
        scale: What it does to each channel, `(channels,)`: `pixel * scale + offset`.
        offset: Likewise.
        reverse: Whether it turns the channels around first, to BGR; scale and offset
            are of the channels as they are then.
    """

    model: keras.Model
    calls: dict[Any, Any]
    scale: NDArray
    offset: NDArray
    reverse: bool

    @property
    def range(self) -> PixelRange:
        """What the model was made to take: [0, 1], or [0, 255] if it looks like that.

        Of bytes a chain makes a few units, of [0, 1] next to nothing, or numbers that
        are far from 0 and next to each other.
        """
        low, high = self.offset, self.scale + self.offset
        span = np.abs(high - low).max()
        distant = np.abs(low + high).min() / 2 > _FARTHEST * span
        return BYTES if self.calls and (span < _LEAST_SPAN or distant) else UNIT

    @property
    def factor(self) -> float:
        """By how much its second layer divides, for first kernels of the usual size.

        1 where it is not the two layers of `put_in_front`, and kernels behind them.
        """
        found = [call.layer for call in self.calls]
        if len(found) != 2 or any(type(one) is not layers.Rescaling for one in found):
            return 1.0
        scale, offset = found[1].scale, found[1].offset
        plain = np.ndim(scale) == np.ndim(offset) == 0 and offset == 0
        if not plain or not is_power_of_two(scale):
            return 1.0
        behind = list(self.calls)[-1].outputs
        return 1.0 if first_kernels(self.model, behind) is None else 1 / scale

    @property
    def usual(self) -> bool:
        """Whether what it makes of [0, 1] is of the size that kernels are made for."""
        return factor_for(self.after(UNIT).largest) == 1

    def bypassed(self) -> keras.Model:
        """The model without the chain."""
        return rebuild(self.model, bypass=self.calls) if self.calls else self.model

    def after(self, outer: PixelRange) -> PixelRange:
        """The range behind the chain, of pixels in another one."""
        return after(outer, self.scale, self.offset, self.reverse)


def read_chain(model: keras.Model, reverse: bool = True) -> Chain:
    """Reads the arithmetic on pixels off the front of a model.

    That is a chain of layers that alone use the input and do to each channel `x * a +
    b`: Rescaling, Normalization, and operations as `preprocess_input` leaves them.

    Args:
        model: A graph model of one image input.
        reverse: Whether turning RGB to BGR is part of it, or its end.
    """
    channels = int(model.inputs[0].shape[-1] or 1)
    scale, offset, reversed_ = np.ones(channels), np.zeros(channels), False
    tensor, chain = model.inputs[0], {}
    while len(model.inputs) == 1 and len(model.inputs[0].shape) == 4:
        user = only_user(model, tensor)
        if user is None:
            break
        if reverse and _reverses(user, channels):
            scale, offset, reversed_ = scale[::-1], offset[::-1], not reversed_
        else:
            step = _affine(user, channels)
            if step is None:
                break
            scale, offset = scale * step[0], offset * step[0] + step[1]
        chain[user] = tensor
        tensor = user.outputs
    return Chain(model, chain, scale, offset, reversed_)


def split_pixels(model: keras.Model) -> tuple[keras.Model, list[float], list[float]]:
    """Takes the arithmetic on pixels off the front of a model.

    Args:
        model: A graph model of one image input.

    Returns:
        `(model, scale, offset)`: the model without the chain (see `read_chain`;
        itself where there is none), and what the chain did to each channel: `pixel *
        scale + offset`. Turning channels around is no part of it.
    """
    chain = read_chain(model, reverse=False)
    return chain.bypassed(), chain.scale.tolist(), chain.offset.tolist()


def put_in_front(
    model: keras.Model, range_: PixelRange, chain: Chain | None = None
) -> keras.Model:
    """Makes a model of one pixel range take [0, 1].

    Args:
        model: A flat graph model that takes pixels of `range_`.
        range_: What it takes, behind `chain`.
        chain: What stands at its front and is to be left out.

    Returns:
        A model that starts with `Rescaling` layers, or with none if it takes [0, 1]
        already. One brings pixels to `range_`. Where that is far from the usual size,
        the first kernels are made of the usual size (`first_kernels`) and another one
        stands in between; or the same one divides, where the range is not the same
        for all channels, so that no file's input can say it. The order of channels is
        moved into the kernel of the first convolution, or is a convolution of its own
        where that is not what comes first.
    """
    factor = factor_for(range_.largest)
    if factor == 1 and not range_.reverse:
        return in_front(model, range_, chain=chain)
    model = chain.bypassed() if chain else model
    scaled = None if factor == 1 else scale_first_kernels(model, factor)
    if scaled is None:
        factor = 1.0
    else:
        model = scaled
    if range_.reverse:
        model = turned_around(model)
        range_ = PixelRange(range_.name, range_.scale[::-1], range_.offset[::-1])
    if range_.uniform:
        return in_front(model, range_, factor)
    return in_front(model, range_.times(1 / factor))


def in_front(
    model: keras.Model,
    range_: PixelRange,
    factor: float = 1.0,
    chain: Chain | None = None,
) -> keras.Model:
    """Puts the layers of `put_in_front` before a model, and changes nothing in it.

    Args:
        model: A flat graph model that takes pixels of `range_`, divided by `factor`.
        range_: As it says; not of reversed channels.
        factor: A power of two.
        chain: As of `put_in_front`.
    """
    scale = [255 * value for value in range_.scale]
    offset = list(range_.offset)
    left_out = chain.calls if chain else {}
    names = {layer.name for layer in model.layers}
    names -= {call.layer.name for call in left_out}
    first = []
    if not (np.allclose(scale, 1, rtol=1e-6) and np.allclose(offset, 0, atol=1e-7)):
        name = _free("input_range", names)
        first.append(layers.Rescaling(_short(scale), _short(offset), name=name))
    if factor != 1:
        name = _free("first_kernels", names)
        first.append(layers.Rescaling(1 / factor, name=name))
    if not first and not left_out:
        return model
    return rebuild(model, first=first, bypass=left_out)


def _free(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    return name


def _short(values: list[float]) -> float | list[float]:
    """One number where all are equal, without what was rounded on the way."""
    found = [float(f"{value:.9g}") for value in values]
    return found[0] if len(set(found)) == 1 else found


def turned_around(model: keras.Model) -> keras.Model:
    """A model that takes RGB where the given one takes BGR, or the other way around.

    Padding puts the same number into all channels, so that they can be turned around
    before or behind it.
    """
    user = only_user(model, model.inputs[0])
    while user is not None and type(user.layer) is layers.ZeroPadding2D:
        user = only_user(model, user.outputs)
    if user is not None and type(user.layer) is layers.Conv2D:
        conv = user.layer
        if conv.groups == 1:
            kernel, *bias = conv.get_weights()
            turned = {id(conv): [kernel[:, :, ::-1], *bias]}
            return rebuild(model, weights=lambda old, new: turned.get(id(old)))
    channels = int(model.inputs[0].shape[-1])
    return rebuild(model, first=[turning_layer(channels, "channels_reversed")])


def turning_layer(channels: int, name: str) -> keras.layers.Layer:
    """A convolution that turns the channels around, RGB to BGR; never trained."""
    kernel = np.eye(channels)[::-1][None, None]
    return layers.Conv2D(
        *(channels, 1),
        use_bias=False,
        kernel_initializer=keras.initializers.Constant(kernel.tolist()),
        trainable=False,
        name=name,
    )


def only_user(model: keras.Model, tensor: Any) -> Any:
    """The call that alone takes a tensor, and nothing else, of a layer called once."""
    users = [
        node
        for node in nodes(model)
        if any(given is tensor for given in node.keras_inputs)
    ]
    if len(users) != 1 or len(users[0].keras_inputs) != 1:
        return None
    calls = [node for node in nodes(model) if node.layer is users[0].layer]
    return users[0] if len(calls) == 1 else None


def is_arithmetic(node: Any, channels: int) -> bool:
    """Whether a call is a part of what `read_chain` reads."""
    return _reverses(node, channels) or _affine(node, channels) is not None


def _reverses(node: Any, channels: int) -> bool:
    """Whether a call turns the channels around and does nothing else."""
    layer = node.layer
    if channels < 2:
        return False
    if type(layer) is layers.Conv2D:
        plain = layer.kernel_size == (1, 1) and layer.strides == (1, 1)
        if not plain or layer.use_bias or layer.filters != channels:
            return False
        linear = layer.activation in (None, keras.activations.linear)
        kernel = layer.get_weights()[0]
        return linear and np.array_equal(kernel[0, 0], np.eye(channels)[::-1])
    if getattr(layer, "symbol", None) == "__operators__.getitem":
        spec = [*node.call_args[1:], *node.call_kwargs.values()]
        turned = {"start": None, "stop": None, "step": -1}
        return len(spec) == 1 and list(spec[0]) == [Ellipsis, turned]
    return False


def after(
    outer: PixelRange,
    scale: ArrayLike,
    offset: ArrayLike,
    reverse: bool = False,
) -> PixelRange:
    """The range behind `pixel * scale + offset` of pixels in another range.

    `reverse`: with their channels turned around first.
    """
    scale, offset = np.asarray(scale, float), np.asarray(offset, float)
    turn = -1 if reverse else 1
    outer_scale = np.broadcast_to(np.asarray(outer.scale, float), scale.shape)[::turn]
    outer_offset = np.broadcast_to(np.asarray(outer.offset, float), scale.shape)[::turn]
    scales = outer_scale * scale
    offsets = outer_offset * scale + offset
    reversed_ = outer.reverse != reverse
    if np.ptp(scales) == 0 and np.ptp(offsets) == 0 and not reversed_:
        low = float(offsets[0])
        high = low + 255 * float(scales[0])
        # What a float32 rounded on the way: 0.00392156862745098 * 255 is 1.
        low, high = (float(f"{bound:.7g}") for bound in (low, high))
        if low < high:
            return PixelRange.between(low, high)
    name = f"{outer.name}, normalized per channel"
    return PixelRange(name, tuple(scales.tolist()), tuple(offsets.tolist()), reversed_)


def _affine(node: Any, channels: int) -> tuple[NDArray, NDArray] | None:
    """`(scale, offset)` of a call that does no more to each channel, else None."""
    layer = node.layer
    found: Any = None
    if isinstance(layer, layers.Rescaling):
        found = (np.asarray(layer.scale, float), np.asarray(layer.offset, float))
    elif isinstance(layer, layers.Normalization):
        mean, variance = (np.asarray(v, float) for v in (layer.mean, layer.variance))
        deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
        found = 1 / deviation, -mean / deviation
    elif isinstance(layer, layers.Identity) or (
        isinstance(layer, layers.Activation)
        and layer.activation is keras.activations.linear
    ):
        found = 1.0, 0.0
    elif hasattr(layer, "symbol"):
        found = _affine_operation(node, layer.symbol)
    if found is None:
        return None
    try:
        scale, offset = (np.broadcast_to(part, (1, 1, 1, channels)) for part in found)
    except ValueError:
        return None  # Other numbers for each pixel.
    return scale.reshape(channels), offset.reshape(channels)


# What TensorFlow calls the operations on a tensor and a constant.
_ADDS = ("math.add", "__operators__.add", "nn.bias_add")
_SUBTRACTS = ("math.subtract", "__operators__.sub")
_DIVIDES = ("math.truediv", "math.divide", "__operators__.truediv")
_MULTIPLIES = ("math.multiply", "__operators__.mul")


def _affine_operation(node: Any, symbol: str) -> tuple[Any, Any] | None:
    """`(scale, offset)` of a tensor's operation with a constant, else None."""
    args = list(node.call_args)
    named = {k: v for k, v in node.call_kwargs.items() if k in ("y", "bias")}
    args += named.values()
    if len(args) != 2 or hasattr(args[1], "_keras_history"):
        return None
    first = hasattr(args[0], "_keras_history")
    try:
        number = np.asarray(args[1] if first else args[0], float)
    except (TypeError, ValueError):
        return None
    if symbol in _ADDS:
        return 1.0, number
    if symbol in _MULTIPLIES:
        return number, 0.0
    if symbol in _SUBTRACTS:
        return (1.0, -number) if first else (-1.0, number)
    if symbol in _DIVIDES and first and (number != 0).all():
        return 1 / number, 0.0
    return None


def _right(scores: NDArray, labels: NDArray) -> NDArray[np.bool_]:
    """Which answers are right: of each image, or of each label of each image."""
    scores = np.asarray(scores)
    if labels.ndim == 2:
        return ((scores > 0) == (labels > 0.5)).reshape(-1)
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0) == (labels == 1)
    return scores.argmax(axis=1) == labels


def surely_ahead(a: NDArray, b: NDArray) -> bool:
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


def is_unit(range_: PixelRange) -> bool:
    """Whether a range is [0, 1], by whatever name."""
    return _same(range_, UNIT)


def _same(a: PixelRange, b: PixelRange) -> bool:
    def numbers(one: PixelRange) -> NDArray:
        return np.concatenate(
            [np.broadcast_to(part, (3,)) for part in (one.scale, one.offset)]
        )

    return a.reverse == b.reverse and np.allclose(numbers(a), numbers(b), rtol=1e-6)
