"""The `.tflite` format: read into plain data, changed, written.

The one module that knows the schema. A file is read here, in Python, before anything
else sees it, the interpreter's C++ included: one that is cut short, or whose parts
point outside of it, ends as one line instead of a crash.
"""

from __future__ import annotations

import copy
import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import ArrayLike, NDArray

from kdprune._io import first_line, read_json, sha256, write_json

# A model file: its path, or its content.
File = str | os.PathLike | bytes | bytearray

ALIGNMENT = 16  # What the runtimes expect of a file's buffers, in bytes.
_IDENTIFIER = b"TFL3"  # At byte 4 of a file.


def _codes(enum: type) -> dict[str, int]:
    return {name: code for name, code in vars(enum).items() if name.isupper()}


_OP_CODES = _codes(schema.BuiltinOperator)
_OP_NAMES = {code: name for name, code in _OP_CODES.items()}
_ACTIVATIONS = {c: name for name, c in _codes(schema.ActivationFunctionType).items()}
_ARITHMETIC = {
    schema.BuiltinOptions.AddOptions: schema.AddOptions,
    schema.BuiltinOptions.MulOptions: schema.MulOptions,
    schema.BuiltinOptions.SubOptions: schema.SubOptions,
}
_TYPE_NAMES = {code: name.lower() for name, code in _codes(schema.TensorType).items()}
_NUMPY_TYPES = (
    "float32 float16 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool"
).split()
_BITS = {"int4": 4, "int64": 64, "float64": 64, "int16": 16, "float16": 16}
_BITS |= {"int8": 8, "uint8": 8, "bool": 8}  # All others: 32.
# The zero points that a type has; wider ones are symmetric.
_ZERO_POINTS = {
    "int4": (-8, 7),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
}
# Bytes of a tensor: a damaged shape would have the runtime ask for all the memory.
_LARGEST = 2**31
# What reading outside of a buffer, or nonsense inside it, raises.
_DAMAGE = (
    struct.error,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
)
OPERATORS = frozenset(_OP_CODES)

WITH_KERNEL = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
# Inputs that an operator can't do without. What is not named here, such as a call of
# another graph, may have none; what has a state may have no output.
_STATEFUL = (
    "ASSIGN_VARIABLE CALL CALL_ONCE CUSTOM DELEGATE HASHTABLE HASHTABLE_FIND "
    "HASHTABLE_IMPORT HASHTABLE_SIZE IF READ_VARIABLE VAR_HANDLE WHILE PLACEHOLDER_FOR_"
    "GREATER_OP_CODES RANDOM_STANDARD_NORMAL RANDOM_UNIFORM MULTINOMIAL"
).split()
_TWO = (
    "CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED ADD SUB MUL DIV MAXIMUM MINIMUM POW "
    "SQUARED_DIFFERENCE MEAN SUM REDUCE_MAX REDUCE_MIN PAD MIRROR_PAD TRANSPOSE PRELU "
    "BATCH_MATMUL GATHER RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR ARG_MAX ARG_MIN"
).split()
_THREE = ("TRANSPOSE_CONV", "SLICE", "PADV2")
_INPUTS = {
    **{name: 1 for name in _OP_CODES if name not in _STATEFUL},
    **dict.fromkeys(_TWO, 2),
    **dict.fromkeys(_THREE, 3),
    "STRIDED_SLICE": 4,
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a graph.

    Attributes:
        name: What the converter called it.
        shape: Its sizes; 1 where the file leaves one open.
        dtype: Its type, such as "float32".
        data: The values of a constant, else None.
        scale: Scales, one or one for each channel; empty where not quantized.
        zero_point: Zero points, likewise.
        axis: The axis of the channels.
        low: Smallest values noted by calibration, empty if none.
        high: Largest values, likewise.
        buffer: The number of its buffer, which several constants may share.
        variable: Whether it keeps state from one call to the next.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: NDArray | None
    scale: NDArray
    zero_point: NDArray
    axis: int = 0
    low: NDArray = field(default_factory=lambda: np.zeros(0))
    high: NDArray = field(default_factory=lambda: np.zeros(0))
    buffer: int = 0
    variable: bool = False

    @property
    def is_float(self) -> bool:
        return "float" in self.dtype

    @property
    def bytes(self) -> int:
        """How many bytes its values take."""
        return math.prod(self.shape) * _BITS.get(self.dtype, 32) // 8


@dataclass(frozen=True)
class Op:
    """One operator; inputs and outputs are tensor indices, -1 for none given.

    `fused` is the activation at the end of ADD, SUB and MUL, such as "RELU".
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fused: str = "NONE"


@dataclass(frozen=True)
class Graph:
    """A subgraph of a file, operators in the order of execution."""

    tensors: list[Tensor]
    ops: list[Op]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def describe(self, index: int) -> dict[str, Any]:
        """A tensor's `dtype`, `shape`, `scale` and `zero_point`, JSON-able.

        The last two are None where it is not quantized, or for each channel alone.
        """
        tensor = self.tensors[index]
        quantized = len(tensor.scale) == 1
        return {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "scale": float(tensor.scale[0]) if quantized else None,
            "zero_point": int(tensor.zero_point[0]) if quantized else None,
        }


@dataclass(frozen=True)
class Cut:
    """How an operator is taken out of its file.

    Attributes:
        number: Its place in the order of execution.
        inputs: The tensors that it takes as inputs; its others are constants.
        values: The values of its inputs and outputs, and of constants that the file
            does not hold, since another operator makes them of what it holds.
    """

    number: int
    inputs: Sequence[int]
    values: Mapping[int, NDArray]


def read_content(file: File) -> bytes:
    """Reads a `.tflite` file's bytes, whatever it is given by.

    Args:
        file: Its path, or its content.

    Returns:
        The content, of which no more is known than that it says it is a `.tflite`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else.
    """
    if isinstance(file, bytes | bytearray):
        data = bytes(file)
    elif isinstance(file, str | os.PathLike):
        if not Path(file).is_file():
            raise FileNotFoundError(f"no model file at {file}")
        data = Path(file).read_bytes()
    else:
        raise ValueError(
            "expected a .tflite file, its path or its content; of a Keras model make "
            f"one by kdprune.convert_tflite. Received: {type(file).__name__}"
        )
    if data[4:8] != _IDENTIFIER:
        raise ValueError(f"{prefix(file)}not a .tflite model ({len(data):,} bytes)")
    return data


def read_tflite(file: File) -> Graph:
    """Reads a `.tflite` file into a `Graph`.

    Args:
        file: Its path, or its content.

    Returns:
        The main subgraph, with the constants as NumPy arrays.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a `.tflite` model, or is damaged or cut short.
    """
    return read_graphs(file)[0]


def read_graphs(file: File) -> list[Graph]:
    """Reads all subgraphs of a file, as `read_tflite` does the first."""
    graphs = parse_graphs(read_content(file), prefix(file))
    if isinstance(file, str | os.PathLike):
        for graph, names in zip(graphs, _names_beside(Path(file)), strict=False):
            if len(names) == len(graph.tensors):
                graph.tensors[:] = [
                    replace(tensor, name=tensor.name or str(name))
                    for tensor, name in zip(graph.tensors, names, strict=True)
                ]
    return graphs


def parse_graphs(content: bytes, start: str = "") -> list[Graph]:
    """Reads all subgraphs of a content that `read_content` returned.

    Args:
        content: The file's content.
        start: How an error is to begin, see `prefix`.

    Raises:
        ValueError: If it is damaged or cut short.
    """
    return _guarded(lambda: _parse_model(content), start, len(content))


def set_metadata(file: File, name: str, content: bytes) -> bytes:
    """Adds a metadata buffer to a file, in place of one of the same name.

    Args:
        file: The file; operators, tensors and weights stay as they are.
        name: The name of the entry.
        content: The buffer's bytes.

    Returns:
        The new file's content.

    Raises:
        ValueError: If the file is damaged.
    """
    model = _read_tree(file)
    buffer = schema.BufferT(np.frombuffer(content, np.uint8))
    entries = model.metadata or []
    for entry in entries:
        if entry.name == name.encode():
            model.buffers[entry.buffer] = buffer
            return _pack_tree(model)
    model.buffers.append(buffer)
    entry = schema.MetadataT(name=name.encode(), buffer=len(model.buffers) - 1)
    model.metadata = [*entries, entry]
    return _pack_tree(model)


def set_ranges(content: bytes, ranges: Mapping[int, tuple[float, float]]) -> bytes:
    """Changes ranges that calibration noted, in a file of our own making.

    Args:
        content: The file's content.
        ranges: `{tensor: (low, high)}` of the main graph, of tensors with one range.

    Returns:
        The content with those ranges; not a byte else is changed.
    """
    data = bytearray(content)
    graph = schema.Model.GetRootAs(data, 0).Subgraphs(0)
    for index, (low, high) in ranges.items():
        noted = graph.Tensors(index).Quantization()
        # Views of the file itself, which are written to.
        noted.MinAsNumpy()[0], noted.MaxAsNumpy()[0] = low, high
    return bytes(data)


def set_constants(content: bytes, constants: Mapping[int, NDArray]) -> bytes:
    """Changes the values of constants, in a file of our own making.

    Args:
        content: The file's content.
        constants: `{tensor: values}` of the main graph, of the tensor's type and size.

    Returns:
        The content with those values; not a byte else is changed.
    """
    data = bytearray(content)
    model = schema.Model.GetRootAs(data, 0)
    for index, values in constants.items():
        buffer = model.Buffers(model.Subgraphs(0).Tensors(index).Buffer())
        buffer.DataAsNumpy()[:] = np.ravel(values).view(np.uint8)
    return bytes(data)


def scale_input(content: bytes, factor: float) -> bytes:
    """Makes an 8-bit file of our own making take `factor` times as large values.

    Its first kernels become as much smaller: integers, what they are multiplied by and
    so the scores stay what they are.

    Args:
        content: The file's content. What takes its input are kernels, or operators
            like padding and pooling, and behind these kernels again.
        factor: A power of two.

    Returns:
        The content with those scales (of kernels in float, values).
    """
    if factor == 1:
        return content
    (graph, *_) = parse_graphs(content)
    larger, smaller = set(graph.inputs), set()
    for op in graph.ops:
        if larger.isdisjoint(op.inputs):
            continue
        if op.name in WITH_KERNEL:
            smaller.add(op.inputs[1])
        else:
            larger.update(op.outputs)
    in_float = {}
    for index in smaller:
        data = graph.tensors[index].data
        if data is not None and graph.tensors[index].is_float:
            in_float[index] = data / np.float32(factor)
    changed = bytearray(set_constants(content, in_float))
    tree = schema.Model.GetRootAs(changed, 0).Subgraphs(0)
    changes = dict.fromkeys(larger, factor) | dict.fromkeys(smaller, 1 / factor)
    for index, by in changes.items():
        noted = tree.Tensors(index).Quantization()
        if noted is None:
            continue
        for values in (noted.ScaleAsNumpy(), noted.MinAsNumpy(), noted.MaxAsNumpy()):
            if isinstance(values, np.ndarray):
                values *= np.float32(by)
    return bytes(changed)


def extract_ops(file: File, cuts: Iterable[Cut]) -> list[bytes]:
    """Writes operators of the main graph as files of their own.

    Args:
        file: The file that they are in.
        cuts: Which, and how.

    Returns:
        The files' content, in the order of `cuts`.

    Raises:
        ValueError: If the file is damaged.
    """
    data = read_content(file)
    model = _read_tree(data)
    return [_extract_op(model, data, cut) for cut in cuts]


def share_content(file: File) -> bytes:
    """Writes a file in which equal content stands once, and without debug names.

    Vectors, strings and tables that are equal are stored once (of a per-channel
    tensor's zero points, all 0, each copy takes 8 bytes a channel), so are constants;
    activations share the empty buffer. Names of tensors other than inputs and outputs
    go, and so do ranges that calibration noted beside a scale. Operators, constants,
    quantization, signatures and metadata, an archive of labels behind the end
    included, stay what they are.

    Args:
        file: The file.

    Returns:
        The new content; not smaller than the old one in every case.

    Raises:
        ValueError: If the file is damaged, or holds constants after its tree, as
            those of more than 2 GB do.
    """
    model = _read_tree(file)
    if any(buffer.offset > 1 for buffer in model.buffers):
        raise ValueError(
            f"{prefix(file)}holds its constants behind its graph, as files of more "
            "than 2 GB do; such a file is not rewritten"
        )
    _share_buffers(model)
    for graph in model.subgraphs:
        ends = {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            if index not in ends:
                tensor.name = None
            noted = tensor.quantization
            if noted is not None:
                if noted.scale is not None and len(noted.scale):
                    noted.min = noted.max = None
                if all(v is None for v in (noted.scale, noted.min, noted.details)):
                    tensor.quantization = None
    return _append_archive(_pack_tree(model), read_content(file))


def tensor_names(file: File) -> list[list[str]]:
    """The names of all tensors, by subgraph; empty where a file does not tell one."""
    return [[tensor.name for tensor in graph.tensors] for graph in read_graphs(file)]


def write_names(path: str | os.PathLike, names: Sequence[Sequence[str]]) -> Path:
    """Writes the names of a file's tensors beside it, where `read_tflite` finds them.

    Names tell reports which layer an operator was; the file itself runs without.

    Args:
        path: The `.tflite` file, written already.
        names: What `tensor_names` returned of the file that had them.

    Returns:
        The path of the names.
    """
    place = _names_path(Path(path))
    write_json(place, {"sha256": sha256(path), "names": names})
    return place


def _names_path(path: Path) -> Path:
    return path.with_suffix(".names.json")


def _names_beside(path: Path) -> list[list[str]]:
    """The names that stand beside a file, if they are those of this very file."""
    found = read_json(_names_path(path))
    if not isinstance(found, dict) or found.get("sha256") != sha256(path):
        return []
    names = found.get("names")
    if not isinstance(names, list) or not all(isinstance(one, list) for one in names):
        return []
    return names


def one_relu() -> bytes:
    """A file that next to nothing is computed by: the ReLU of one float."""
    relu = schema.BuiltinOperator.RELU
    tensors = [
        schema.TensorT(shape=[1], type=schema.TensorType.FLOAT32, name=name)
        for name in ("x", "y")
    ]
    op = schema.OperatorT(inputs=[0], outputs=[1])
    graph = schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[1], operators=[op])
    code = schema.OperatorCodeT(builtinCode=relu, deprecatedBuiltinCode=relu, version=1)
    return _pack_graph(graph, code, [schema.BufferT()])


def prefix(file: File) -> str:
    """How a message on a file begins: with its path, if it was given by one."""
    return "" if isinstance(file, bytes | bytearray) else f"{file}: "


def _guarded(read: Callable[[], Any], start: str, size: int) -> Any:
    """Calls a function that reads a file; damage becomes one line."""
    try:
        return read()
    except _DAMAGE as error:
        raise ValueError(
            f"{start}the .tflite model is damaged or cut short at {size:,} bytes "
            f"({first_line(error, 120)})"
        ) from error


def _read_tree(file: File) -> Any:
    """A file as a `schema.ModelT`, a tree of objects to change and write again."""
    data = read_content(file)
    read_graphs(data)
    return _guarded(
        lambda: schema.ModelT.InitFromObj(schema.Model.GetRootAs(data)),
        prefix(file),
        len(data),
    )


def _pack_tree(model: Any) -> bytes:
    """Writes a `schema.ModelT`, every buffer at a multiple of `ALIGNMENT` bytes.

    Vectors, strings and tables that are equal are stored once.
    """
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.quantization is not None:
                tensor.quantization = _SharedTable(tensor.quantization)
        for op in graph.operators:
            if op.builtinOptions is not None:
                op.builtinOptions = _SharedTable(op.builtinOptions)
    model.buffers = [_AlignedBuffer(buffer.data) for buffer in model.buffers]
    builder = _SharingBuilder(1 << 16)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _extract_op(model: Any, data: bytes, cut: Cut) -> bytes:
    main = model.subgraphs[0]
    op = main.operators[cut.number]
    tensors: list[Any] = []
    buffers, places = [schema.BufferT()], {-1: -1}
    for index in dict.fromkeys((*op.inputs, *op.outputs)):
        if index == -1:
            continue
        tensor = copy.copy(main.tensors[index])
        held = _held(model, tensor, data)
        tensor.buffer = 0
        if index in cut.inputs or index in op.outputs:
            # As they are in the whole, where the file leaves sizes open.
            tensor.shape, tensor.shapeSignature = list(cut.values[index].shape), None
        else:
            tensor.buffer = len(buffers)
            constant = cut.values[index] if held is None else held
            buffers.append(schema.BufferT(np.ravel(constant).view(np.uint8)))
        places[index] = len(tensors)
        tensors.append(tensor)
    alone = copy.copy(op)
    alone.opcodeIndex = 0
    alone.inputs = [places[i] for i in op.inputs]
    alone.outputs = [places[i] for i in op.outputs]
    graph = schema.SubGraphT(
        tensors=tensors,
        inputs=[places[i] for i in cut.inputs],
        outputs=alone.outputs,
        operators=[alone],
    )
    return _pack_graph(graph, model.operatorCodes[op.opcodeIndex], buffers)


def _pack_graph(graph: Any, code: Any, buffers: list[Any]) -> bytes:
    return _pack_tree(
        schema.ModelT(
            version=3, operatorCodes=[code], subgraphs=[graph], buffers=buffers
        )
    )


class _AlignedBuffer(schema.BufferT):
    """A buffer that starts at a multiple of `ALIGNMENT` bytes in the file.

    The schema demands that; Python's generated code does not do it.
    """

    def Pack(self, builder: flatbuffers.Builder) -> int:
        place = None
        if self.data is not None:
            content = np.asarray(self.data, np.uint8).tobytes()
            builder.Prep(ALIGNMENT, len(content))
            place = builder.CreateByteVector(content)
        schema.BufferStart(builder)
        if place is not None:
            schema.BufferAddData(builder, place)
        return schema.BufferEnd(builder)


def _share_buffers(model: Any) -> None:
    """Keeps one of each buffer, in the same order; the first is the empty one."""
    first: dict[bytes, int] = {b"": 0}
    kept, places = [schema.BufferT()], {}
    for number, buffer in enumerate(model.buffers):
        data = buffer.data
        content = b"" if data is None else np.asarray(data, np.uint8).tobytes()
        if content not in first:
            first[content] = len(kept)
            kept.append(buffer)
        places[number] = first[content]
    variable = {
        tensor.buffer
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.isVariable
    }
    if any(places[number] for number in variable):
        return  # State that starts with values of its own: not to be shared.
    model.buffers = kept
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = places[tensor.buffer]
    for entry in model.metadata or []:
        entry.buffer = places[entry.buffer]


def _append_archive(content: bytes, original: bytes) -> bytes:
    """Appends what the original has behind its end: an archive of labels."""
    if not zipfile.is_zipfile(io.BytesIO(original)):
        return content
    file = io.BytesIO(content)
    with (
        zipfile.ZipFile(io.BytesIO(original)) as old,
        zipfile.ZipFile(file, "a") as new,
    ):
        for member in old.infolist():
            new.writestr(member, old.read(member), member.compress_type)
    return file.getvalue()


class _SharingBuilder(flatbuffers.Builder):
    """Stores equal vectors, strings and tables once."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.stored: dict[Any, int] = {}

    def CreateNumpyVector(self, x: NDArray) -> int:
        return self._once((x.dtype.str, x.tobytes()), super().CreateNumpyVector, x)

    def CreateString(self, s: Any, *rest: Any) -> int:
        text = s.encode() if isinstance(s, str) else bytes(s)
        return self._once((str, text), super().CreateString, s, *rest)

    def _once(self, key: Any, create: Callable[..., int], *arguments: Any) -> int:
        if key not in self.stored:
            self.stored[key] = create(*arguments)
        return self.stored[key]


class _SharedTable:
    """A table of the schema that is written once for all that are equal."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def Pack(self, builder: _SharingBuilder) -> int:
        key = _content_of(self.table)
        if key not in builder.stored:
            builder.stored[key] = self.table.Pack(builder)
        return builder.stored[key]


def _content_of(value: Any) -> Any:
    """A table's fields as something that can be compared and hashed."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tobytes()
    if isinstance(value, list | tuple):
        return tuple(map(_content_of, value))
    if hasattr(value, "Pack"):
        fields = sorted(vars(value).items())
        return type(value).__name__, tuple((k, _content_of(v)) for k, v in fields)
    return value


def _held(model: Any, tensor: Any, data: bytes) -> NDArray | None:
    """The bytes that the file holds of a tensor, or None."""
    buffer = model.buffers[tensor.buffer]
    if buffer.offset > 1:  # After the flatbuffer: large models.
        return np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
    return buffer.data if buffer.data is not None and len(buffer.data) else None


def _parse_model(data: bytes) -> list[Graph]:
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
    return [
        _parse_graph(model.Subgraphs(i), codes, buffers, len(data) // 4)
        for i in range(lengths[1])
    ]


def _parse_graph(
    graph: Any, codes: list[str], buffers: list[NDArray], limit: int
) -> Graph:
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
                _fused(op),
            )
        )
    for found in ops:
        _check_ends(found)
        _check_widened(found, tensors)
    inputs = _indices(graph.InputsAsNumpy(), tensors)
    return Graph(tensors, ops, inputs, _indices(graph.OutputsAsNumpy(), tensors))


def _fused(op: Any) -> str:
    """The activation at the end of an operator of arithmetic."""
    options = _ARITHMETIC.get(op.BuiltinOptionsType())
    table = op.BuiltinOptions()
    if options is None or table is None:
        return "NONE"
    found = options()
    found.Init(table.Bytes, table.Pos)
    return _ACTIVATIONS[found.FusedActivationFunction()]


def _check_ends(op: Op) -> None:
    """Refuses an operator without what every reader of it takes for granted."""
    needed = _INPUTS.get(op.name, 0)
    given = op.inputs[:needed]
    if len(given) < needed or -1 in given:
        raise ValueError(f"{op.name} expects {needed} inputs, and has {op.inputs}")
    if op.name in _INPUTS and (not op.outputs or -1 in op.outputs):
        raise ValueError(f"{op.name} expects an output, and has none")


def _check_widened(op: Op, tensors: list[Tensor]) -> None:
    """Refuses weights that would be wider than what is stored: they are read as such.

    XNNPACK takes the stored ones in their place, and reads outside of them.
    """
    if op.name == "DEQUANTIZE" and op.inputs and op.outputs:
        stored, widened = (tensors[i].shape for i in (op.inputs[0], op.outputs[0]))
        if stored != widened:
            raise ValueError(f"weights of shape {stored} become {widened}")


def _parse_tensor(tensor: Any, buffers: list[NDArray]) -> Tensor:
    shape = tuple(int(size) for size in _values(tensor.ShapeAsNumpy()))
    dtype = _TYPE_NAMES[tensor.Type()]
    raw = buffers[tensor.Buffer()]
    data = None
    if len(raw):
        data = _constant(raw, dtype, shape, tensor.Sparsity() is not None)
    noted = tensor.Quantization()
    scale = _values(noted.ScaleAsNumpy() if noted else 0)
    zero_point = _values(noted.ZeroPointAsNumpy() if noted else 0)
    _check_quantization(dtype, scale, zero_point)
    axis = noted.QuantizedDimension() if noted else 0
    if len(scale) > 1 and shape[axis : axis + 1] != (len(scale),):
        raise ValueError(f"{len(scale)} scales do not fit a tensor of shape {shape}")
    size = math.prod(map(abs, shape)) * _BITS.get(dtype, 32) // 8
    if size > _LARGEST:
        raise ValueError(f"a tensor claims {size:,} bytes")
    return Tensor(
        name=(tensor.Name() or b"").decode("utf-8", "replace"),
        shape=shape,
        dtype=dtype,
        data=data,
        scale=scale,
        zero_point=zero_point,
        axis=axis,
        low=_values(noted.MinAsNumpy() if noted else 0),
        high=_values(noted.MaxAsNumpy() if noted else 0),
        buffer=tensor.Buffer(),
        variable=bool(tensor.IsVariable()),
    )


def _check_quantization(dtype: str, scale: NDArray, zero_point: NDArray) -> None:
    """Refuses scales and zero points with which the runtime computes nonsense.

    It does not look at them: a zero point outside its type reads outside of a table
    and ends the process.
    """
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("a scale is not a positive number")
    if len(scale) and len(zero_point) not in (1, len(scale)):
        raise ValueError(f"{len(scale)} scales have {len(zero_point)} zero points")
    limits = _ZERO_POINTS.get(dtype)
    if limits and len(zero_point):
        low, high = limits
        if zero_point.min() < low or zero_point.max() > high:
            raise ValueError(f"a zero point is outside {dtype}")


def _constant(raw: NDArray, dtype: str, shape: tuple, sparse: bool) -> NDArray:
    """Interprets a buffer's bytes; those of a sparse tensor stay a flat list."""
    if dtype == "int4":  # Two to a byte, the lower half first.
        pairs = np.stack([raw << 4, raw & 0xF0], axis=-1).view(np.int8) >> 4
        values = pairs.reshape(-1)[: math.prod(shape)]
    elif dtype in _NUMPY_TYPES:
        values = np.frombuffer(raw.tobytes(), dtype)
    else:  # Strings, resources, variants: not numbers.
        return raw
    return values if sparse else values.reshape(shape)


def _content(buffer: Any, data: bytes) -> NDArray:
    """The bytes of a buffer, inside the flatbuffer or after it (large models)."""
    if buffer.Offset() > 1:
        end = buffer.Offset() + buffer.Size()
        if end > len(data):
            raise ValueError(f"a buffer ends at byte {end:,}")
        return np.frombuffer(data, np.uint8, buffer.Size(), buffer.Offset())
    if buffer.DataLength() > len(data):
        raise ValueError(f"a buffer claims {buffer.DataLength():,} bytes")
    return _values(buffer.DataAsNumpy()).astype(np.uint8, copy=False)


def _op_name(code: Any) -> str:
    # Files from before the 128th operator have the code in the older field alone.
    name = _OP_NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
    return f"CUSTOM:{(code.CustomCode() or b'').decode()}" if name == "CUSTOM" else name


def _indices(values: ArrayLike, tensors: list[Tensor]) -> tuple[int, ...]:
    indices = tuple(int(i) for i in _values(values))
    if any(not -1 <= i < len(tensors) for i in indices):
        raise ValueError("an operator names a tensor that does not exist")
    return indices


def _values(array: ArrayLike) -> NDArray:
    """The schema's accessors return the number 0 for an absent array."""
    return array if isinstance(array, np.ndarray) else np.zeros(0)
