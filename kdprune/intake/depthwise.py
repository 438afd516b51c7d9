"""Convolutions with a group for each channel, by the name that all else knows.

Keras 3's ConvNeXt and networks that came from PyTorch write a depthwise convolution as
`Conv2D(groups=channels)`. tf_keras compiles those by XLA on a processor, where they
train some fifteen times as slowly, and their operators in a file have lost their names.
"""

from __future__ import annotations

import tf_keras as keras
from numpy.typing import NDArray

from kdprune._graph import named_layers, rebuild

layers = keras.layers

_KEPT = """
    name trainable dtype kernel_size strides padding data_format dilation_rate
    activation use_bias bias_initializer bias_regularizer bias_constraint
    activity_regularizer
""".split()
_ANY_SHAPE = (
    keras.constraints.NonNeg
    | keras.regularizers.L1
    | keras.regularizers.L2
    | keras.regularizers.L1L2
)
_RENAMED = ("initializer", "regularizer", "constraint")


def as_depthwise(model: keras.Model) -> tuple[keras.Model, list[str]]:
    """Makes a `DepthwiseConv2D` of each `Conv2D` with a group for each channel.

    Args:
        model: A built graph model; left as it is.

    Returns:
        `(model, names)`: a model that computes the same, and the layers that were
        replaced, which keep their names; the same model, if there are none.
    """
    found = {id(one): one for _, one in named_layers(model) if _is_depthwise(one)}
    if not found:
        return model, []

    def replace(layer: keras.layers.Layer) -> keras.layers.Layer | None:
        return _depthwise(layer) if id(layer) in found else None

    def weights(old: keras.layers.Layer, new: keras.layers.Layer) -> list | None:
        return _weights(old) if id(old) in found else None

    changed = rebuild(model, replace=replace, weights=weights)
    return changed, [layer.name for layer in found.values()]


def _is_depthwise(layer: keras.layers.Layer) -> bool:
    if type(layer) is not layers.Conv2D or layer.groups == 1:
        return False
    return (
        layer.groups == layer.input_spec.axes.get(-1)
        # TensorFlow's depthwise operator takes the same stride in both directions,
        and len(set(layer.strides)) == 1
        # and images with one axis in front, where a Conv2D takes several.
        and all(len(node.output_shapes) == 4 for node in layer.inbound_nodes)
        # These look at a kernel's axes, which mean something else in the other.
        and isinstance(layer.kernel_constraint, _ANY_SHAPE | None)
        and isinstance(layer.kernel_regularizer, _ANY_SHAPE | None)
    )


def _depthwise(layer: keras.layers.Conv2D) -> keras.layers.DepthwiseConv2D:
    given = layer.get_config()
    config = {key: given[key] for key in _KEPT}
    config |= {f"depthwise_{key}": given[f"kernel_{key}"] for key in _RENAMED}
    config["depth_multiplier"] = layer.filters // layer.groups
    return layers.DepthwiseConv2D.from_config(config)


def _weights(layer: keras.layers.Conv2D) -> list[NDArray]:
    kernel, *bias = layer.get_weights()
    # Filters stand in the order of their groups, which are the channels here.
    return [kernel.reshape(*kernel.shape[:2], layer.groups, -1), *bias]
