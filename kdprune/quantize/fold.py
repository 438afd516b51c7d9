"""Moving batch normalization that stands after an activation into the layers behind.

Quantization-aware training takes Conv -> BatchNorm -> ReLU. In Conv -> ReLU ->
BatchNorm -> Conv the normalization is, in inference, a scale and a shift of each
channel, which the next convolution can do with its own weights and bias. Only padding
stands in the way: the zeros around an image would have to be shifted as well.
"""

import itertools
from collections import defaultdict

import numpy as np
import tf_keras as keras

from kdprune._graph import check_float_model, frozen_layers, nodes, rebuild
from kdprune._log import logger
from kdprune.intake.inline import one_graph

layers = keras.layers

_LINEAR = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
# What passes a scale and a shift of each channel on as they are.
_PASSING = (
    *(layers.Dropout, layers.SpatialDropout2D, layers.Flatten),
    *(layers.AveragePooling2D, layers.GlobalAveragePooling2D),
)
# These do if no channel is turned upside down.
_ORDERED = (layers.MaxPooling2D, layers.GlobalMaxPooling2D)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Rebuilds a model without the BatchNormalization that stands after activations.

    Each is folded into the convolutions and dense layers that read it, also through
    pooling, dropout and flattening, so that the model gives the same scores: `gamma /
    sqrt(variance + epsilon)` into their weights, what is left of `beta` and the mean
    into their bias. That is exact where those layers pad nothing ("valid", or a
    kernel of 1 x 1). BatchNormalization right after a convolution or dense layer
    that is read by nothing else stays: quantization-aware training folds it itself.
    Models inside the model become part of its graph where there is something to fold.
    Frozen layers are folded as others are, which is logged.

    Example:
        ```python
        model = kdprune.fold_batch_norm(kdprune.load_model("mine.keras"))
        kdprune.save_model(model, "folded.keras")  # For a recipe's `load` stage.
        ```

    Args:
        model: A built Functional or Sequential `tf_keras` model; left as it was.

    Returns:
        A new model of the same kind, names and other weights, less those layers (a
        plain Functional one where models inside became part of it). In inference it is
        equal; trained further it learns without that normalization.

    Raises:
        ValueError: If one can't be folded: its name, what is in the way, and what to
            do.
    """
    check_float_model(model)
    flat = one_graph(model)
    plan, obstacles = _plan(flat)
    for name, reason in obstacles.items():
        raise ValueError(
            f"BatchNormalization {name!r} can't be folded into the layers behind it: "
            f"{reason}; put it between its convolution and the activation, Conv -> "
            "BatchNorm -> ReLU"
        )
    return _without(flat if plan else model, plan)


def fold_what_folds(model: keras.Model) -> keras.Model:
    """As `fold_batch_norm`, but leaves the normalization that can't be folded.

    Args:
        model: As there.

    Returns:
        As there; `one_graph` of the model if there is nothing to fold.
    """
    check_float_model(model)
    flat = one_graph(model)
    plan, _ = _plan(flat)
    return _without(flat, plan) if plan else flat


def is_behind_linear(model: keras.Model, norm: keras.layers.Layer) -> bool:
    """Whether a normalization is right behind a layer that takes it over in a file."""
    sources, readers = _connections(model)
    return _is_behind_linear(norm, sources, readers)


def _is_behind_linear(norm, sources, readers):
    if len(sources[norm.name]) != 1:
        return False
    (source,) = sources[norm.name]
    linear = type(source) in _LINEAR and not _has_activation(source)
    return linear and len(readers[source.name]) == 1


def _without(model, plan):
    """The model less these normalizations, which others take over."""
    folded = {}
    for target, scale, shift in itertools.chain(*plan.values()):
        folded[id(target)] = _absorb(target, scale, shift)
    involved = {*folded, *(id(model.get_layer(name)) for name in plan)}
    held = [path for path, one in frozen_layers(model).items() if id(one) in involved]
    if held:
        logger.warning(
            "weights of frozen layers change by folding, in float without effect: %s",
            ", ".join(held),
        )
    return rebuild(
        model,
        config=lambda layer: {"use_bias": True} if id(layer) in folded else None,
        weights=lambda old, new: folded.get(id(old)),
        bypass={
            node: node.keras_inputs[0]
            for node in nodes(model)
            if node.layer.name in plan
        },
    )


class _Obstacle(Exception):
    """Why a normalization can't be folded."""


def _plan(model):
    """`{normalization: [(layer, scale, shift)]}` of what reads it, and obstacles."""
    sources, readers = _connections(model)
    plan, obstacles = {}, {}
    for layer in model.layers:
        if not _is_norm(layer):
            inside = [one for one in layer.submodules if _is_norm(one)]
            if inside:
                kind = type(layer).__name__
                obstacles[inside[0].name] = (
                    f"it is inside {layer.name!r} ({kind}), which has no graph to see"
                )
            continue
        if _is_behind_linear(layer, sources, readers):
            continue
        try:
            if len(sources[layer.name]) > 1:
                raise _Obstacle("it is called several times")
            scale, shift = _affine(layer)
            plan[layer.name] = list(_follow(layer, scale, shift, sources, readers))
        except _Obstacle as reason:
            obstacles[layer.name] = str(reason)
    return plan, obstacles


def _is_norm(layer):
    return isinstance(layer, layers.BatchNormalization)


def _connections(model):
    """`{layer: layers it reads}`, one for each call, and `{layer: its readers}`."""
    sources, readers = defaultdict(list), defaultdict(list)
    for node in nodes(model):
        for source, *_ in node.iterate_inbound():
            sources[node.layer.name].append(source)
            readers[source.name].append(node.layer)
    for tensor in model.outputs:
        readers[tensor._keras_history.layer.name].append(None)
    return sources, readers


def _affine(layer):
    """What a normalization does in inference, as scale and shift of each channel."""
    axes = np.ravel(layer.axis)
    if len(axes) != 1 or axes[0] != len(layer.input_shape) - 1:
        raise _Obstacle("its channels are not the last axis")
    mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)
    # In double precision, so that folding adds no error of its own.
    scale = 1 / np.sqrt(variance.astype(np.float64) + layer.epsilon)
    if layer.scale:
        scale *= np.asarray(layer.gamma)
    shift = -scale * mean
    if layer.center:
        shift += np.asarray(layer.beta)
    return scale, shift


def _follow(layer, scale, shift, sources, readers):
    """Yields `(layer, scale, shift)` of the layers that can take these over."""
    for reader in readers[layer.name]:
        if reader is None:
            raise _Obstacle("it is the model's output")
        kind = type(reader)
        name = f"{reader.name!r} ({kind.__name__})"
        if len(sources[reader.name]) > 1:
            raise _Obstacle(f"{name} reads it and others, or is called several times")
        if getattr(reader, "data_format", "channels_last") != "channels_last":
            raise _Obstacle(f"{name} takes channels first")
        pads = kind is layers.ZeroPadding2D or (
            getattr(reader, "padding", "valid") != "valid"
            and any(size > 1 for size in getattr(reader, "kernel_size", ()))
        )
        if pads and shift.any():
            raise _Obstacle(f"{name} pads with zeros, which have to be shifted as well")
        if kind in _ORDERED and (scale < 0).any():
            raise _Obstacle(f"{name} takes the largest, and some of gamma is negative")
        if kind in _LINEAR:
            yield reader, scale, shift
        elif kind in (*_PASSING, *_ORDERED, layers.ZeroPadding2D):
            yield from _follow(reader, scale, shift, sources, readers)
        else:
            raise _Obstacle(
                f"{name} reads it, where only convolutions, dense layers and pooling "
                "take a scale and a shift"
            )


def _absorb(layer, scale, shift):
    """The weights with which a layer does as before to `scale * x + shift`."""
    kernel, *bias = (np.asarray(w, np.float64) for w in layer.get_weights())
    if type(layer) is layers.Conv2D:
        # Each group of output channels has its own input channels.
        _, _, size, count = kernel.shape
        shape = (layer.groups, size)
        scale, shift = (
            np.repeat(v.reshape(shape).T, count // layer.groups, axis=1)
            for v in (scale, shift)
        )
        moved = (kernel * shift).sum(axis=(0, 1, 2))
    elif type(layer) is layers.DepthwiseConv2D:
        scale, shift = scale[:, None], shift[:, None]
        moved = (kernel * shift).sum(axis=(0, 1)).ravel()
    else:
        # Behind Flatten the channels come again for every position.
        times = len(kernel) // len(scale)
        scale, shift = (np.tile(v, times)[:, None] for v in (scale, shift))
        moved = (kernel * shift).sum(axis=0)
    return [kernel * scale, moved + (bias[0] if bias else 0)]


def _has_activation(layer):
    return getattr(layer, "activation", None) not in (None, keras.activations.linear)
