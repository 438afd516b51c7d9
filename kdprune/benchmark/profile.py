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

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdprune._io import first_line
from kdprune.benchmark.latency import summarize, time_interleaved
from kdprune.tflite.format import (
    Cut,
    File,
    extract_ops,
    one_relu,
    prefix,
    read_graphs,
)
from kdprune.tflite.interpreter import (
    Interpreter,
    feed_random,
    open_content,
    open_interpreter,
)
from kdprune.tflite.names import short_name
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
    inputs: list[NDArray]
    outputs: list[NDArray]


def profile_file(
    path: File, *, resolver: str = "xnnpack", threads: int = 1
) -> dict[str, Any]:
    """Measures each operator of a `.tflite` file, interleaved with the whole.

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
    timings = time_interleaved(
        [interpreter.invoke for interpreter in (whole, empty, *parts)],
        runs=RUNS,
        warmup=5,
        seconds=SECONDS,
    )
    whole_us, call_us, *ops_us = (
        1000 * summarize(rounds)["latency_ms_p50"] for rounds in timings
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


def cut_ops(path: File) -> list[CutOp]:
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
    graphs = read_graphs(path)
    graph = graphs[0]
    stateful = any(tensor.variable for tensor in graph.tensors)
    if len(graphs) > 1 or stateful:
        raise ValueError(
            f"{prefix(path)}a profile needs one graph without loops, branches or "
            f"state. Received: {len(graphs)} graph(s){', with state' * stateful}"
        )
    interpreter = open_interpreter(path, "builtin", keep_all=True)
    feed_random(interpreter)
    interpreter.invoke()
    computed, cuts = set(graph.inputs), []
    for number, op in enumerate(graph.ops):
        given = list(dict.fromkeys(i for i in op.inputs if i in computed))
        if not given:
            continue
        computed.update(op.outputs)
        # Constants that the file does not hold were made by an operator before.
        needed = [i for i in op.inputs if i >= 0 and graph.tensors[i].data is None]
        values = {i: interpreter.get_tensor(i) for i in (*needed, *op.outputs)}
        cuts.append(Cut(number, given, values))
    layers = layers_by_output(graph)
    found = []
    for cut, content in zip(cuts, extract_ops(path, cuts), strict=True):
        op = graph.ops[cut.number]
        layer, macs = layers.get(op.outputs[0], (None, None))
        found.append(
            CutOp(
                name=op.name,
                layer=layer or short_name(graph.tensors[op.outputs[0]].name),
                macs=macs,
                content=content,
                inputs=[cut.values[i] for i in cut.inputs],
                outputs=[cut.values[i] for i in op.outputs],
            )
        )
    return found


def open_cut(cut: CutOp, resolver: str = "xnnpack", threads: int = 1) -> Interpreter:
    """Opens a `CutOp` on the runtime with its inputs set, ready to `invoke()`.

    Raises:
        ValueError: If the kernels cannot run it.
    """
    try:
        interpreter = open_content(cut.content, resolver, threads)
        interpreter.allocate_tensors()
        for detail, values in zip(
            interpreter.get_input_details(), cut.inputs, strict=True
        ):
            interpreter.set_tensor(detail["index"], values)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{cut.name} ({cut.layer}) cannot run by itself on the kernels "
            f"{resolver!r}, so that there is no profile: {first_line(error)}"
        ) from error
    return interpreter


def _empty_cut() -> CutOp:
    """The least that runs on all kernels: what a call costs without any work."""
    one = np.ones(1, np.float32)
    return CutOp("RELU", "empty", None, one_relu(), [one], [one])
