"""How channels pass each kind of layer.

A rule takes a `LayerCall` and returns a `RuleResult`: the ids on the channel axis of
the layer's output, the axes of its weights that go with ids, and what changes in its
configuration. `LAYER_RULES` holds one for each exact layer class: a subclass may
compute something else. The channels at a layer without a rule, or whose rule raises
`UnsupportedLayer`, are all kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from kdprune.intake.keras_layers import hard_sigmoid, hard_silu
from kdprune.prune.channels.graph import (
    LayerCall,
    RuleResult,
    UnsupportedLayer,
    WeightAxes,
)

layers = keras.layers

Rule = Callable[[LayerCall], RuleResult]

# Channels stay apart in these functions.
_ACTIVATIONS = {
    getattr(keras.activations, name)
    for name in "elu exponential gelu hard_sigmoid leaky_relu linear mish relu selu "
    "sigmoid softplus softsign swish tanh".split()
    if hasattr(keras.activations, name)
} | {tf.nn.relu, tf.nn.relu6, tf.nn.silu, tf.nn.gelu, tf.nn.elu, tf.nn.sigmoid}
_ACTIVATIONS |= {hard_sigmoid, hard_silu}
_ACTIVATION_LAYERS = (
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.ThresholdedReLU,
)
_ELEMENTWISE_OPS = frozenset(
    "__operators__.add __operators__.sub __operators__.mul __operators__.truediv "
    "math.add math.subtract math.multiply math.divide math.truediv math.maximum "
    "math.minimum math.add_n math.square math.sqrt math.rsqrt math.abs math.exp "
    "math.negative math.pow math.sigmoid math.tanh math.softplus nn.relu nn.relu6 "
    "nn.leaky_relu nn.elu nn.selu nn.silu nn.gelu nn.softplus cast clip_by_value "
    "identity stop_gradient".split()
)


# --- Layers that multiply by a kernel ---


def _conv(call):
    layer, (inputs,) = call.layer, call.inputs
    width = len(inputs) // layer.groups
    if layer.groups > 1 and width == 1:
        return _conv_of_single_channels(call)
    output = call.ids.fresh(layer.filters)
    for group in range(1, layer.groups):  # The same places go in all groups.
        call.ids.unite(inputs[:width], inputs[group * width : (group + 1) * width])
    rows = output.reshape(layer.groups, -1)
    for row in rows[1:]:
        call.ids.unite(rows[0], row)
    kernel = WeightAxes(layer.kernel, {2: inputs[:width], 3: output}, makes=3, uses=2)
    return _with_bias(call, kernel, output, "filters")


def _conv_of_single_channels(call):
    """A grouped convolution with one input channel a group: whole groups go."""
    layer, (inputs,) = call.layer, call.inputs
    output = np.repeat(inputs, layer.filters // layer.groups)
    kernel = WeightAxes(layer.kernel, {3: output}, makes=3)
    result = _with_bias(call, kernel, output, "filters")
    result.config = lambda kept: {
        "filters": int(kept(output).sum()),
        "groups": int(kept(inputs).sum()),
    }
    return result


def _conv_transpose(call):
    layer, (inputs,) = call.layer, call.inputs
    output = call.ids.fresh(layer.filters)
    kernel = WeightAxes(layer.kernel, {2: output, 3: inputs}, makes=2, uses=3)
    return _with_bias(call, kernel, output, "filters")


def _depthwise(call):
    layer, (inputs,) = call.layer, call.inputs
    output = np.repeat(inputs, layer.depth_multiplier)
    kernel = WeightAxes(layer.depthwise_kernel, {2: inputs}, makes=2)
    return _with_bias(call, kernel, output)


def _separable(call):
    layer, (inputs,) = call.layer, call.inputs
    output = call.ids.fresh(layer.filters)
    between = np.repeat(inputs, layer.depth_multiplier)
    depthwise = WeightAxes(layer.depthwise_kernel, {2: inputs}, uses=2)
    pointwise = WeightAxes(layer.pointwise_kernel, {2: between, 3: output}, makes=3)
    result = _with_bias(call, pointwise, output, "filters")
    result.weights.append(depthwise)
    return result


def _dense(call):
    layer, (inputs,) = call.layer, call.inputs
    output = call.ids.fresh(layer.units)
    kernel = WeightAxes(layer.kernel, {0: inputs, 1: output}, makes=1, uses=0)
    return _with_bias(call, kernel, output, "units")


def _with_bias(call, kernel, output, width=None):
    """The result of a layer of one kernel, its bias and its activation."""
    layer = call.layer
    weights = [kernel]
    if layer.use_bias:
        weights.append(WeightAxes(layer.bias, {0: output}))
    if not _is_elementwise(layer.activation):
        call.pin(
            output, f"its activation {_name_of(layer.activation)} may mix channels"
        )
    if width is None:
        return RuleResult(output, weights)
    return RuleResult(output, weights, lambda kept: {width: int(kept(output).sum())})


# --- Layers with a weight for each channel ---


def _batch_norm(call):
    layer, (inputs,) = call.layer, call.inputs
    rank = len(call.output_shape)
    if [axis % rank for axis in layer.axis] != [rank - 1]:
        raise UnsupportedLayer(f"it normalizes axis {list(layer.axis)}, not the last")
    weights = [WeightAxes(w, {0: inputs}) for w in layer.weights if w.shape.rank]
    for weight in weights:
        weight.scales = weight.variable is layer.gamma
    return RuleResult(inputs, weights)


def _prelu(call):
    alpha, (inputs,) = call.layer.alpha, call.inputs
    shared = alpha.shape[-1] == 1 != len(inputs)
    if shared:
        return RuleResult(inputs)
    return RuleResult(inputs, [WeightAxes(alpha, {alpha.shape.rank - 1: inputs})])


def _layer_scale(call):
    layer, (inputs,) = call.layer, call.inputs
    return RuleResult(
        inputs,
        [WeightAxes(layer.gamma, {0: inputs})],
        lambda kept: {"projection_dim": int(kept(inputs).sum())},
    )


def _normalization(call):
    layer, (inputs,) = call.layer, call.inputs
    if layer.axis == ():
        return RuleResult(inputs)
    rank = len(call.output_shape)
    if [axis % rank for axis in layer.axis] != [rank - 1]:
        raise UnsupportedLayer(f"it normalizes axis {list(layer.axis)}, not the last")
    weights = [WeightAxes(w, {0: inputs}) for w in layer.weights if w.shape.rank]
    return RuleResult(inputs, weights, _constants(layer, ("mean", "variance"), inputs))


def _rescaling(call):
    (inputs,) = call.inputs
    return RuleResult(
        inputs, config=_constants(call.layer, ("scale", "offset"), inputs)
    )


def _constants(layer, names, ids):
    """Cuts constants of the configuration that hold one number per channel."""
    config = layer.get_config()
    values = {
        name: np.asarray(config[name]) for name in names if config[name] is not None
    }
    values = {name: value for name, value in values.items() if value.size > 1}
    if any(value.shape[-1] != len(ids) for value in values.values()):
        raise UnsupportedLayer("its constants vary along another axis than the last")
    if not values:
        return None
    return lambda kept: {n: v[..., kept(ids)].tolist() for n, v in values.items()}


# --- Layers that only carry channels ---


def _channelwise(call):
    return RuleResult(call.inputs[0])


def _activation(call):
    if not _is_elementwise(call.layer.activation):
        raise UnsupportedLayer(f"{_name_of(call.layer.activation)} may mix channels")
    return RuleResult(call.inputs[0])


def _flatten(call):
    (inputs,) = call.inputs
    return RuleResult(np.tile(inputs, _known(call.output_shape[-1]) // len(inputs)))


def _reshape(call):
    """Follows channels through a reshape that leaves whole rows of them.

    Position p of the flat tensor is channel p % before, and p % after of the new
    shape: where these do not agree row by row, the channels are coupled.
    """
    (inputs,) = call.inputs
    before, after = len(inputs), _known(call.output_shape[-1])
    places = np.arange(math.lcm(before, after))
    output = inputs[places[:after] % before] if after % before == 0 else inputs[:after]
    call.ids.unite(inputs[places % before], output[places % after])
    target = call.layer.target_shape
    if target[-1] == -1:  # Inferred, whatever is left.
        return RuleResult(output)
    return RuleResult(
        output,
        config=lambda kept: {"target_shape": (*target[:-1], int(kept(output).sum()))},
    )


def _permute(call):
    if call.layer.dims[-1] != len(call.layer.dims):
        raise UnsupportedLayer("it moves the channels to another axis")
    return RuleResult(call.inputs[0])


def _dropout(call):
    shape = call.layer.noise_shape
    if shape is not None and shape[-1] not in (None, 1):
        raise UnsupportedLayer("its noise_shape is of a fixed number of channels")
    return RuleResult(call.inputs[0])


def _merge(call):
    if call.has_constant_arrays:
        raise UnsupportedLayer("it combines channels with a constant array")
    return RuleResult(_broadcast(call.ids, call.inputs))


def _concatenate(call):
    rank = len(call.output_shape)
    if call.has_constant_arrays:
        raise UnsupportedLayer("it combines channels with a constant array")
    if call.layer.axis % rank == rank - 1:
        return RuleResult(np.concatenate(call.inputs))
    for other in call.inputs[1:]:
        call.ids.unite(call.inputs[0], other)
    return RuleResult(call.inputs[0])


def _known(size):
    if size is None:
        raise UnsupportedLayer("the size of its output is not known")
    return size


# --- TensorFlow functions, and what merges tensors ---


def _tensorflow_op(call):
    symbol = call.layer.symbol
    if symbol in ("math.reduce_mean", "math.reduce_max"):
        return _reduction(call)
    if symbol not in _ELEMENTWISE_OPS:
        raise UnsupportedLayer(f"tf.{symbol} may mix channels")
    if call.has_constant_arrays:
        raise UnsupportedLayer("it combines channels with a constant array")
    return RuleResult(_broadcast(call.ids, call.inputs))


def _reduction(call):
    axis, rank = call.keywords.get("axis"), len(call.input_shapes[0])
    axes = range(rank) if axis is None else np.atleast_1d(axis) % rank
    if rank - 1 in axes or 0 in axes:
        raise UnsupportedLayer("it reduces the channels")
    return RuleResult(call.inputs[0])


def _is_elementwise(activation):
    return activation in _ACTIVATIONS or type(activation) in _ACTIVATION_LAYERS


def _name_of(activation):
    return repr(getattr(activation, "__name__", type(activation).__name__))


def _broadcast(ids, vectors):
    """Couples the channels of tensors that are combined element by element.

    A tensor of one channel that meets several is repeated, not coupled.
    """
    width = max(len(vector) for vector in vectors)
    wide = [vector for vector in vectors if len(vector) == width]
    if any(len(vector) not in (1, width) for vector in vectors):
        raise UnsupportedLayer("its inputs have different numbers of channels")
    for other in wide[1:]:
        ids.unite(wide[0], other)
    return wide[0]


# --- The registry ---

_CHANNELWISE = (
    *_ACTIVATION_LAYERS,
    *(layers.SpatialDropout2D, layers.GaussianDropout),
    *(layers.GaussianNoise, layers.ActivityRegularization),
    *(layers.MaxPooling2D, layers.AveragePooling2D),
    *(layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D),
    *(layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D),
    *(layers.ZeroPadding2D, layers.Cropping2D, layers.UpSampling2D),
    *(layers.Resizing, layers.CenterCrop, layers.RepeatVector, layers.Identity),
)
_MERGES = (
    *(layers.Add, layers.Subtract, layers.Multiply, layers.Average),
    *(layers.Maximum, layers.Minimum, CustomScaleLayer),
)
LAYER_RULES: dict[type, Rule] = {
    **dict.fromkeys(_CHANNELWISE, _channelwise),
    **dict.fromkeys(_MERGES, _merge),
    layers.Conv2D: _conv,
    layers.Conv2DTranspose: _conv_transpose,
    layers.DepthwiseConv2D: _depthwise,
    layers.SeparableConv2D: _separable,
    layers.Dense: _dense,
    layers.BatchNormalization: _batch_norm,
    layers.PReLU: _prelu,
    LayerScale: _layer_scale,
    layers.Normalization: _normalization,
    layers.Rescaling: _rescaling,
    layers.Activation: _activation,
    layers.Dropout: _dropout,
    layers.AlphaDropout: _dropout,
    layers.Flatten: _flatten,
    layers.Reshape: _reshape,
    layers.Permute: _permute,
    layers.Concatenate: _concatenate,
    TFOpLambda: _tensorflow_op,
}
# Classes whose rule holds for their subclasses, too.
_INHERITED: set[type] = set()


def register_layer_rule(
    layer_class: type,
    rule: Rule | type | None = None,
    *,
    subclasses: bool = False,
    replace: bool = False,
) -> Any:
    """Says how channels pass the layers of a class, so that they can be removed.

    Without a rule, all channels that reach a layer of an unknown class are kept.

    Args:
        layer_class: A subclass of `tf_keras.layers.Layer`.
        rule: `rule(call)` takes a `LayerCall` and returns a `RuleResult`, or raises
            `UnsupportedLayer` with the reason why channels must stay. Or a class whose
            rule holds for this one as well. If it is left out, a decorator for a
            rule is returned.
        subclasses: Whether the rule holds for subclasses that have none of their own.
            The rules of Keras's layers do not: a subclass may compute something else.
        replace: Whether a rule that the class has already may be replaced.

    Returns:
        The rule, or the decorator.

    Raises:
        ValueError: If the class is not one of layers or has a rule, or the rule is
            neither a function nor a class that has one.

    Example:
        >>> @register_layer_rule(Scale)  # A layer of one factor for each channel.
        ... def scale_rule(call):
        ...     (channels,) = call.inputs
        ...     factor = WeightAxes(call.layer.factor, {0: channels})
        ...     return RuleResult(channels, [factor])
        >>> register_layer_rule(MyConv2D, tf_keras.layers.Conv2D)  # As its base class.
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, layers.Layer)):
        raise ValueError(
            "layer_class must be a subclass of tf_keras.layers.Layer. "
            f"Received: {layer_class!r}"
        )
    if rule is None:
        return lambda function: register_layer_rule(
            layer_class, function, subclasses=subclasses, replace=replace
        )
    if isinstance(rule, type):
        known = LAYER_RULES.get(rule)
        if known is None:
            raise ValueError(
                f"rule must be a function, or a class that has a rule. Received: {rule}"
            )
        rule = known
    if not callable(rule):
        raise ValueError(f"rule must be a function of a LayerCall. Received: {rule!r}")
    if LAYER_RULES.get(layer_class, rule) is not rule and not replace:
        raise ValueError(
            f"{layer_class.__name__} has a rule already; replace it with replace=True"
        )
    LAYER_RULES[layer_class] = rule
    (_INHERITED.add if subclasses else _INHERITED.discard)(layer_class)
    return rule


def apply_rule(call: LayerCall) -> RuleResult:
    """Follows channels through one call of a layer.

    Raises:
        UnsupportedLayer: If they can't be; the message says why.
        ValueError: If what a rule returns does not fit the layer.
    """
    layer = call.layer
    rule = _find_rule(type(layer))
    if rule is None:
        raise UnsupportedLayer(
            f"channels are not followed through a {type(layer).__name__}"
        )
    if getattr(layer, "data_format", None) == "channels_first":
        raise UnsupportedLayer("its channels are first, not last")
    if any(vector is None for vector in call.inputs):
        raise UnsupportedLayer("its input has no channel axis of known size")
    result = rule(call)
    _check_result(result, call)
    return result


def _find_rule(layer_class: type) -> Rule | None:
    if layer_class in LAYER_RULES:
        return LAYER_RULES[layer_class]
    bases = (base for base in layer_class.__mro__ if base in _INHERITED)
    return next((LAYER_RULES[base] for base in bases), None)


def _check_result(result: RuleResult, call: LayerCall) -> None:
    name = f"the rule of layer {call.layer.name!r} ({type(call.layer).__name__})"
    if not isinstance(result, RuleResult):
        raise ValueError(
            f"{name} must return a RuleResult. Received: {type(result).__name__}"
        )
    width = call.output_shape[-1]
    if width is not None and len(result.output) != width:
        raise ValueError(
            f"{name} must give one id for each of the output's {width} channels. "
            f"Received: {len(result.output)}"
        )
    for weight in result.weights:
        for axis, ids in weight.axes.items():
            shape = tuple(weight.variable.shape)
            if not 0 <= axis < len(shape) or len(ids) != shape[axis]:
                raise ValueError(
                    f"{name} must give one id for each position on an axis of a "
                    f"weight. Received: {len(ids)} for axis {axis} of the shape {shape}"
                )
