"""How each kind of layer carries, makes and uses channels.

A handler takes a `Call` and returns a `Trace`: the ids on the channel axis of its
output, the axes of its weights that go with ids, and what changes in its
configuration. `HANDLERS` holds one per exact layer class: a subclass may compute
something else. What has no handler, or raises `CannotFollow`, is left uncut.
"""

import math

import numpy as np
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from kdprune.prune.channels.calls import CannotFollow, Trace, Weight
from kdprune.prune.channels.elementwise import (
    ACTIVATION_LAYERS,
    broadcast,
    is_elementwise,
    name_of,
    tensorflow_op,
)

layers = keras.layers


# --- Layers that multiply by a kernel ---


def _conv(call):
    layer, (inputs,) = call.layer, call.inputs
    width = len(inputs) // layer.groups
    if layer.groups > 1 and width == 1:
        return _conv_of_single_channels(call)
    output = call.ids.fresh(layer.filters)
    for group in range(1, layer.groups):  # The same places are cut in all groups.
        call.ids.unite(inputs[:width], inputs[group * width : (group + 1) * width])
    rows = output.reshape(layer.groups, -1)
    for row in rows[1:]:
        call.ids.unite(rows[0], row)
    kernel = Weight(layer.kernel, {2: inputs[:width], 3: output}, makes=3, uses=2)
    return _with_bias(call, kernel, output, "filters")


def _conv_of_single_channels(call):
    """A grouped convolution with one input channel a group: groups are cut."""
    layer, (inputs,) = call.layer, call.inputs
    output = np.repeat(inputs, layer.filters // layer.groups)
    kernel = Weight(layer.kernel, {3: output}, makes=3)
    trace = _with_bias(call, kernel, output, "filters")
    trace.config = lambda kept: {
        "filters": int(kept(output).sum()),
        "groups": int(kept(inputs).sum()),
    }
    return trace


def _conv_transpose(call):
    layer, (inputs,) = call.layer, call.inputs
    output = call.ids.fresh(layer.filters)
    kernel = Weight(layer.kernel, {2: output, 3: inputs}, makes=2, uses=3)
    return _with_bias(call, kernel, output, "filters")


def _depthwise(call):
    layer, (inputs,) = call.layer, call.inputs
    output = np.repeat(inputs, layer.depth_multiplier)
    kernel = Weight(layer.depthwise_kernel, {2: inputs}, makes=2)
    return _with_bias(call, kernel, output)


def _separable(call):
    layer, (inputs,) = call.layer, call.inputs
    output = call.ids.fresh(layer.filters)
    between = np.repeat(inputs, layer.depth_multiplier)
    depthwise = Weight(layer.depthwise_kernel, {2: inputs}, uses=2)
    pointwise = Weight(layer.pointwise_kernel, {2: between, 3: output}, makes=3)
    trace = _with_bias(call, pointwise, output, "filters")
    trace.weights.append(depthwise)
    return trace


def _dense(call):
    layer, (inputs,) = call.layer, call.inputs
    output = call.ids.fresh(layer.units)
    kernel = Weight(layer.kernel, {0: inputs, 1: output}, makes=1, uses=0)
    return _with_bias(call, kernel, output, "units")


def _with_bias(call, kernel, output, width=None):
    """The trace of a layer of one kernel, its bias and its activation."""
    layer = call.layer
    weights = [kernel]
    if layer.use_bias:
        weights.append(Weight(layer.bias, {0: output}))
    if not is_elementwise(layer.activation):
        call.pin(output, f"its activation {name_of(layer.activation)} may mix channels")
    if width is None:
        return Trace(output, weights)
    return Trace(output, weights, lambda kept: {width: int(kept(output).sum())})


# --- Layers with a weight for each channel ---


def _batch_norm(call):
    layer, (inputs,) = call.layer, call.inputs
    rank = len(call.output_shape)
    if [axis % rank for axis in layer.axis] != [rank - 1]:
        raise CannotFollow(f"it normalizes axis {list(layer.axis)}, not the last")
    weights = [Weight(w, {0: inputs}) for w in layer.weights if w.shape.rank]
    for weight in weights:
        weight.scales = weight.variable is layer.gamma
    return Trace(inputs, weights)


def _prelu(call):
    alpha, (inputs,) = call.layer.alpha, call.inputs
    shared = alpha.shape[-1] == 1 != len(inputs)
    if shared:
        return Trace(inputs)
    return Trace(inputs, [Weight(alpha, {alpha.shape.rank - 1: inputs})])


def _layer_scale(call):
    layer, (inputs,) = call.layer, call.inputs
    return Trace(
        inputs,
        [Weight(layer.gamma, {0: inputs})],
        lambda kept: {"projection_dim": int(kept(inputs).sum())},
    )


def _normalization(call):
    layer, (inputs,) = call.layer, call.inputs
    if layer.axis == ():
        return Trace(inputs)
    rank = len(call.output_shape)
    if [axis % rank for axis in layer.axis] != [rank - 1]:
        raise CannotFollow(f"it normalizes axis {list(layer.axis)}, not the last")
    weights = [Weight(w, {0: inputs}) for w in layer.weights if w.shape.rank]
    return Trace(inputs, weights, _constants(layer, ("mean", "variance"), inputs))


def _rescaling(call):
    (inputs,) = call.inputs
    return Trace(inputs, config=_constants(call.layer, ("scale", "offset"), inputs))


def _constants(layer, names, ids):
    """Cuts constants of the configuration that hold one number per channel."""
    config = layer.get_config()
    values = {
        name: np.asarray(config[name]) for name in names if config[name] is not None
    }
    values = {name: value for name, value in values.items() if value.size > 1}
    if any(value.shape[-1] != len(ids) for value in values.values()):
        raise CannotFollow("its constants vary along another axis than the last")
    if not values:
        return None
    return lambda kept: {n: v[..., kept(ids)].tolist() for n, v in values.items()}


# --- Layers that only carry channels ---


def _channelwise(call):
    return Trace(call.inputs[0])


def _activation(call):
    if not is_elementwise(call.layer.activation):
        raise CannotFollow(f"{name_of(call.layer.activation)} may mix channels")
    return Trace(call.inputs[0])


def _flatten(call):
    (inputs,) = call.inputs
    return Trace(np.tile(inputs, _known(call.output_shape[-1]) // len(inputs)))


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
    if target[-1] == -1:  # Worked out anew, whatever is left.
        return Trace(output)
    return Trace(
        output,
        config=lambda kept: {"target_shape": (*target[:-1], int(kept(output).sum()))},
    )


def _permute(call):
    if call.layer.dims[-1] != len(call.layer.dims):
        raise CannotFollow("it moves the channels to another axis")
    return Trace(call.inputs[0])


def _dropout(call):
    shape = call.layer.noise_shape
    if shape is not None and shape[-1] not in (None, 1):
        raise CannotFollow("its noise_shape is of a fixed number of channels")
    return Trace(call.inputs[0])


def _merge(call):
    if call.has_constant_arrays:
        raise CannotFollow("it combines channels with a constant array")
    return Trace(broadcast(call.ids, call.inputs))


def _concatenate(call):
    rank = len(call.output_shape)
    if call.has_constant_arrays:
        raise CannotFollow("it combines channels with a constant array")
    if call.layer.axis % rank == rank - 1:
        return Trace(np.concatenate(call.inputs))
    for other in call.inputs[1:]:
        call.ids.unite(call.inputs[0], other)
    return Trace(call.inputs[0])


def _known(size):
    if size is None:
        raise CannotFollow("the size of its output is not known")
    return size


_CHANNELWISE = (
    *ACTIVATION_LAYERS,
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
HANDLERS = {
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
    TFOpLambda: tensorflow_op,
}


def follow(call):
    """Follows channels through one call of a layer.

    Raises:
        CannotFollow: If they can't be; the message completes "is left uncut:".
    """
    layer = call.layer
    handler = HANDLERS.get(type(layer))
    if handler is None:
        raise CannotFollow(
            f"channels are not followed through a {type(layer).__name__}"
        )
    if getattr(layer, "data_format", None) == "channels_first":
        raise CannotFollow("its channels are first, not last")
    if any(vector is None for vector in call.inputs):
        raise CannotFollow("its input has no channel axis of known size")
    return handler(call)
