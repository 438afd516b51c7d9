"""Where a `.tflite` file's time goes: each operator timed by itself.

LiteRT's Python interpreter has no profiler, so each operator is cut out into a file
of its own and timed alone, on the same kernels, with the values it meets in the
whole. The time of a call that does next to nothing is taken off.

What this shows: which operators the time goes to, and how much of it goes to none.
What it does not show: what a delegate gains by running operators together (fused, or
without handing the values back), and what the caches lose: alone, an operator finds
its weights and its input where it left them. Both are in the remainder, which may be
negative for it. On a phone `benchmark_model` measures the operators in their places.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema

from kdprune.benchmark.latency import feed_random, summarize, time_in_turns
from kdprune.tflite.flatbuffer import pack_model, read_model
from kdprune.tflite.interpreter import RESOLVERS, open_interpreter, read_tflite
from kdprune.tflite.sizes import layers_by_output

METHOD = "Each operator alone in a file of its own, less the time of an empty call"
# Of each operator: a whole file's are many, and mostly short.
RUNS, SECONDS = 50, 0.1


@dataclass(frozen=True)
class CutOp:
    """An operator in a file of its own.

    Attributes:
        name: The operator, such as `CONV_2D`.
        layer: The Keras layer it came from, or the name of its first output.
        macs: Multiplications for one image; `None` without weights.
        content: A `.tflite` file of this operator alone, constants inside.
        inputs: Values of its other inputs in the whole, in the file's order.
        outputs: What the builtin kernels made of them in the whole.
    """

    name: str
    layer: str
    macs: int | None
    content: bytes
    inputs: list
    outputs: list


def profile_file(path, *, resolver="xnnpack", threads=1):
    """Measures each operator of a `.tflite` file, and the whole in turns with them.

    See the top of this module for what the method shows and what it does not.

    Args:
        path: A `.tflite` file.
        resolver: Kernels to run on, see `open_interpreter`.
        threads: Threads of the runtime.

    Returns:
        A dictionary: `file`, `resolver`, `threads`, `method`; medians in
        microseconds: `whole_us` of the file, `call_us` of a call that does next to
        nothing, `rest_us` what the operators leave of the whole (calls and
        hand-over); `ops`, a list of `op`, `layer`, `macs`, `us` (never below 0) and
        `share` of the whole, in the order of execution.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be run or cut.
    """
    whole = open_interpreter(path, resolver, threads)
    feed_random(whole)
    cuts = cut_ops(path)
    empty = open_cut(_empty_cut(), resolver, threads)
    parts = [open_cut(cut, resolver, threads) for cut in cuts]
    timings = time_in_turns(
        [interpreter.invoke for interpreter in (whole, empty, *parts)],
        runs=RUNS,
        warmup=5,
        seconds=SECONDS,
    )
    whole_us, call_us, *ops_us = (
        1000 * summarize(turns)["latency_ms_p50"] for turns in timings
    )
    ops_us = [max(us - call_us, 0.0) for us in ops_us]
    return {
        "file": str(path),
        "resolver": resolver,
        "threads": threads,
        "method": METHOD,
        "whole_us": whole_us,
        "call_us": call_us,
        "rest_us": whole_us - sum(ops_us),
        "ops": [
            {
                "op": cut.name,
                "layer": cut.layer,
                "macs": cut.macs,
                "us": us,
                "share": us / whole_us,
            }
            for cut, us in zip(cuts, ops_us, strict=True)
        ],
    }


def cut_ops(path):
    """Cuts a `.tflite` file into its operators.

    Operators on constants alone (weights kept in float16 and widened) run once, when
    a file is loaded: they have no file of their own, their results are constants.

    Args:
        path: A `.tflite` file with one input and one output.

    Returns:
        A list of `CutOp`, in the order of execution.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be run, or its operators cannot be told apart: it
            has several subgraphs, or keeps state from one call to the next.
    """
    graph = read_tflite(path)
    data = Path(path).read_bytes()
    model = read_model(data)
    main = model.subgraphs[0]
    stateful = any(tensor.isVariable for tensor in main.tensors)
    if len(model.subgraphs) > 1 or stateful:
        raise ValueError(
            f"{path}: a profile needs one graph without loops, branches or state. "
            f"Received: {len(model.subgraphs)} graph(s){', with state' * stateful}"
        )
    interpreter = open_interpreter(path, "builtin", keep_all=True)
    feed_random(interpreter)
    interpreter.invoke()
    layers = layers_by_output(graph)
    computed, cuts = set(graph.inputs), []
    for op, packed in zip(graph.ops, main.operators, strict=True):
        given = list(dict.fromkeys(i for i in op.inputs if i in computed))
        if not given:
            continue
        computed.update(op.outputs)
        values = {i: interpreter.get_tensor(i) for i in (*given, *op.outputs)}
        for i in set(op.inputs) - {-1, *given}:
            # Made of constants by an operator before, if the file does not hold it.
            held = _held(model, main.tensors[i], data)
            values[i] = interpreter.get_tensor(i) if held is None else held
        layer, macs = layers.get(op.outputs[0], (None, None))
        name = layer or _short_name(graph.tensors[op.outputs[0]].name)
        content = _pack_op(model, packed, values, given)
        outputs = [values[i] for i in op.outputs]
        cuts.append(
            CutOp(op.name, name, macs, content, [values[i] for i in given], outputs)
        )
    return cuts


def open_cut(cut, resolver="xnnpack", threads=1):
    """Opens a `CutOp` on the runtime with its inputs set, ready to `invoke()`.

    Raises:
        ValueError: If the kernels cannot run it.
    """
    try:
        interpreter = litert.Interpreter(
            model_content=cut.content,
            num_threads=threads,
            experimental_op_resolver_type=RESOLVERS[resolver],
        )
        interpreter.allocate_tensors()
        for detail, values in zip(
            interpreter.get_input_details(), cut.inputs, strict=True
        ):
            interpreter.set_tensor(detail["index"], values)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{cut.name} ({cut.layer}) cannot run by itself on the kernels "
            f"{resolver!r}, so that there is no profile: {str(error)[:200]}"
        ) from error
    return interpreter


def _held(model, tensor, data):
    """The bytes that the file holds of a tensor, or `None`."""
    buffer = model.buffers[tensor.buffer]
    if buffer.offset > 1:  # after the flatbuffer: large models
        return np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
    return buffer.data if buffer.data is not None and len(buffer.data) else None


def _pack_op(model, op, values, given):
    """Writes a file of one operator: its tensors, and the constants among them."""
    main = model.subgraphs[0]
    tensors, buffers, places = [], [schema.BufferT()], {-1: -1}
    for index in dict.fromkeys((*op.inputs, *op.outputs)):
        if index == -1:
            continue
        tensor = copy.copy(main.tensors[index])
        tensor.buffer = 0
        if index in given or index in op.outputs:
            # As they are in the whole, where the file leaves sizes open.
            tensor.shape, tensor.shapeSignature = list(values[index].shape), None
        else:
            tensor.buffer = len(buffers)
            buffers.append(schema.BufferT(np.ravel(values[index]).view(np.uint8)))
        places[index] = len(tensors)
        tensors.append(tensor)
    alone = copy.copy(op)
    alone.opcodeIndex = 0
    alone.inputs = [places[i] for i in op.inputs]
    alone.outputs = [places[i] for i in op.outputs]
    graph = schema.SubGraphT(
        tensors=tensors,
        inputs=[places[i] for i in given],
        outputs=alone.outputs,
        operators=[alone],
    )
    return _pack(graph, model.operatorCodes[op.opcodeIndex], buffers)


def _pack(graph, code, buffers):
    model = schema.ModelT(
        version=3, operatorCodes=[code], subgraphs=[graph], buffers=buffers
    )
    return pack_model(model)


def _empty_cut():
    """The least that runs on all kernels: what a call costs without any work."""
    relu = schema.BuiltinOperator.RELU
    tensors = [
        schema.TensorT(shape=[1], type=schema.TensorType.FLOAT32, name=name)
        for name in ("x", "y")
    ]
    op = schema.OperatorT(inputs=[0], outputs=[1])
    graph = schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[1], operators=[op])
    code = schema.OperatorCodeT(builtinCode=relu, deprecatedBuiltinCode=relu, version=1)
    content = _pack(graph, code, [schema.BufferT()])
    one = np.ones(1, np.float32)
    return CutOp("RELU", "empty", None, content, [one], [one])


def _short_name(tensor):
    """Takes the layer from an output's name: `net/quant_add/add;...` -> `add`."""
    parts = tensor.split(";")[0].split("/")
    return parts[-2].removeprefix("quant_") if len(parts) > 1 else parts[0]
