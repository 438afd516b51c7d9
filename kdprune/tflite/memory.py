"""Peak activation memory: the bytes that a network holds at once while it runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import tensorflow as tf
import tf_keras as keras

from kdprune._graph import check_float_model, is_graph_model, walk
from kdprune.tflite.format import File, Graph, read_tflite

layers = keras.layers
Key = TypeVar("Key", bound=Hashable)

_BYTES = {"int8": 1, "uint8": 1, "int16": 2, "float32": 4}
# What a runtime folds into the layer before, or computes where its input lies.
_IN_PLACE = (
    *(layers.BatchNormalization, layers.Activation, layers.ReLU, layers.LeakyReLU),
    *(layers.Dropout, layers.SpatialDropout2D),
)
_VIEWS = (layers.Flatten, layers.Reshape)


def peak_activations(network: keras.Model | Graph | File, dtype: str = "int8") -> int:
    """Peak activation memory: the most bytes of activations held at once.

    Layers run one after another, each holding its inputs and its output. A tensor is
    held from the layer that makes it to the last that takes it, the network's inputs
    from the start and its outputs to the end. A reshaped tensor stays where it is; in
    a Keras model, normalization and activation right after a layer take its output's
    place. What kernels need for themselves, and gaps between tensors, come on top: a
    runtime's arena is not smaller.

    Args:
        network: A built Functional or Sequential model of known image size, or a
            `.tflite` file (its path, its content or what `read_tflite` returned).
        dtype: The type of a model's activations: "int8", "int16" or "float32". A file
            has its own.

    Returns:
        Bytes, for one image.

    Raises:
        ValueError: If a model's sizes are not known, it has no graph or is wrapped for
            training, the file is damaged, or `dtype` is another.
    """
    if isinstance(network, keras.Model):
        if dtype not in _BYTES:
            known = ", ".join(_BYTES)
            raise ValueError(f"dtype must be one of {known}. Received: {dtype!r}")
        return _of_model(network, _BYTES[dtype])
    return _of_graph(network if isinstance(network, Graph) else read_tflite(network))


@dataclass(frozen=True)
class Step(Generic[Key]):
    """One layer or operator: the activations that it takes and gives.

    Attributes:
        inputs: Activations it takes, without constants.
        outputs: What it gives.
        place: Where its output goes: "new" memory; the input's as "view" of it
            (a reshaped tensor); or the input's "in_place", if no other step takes it.
    """

    inputs: Sequence[Key]
    outputs: Sequence[Key]
    place: str = "new"


def _peak(
    steps: Sequence[Step[Key]],
    sizes: Mapping[Key, int],
    inputs: Iterable[Key],
    outputs: Iterable[Key],
) -> int:
    """The most bytes held at once by steps that run one after another."""
    outputs = list(outputs)
    uses = Counter(outputs)
    for step in steps:
        uses.update(step.inputs)
    holder: dict[Key, Key] = {}
    first = dict.fromkeys(inputs, 0)
    last = dict(first)
    for moment, step in enumerate(steps):
        for key in step.inputs:
            last[holder.get(key, key)] = moment
        for key in step.outputs:
            if step.place == "new":
                first[key] = last[key] = moment
                continue
            source = step.inputs[0]
            if step.place == "view" or uses[source] == 1:
                holder[key] = holder.get(source, source)
            else:
                first[key] = last[key] = moment
    end = max(len(steps) - 1, 0)
    for key in outputs:
        last[holder.get(key, key)] = end
    return max(
        sum(sizes[key] for key in first if first[key] <= moment <= last[key])
        for moment in range(end + 1)
    )


def _of_graph(graph: Graph) -> int:
    constant = {i for i, tensor in enumerate(graph.tensors) if tensor.data is not None}
    steps = []
    for op in graph.ops:
        taken = [i for i in dict.fromkeys(op.inputs) if i >= 0 and i not in constant]
        if not taken:  # Made of constants once and for all.
            constant.update(op.outputs)
            continue
        place = "view" if op.name == "RESHAPE" else "new"
        steps.append(Step(taken, op.outputs, place))
    sizes = {i: tensor.bytes for i, tensor in enumerate(graph.tensors)}
    outputs = [i for i in graph.outputs if i not in constant]
    return _peak(steps, sizes, graph.inputs, outputs)


def _of_model(model: keras.Model, bytes_per_value: int) -> int:
    check_float_model(model)
    sizes: list[int] = []
    steps: list[Step[int]] = []

    def new(symbolic) -> _Activation:
        shape = tuple(symbolic.shape)
        if None in shape[1:]:
            raise ValueError(
                f"the memory of {symbolic._keras_history.layer.name!r} depends on an "
                "image size that is not known; build the model for one, such as "
                "input_shape=(32, 32, 3)"
            )
        sizes.append(math.prod(shape[1:]) * bytes_per_value)
        return _Activation(len(sizes) - 1)

    def call(node, args, kwargs):
        flat = tf.nest.flatten((args, kwargs))
        inputs = [value for value in flat if isinstance(value, _Activation)]
        if is_graph_model(node.layer):
            return walk(node.layer, inputs, call)
        outputs = [new(symbolic) for symbolic in tf.nest.flatten(node.outputs)]
        kind = type(node.layer)
        place = "view" if kind in _VIEWS else "in_place" if kind in _IN_PLACE else "new"
        numbers = ([t.number for t in inputs], [t.number for t in outputs])
        steps.append(Step(*numbers, place))
        return outputs

    inputs = [new(symbolic) for symbolic in model.inputs]
    outputs = walk(model, inputs, call)
    ends = ([t.number for t in inputs], [t.number for t in outputs])
    return _peak(steps, dict(enumerate(sizes)), *ends)


@dataclass(frozen=True)
class _Activation:
    """Stands for a tensor while a model is walked."""

    number: int
