"""Reading `.tflite` files: the graph as plain data, and an interpreter to run it.

A file is read here, in Python, before the interpreter's C++ sees it: one that is
cut short, or whose parts point outside of it, ends as one line instead of a
crash.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema

RESOLVERS = {
    "xnnpack": litert.OpResolverType.AUTO,
    "builtin": litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": litert.OpResolverType.BUILTIN_REF,
}

_IDENTIFIER = b"TFL3"
_OP_NAMES = {
    code: name
    for name, code in vars(schema.BuiltinOperator).items()
    if not name.startswith("_")
}
_TYPE_NAMES = {
    code: name.lower()
    for name, code in vars(schema.TensorType).items()
    if not name.startswith("_")
}
_NUMPY_TYPES = (
    "float32 float16 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool"
).split()
# What reading outside of a buffer, or nonsense inside it, raises.
_DAMAGE = (
    struct.error,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
)


@dataclass(frozen=True)
class Tensor:
    """One tensor; `data` holds the values of a constant, else `None`."""

    name: str
    shape: tuple
    dtype: str
    data: np.ndarray | None
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int


@dataclass(frozen=True)
class Op:
    """One operator; inputs and outputs are tensor indices, -1 for none given."""

    name: str
    inputs: tuple
    outputs: tuple


@dataclass(frozen=True)
class Graph:
    """The main subgraph of a file, operators in the order of execution."""

    tensors: list
    ops: list
    inputs: tuple
    outputs: tuple


def read_tflite(path):
    """Reads a `.tflite` file into a `Graph`.

    Args:
        path: The file.

    Returns:
        The main subgraph, with the constants as NumPy arrays over the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a `.tflite` model, or is damaged or cut short.
    """
    return _parse(_read_bytes(path), path)


def open_interpreter(path, resolver="xnnpack", threads=1, keep_all=False):
    """Opens a `.tflite` file on the LiteRT runtime, ready to `invoke()`.

    Args:
        path: The file; it is read and checked as by `read_tflite`.
        resolver: Which kernels: `"xnnpack"` (the default on devices),
            `"builtin"` (optimized, no delegate) or `"reference"` (plain loops).
        threads: Number of threads, at least 1.
        keep_all: Whether `get_tensor` gives what every operator computed, not the
            outputs alone. Delegates keep theirs to themselves.

    Returns:
        An allocated interpreter for one image at a time.

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
    data = _read_bytes(path)
    graph = _parse(data, path)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            f"{path}: an image classifier has one input and one output. "
            f"Received: {len(graph.inputs)} and {len(graph.outputs)}"
        )
    try:
        interpreter = litert.Interpreter(
            model_content=data,
            num_threads=threads,
            experimental_op_resolver_type=RESOLVERS[resolver],
            experimental_preserve_all_tensors=keep_all,
        )
        shape = interpreter.get_input_details()[0]["shape"]
        if len(shape) and shape[0] != 1:
            index = interpreter.get_input_details()[0]["index"]
            interpreter.resize_tensor_input(index, [1, *shape[1:]])
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        detail = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ValueError(
            f"{path}: the runtime ({resolver}) cannot run it: {detail[:200]}"
        ) from error
    return interpreter


def _read_bytes(path):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}")
    data = path.read_bytes()
    if data[4:8] != _IDENTIFIER:
        raise ValueError(f"{path}: not a .tflite model ({len(data):,} bytes)")
    return data


def _parse(data, path):
    try:
        return _parse_model(data)
    except _DAMAGE as error:
        detail = (str(error).splitlines() or ["unreadable"])[0]
        raise ValueError(
            f"{path}: the .tflite model is damaged or cut short at {len(data):,} "
            f"bytes ({detail[:120]})"
        ) from error


def _parse_model(data):
    model = schema.Model.GetRootAs(data)
    # A length read from a damaged file can be in the billions.
    lengths = (
        model.OperatorCodesLength(),
        model.SubgraphsLength(),
        model.BuffersLength(),
    )
    if min(lengths[1:]) < 1 or max(lengths) > len(data) // 4:
        raise ValueError("it has no sensible number of operators or buffers")
    codes = [_op_name(model.OperatorCodes(i)) for i in range(lengths[0])]
    buffers = [_content(model.Buffers(i), data) for i in range(lengths[2])]
    graphs = [
        _parse_graph(model.Subgraphs(i), codes, buffers, len(data) // 4)
        for i in range(lengths[1])
    ]
    return graphs[0]


def _parse_graph(graph, codes, buffers, limit):
    if max(graph.TensorsLength(), graph.OperatorsLength()) > limit:
        raise ValueError("it has no sensible number of tensors")
    tensors = [
        _parse_tensor(graph.Tensors(i), buffers) for i in range(graph.TensorsLength())
    ]
    ops = []
    for i in range(graph.OperatorsLength()):
        op = graph.Operators(i)
        ops.append(
            Op(
                codes[op.OpcodeIndex()],
                _indices(op.InputsAsNumpy(), tensors),
                _indices(op.OutputsAsNumpy(), tensors),
            )
        )
    inputs = _indices(graph.InputsAsNumpy(), tensors)
    return Graph(tensors, ops, inputs, _indices(graph.OutputsAsNumpy(), tensors))


def _parse_tensor(tensor, buffers):
    shape = tuple(int(size) for size in _values(tensor.ShapeAsNumpy()))
    dtype = _TYPE_NAMES[tensor.Type()]
    raw = buffers[tensor.Buffer()]
    data = None
    if len(raw):
        data = _constant(raw, dtype, shape, tensor.Sparsity() is not None)
    quantization = tensor.Quantization()
    scale = _values(quantization.ScaleAsNumpy()) if quantization else _values(0)
    zero = _values(quantization.ZeroPointAsNumpy()) if quantization else _values(0)
    axis = quantization.QuantizedDimension() if quantization else 0
    name = (tensor.Name() or b"").decode("utf-8", "replace")
    return Tensor(name, shape, dtype, data, scale, zero, axis)


def _constant(raw, dtype, shape, sparse):
    """Interprets a buffer's bytes; those of a sparse tensor stay a flat list."""
    if dtype == "int4":  # two to a byte, the lower half first
        pairs = np.stack([raw << 4, raw & 0xF0], axis=-1).view(np.int8) >> 4
        values = pairs.reshape(-1)[: math.prod(shape)]
    elif dtype in _NUMPY_TYPES:
        values = np.frombuffer(raw.tobytes(), dtype)
    else:  # strings, resources, variants: not numbers
        return raw
    return values if sparse else values.reshape(shape)


def _content(buffer, data):
    """The bytes of a buffer, inside the flatbuffer or after it (large models)."""
    if buffer.Offset() > 1:
        end = buffer.Offset() + buffer.Size()
        if end > len(data):
            raise ValueError(f"a buffer ends at byte {end:,}")
        return np.frombuffer(data, np.uint8, buffer.Size(), buffer.Offset())
    if buffer.DataLength() > len(data):
        raise ValueError(f"a buffer claims {buffer.DataLength():,} bytes")
    return _values(buffer.DataAsNumpy()).astype(np.uint8, copy=False)


def _op_name(code):
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = _OP_NAMES[number]
    return f"CUSTOM:{(code.CustomCode() or b'').decode()}" if name == "CUSTOM" else name


def _indices(values, tensors):
    indices = tuple(int(i) for i in _values(values))
    if any(not -1 <= i < len(tensors) for i in indices):
        raise ValueError("an operator names a tensor that does not exist")
    return indices


def _values(array):
    """The schema's accessors return the number 0 for an absent array."""
    return array if isinstance(array, np.ndarray) else np.zeros(0)
