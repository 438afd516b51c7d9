"""What a `.tflite` file is made of: operators, their types, who runs them, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from kdprune.tflite.coverage import gpu_runs, micro_runs
from kdprune.tflite.format import File, Graph, Op, prefix, read_graphs
from kdprune.tflite.memory import peak_activations
from kdprune.tflite.names import layers_of

CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
_HEADS = {"SOFTMAX": "softmax", "LOGISTIC": "sigmoid"}


def inspect_tflite(data: File) -> dict[str, Any]:
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
        `peak_activation_bytes`: peak activation memory, see `peak_activations`;
        `head`: what makes its scores, "softmax", "sigmoid", or "" where neither does;
        `input` and `output`: each `dtype`, `shape`, `scale`, `zero_point`; the last
        two None where not quantized.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a `.tflite` file of one input and one output, or is
            damaged.
    """
    graphs = read_graphs(data)
    main = graphs[0]
    if len(main.inputs) != 1 or len(main.outputs) != 1:
        raise ValueError(
            f"{prefix(data)}expected a .tflite file with one input and one output. "
            f"Received: {len(main.inputs)} and {len(main.outputs)}"
        )
    ops: Counter[str] = Counter()
    operators: dict[tuple[str, str], dict[str, Any]] = {}
    float_ops = []
    for graph in graphs:
        for op in graph.ops:
            kind = type_of(graph, op)
            ops[op.name] += 1
            row = operators.setdefault((op.name, kind), _row(op.name, kind))
            row["count"] += 1
            if computes_on_floats(graph, op):
                name = graph.tensors[op.outputs[0]].name if op.outputs else ""
                layer = next(iter(layers_of(name)), None)
                float_ops.append({"op": op.name, "tensor": name, "layer": layer})
    return {
        "ops": dict(ops),
        "float_ops": float_ops,
        "operators": list(operators.values()),
        "peak_activation_bytes": peak_activations(main),
        "head": head_of_file(main),
        "input": main.describe(main.inputs[0]),
        "output": main.describe(main.outputs[0]),
    }


def head_of_file(graph: Graph) -> str:
    """What makes a file's scores: "softmax", "sigmoid", or "" where neither does.

    What only copies, reshapes or converts them behind it is passed.
    """
    made_by = {index: op for op in graph.ops for index in op.outputs}
    op = made_by.get(graph.outputs[0])
    while op is not None and op.name in (*CONVERSIONS, "RESHAPE", "SQUEEZE"):
        op = made_by.get(op.inputs[0])
    return _HEADS.get(op.name, "") if op is not None else ""


def input_bounds(data: File) -> tuple[float, float]:
    """What black and white are to a file with an 8-bit input: byte 0 and byte 255.

    Args:
        data: The file's content, or its path.

    Returns:
        `(low, high)`; (0, 1) of a file whose input is another, as kdprune makes it.

    Raises:
        ValueError: If it is not a `.tflite` file of one input and one output.
    """
    found = inspect_tflite(data)["input"]
    lowest = {"int8": -128, "uint8": 0}.get(found["dtype"])
    if lowest is None or found["scale"] is None:
        return 0.0, 1.0
    black = (lowest - found["zero_point"]) * found["scale"]
    return black, black + 255 * found["scale"]


def computes_on_floats(graph: Graph, op: Op) -> bool:
    """Whether an operator takes, holds or gives floats; conversions do, too."""
    return any(graph.tensors[i].is_float for i in (*op.inputs, *op.outputs) if i >= 0)


def float_layers_of(
    figures: dict[str, Any], asked: Collection[str]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Sorts a file's float operators into those asked for and those that are not.

    Conversions count to what they stand around.

    Args:
        figures: What `inspect_tflite` returned.
        asked: Names of the layers that the conversion was to leave in float. Of a
            quantization-aware model's, the file has "quant_" in front.

    Returns:
        The layers of `asked` that are in float, and the operators of other layers.
        A layer that has no number of its own to compute, such as a pooling layer,
        stays in integers whatever was asked.
    """
    kept: list[str] = []
    others = []
    for row in figures["float_ops"]:
        if row["op"] in CONVERSIONS:
            continue
        names = layers_of(row["tensor"])
        named = [name for name in names if name in asked] or [
            name.removeprefix("quant_")
            for name in names
            if name.removeprefix("quant_") in asked
        ]
        kept += named
        if not named:
            others.append(row)
    if not kept and not others:
        others = figures["float_ops"]  # Conversions with nothing between them.
    return list(dict.fromkeys(kept)), others


def _row(op: str, kind: str) -> dict[str, Any]:
    known = {"gpu": gpu_runs(op, kind), "micro": micro_runs(op, kind)}
    return {"op": op, "type": kind, "count": 0, **known}


def type_of(graph: Graph, op: Op) -> str:
    """Type of what it takes, of the output and of the weights, where they differ."""
    inputs = [graph.tensors[i] for i in op.inputs if i >= 0]
    outputs = [graph.tensors[i] for i in op.outputs if i >= 0]
    if not inputs or not outputs:  # It reads or writes a variable.
        return next((tensor.dtype for tensor in (*inputs, *outputs)), "none")
    # The first input of some is a constant, such as a shape or an axis.
    taken = next((tensor for tensor in inputs if tensor.data is None), inputs[0])
    kind = taken.dtype
    if outputs[0].dtype != taken.dtype:
        kind += f" to {outputs[0].dtype}"
    # The second constant of other operators is a shape or an axis.
    weighted = len(inputs) > 1 and ("CONV" in op.name or op.name == "FULLY_CONNECTED")
    if weighted and inputs[1].dtype != taken.dtype:
        kind += f", {inputs[1].dtype} weights"
    return kind
