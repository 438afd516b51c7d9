"""First kernels of the usual size, whatever range of pixels they were made for.

The first kernels of a model for pixels of 0 to 255 are some 255 times as small as all
others. An optimizer's step, or one threshold for a model's weights, is far too large
for them: they are lost in the first batches of a training. So they are multiplied by
a power of two, 256, and what they take is divided by it, which changes not a bit of
what the model computes. Where the pixel range stands at the front of a model, the
factor does, too: `Rescaling(255)`, then `Rescaling(1 / 256)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras as keras

from kdprune._graph import nodes, rebuild, unwrapped

layers = keras.layers

# Values of up to so much, and at least one part of it, are of the usual size.
_USUAL = 16.0
# What is proportional to its input when its first weight is, but for its bias.
_KERNELS = (
    *(layers.Conv2D, layers.Conv2DTranspose, layers.Dense),
    *(layers.DepthwiseConv2D, layers.SeparableConv2D),
)
# What is proportional to its input.
_PROPORTIONAL = (
    *(layers.AveragePooling2D, layers.Cropping2D, layers.Flatten),
    *(layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D, layers.MaxPooling2D),
    *(layers.Permute, layers.Reshape, layers.UpSampling2D, layers.ZeroPadding2D),
)


def factor_for(largest: float) -> float:
    """The power of two by which kernels grow, for values of up to `largest`."""
    if not 1 / _USUAL < largest < _USUAL:
        return float(2.0 ** np.rint(np.log2(largest)))
    return 1.0


def is_power_of_two(value: float) -> bool:
    """Whether multiplying by it changes nothing but an exponent."""
    return value > 0 and np.frexp(value)[0] == 0.5


def scale_first_kernels(model: keras.Model, factor: float) -> keras.Model | None:
    """The model that takes what the given one does, divided by `factor`.

    Args:
        model: A flat graph model of one input.
        factor: A power of two.

    Returns:
        A copy whose first kernels are `factor` times as large; None where something
        else than kernels, or what is proportional to its input, takes the input.
    """
    found = first_kernels(model, model.inputs[0])
    if found is None:
        return None
    scaled = {}
    for layer in found:
        kernel, *others = layer.get_weights()
        scaled[id(layer)] = [kernel * np.float32(factor), *others]
    return rebuild(model, weights=lambda old, new: scaled.get(id(old)))


def first_kernels(model: keras.Model, tensor: Any) -> list[Any] | None:
    """The layers with the first kernels behind a tensor of a model.

    Returns:
        Layers, each called once; None if something else takes the tensor as well.
    """
    calls = nodes(model)
    pending, found = [tensor], []
    while pending:
        tensor = pending.pop()
        if any(tensor is output for output in model.outputs):
            return None
        for call in calls:
            if not any(tensor is given for given in call.keras_inputs):
                continue
            once = sum(other.layer is call.layer for other in calls) == 1
            if not once or len(call.keras_inputs) != 1:
                return None
            kind = type(unwrapped(call.layer))
            if kind in _KERNELS:
                found.append(call.layer)
            elif kind in _PROPORTIONAL:
                pending.append(call.outputs)
            else:
                return None
    return found
