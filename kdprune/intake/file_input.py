"""How the bytes of an image go into a file: by its input's scale and zero point.

A file of 8-bit integers says of its input what a byte means: `(byte - zero_point) *
scale`. So a pixel range that is the same for all channels costs nothing there, and
camera bytes go in unchanged. Only zero itself has to be one of the 256 values: of
[0, 1] and [0, 255] it is, of [-1, 1] it lies between two, and the range moves by half
a gray level. What a file can't say of its input becomes a part of the first
convolution, or an operator of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras as keras
from numpy.typing import NDArray

from kdprune._graph import is_graph_model, rebuild
from kdprune.intake import pixels
from kdprune.intake.first_kernels import scale_first_kernels

layers = keras.layers

# What is rounded on the way of 127.5, which is a half, and of 0, which is whole.
_ROUNDED = 1e-4


@dataclass(frozen=True)
class ByteInput:
    """What the bytes of an image mean to a file.

    Attributes:
        scale: The step from one byte to the next.
        zero_point: The byte that stands for 0, 0 to 255; of int8 files 128 less.
    """

    scale: float
    zero_point: int

    @property
    def bounds(self) -> tuple[float, float]:
        """What black and white are."""
        return -self.zero_point * self.scale, (255 - self.zero_point) * self.scale

    @property
    def range(self) -> pixels.PixelRange:
        """The same as a pixel range."""
        return pixels.PixelRange.between(*self.bounds)

    def apply(self, images: NDArray) -> NDArray[np.float32]:
        """What a model takes for images in [0, 1] (float32) or of bytes (uint8)."""
        white = 1 if images.dtype == np.uint8 else 255
        values = images.astype(np.float64) * white - self.zero_point
        return (values * self.scale).astype(np.float32)


UNIT_INPUT = ByteInput(1 / 255, 0)


def byte_input(range_: pixels.PixelRange) -> ByteInput | None:
    """The scale and zero point of a pixel range.

    The zero point is the nearest byte, the higher of two: 128 of [-1, 1].

    Returns:
        A `ByteInput`; None if no file's input can say it: other numbers for each
        channel, white below black, or a range without 0.
    """
    if not range_.uniform or range_.scale[0] <= 0:
        return None
    zero = -range_.offset[0] / range_.scale[0]
    nearest = math.floor(zero + 0.5 + _ROUNDED)
    return ByteInput(range_.scale[0], nearest) if 0 <= nearest <= 255 else None


def for_bytes(model: keras.Model) -> keras.Model:
    """The model that an 8-bit file of this one computes, of pixels in [0, 1].

    What stands at its front is one `Rescaling` by what the file's input can say, and
    one for first kernels of the usual size (`put_in_front`), or nothing. A
    normalization of each channel is moved into the first convolution, or becomes a
    1 x 1 depthwise convolution where zero padding is in between.

    Args:
        model: A graph model that takes pixels in [0, 1].

    Returns:
        A model that gives the same scores; of a range in which 0 lies between two
        bytes, those of pixels that are up to half a gray level off. The same model
        where there is nothing to do.
    """
    chain = pixels.read_chain(model)
    if not chain.calls:
        return model
    range_ = stated_range(chain)
    said = byte_input(range_)
    if said is None:
        return _in_weights(chain, chain.after(pixels.UNIT))
    low, high = said.bounds
    exact = abs(low - range_.offset[0]) <= _ROUNDED * said.scale
    if exact and (len(chain.calls) == 1 or chain.factor != 1):
        return model
    given = range_ if exact else pixels.PixelRange.between(low, high)
    return pixels.in_front(model, given, chain.factor, chain)


def for_floats(model: keras.Model) -> keras.Model:
    """The model that a file of another type computes, of pixels in [0, 1].

    Args:
        model: A model that takes pixels in [0, 1].

    Returns:
        A model that starts with one `Rescaling` at most; the same one if it does.
    """
    if not is_graph_model(model):
        return model
    chain = pixels.read_chain(model)
    if chain.factor == 1:
        return model
    return pixels.in_front(model, chain.after(pixels.UNIT), chain=chain)


def stated_range(chain: pixels.Chain) -> pixels.PixelRange:
    """What the first kernels would take, were they not made of the usual size."""
    return chain.after(pixels.UNIT).times(chain.factor)


def split_input(model: keras.Model) -> tuple[keras.Model, ByteInput]:
    """Takes off the front of a model what an 8-bit file's input says.

    Args:
        model: What `for_bytes` returned.

    Returns:
        `(model, input)`: the model that takes what the bytes mean.
    """
    chain = pixels.read_chain(model)
    said = byte_input(stated_range(chain)) if chain.calls else UNIT_INPUT
    if said is None:
        return model, UNIT_INPUT
    core = chain.bypassed()
    if chain.factor != 1:
        plain = scale_first_kernels(core, 1 / chain.factor)
        assert plain is not None  # Else the factor would be 1.
        core = plain
    return core, said


def _in_weights(chain: pixels.Chain, range_: pixels.PixelRange) -> keras.Model:
    model = chain.bypassed()
    channels = int(model.inputs[0].shape[-1])
    scale, offset = (
        np.broadcast_to(np.asarray(values, np.float64), (channels,))
        for values in ([255 * value for value in range_.scale], range_.offset)
    )
    if range_.reverse:
        model = pixels.turned_around(model)
        scale, offset = scale[::-1], offset[::-1]
    user = pixels.only_user(model, model.inputs[0])
    conv: Any = None if user is None else user.layer
    # Zeros around an image would have to be shifted as well.
    if type(conv) is layers.Conv2D and conv.groups == 1 and _pads_nothing(conv):
        kernel, *bias = (np.asarray(w, np.float64) for w in conv.get_weights())
        moved = (kernel * offset[:, None]).sum(axis=(0, 1, 2))
        taken = {id(conv): [kernel * scale[:, None], moved + (bias[0] if bias else 0)]}
        return rebuild(
            model,
            config=lambda one: {"use_bias": True} if one is conv else None,
            weights=lambda old, new: taken.get(id(old)),
        )
    name = "input_range"
    while name in {layer.name for layer in model.layers}:
        name += "_"
    each = layers.DepthwiseConv2D(1, name=name, trainable=False)
    copy = rebuild(model, first=[each])
    each.set_weights([scale[None, None, :, None], offset])
    return copy


def _pads_nothing(conv: Any) -> bool:
    return conv.padding == "valid" or set(conv.kernel_size) == {1}
