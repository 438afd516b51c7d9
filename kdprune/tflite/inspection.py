"""What a `.tflite` file is made of: operators, their types, who runs them, memory."""

import math
import os
import pathlib

from ai_edge_litert import schema_py_generated as schema

from kdprune.tflite.calibration import layers_of
from kdprune.tflite.coverage import gpu_runs, micro_runs
from kdprune.tflite.flatbuffer import IDENTIFIER, read_model

_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
_BITS = {"INT4": 4, "INT64": 64, "FLOAT64": 64, "INT16": 16, "FLOAT16": 16}
_BITS |= {"INT8": 8, "UINT8": 8, "BOOL": 8}  # All others: 32.


def _names(enum):
    return {value: name for name, value in vars(enum).items() if name.isupper()}


_TYPES = _names(schema.TensorType)
_OPS = _names(schema.BuiltinOperator)


def inspect_tflite(data):
    """Reads from a file how it computes and what it takes and returns.

    Args:
        data: The file's content, or its path.

    Returns:
        A JSON-able dict:
        `ops`: name to count;
        `float_ops`: those that take, hold or give floats, a list of `op`, `tensor`
        (the name of its output) and `layer` (the Keras layer it came from, or None);
        `operators`: one row for all operators of one name and one type, in the
        order of execution: `op`, `type` (such as "int8", "int8 to float32",
        "float32, int8 weights"), `count`, `gpu` and `micro` (whether the GPU
        delegate and TFLite Micro run it, see `kdprune.tflite.coverage`);
        `peak_activation_bytes`: see `peak_activations`;
        `input` and `output`: each `dtype`, `shape`, `scale`, `zero_point`; the last
        two None where not quantized.

    Raises:
        ValueError: If it is not a `.tflite` file of one input and one output.
    """
    if isinstance(data, str | os.PathLike):
        data = pathlib.Path(data).read_bytes()
    if bytes(data[4:8]) != IDENTIFIER:
        raise ValueError(
            "expected a .tflite file (identifier TFL3 at byte 4). "
            f"Received: {bytes(data[:8])!r}"
        )
    model = read_model(data)
    main = model.subgraphs[0]
    if len(main.inputs) != 1 or len(main.outputs) != 1:
        raise ValueError(
            "expected a .tflite file with one input and one output. "
            f"Received: {len(main.inputs)} and {len(main.outputs)}"
        )
    ops, float_ops, operators = {}, [], {}
    for graph in model.subgraphs:
        for operator in graph.operators or []:
            op, kind = _op_name(model, operator), _kind(model, graph, operator)
            ops[op] = ops.get(op, 0) + 1
            row = operators.setdefault((op, kind), _row(op, kind))
            row["count"] += 1
            tensors = [graph.tensors[i] for i in _indices(operator)]
            if any("FLOAT" in _TYPES[tensor.type] for tensor in tensors):
                name = graph.tensors[operator.outputs[0]].name.decode()
                layer = next(iter(layers_of(name)), None)
                float_ops.append({"op": op, "tensor": name, "layer": layer})
    return {
        "ops": ops,
        "float_ops": float_ops,
        "operators": list(operators.values()),
        "peak_activation_bytes": peak_activations(model),
        "input": _describe(main.tensors[main.inputs[0]]),
        "output": _describe(main.tensors[main.outputs[0]]),
    }


def float_layers_of(figures, asked):
    """Sorts a file's float operators into those asked for and those that are not.

    Conversions count to what they stand around.

    Args:
        figures: What `inspect_tflite` returned.
        asked: Names of the layers that the conversion was to leave in float.

    Returns:
        The layers of `asked` that are in float, and the operators of other layers.
        A layer that has no number of its own to compute, such as a pooling layer,
        stays in integers whatever was asked.
    """
    kept, others = [], []
    for row in figures["float_ops"]:
        named = [layer for layer in layers_of(row["tensor"]) if layer in asked]
        if named and row["op"] not in _CONVERSIONS:
            kept += named
        elif row["op"] not in _CONVERSIONS:
            others.append(row)
    if not kept and not others:
        others = figures["float_ops"]  # Conversions with nothing between them.
    return list(dict.fromkeys(kept)), others


def peak_activations(model):
    """The most bytes of activations that are needed at once: no arena is smaller.

    Operators run in the file's order; a tensor is held from the operator that makes
    it to the last that takes it, the input from the start and the output to the end.
    A reshaped tensor stays where it is. What kernels need for themselves, and gaps
    between tensors, come on top.

    Args:
        model: The file's tree, a `ModelT`; only its main graph counts.

    Returns:
        Bytes, for one image.
    """
    graph = model.subgraphs[0]
    constant = {i for i, t in enumerate(graph.tensors) if _is_constant(model, t)}
    place, first, last = {}, {}, {}
    for index in graph.inputs:
        first[index] = last[index] = 0
    for moment, operator in enumerate(graph.operators):
        taken = {int(i) for i in _list(operator.inputs)} - constant - {-1}
        for index in taken:
            last[place.get(index, index)] = moment
        for index in map(int, operator.outputs):
            if not taken:  # Made of constants once and for all.
                constant.add(index)
            elif _op_name(model, operator) == "RESHAPE":
                place[index] = place.get(min(taken), min(taken))
            else:
                first[index] = last[index] = moment
    for index in graph.outputs:
        last[place.get(index, index)] = len(graph.operators) - 1
    sizes = {index: _bytes(graph.tensors[index]) for index in first}
    return max(
        sum(sizes[i] for i in first if first[i] <= moment <= last[i])
        for moment in range(len(graph.operators))
    )


def _row(op, kind):
    known = {"gpu": gpu_runs(op, kind), "micro": micro_runs(op, kind)}
    return {"op": op, "type": kind, "count": 0, **known}


def _op_name(model, operator):
    code = model.operatorCodes[operator.opcodeIndex]
    # Files from before the 128th op have the code in the older field alone.
    return _OPS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def _kind(model, graph, operator):
    """Type of what it takes, of the output and of the weights, where they differ."""
    inputs = [graph.tensors[i] for i in _list(operator.inputs) if i >= 0]
    # The first input of some is a constant, such as a shape or an axis.
    taken = next((t for t in inputs if not _is_constant(model, t)), inputs[0])
    given = graph.tensors[operator.outputs[0]]
    kind = _TYPES[taken.type].lower()
    if given.type != taken.type:
        kind += f" to {_TYPES[given.type].lower()}"
    # The second constant of other operators is a shape or an axis.
    if "CONV" in (op := _op_name(model, operator)) or op == "FULLY_CONNECTED":
        weights = inputs[1]
        if weights.type != taken.type:
            kind += f", {_TYPES[weights.type].lower()} weights"
    return kind


def _indices(operator):
    ends = (_list(operator.inputs), _list(operator.outputs))
    return [index for end in ends for index in end if index >= 0]


def _list(indices):
    return [] if indices is None else indices


def _is_constant(model, tensor):
    buffer = model.buffers[tensor.buffer]
    return buffer.data is not None or buffer.offset > 1


def _bytes(tensor):
    return math.prod(map(int, tensor.shape)) * _BITS.get(_TYPES[tensor.type], 32) // 8


def _describe(tensor):
    quantization = tensor.quantization
    scales = [] if quantization is None else quantization.scale
    quantized = scales is not None and len(scales) == 1
    return {
        "dtype": _TYPES[tensor.type].lower(),
        "shape": [int(size) for size in tensor.shape],
        "scale": float(scales[0]) if quantized else None,
        "zero_point": int(quantization.zeroPoint[0]) if quantized else None,
    }
