"""What a model costs: multiplications and parameters, layer by layer."""

from __future__ import annotations

import math
from collections import Counter

import tf_keras as keras

from kdprune._graph import (
    clone,
    is_graph_model,
    is_tfmot_layer,
    named_layers,
    nodes,
    unwrapped,
)

layers = keras.layers

# Which weights a layer multiplies with, and whether it does so once for each
# position of its output or of its input. The first match counts, so that
# subclasses stand before their bases.
_KERNELS = (
    (layers.Conv2DTranspose, ("kernel",), "input"),
    (layers.SeparableConv2D, ("depthwise_kernel", "pointwise_kernel"), "output"),
    (layers.DepthwiseConv2D, ("depthwise_kernel",), "output"),
    (layers.Conv2D, ("kernel",), "output"),
    (layers.Dense, ("kernel",), "output"),
)
# Layers whose weights may have several axes and still multiply no kernels.
NO_KERNELS = (
    layers.BatchNormalization,
    layers.Embedding,
    layers.GroupNormalization,
    layers.LayerNormalization,
    layers.Normalization,
    layers.PReLU,
)


def count_macs(model: keras.Model) -> int:
    """Counts the multiply-accumulate operations of one image's forward pass.

    Convolutions (grouped, depthwise, separable, transposed) and dense layers
    count, with padding and zero weights; normalization, bias and activations do
    not. A layer used twice counts twice. Pruning and quantization wrappers
    change nothing.

    Args:
        model: A Functional or Sequential `keras.Model` of known image size.

    Returns:
        The number of multiplications, batch 1.

    Raises:
        ValueError: If a shape is unknown, or a layer with a kernel is of a kind
            that cannot be counted.

    Example:
        >>> count_macs(build_model("resnet8"))
        12501632
    """
    return sum(layer_macs(model).values())


def layer_macs(model: keras.Model) -> dict[str, int]:
    """Counts the multiplications of every layer that has any.

    Args:
        model: As for `count_macs`.

    Returns:
        `{layer name: MACs}` in the order of execution. Wrapped layers go by
        their own name, layers of nested models by `"nested/layer"`.
    """
    macs: Counter[str] = Counter()
    _add_macs(model, "", macs)
    return dict(macs)


def count_parameters(model: keras.Model) -> int:
    """Counts weights as `model.count_params()` does, each shared one once.

    The bookkeeping variables of pruning and quantization wrappers (masks,
    thresholds, ranges, steps) are left out, so that the figure stays the same
    from the float model to the wrapped one. It includes batch normalization's
    moving statistics, which a `.tflite` file folds away.
    """
    return sum(math.prod(weight.shape) for weight in model_weights(model))


def model_weights(model: keras.Model) -> list:
    """Lists a model's distinct weights without the wrappers' bookkeeping."""
    wrappers = (layer for _, layer in named_layers(model) if is_tfmot_layer(layer))
    bookkeeping = {id(w) for wrapper in wrappers for w in _own(wrapper)}
    weights = {id(w): w for w in model.weights if id(w) not in bookkeeping}
    return list(weights.values())


def kernels(layer: keras.layers.Layer) -> tuple:
    """Returns the weights a layer multiplies with, or `()` if it has none."""
    found = next((k for k in _KERNELS if isinstance(layer, k[0])), None)
    return tuple(getattr(layer, name) for name in found[1]) if found else ()


def _add_macs(model, prefix, macs):
    if not is_graph_model(model):
        raise ValueError(
            "MACs are counted on the graph of a built Functional or Sequential "
            f"model. Received: {type(model).__name__} {model.name!r}"
        )
    for node in nodes(model):
        layer = node.layer
        if isinstance(layer, keras.Model):
            nested = _resized(layer, node.input_shapes)
            _add_macs(nested, f"{prefix}{layer.name}/", macs)
            continue
        inner = unwrapped(layer)
        count = _macs(inner, node.input_shapes, node.output_shapes)
        if count:
            macs[prefix + inner.name] += count


def _resized(model, shape):
    """The nested model as it is called: at `shape` instead of its own inputs."""
    if model.input_shape == shape or isinstance(shape, list):
        return model
    return clone(model, keras.Input(shape[1:]))


def _macs(layer, input_shape, output_shape):
    for kind, names, side in _KERNELS:
        if isinstance(layer, kind):
            shape = input_shape if side == "input" else output_shape
            size = sum(math.prod(getattr(layer, name).shape) for name in names)
            return size * _positions(layer, shape)
    if not isinstance(layer, NO_KERNELS) and any(
        len(weight.shape) > 1 for weight in layer.weights
    ):
        raise ValueError(
            f"layer {layer.name!r} is a {type(layer).__name__}, whose MACs cannot "
            "be counted; known are Conv2D, DepthwiseConv2D, SeparableConv2D, "
            "Conv2DTranspose and Dense"
        )
    return 0


def _positions(layer, shape):
    """How many places the kernel is applied at: all axes but batch and channels."""
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    places = shape[2:] if channels_first else shape[1:-1]
    if None in places:
        raise ValueError(
            f"layer {layer.name!r} has the shape {shape}; MACs need a model built "
            "for one image size, such as input_shape=(32, 32, 3)"
        )
    return math.prod(places)


def _own(wrapper):
    """A wrapper's own variables carry its name; the wrapped layer's do not."""
    return [w for w in wrapper.weights if w.name.startswith(f"{wrapper.name}/")]
