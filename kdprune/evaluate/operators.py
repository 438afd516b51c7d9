"""Each operator of an int8 file alone, beside its quantization-aware model.

A file may stray from its fake-quantized model because an operator computes something
else, or because roundings that fall the other way grow from layer to layer. Here every
operator is given the very integers that the fake-quantized model has at its place, so
that what is left is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import NDArray

from kdprune._graph import nodes
from kdprune.tflite.format import Cut, Graph, Tensor, extract_ops, read_graphs
from kdprune.tflite.interpreter import open_content, open_interpreter
from kdprune.tflite.names import short_name

# Of a step: how far fake-quantized values may be from whole ones, by float rounding.
_ON_STEPS = 0.02


def compare_operators(
    content: bytes,
    aware: keras.Model,
    images: NDArray[np.uint8],
    resolver: str = "builtin",
) -> list[dict[str, Any]]:
    """Measures how far each operator is from the model, given the model's integers.

    The model's tensor at an operator's output is the nearest one that is rounded to the
    same steps. Where the model rounds nothing (an operator inside of what is one
    layer), the next operators are taken together with it.

    Args:
        content: An int8 file.
        aware: The quantization-aware model that it was made from.
        images: uint8, shape `(n, height, width, channels)`; n > 0, a few will do.
        resolver: The kernels that run the operators, see `open_interpreter`.

    Returns:
        A dict for each tensor that the file and the model share, in the order of
        execution: `op`, `layer`; `operators`, how many were taken together; in steps of
        the tensor, `most_steps`, the largest difference, and `whole_steps`, the largest
        in the whole file, where differences have grown; `share` of values that differ,
        and `beyond_one`, of those by more than one step.

    Raises:
        ValueError: If the file cannot be run.
    """
    graph = read_graphs(content)[0]
    whole, constants = _run_whole(content, graph, images)
    model = _tensors_of(aware, images)
    one = constants | {index: values[0] for index, values in whole.items()}
    cuts = [
        Cut(number, [i for i in dict.fromkeys(op.inputs) if i in whole], one)
        for number, op in enumerate(graph.ops)
        if any(i in whole for i in op.inputs)
    ]
    values = {i: whole[i] for i in graph.inputs}
    together = dict.fromkeys(graph.inputs, 0)
    rows = []
    for cut, alone in zip(cuts, extract_ops(content, cuts), strict=True):
        op = graph.ops[cut.number]
        (index,) = op.outputs
        made = _run_alone(alone, [values[i] for i in cut.inputs], resolver)
        count = 1 + max(together[i] for i in cut.inputs)
        expected = _expected(graph.tensors[index], whole[index], model)
        values[index], together[index] = made, count
        if expected is None:
            continue
        values[index], together[index] = expected, 0
        apart = np.abs(made.astype(int) - expected)
        grown = np.abs(whole[index].astype(int) - expected)
        rows.append(
            {
                "op": op.name,
                "layer": short_name(graph.tensors[index].name),
                "operators": count,
                "most_steps": int(apart.max()),
                "whole_steps": int(grown.max()),
                "share": float((apart > 0).mean()),
                "beyond_one": float((apart > 1).mean()),
            }
        )
    return rows


def _run_whole(
    content: bytes, graph: Graph, images: NDArray
) -> tuple[dict[int, NDArray], dict[int, NDArray]]:
    """What every operator computes in the whole, `(n, ...)`; constants made by some."""
    interpreter = open_interpreter(content, "builtin", keep_all=True)
    computed = set(graph.inputs)
    for op in graph.ops:
        if any(i in computed for i in op.inputs):
            computed.update(op.outputs)
    found: dict[int, list[NDArray]] = {index: [] for index in computed}
    (source,) = graph.inputs
    for image in images:
        interpreter.set_tensor(source, (image.astype(int) - 128).astype(np.int8)[None])
        interpreter.invoke()
        for index, values in found.items():
            values.append(interpreter.get_tensor(index).copy())
    needed = {i for op in graph.ops for i in op.inputs if i >= 0} - computed
    constants = {
        i: interpreter.get_tensor(i) for i in needed if graph.tensors[i].data is None
    }
    return {index: np.stack(values) for index, values in found.items()}, constants


def _tensors_of(aware: keras.Model, images: NDArray) -> list[NDArray]:
    """All that the fake-quantized model computes, arrays `(n, values)`."""
    outputs = [one for node in nodes(aware) for one in tf.nest.flatten(node.outputs)]
    pixels = images.astype(np.float32) / np.float32(255)
    made = keras.Model(aware.inputs, outputs).predict(pixels, verbose=0)
    return [np.reshape(one, (len(images), -1)) for one in made]


def _run_alone(content: bytes, inputs: Sequence[NDArray], resolver: str) -> NDArray:
    interpreter = open_content(content, resolver)
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()
    (output,) = interpreter.get_output_details()
    made = []
    for given in zip(*inputs, strict=True):
        for detail, values in zip(details, given, strict=True):
            interpreter.set_tensor(detail["index"], values)
        interpreter.invoke()
        made.append(interpreter.get_tensor(output["index"]).copy())
    return np.stack(made)


def _expected(tensor: Tensor, whole: NDArray, model: list[NDArray]) -> NDArray | None:
    """The integers that the model has where the file has this tensor; None if none."""
    if tensor.dtype != "int8" or len(tensor.scale) != 1:
        return None
    step, zero_point = float(tensor.scale[0]), int(tensor.zero_point[0])
    flat = whole.reshape(len(whole), -1).astype(int)
    found = [one / step + zero_point for one in model if one.shape == flat.shape]
    distances = [float(np.abs(steps - flat).mean()) for steps in found]
    for number in np.argsort(distances):
        steps = found[number]
        # Another tensor may be rounded to these steps where this one is not.
        if distances[number] > min(distances) + 0.5:
            break
        if np.abs(steps - np.rint(steps)).max() < _ON_STEPS:
            whole_steps = np.rint(steps).clip(-128, 127)
            return whole_steps.astype(np.int8).reshape(whole.shape)
    return None
