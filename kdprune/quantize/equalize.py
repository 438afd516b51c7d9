"""Cross-layer equalization: channels that share an activation scale get like ranges.

In int8 a tensor has one scale, set by its largest channel; channels that are hundreds
of times smaller keep a step or two of the 256. What a channel is divided by in one
layer the next layers can multiply it by, which changes nothing in float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import NDArray
from tf_keras.src.applications.convnext import LayerScale
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from kdprune._graph import check_float_model, frozen_layers, rebuild
from kdprune._log import logger
from kdprune._registry import suggesting
from kdprune.prune.channels.graph import (
    LayerCall,
    RuleResult,
    UnsupportedLayer,
    WeightAxes,
)
from kdprune.prune.channels.groups import find_channels
from kdprune.prune.channels.rules import apply_rule
from kdprune.prune.inference import batches, run_layers
from kdprune.quantize.fold import fold_what_folds, is_behind_linear

layers = keras.layers

_ROUNDS = 3
# Of a tensor's largest channel; what is smaller is taken for dead, and left alone.
_DEAD = 1e-6


@suggesting
def equalize_channels(model: keras.Model, images: Any) -> keras.Model:
    """Rebuilds a model so that the channels of a tensor have ranges of like size.

    For post-training int8: in float the model computes what it did. Each channel of
    the activations between two layers is divided by a factor `s` in the layer that
    makes it and multiplied by it in those that use it, `s = sqrt(r / w)` with the
    channel's range r on the images and the range w of the weights that use it, in
    three rounds, since each layer's weights belong to two tensors. That is exact
    where what lies between is positively homogeneous, `f(s x) = s f(x)`: ReLU, leaky
    ReLU, pooling, dropout, flattening, zero padding. Channels that are added or joined
    (residual blocks), or that a shared layer sees, get one factor. ReLU6, sigmoid,
    swish, softmax, products of two tensors, inputs and outputs keep their channels as
    they are, as do channels without activations or without weights.

    BatchNormalization behind activations is folded into the layers that read it
    where that is exact (see `fold_batch_norm`). Where it is not, its factor goes into
    the layer in front of the activation: in int8 it would be a multiplication with
    one scale for all channels' factors.

    Equal ranges are as a rule good in int8, not always: measure both. Frozen layers are
    rescaled as others are, which is logged.

    Reference: Nagel et al., 2019, https://arxiv.org/abs/1906.04721, section 4.1, with
    ranges of activations from images in place of those of the weights that make them.

    Args:
        model: A built Functional or Sequential `tf_keras` model; left as it was.
        images: What shows the ranges: an array of images, uint8 or float in [0, 1],
            shape `(n, height, width, channels)`, such as the calibration images, or
            batches of them.

    Returns:
        A new model of the same kind and names, with other weights and less the
        BatchNormalization that was folded; models inside are part of its graph.

    Raises:
        ValueError: If it is not a graph model, has wrapped layers, or the images do
            not fit.

    Example:
        ```python
        equalized = kdprune.equalize_channels(model, images)
        content = kdprune.convert_tflite(
            equalized, "int8", images, range_method="mse", correct_bias=True
        )
        ```
    """
    check_float_model(model)
    folded = fold_what_folds(model)
    channels = _Channels(folded, images)
    for _ in range(_ROUNDS):
        channels.equalize()
    channels.level_norms()
    return channels.rebuilt()


class _Channels:
    """A model's channels, and the factor by which each is divided, by its root."""

    def __init__(self, model, images):
        graph = find_channels(model, rule=_scaling_rule)
        self.model, self.roots = model, graph.roots
        # What multiplies channels, and so takes factors.
        self.users = [r for r in graph.records.values() if type(r.layer) in _LINEAR]
        self.seen = _largest_inputs(model, [u.layer for u in self.users], images)
        self.factors = np.ones(len(self.roots))
        self.free = np.ones(len(self.roots), bool)
        self.free[list(graph.pinned)] = False
        # Normalization behind an activation stays an operator of its own in int8.
        self.norms = [
            record
            for record in self.users
            if type(record.layer) is layers.BatchNormalization
            and not is_behind_linear(model, record.layer)
        ]

    def equalize(self):
        """One round: every channel gets the factor that its present ranges ask for."""
        activations, weights = np.zeros((2, len(self.roots)))
        for record in self.users:
            roots = self.roots[record.inputs[0]]
            for largest, values in (
                (activations, self.seen[id(record.layer)] / self.factors[roots]),
                (weights, self._largest_weights(record)),
            ):
                np.maximum.at(largest, roots, values / max(values.max(), _TINY))
        alive = self.free & (activations > _DEAD) & (weights > _DEAD)
        self.factors[alive] *= np.sqrt(activations[alive] / weights[alive])

    def level_norms(self):
        """Gives normalization that nothing beside it reads the factor 1 or -1."""
        readers = np.zeros(len(self.roots), int)
        for record in self.users:
            readers[np.unique(self.roots[record.inputs[0]])] += 1
        for record in reversed(self.norms):
            roots = self.roots[record.inputs[0]]
            if (readers[roots] == 1).all() and len(np.unique(roots)) == len(roots):
                found = self._largest_weights(record)
                alive = self.free[roots] & (found > 0)
                self.factors[roots[alive]] /= found[alive]

    def rebuilt(self):
        weights = {id(user.layer): self._weights(user) for user in self.users}
        held = [
            path
            for path, layer in frozen_layers(self.model).items()
            if id(layer) in weights and _moved(layer, weights[id(layer)])
        ]
        if held:
            logger.warning(
                "weights of frozen layers are rescaled, in float without effect: %s",
                ", ".join(held),
            )

        def with_factor(layer):
            is_norm = type(layer) is layers.BatchNormalization
            return {"scale": True} if is_norm and id(layer) in weights else None

        return rebuild(
            self.model,
            config=with_factor,
            weights=lambda old, new: weights.get(id(old)),
        )

    def _largest_weights(self, user):
        """The largest weight by which each input channel is multiplied, `(c,)`."""
        (weight, *_) = self._weights(user)
        return _LINEAR[type(user.layer)].largest(user.layer, np.abs(weight))

    def _weights(self, user):
        ids = user.inputs[0], user.result.output
        given, made = (self.factors[self.roots[part]] for part in ids)
        return _LINEAR[type(user.layer)].scaled(user.layer, given, made)


_TINY = np.finfo(np.float64).tiny


def _moved(layer, values):
    """Whether any of a layer's weights is to become another."""
    own = layer.get_weights()
    if len(own) != len(values):
        return True  # It gets a factor.
    return any(not np.array_equal(*pair) for pair in zip(own, values, strict=True))


def _largest_inputs(model, users, images):
    """`{id(layer): largest absolute input of each channel, (c,)}` on the images."""

    @tf.function(reduce_retracing=True)
    def step(batch):
        seen: dict[int, list] = {id(layer): [] for layer in users}

        def call_layer(layer, args, kwargs):
            if id(layer) in seen:
                value = tf.nest.flatten((args, kwargs))[0]
                axes = list(range(value.shape.rank - 1))
                seen[id(layer)].append(tf.reduce_max(tf.abs(value), axes))
            return layer(*args, **kwargs)

        run_layers(model, batch, call_layer)
        return [tf.reduce_max(seen[id(layer)], axis=0) for layer in users]

    largest: dict[int, NDArray] = {}
    for batch, _ in batches(images):
        for layer, values in zip(users, step(batch), strict=True):
            earlier = largest.get(id(layer), 0.0)
            largest[id(layer)] = np.maximum(earlier, np.asarray(values, np.float64))
    return largest


# --- What scales with its input ---


def _scaling_rule(call: LayerCall) -> RuleResult:
    """Which channels of a layer's input and output must have one factor.

    As for pruning, but that layers with weights tie no output to an input, and that
    only layers that scale with their input pass factors on.
    """
    kind = type(call.layer)
    if kind in _LINEAR:
        return _linear_rule(call)
    if kind is layers.Activation:
        passes = _scales_with_input(call.layer.activation)
    elif kind is layers.ReLU:
        passes = call.layer.max_value is None and not call.layer.threshold
    elif kind is layers.Rescaling:
        passes = not np.any(call.layer.offset)
    elif kind is TFOpLambda:
        # A number beside the tensors is not scaled with them.
        alone = call.layer.symbol in _FUNCTIONS_OF_ONE and len(call.inputs) == 1
        passes = alone or (call.layer.symbol in _SUMS and len(call.inputs) > 1)
    else:
        passes = kind in _PASSING
    if not passes:
        raise UnsupportedLayer("it does not scale with its input")
    if len(call.inputs) > 1 and kind is not layers.Concatenate:
        if len({len(vector) for vector in call.inputs if vector is not None}) > 1:
            raise UnsupportedLayer("one of its inputs is the same for all channels")
    return apply_rule(call)


def _linear_rule(call: LayerCall) -> RuleResult:
    layer = call.layer
    if any(vector is None for vector in call.inputs):
        raise UnsupportedLayer("its input has no channel axis of known size")
    if getattr(layer, "data_format", None) == "channels_first":
        raise UnsupportedLayer("its channels are first, not last")
    if type(layer) is layers.BatchNormalization:
        rank = len(call.output_shape)
        if [axis % rank for axis in layer.axis] != [rank - 1] or layer.renorm:
            raise UnsupportedLayer("it does not normalize the last axis alone")
    count, times = _LINEAR[type(layer)].outputs(layer)
    output = np.repeat(call.ids.fresh(count), times)
    if not _scales_with_input(getattr(layer, "activation", None)):
        call.pin(output, "its activation does not scale with its input")
    # Noted so that all calls of a shared layer see channels of one factor.
    return RuleResult(output, [WeightAxes(layer.weights[0], {})])


_PASSING = {
    *(layers.LeakyReLU, layers.PReLU, LayerScale, layers.Identity),
    *(layers.Dropout, layers.SpatialDropout2D, layers.AlphaDropout),
    *(layers.GaussianDropout, layers.GaussianNoise, layers.ActivityRegularization),
    *(layers.MaxPooling2D, layers.AveragePooling2D),
    *(layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D),
    *(layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D),
    *(layers.ZeroPadding2D, layers.Cropping2D, layers.UpSampling2D),
    *(layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector),
    *(layers.Add, layers.Subtract, layers.Average, layers.Maximum, layers.Minimum),
    layers.Concatenate,
}
_FUNCTIONS_OF_ONE = {
    *("nn.relu", "nn.leaky_relu", "math.abs", "math.negative"),
    *("math.reduce_mean", "math.reduce_max", "identity", "stop_gradient"),
}
_SUMS = {
    *("__operators__.add", "__operators__.sub", "math.add", "math.subtract"),
    *("math.maximum", "math.minimum", "math.add_n"),
}
_ACTIVATIONS = {
    *(None, keras.activations.linear, keras.activations.relu, tf.nn.relu),
    *(getattr(keras.activations, "leaky_relu", None), tf.nn.leaky_relu),
}


def _scales_with_input(activation: Any) -> bool:
    """Whether an activation is positively homogeneous."""
    if isinstance(activation, layers.ReLU):
        return activation.max_value is None and not activation.threshold
    return type(activation) is layers.LeakyReLU or activation in _ACTIVATIONS


# --- Layers whose weights take factors ---


class _Linear(NamedTuple):
    """How a layer's weights take the factors of its input and output channels.

    Attributes:
        outputs: `outputs(layer)`: how many channels of a factor of their own it makes,
            and how often each comes in a row.
        scaled: `scaled(layer, given, made)`: its weights with the inputs' factors
            `(c,)` and the outputs' `(m,)`, the one that multiplies inputs first.
        largest: `largest(layer, weight)`: of that one, by input channel, `(c,)`.
    """

    outputs: Callable[[Any], tuple[int, int]]
    scaled: Callable[[Any, NDArray, NDArray], list[NDArray]]
    largest: Callable[[Any, NDArray], NDArray]


def _conv(layer, given, made):
    # Each group of output channels has its own input channels.
    each = given.reshape(layer.groups, -1).T
    each = np.repeat(each, len(made) // layer.groups, axis=1)
    return [_array(layer.kernel) * each / made, *_bias(layer, made)]


def _conv_largest(layer, kernel):
    parts = np.split(kernel.max(axis=(0, 1)), layer.groups, axis=1)
    return np.concatenate([part.max(axis=1) for part in parts])


def _depthwise(layer, given, made):
    kernel = _array(layer.depthwise_kernel)
    kernel = kernel * given[:, None] / made.reshape(kernel.shape[2:])
    return [kernel, *_bias(layer, made)]


def _separable(layer, given, made):
    depthwise = _array(layer.depthwise_kernel) * given[:, None]
    pointwise = _array(layer.pointwise_kernel) / made
    return [depthwise, pointwise, *_bias(layer, made)]


def _transposed(layer, given, made):
    return [_array(layer.kernel) * given / made[:, None], *_bias(layer, made)]


def _dense(layer, given, made):
    return [_array(layer.kernel) * given[:, None] / made, *_bias(layer, made)]


def _norm(layer, given, made):
    gamma = (_array(layer.gamma) if layer.scale else 1.0) * given / made
    shift = [_array(layer.beta) / made] if layer.center else []
    moments = _array(layer.moving_mean) / given, _array(layer.moving_variance)
    return [gamma, *shift, *moments]


def _norm_largest(layer, gamma):
    return gamma / np.sqrt(_array(layer.moving_variance) + layer.epsilon)


def _bias(layer, made):
    return [_array(layer.bias) / made] if layer.use_bias else []


def _array(variable):
    # In double precision, so that scaling adds no error of its own.
    return np.asarray(variable, np.float64)


_LINEAR: dict[type, _Linear] = {
    layers.Conv2D: _Linear(lambda layer: (layer.filters, 1), _conv, _conv_largest),
    layers.DepthwiseConv2D: _Linear(
        lambda layer: (layer.depthwise_kernel.shape[2], layer.depth_multiplier),
        _depthwise,
        lambda layer, kernel: kernel.max(axis=(0, 1, 3)),
    ),
    layers.SeparableConv2D: _Linear(
        lambda layer: (layer.filters, 1),
        _separable,
        lambda layer, kernel: kernel.max(axis=(0, 1, 3)),
    ),
    layers.Conv2DTranspose: _Linear(
        lambda layer: (layer.filters, 1),
        _transposed,
        lambda layer, kernel: kernel.max(axis=(0, 1, 2)),
    ),
    layers.Dense: _Linear(
        lambda layer: (layer.units, 1),
        _dense,
        lambda layer, kernel: kernel.max(axis=1),
    ),
    layers.BatchNormalization: _Linear(
        lambda layer: (layer.moving_variance.shape[0], 1), _norm, _norm_largest
    ),
}
