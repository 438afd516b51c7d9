"""How much a model holds in memory at once while it runs, by its graph."""

import math
from dataclasses import dataclass

import tensorflow as tf
import tf_keras as keras

from kdprune._graph import check_float_model, is_graph_model, walk

layers = keras.layers

# What a runtime folds into the layer before, or does without moving numbers.
_FREE = (
    *(layers.BatchNormalization, layers.Activation, layers.ReLU, layers.LeakyReLU),
    *(layers.Dropout, layers.SpatialDropout2D, layers.Flatten, layers.Reshape),
)


@dataclass
class _Tensor:
    """One tensor: its size, how many calls take it, and when it is held."""

    size: int
    uses: int = 0
    place: "_Tensor | None" = None  # Whose memory it takes over.
    first: int = 0
    last: int = 0


def peak_activations(model):
    """Counts the numbers that must be in memory at once, in the worst layer.

    Layers run one after another, each holding its inputs and its output; an input
    stays until its last use. Normalization, activation and reshaping right after a
    layer take its output's place. The figure times the bytes of a number (1 for
    int8) bounds the arena of a runtime from below.

    Args:
        model: A built Functional or Sequential model of known image size.

    Returns:
        The largest number of activations held, batch 1.

    Raises:
        ValueError: If a size is not known.
    """
    check_float_model(model)
    tensors, calls = _calls(model)
    for moment, (free, inputs, outputs) in enumerate(calls):
        for tensor in inputs:
            _holder(tensor).last = moment
        for tensor in outputs:
            tensor.first = tensor.last = moment
            if free and inputs[0].uses == 1:
                tensor.place = _holder(inputs[0])
    held = [tensor for tensor in tensors if tensor.place is None]
    return max(
        sum(t.size for t in held if t.first <= moment <= t.last)
        for moment in range(len(calls))
    )


def _calls(model):
    """All tensors, and `(free, inputs, outputs)` of each call of a layer in order."""
    tensors, calls = [], []

    def new(symbolic):
        shape = tuple(symbolic.shape)
        if None in shape[1:]:
            raise ValueError(
                f"the memory of {symbolic._keras_history.layer.name!r} depends on an "
                "image size that is not known; build the model for one, such as "
                "input_shape=(32, 32, 3)"
            )
        tensors.append(_Tensor(math.prod(shape[1:])))
        return tensors[-1]

    def call(node, args, kwargs):
        flat = tf.nest.flatten((args, kwargs))
        inputs = [value for value in flat if isinstance(value, _Tensor)]
        if is_graph_model(node.layer):
            return walk(node.layer, inputs, call)
        for tensor in inputs:
            tensor.uses += 1
        outputs = [new(symbolic) for symbolic in tf.nest.flatten(node.outputs)]
        calls.append((type(node.layer) in _FREE, inputs, outputs))
        return outputs

    outputs = walk(model, [new(symbolic) for symbolic in model.inputs], call)
    calls.append((False, outputs, []))  # Outputs are held to the end.
    return tensors, calls


def _holder(tensor):
    return tensor if tensor.place is None else tensor.place
