"""Functions that leave channels apart: activations and TensorFlow operations."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune.prune.channels.calls import CannotFollow, Trace

layers = keras.layers

_ELEMENTWISE_OPS = frozenset(
    "__operators__.add __operators__.sub __operators__.mul __operators__.truediv "
    "math.add math.subtract math.multiply math.divide math.truediv math.maximum "
    "math.minimum math.add_n math.square math.sqrt math.rsqrt math.abs math.exp "
    "math.negative math.pow math.sigmoid math.tanh math.softplus nn.relu nn.relu6 "
    "nn.leaky_relu nn.elu nn.selu nn.silu nn.gelu nn.softplus cast clip_by_value "
    "identity stop_gradient".split()
)


def tensorflow_op(call):
    symbol = call.layer.symbol
    if symbol in ("math.reduce_mean", "math.reduce_max"):
        return _reduction(call)
    if symbol not in _ELEMENTWISE_OPS:
        raise CannotFollow(f"tf.{symbol} is not known to leave channels apart")
    if call.has_constant_arrays:
        raise CannotFollow("it combines channels with a constant array")
    return Trace(broadcast(call.ids, call.inputs))


def _reduction(call):
    axis, rank = call.keywords.get("axis"), len(call.input_shapes[0])
    axes = range(rank) if axis is None else np.atleast_1d(axis) % rank
    if rank - 1 in axes or 0 in axes:
        raise CannotFollow("it reduces the channels")
    return Trace(call.inputs[0])


# --- Activations ---

_ACTIVATIONS = {
    getattr(keras.activations, name)
    for name in "elu exponential gelu hard_sigmoid leaky_relu linear mish relu selu "
    "sigmoid softplus softsign swish tanh".split()
    if hasattr(keras.activations, name)
} | {tf.nn.relu, tf.nn.relu6, tf.nn.silu, tf.nn.gelu, tf.nn.elu, tf.nn.sigmoid}
ACTIVATION_LAYERS = (
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.ThresholdedReLU,
)


def is_elementwise(activation):
    return activation in _ACTIVATIONS or type(activation) in ACTIVATION_LAYERS


def name_of(activation):
    return repr(getattr(activation, "__name__", type(activation).__name__))


def broadcast(ids, vectors):
    """Couples the channels of tensors that are combined element by element.

    A tensor of one channel that meets several is repeated, not coupled.
    """
    width = max(len(vector) for vector in vectors)
    wide = [vector for vector in vectors if len(vector) == width]
    if any(len(vector) not in (1, width) for vector in vectors):
        raise CannotFollow("its inputs have different numbers of channels")
    for other in wide[1:]:
        ids.unite(wide[0], other)
    return wide[0]
