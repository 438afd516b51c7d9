"""What a model file holds: bytes, parameters, zeros, multiplications, operators."""

from __future__ import annotations

import gzip
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import tf_keras as keras
from numpy.typing import NDArray

from kdprune._graph import check_graph_model, named_layers
from kdprune.models import load_model
from kdprune.models.counts import (
    count_macs,
    count_parameters,
    model_weights,
)
from kdprune.models.kernels import layer_sparsity
from kdprune.models.saved_model import is_saved_model, load_saved_model
from kdprune.tflite.format import Graph, Op, Tensor, read_tflite
from kdprune.tflite.inspection import CONVERSIONS, computes_on_floats
from kdprune.tflite.names import layer_of_weights

# Where an operator keeps its weights and its bias among its inputs.
_WEIGHTED = {
    "CONV_2D": (1, 2),
    "DEPTHWISE_CONV_2D": (1, 2),
    "FULLY_CONNECTED": (1, 2),
    "TRANSPOSE_CONV": (1, 3),
}
# The layer's name, the operator, its weights and its bias.
_Weighted = tuple[str, Op, Tensor, Tensor | None]


def describe_file(file: str | os.PathLike | keras.Model) -> dict[str, Any]:
    """Describes a model file from its content, without running it.

    Args:
        file: The path of a `.tflite`, `.keras` or `.h5` file; or a Keras model, which
            is described as its file would be, without sizes in bytes.

    Returns:
        A dictionary of plain Python values:
        `format`: `"tflite"`, `"keras"` or `"h5"`.
        `bytes`, `bytes_gzip`: size of the file, and of it compressed (level 9); None
        of a model that is not a file.
        `parameters`: weights and biases. In a `.tflite` those of convolutions
        and dense layers, batch normalization folded in; in a Keras file all, as
        Keras counts them, so that the two differ by the normalization's share.
        `nonzero_parameters`: those that are not zero; an integer weight is zero
        when it equals its zero point.
        `macs`: multiplications for one image, as `count_macs` counts them.
        `sparsity_by_layer`: share of zeros among each layer's weights, biases
        apart. Layers carry their Keras name where the file still tells it.
        `input`, `output`: each `{"dtype", "shape", "scale", "zero_point"}`;
        scale and zero point are `None` for floats.
        `ops`: count of each operator (each layer class in a Keras file).
        `float_ops`: those that compute on floats. Empty in a fully quantized
        file; conversions at its edges are not counted.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a model or is damaged.
    """
    if not isinstance(file, str | os.PathLike):
        sizes = dict.fromkeys(("bytes", "bytes_gzip"))
        return {"format": "keras", **sizes, **_describe_keras(file)}
    path = Path(file)
    if is_saved_model(path):
        return {"format": "saved_model", **_describe_folder(path)}
    if path.suffix == ".tflite":
        description = _describe_tflite(path)
    else:
        description = _describe_keras(load_model(path))
    return {"format": path.suffix.lstrip("."), **file_sizes(path), **description}


def file_sizes(path: str | os.PathLike) -> dict[str, int]:
    """A file's `bytes`, and its `bytes_gzip`, compressed at level 9."""
    content = Path(path).read_bytes()
    return {
        "bytes": len(content),
        "bytes_gzip": len(gzip.compress(content, 9, mtime=0)),
    }


def _describe_folder(path: Path) -> dict[str, Any]:
    """A SavedModel: its files' bytes and its variables; it has no layers to count."""
    contents = [one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()]
    model = load_saved_model(path)
    values = [np.asarray(weight) for weight in model.weights]
    return {
        "bytes": sum(map(len, contents)),
        "bytes_gzip": sum(len(gzip.compress(one, 9, mtime=0)) for one in contents),
        "parameters": sum(value.size for value in values),
        "nonzero_parameters": sum(int(np.count_nonzero(v)) for v in values),
        "macs": None,
        "sparsity_by_layer": {},
        "input": _keras_port(model.inputs),
        "output": _keras_port(model.outputs),
        "ops": {},
        "float_ops": {},
    }


def layers_by_output(graph: Graph) -> dict[int, tuple[str, int]]:
    """Names the layers of a `.tflite` graph by the tensors that they compute.

    Args:
        graph: What `read_tflite` returns.

    Returns:
        For each operator that has weights, by the index of its output: the Keras
        layer's name, where the file still tells it, and its multiplications for
        one image.
    """
    return {
        op.outputs[0]: (name, _macs(graph, op, weights))
        for name, op, weights, _ in _weighted_layers(graph)
    }


def _describe_tflite(path: Path) -> dict[str, Any]:
    graph = read_tflite(path)
    layers = _weighted_layers(graph)
    constants = _distinct_constants(layers)
    return {
        "parameters": sum(math.prod(t.shape) for t in constants),
        "nonzero_parameters": sum(_count_nonzero(t) for t in constants),
        "macs": sum(_macs(graph, op, weights) for _, op, weights, _ in layers),
        "sparsity_by_layer": {
            name: _share_of_zeros(weights) for name, _, weights, _ in layers
        },
        "input": _only(graph, graph.inputs),
        "output": _only(graph, graph.outputs),
        "ops": dict(Counter(op.name for op in graph.ops)),
        "float_ops": _float_ops(graph),
    }


def _weighted_layers(graph: Graph) -> list[_Weighted]:
    """Lists `(name, op, weights, bias)` of every operator that has weights."""
    made_by = {i: op for op in graph.ops for i in op.outputs}

    def constant(op: Op, place: int) -> Tensor | None:
        index = op.inputs[place] if place < len(op.inputs) else -1
        producer = made_by.get(index)
        if producer is not None and producer.name == "DEQUANTIZE":
            index = producer.inputs[0]  # float16 weights are stored and widened
        tensor = graph.tensors[index] if index >= 0 else None
        return tensor if tensor is not None and tensor.data is not None else None

    layers: list[_Weighted] = []
    names: Counter[str] = Counter()
    for op in graph.ops:
        places = _WEIGHTED.get(op.name)
        weights = constant(op, places[0]) if places else None
        # No weights, or weights computed on the way.
        if weights is None or places is None:
            continue
        name = layer_of_weights(weights.name) or op.name.lower()
        names[name] += 1
        unique = name if names[name] == 1 else f"{name}#{names[name]}"
        layers.append((unique, op, weights, constant(op, places[1])))
    return layers


def _distinct_constants(layers: list[_Weighted]) -> list[Tensor]:
    """Weights and biases, those of a layer used twice once.

    Converters merge equal biases of different layers (all zero, say) into one
    tensor, so that a bias counts once for each weight tensor it goes with.
    """
    distinct: dict[Any, Tensor] = {}
    for _, _, weights, bias in layers:
        distinct[id(weights)] = weights
        if bias is not None:
            distinct[id(weights), id(bias)] = bias
    return list(distinct.values())


def _count_nonzero(tensor: Tensor) -> int:
    values, zero = cast(NDArray, tensor.data), tensor.zero_point
    if tensor.dtype.startswith("float") or not zero.any():
        return int(np.count_nonzero(values))
    if len(zero) > 1:
        shape = [1] * values.ndim
        shape[tensor.axis] = -1
        zero = zero.reshape(shape)
    return int(np.count_nonzero(values != zero))


def _share_of_zeros(tensor: Tensor) -> float:
    size = math.prod(tensor.shape)
    return (size - _count_nonzero(tensor)) / size


def _macs(graph: Graph, op: Op, weights: Tensor) -> int:
    """Kernel size times the positions it is applied at, for one image."""
    place = 2 if op.name == "TRANSPOSE_CONV" else None
    index = op.outputs[0] if place is None else op.inputs[place]
    shape = graph.tensors[index].shape
    batch = graph.tensors[graph.inputs[0]].shape[0] if graph.inputs else 1
    return math.prod(weights.shape) * math.prod(shape[:-1]) // max(batch, 1)


def _only(graph: Graph, indices: tuple[int, ...]) -> dict[str, Any] | None:
    return graph.describe(indices[0]) if len(indices) == 1 else None


def _float_ops(graph: Graph) -> dict[str, int]:
    return dict(
        Counter(
            op.name
            for op in graph.ops
            if op.name not in CONVERSIONS and computes_on_floats(graph, op)
        )
    )


def _describe_keras(model: keras.Model) -> dict[str, Any]:
    check_graph_model(model)
    values = [np.asarray(weight) for weight in model_weights(model)]
    return {
        "parameters": count_parameters(model),
        "nonzero_parameters": sum(int(np.count_nonzero(v)) for v in values),
        "macs": count_macs(model),
        "sparsity_by_layer": layer_sparsity(model),
        "input": _keras_port(model.inputs),
        "output": _keras_port(model.outputs),
        "ops": dict(Counter(type(layer).__name__ for _, layer in named_layers(model))),
        "float_ops": {},
    }


def _keras_port(tensors: list[Any]) -> dict[str, Any] | None:
    if len(tensors) != 1:
        return None
    shape = [1 if size is None else size for size in tensors[0].shape]
    dtype = tensors[0].dtype.name
    return {"dtype": dtype, "shape": shape, "scale": None, "zero_point": None}
