"""The LiteRT runtime: files opened on it, kernels by name."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert.interpreter import Interpreter

from kdprune._io import first_line
from kdprune.tflite import trial
from kdprune.tflite.format import File, parse_graphs, prefix, read_content

# Kernels: the default on devices, optimized ones without a delegate, plain loops.
RESOLVERS = {
    "xnnpack": litert.OpResolverType.AUTO,
    "builtin": litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": litert.OpResolverType.BUILTIN_REF,
}


def open_interpreter(
    file: File, resolver: str = "xnnpack", threads: int = 1, keep_all: bool = False
) -> Interpreter:
    """Opens a `.tflite` file on the LiteRT runtime, ready to `invoke()`.

    Args:
        file: The file's path or content; it is read and checked as by `read_tflite`.
        resolver: Which kernels: `"xnnpack"` (the default on devices),
            `"builtin"` (optimized, no delegate) or `"reference"` (plain loops).
        threads: Number of threads, at least 1.
        keep_all: Whether `get_tensor` gives what every operator computed, not the
            outputs alone. Delegates keep theirs to themselves.

    Returns:
        An allocated interpreter for one image at a time. The file has scored one in
        another process before, so that a file that ends its process is told.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be run as an image classifier, or an
            argument is not valid.
    """
    if resolver not in RESOLVERS:
        raise ValueError(
            f"resolver must be one of {', '.join(RESOLVERS)}. Received: {resolver!r}"
        )
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be an integer >= 1. Received: {threads!r}")
    content, start = read_content(file), prefix(file)
    graph = parse_graphs(content, start)[0]  # Before C++ sees what may be damaged.
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            f"{start}an image classifier has one input and one output. "
            f"Received: {len(graph.inputs)} and {len(graph.outputs)}"
        )
    try_out(content, start, resolver, threads)
    try:
        interpreter = open_content(content, resolver, threads, keep_all)
        source = interpreter.get_input_details()[0]
        if len(source["shape"]) and source["shape"][0] != 1:
            one_image = [1, *source["shape"][1:]]
            interpreter.resize_tensor_input(source["index"], one_image)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{start}the runtime ({resolver}) cannot run it: {first_line(error)}"
        ) from error
    return interpreter


def try_out(
    content: bytes,
    start: str = "",
    resolver: str = "xnnpack",
    threads: int = 1,
    one_image: bool = True,
) -> None:
    """Has another process run a file once, before this one trusts it.

    Args:
        content: The file's content.
        start: How an error is to begin.
        resolver: As for `open_interpreter`.
        threads: As there.
        one_image: Whether it is to take one image, whatever the file says.

    Raises:
        ValueError: If the runtime can't, or ends its process.
    """
    kernels = RESOLVERS[resolver].value
    fault = trial.fault(content, kernels, threads, one_image)
    if fault is not None:
        raise ValueError(f"{start}the runtime ({resolver}) cannot run it: {fault}")


def open_content(
    content: bytes, resolver: str = "xnnpack", threads: int = 1, keep_all: bool = False
) -> Interpreter:
    """Opens a file of our own making, whatever inputs it has; not yet allocated.

    Args:
        content: The file's content.
        resolver: As for `open_interpreter`.
        threads: As there.
        keep_all: As there.

    Raises:
        ValueError: If the runtime does not take it.
    """
    return Interpreter(
        model_content=content,
        num_threads=threads,
        experimental_op_resolver_type=RESOLVERS[resolver],
        experimental_preserve_all_tensors=keep_all,
    )


def feed_random(interpreter: Interpreter) -> None:
    """Fills the inputs: zeros could meet shortcuts that no photograph does."""
    random = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        if np.issubdtype(detail["dtype"], np.integer):
            limits = np.iinfo(detail["dtype"])
            values = random.integers(
                limits.min, limits.max, detail["shape"], endpoint=True
            )
        else:
            values = random.random(detail["shape"])
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
