"""SavedModel folders: a graph of TensorFlow's operations, run after it was looked into.

A SavedModel has no layers, so that nothing in it can be pruned, trained or rewritten;
it can be scored and converted as a whole. Its graph is a program: TensorFlow has
operations that read and write files or call Python. Each one in the folder is held
against an allow-list before TensorFlow loads it. A few bytes may ask for tensors of any
size: what they take is known, by the shapes that follow from an image's, before one is
computed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

from kdprune._io import first_line

# What computes, and what calls functions and reads variables.
_COMPUTING = frozenset(
    """
    Abs Add AddN AddV2 All Any ArgMax ArgMin Assert AvgPool BatchMatMul BatchMatMulV2
    BatchMatMulV3 BiasAdd BroadcastArgs BroadcastTo Cast Ceil ClipByValue Concat
    ConcatV2 Const Conv2D Conv2DBackpropInput DepthToSpace DepthwiseConv2dNative Div
    DivNoNan Einsum Elu Equal Erf Exp ExpandDims Expm1 FakeQuantWithMinMaxArgs
    FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel Fill Floor FloorDiv
    FloorMod FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Gather GatherNd GatherV2
    Greater GreaterEqual Identity IdentityN If Inv IsFinite IsInf IsNan LeakyRelu Less
    LessEqual Log Log1p LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul Max MaxPool
    MaxPoolV2 Maximum Mean Min Minimum MirrorPad Mul Neg NoOp NotEqual OneHot OnesLike
    Pack Pad PadV2 PartitionedCall Placeholder PlaceholderWithDefault Pow Prod Range
    Rank ReadVariableOp RealDiv Reciprocal Relu Relu6 Reshape ResizeBilinear
    ResizeNearestNeighbor ReverseV2 Round Rsqrt Select SelectV2 Selu Shape ShapeN
    Sigmoid Sign Size Slice Softmax Softplus Softsign SpaceToBatchND BatchToSpaceND
    SpaceToDepth Split SplitV Sqrt Square SquaredDifference Squeeze
    StatefulPartitionedCall StatelessIf StopGradient StridedSlice Sub Sum Tanh Tile
    TopKV2 Transpose TruncateDiv TruncateMod Unpack VarHandleOp VarIsInitializedOp
    Where ZerosLike
    """.split()
)
# What saves and restores variables, initializes them, and drops out. TensorFlow
# restores by other means, so that what computes may not come to these: they open files.
_SAVING = frozenset(
    """
    AssignAddVariableOp AssignVariableOp DisableCopyOnRead MergeV2Checkpoints
    RestoreV2 SaveV2
    ShardedFilename StaticRegexFullMatch StringJoin RandomStandardNormal RandomUniform
    RandomUniformInt RngReadAndSkip TruncatedNormal StatelessRandomUniformV2
    StatelessRandomNormalV2 StatelessTruncatedNormalV2 StatelessRandomGetKeyCounter
    Bitcast
    """.split()
)
# Of what TensorFlow makes objects; not of resources, such as tables, and files.
_OBJECTS = (
    *("user_object", "function", "bare_concrete_function", "constant", "variable"),
    "captured_tensor",
)
_MOST_BYTES = 2**30
# Of all that is computed for one image. VGG16 takes a tenth of it.
_MOST_COMPUTED = 2**31
_STRING_BYTES = 24
_SIGNATURE = "serving_default"
_ENDS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
_PASSING = ("Identity", "Reshape")
_DEEPEST = 64  # Functions inside one another.


def is_saved_model(path: str | os.PathLike) -> bool:
    """Whether a path is a SavedModel's folder."""
    return (Path(path) / "saved_model.pb").is_file()


def refuse_saved_model(path: str | os.PathLike) -> None:
    """Raises the line for what needs layers, if a path is a SavedModel's folder."""
    if is_saved_model(path):
        raise ValueError(
            f"{path}: a SavedModel has no layers to change or train; kdprune evaluate "
            "and convert_tflite take it. Expected: the Keras model itself, saved as "
            ".keras"
        )


def check_saved_model(path: str | os.PathLike) -> Any:
    """Refuses a SavedModel that does anything but compute.

    Args:
        path: Its folder.

    Returns:
        The signature that images are scored by, a `SignatureDef`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, holds an operation or object that is not on the
            allow-list (all are named), has constants or variables larger than its
            files, or no signature of one image and one row of scores.
    """
    return _check(path)[0]


def _check(path: str | os.PathLike) -> tuple[Any, str]:
    """The signature, and the operation that its scores come from."""
    graph = _read(Path(path))
    functions = {one.signature.name: one for one in graph.graph_def.library.function}
    scoring = _scoring(path, graph)
    computing = _reachable(scoring, functions)
    elsewhere = {node.op for node in graph.graph_def.node}
    for name, function in functions.items():
        used = {node.op for node in function.node_def} - functions.keys()
        if name in computing:
            _refuse(path, used - _COMPUTING)
        elsewhere |= used
    _refuse(path, elsewhere - _COMPUTING - _SAVING)
    objects = graph.object_graph_def.nodes
    kinds = {str(node.WhichOneof("kind")) for node in objects} - {*_OBJECTS}
    if kinds or graph.asset_file_def:
        named = ", ".join(sorted(kinds)) or "files of its own"
        raise ValueError(f"{path}: it holds {named}, which is not on the allow-list")
    if any(one.saveable_objects or one.registered_saver for one in objects):
        raise ValueError(f"{path}: it restores its variables by functions of its own")
    _check_stored(path, graph)
    signature = _signature(path, graph.signature_def)
    if scoring not in functions:
        raise ValueError(f"{path}: the function of its signature is not in it")
    return signature, _last_operation(scoring, functions)


def load_saved_model(path: str | os.PathLike) -> keras.Model:
    """A SavedModel as a model of one layer, to score and to convert.

    Args:
        path: Its folder.

    Returns:
        A `keras.Model` of images in the SavedModel's own pixel range, whose one layer
        computes its signature; it can't be trained.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: As `check_saved_model`, or if it computes tensors that are
            unreasonably large, or of a size that depends on the pixels.
    """
    signature, last = _check(path)
    (name, source), (key, _) = (
        next(iter(part.items())) for part in (signature.inputs, signature.outputs)
    )
    sizes = [dim.size for dim in source.tensor_shape.dim]
    try:
        loaded = tf.saved_model.load(str(path))
        function = loaded.signatures[_SIGNATURE]
    except (ValueError, KeyError, OSError, tf.errors.OpError) as error:
        raise ValueError(f"{path}: cannot be loaded ({first_line(error)})") from error
    _check_computed(path, function, sizes[1:])
    layer = SavedGraph(loaded, function, name, key, _ENDS.get(last))
    image = keras.Input(sizes[1:])
    return keras.Model(image, layer(image), name="saved_model")


class SavedGraph(keras.layers.Layer):
    """What a SavedModel computes, as a layer.

    Attributes:
        activation: The softmax or sigmoid that it ends in, None if in neither.
    """

    def __init__(
        self,
        loaded: Any,
        function: Any,
        source: str,
        key: str,
        end: str | None,
        name: str = "saved_graph",
        **settings: Any,
    ) -> None:
        super().__init__(trainable=False, name=name)
        self.loaded, self.scores_of = loaded, function
        self._source, self._key, self._end = source, key, end
        self.parameters = list(function.variables)  # Keras counts them by this.
        self.activation = None if end is None else getattr(keras.activations, end)

    def get_config(self) -> dict[str, Any]:
        """What another layer of the same graph is made of; not to be written."""
        return {
            "loaded": self.loaded,
            "function": self.scores_of,
            "source": self._source,
            "key": self._key,
            "end": self._end,
            "name": self.name,
        }

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Scores of images `(batch, …)`, `(batch, units)`."""
        return self.scores_of(**{self._source: images})[self._key]


def _read(path: Path) -> Any:
    file = path / "saved_model.pb"
    if not file.is_file():
        raise FileNotFoundError(f"no SavedModel at {path}: it has no saved_model.pb")
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path}: its saved_model.pb is unreasonably large")
    content = saved_model_pb2.SavedModel()
    try:
        content.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path}: saved_model.pb is damaged") from error
    if len(content.meta_graphs) != 1:
        raise ValueError(
            f"{path}: expected a SavedModel of one graph. Received: one of "
            f"{len(content.meta_graphs)}"
        )
    return content.meta_graphs[0]


def _scoring(path: Any, graph: Any) -> str:
    """The function that TensorFlow will take for the signature."""
    objects = graph.object_graph_def.nodes
    found = objects[0] if objects else None
    for step in ("signatures", _SIGNATURE):
        children = [] if found is None else found.children
        ids = [child.node_id for child in children if child.local_name == step]
        found = objects[ids[0]] if ids and 0 <= ids[0] < len(objects) else None
    if found is None or found.WhichOneof("kind") != "bare_concrete_function":
        raise ValueError(
            f"{path}: it has no signature {_SIGNATURE!r}, which images are scored by"
        )
    return str(found.bare_concrete_function.concrete_function_name)


def _reachable(name: str, functions: dict[str, Any]) -> set[str]:
    """The functions that one comes to, itself among them."""
    pending, found = [name], set()
    while pending:
        name = pending.pop()
        if name in found or name not in functions:
            continue
        found.add(name)
        for node in functions[name].node_def:
            pending += _called(node)
    return found


def _called(node: Any) -> Iterator[str]:
    """The functions that a node names; its operation may be one itself."""
    yield node.op
    for value in node.attr.values():
        if value.WhichOneof("value") == "func":
            yield value.func.name
        elif value.WhichOneof("value") == "list":
            yield from (one.name for one in value.list.func)


def _refuse(path: Any, operations: set[str]) -> None:
    if operations:
        named = ", ".join(sorted(operations)[:8])
        raise ValueError(
            f"{path}: its graph has the operations {named}, which are not among those "
            "that only compute; it is not loaded"
        )


def _check_stored(path: str | os.PathLike, graph: Any) -> None:
    """Refuses constants and variables that claim to be larger than what is stored."""
    functions = graph.graph_def.library.function
    nodes = [*graph.graph_def.node, *(n for one in functions for n in one.node_def)]
    constants = (
        _bytes_of([dim.size for dim in value.tensor_shape.dim], value.dtype)
        for node in nodes
        for value in _tensors(node)
    )
    _refuse_size(path, "constants", sum(constants), _MOST_BYTES)
    variables = Path(path) / "variables"
    if not variables.is_dir():
        return
    stored = sum(one.stat().st_size for one in variables.iterdir())
    try:
        reader = tf.train.load_checkpoint(str(variables / "variables"))
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(f"{path}: its variables are damaged") from error
    kinds = reader.get_variable_to_dtype_map()
    shapes = reader.get_variable_to_shape_map()
    claimed = sum(_bytes_of(shapes[name], kinds[name]) for name in shapes)
    _refuse_size(path, "variables", claimed, stored)


def _check_computed(path: Any, function: Any, sizes: list[int]) -> None:
    """Refuses a graph that computes too much for one image; nothing of it is run."""
    flat = convert_variables_to_constants_v2(function)
    (image,) = flat.inputs
    with tf.Graph().as_default() as graph:
        one = tf.compat.v1.placeholder(image.dtype, [1, *sizes])
        # Shapes are inferred again, of one image.
        tf.import_graph_def(flat.graph.as_graph_def(), {image.op.name: one}, name="")
    # Of a normalization those that only training reads are empty.
    tensors = [
        tensor
        for op in graph.get_operations()
        for tensor in op.outputs[: 1 if op.type.startswith("FusedBatchNorm") else None]
        if op.name != image.op.name  # The former input, which nothing reads now.
    ]
    unknown = {t.op.type for t in tensors if not t.shape.is_fully_defined()}
    if unknown:
        raise ValueError(
            f"{path}: what its operations {', '.join(sorted(unknown)[:8])} give is of "
            "a size that only the pixels tell; a graph is run if its memory is known"
        )
    computed = sum(_bytes_of(t.shape, t.dtype.as_datatype_enum) for t in tensors)
    _refuse_size(path, "tensors for one image", computed, _MOST_COMPUTED)


def _refuse_size(path: Any, what: str, found: int, most: int) -> None:
    if found > most:
        raise ValueError(
            f"{path}: its {what} take {found:,} bytes. Expected: at most {most:,}; it "
            "is not run"
        )


def _tensors(node: Any) -> Iterator[Any]:
    """The constants in a node."""
    for value in node.attr.values():
        if value.WhichOneof("value") == "tensor":
            yield value.tensor
        elif value.WhichOneof("value") == "list":
            yield from value.list.tensor


def _bytes_of(shape: Iterable[int], dtype: Any) -> int:
    """How many bytes a tensor takes, of strings without what they say."""
    one = tf.as_dtype(dtype).size or _STRING_BYTES
    return math.prod(max(0, size) for size in shape) * one


def _signature(path: Any, signatures: Any) -> Any:
    if _SIGNATURE not in signatures:
        raise ValueError(f"{path}: its signature {_SIGNATURE!r} is not described")
    found = signatures[_SIGNATURE]
    shapes = [
        [[dim.size for dim in one.tensor_shape.dim] for one in part.values()]
        for part in (found.inputs, found.outputs)
    ]
    if len(shapes[0]) != 1 or len(shapes[0][0]) != 4 or -1 in shapes[0][0][1:]:
        raise ValueError(
            f"{path}: expected a SavedModel of one input, images (n, height, width, "
            f"channels) of one size. Received: inputs of the shapes {shapes[0]}"
        )
    if len(shapes[1]) != 1 or len(shapes[1][0]) != 2:
        raise ValueError(
            f"{path}: expected a classifier, whose output is a row of scores for each "
            f"image. Received: outputs of the shapes {shapes[1]}"
        )
    dtype = next(iter(found.inputs.values())).dtype
    if dtype != tf.float32.as_datatype_enum:
        raise ValueError(
            f"{path}: expected images as float32. Received: {tf.as_dtype(dtype).name}"
        )
    return found


def _last_operation(name: str, functions: dict[str, Any]) -> str:
    """What makes the one output of a function, past what only passes it on."""
    for _ in range(_DEEPEST):
        function = functions[name]
        nodes = {node.name: node for node in function.node_def}
        tensor = next(iter(function.ret.values()))
        node = nodes.get(tensor.partition(":")[0])
        while node is not None and node.op in _PASSING and node.input:
            node = nodes.get(node.input[0].partition(":")[0])
        if node is None or "PartitionedCall" not in node.op:
            return "" if node is None else str(node.op)
        name = node.attr["f"].func.name
        if name not in functions or len(functions[name].ret) != 1:
            return ""
    return ""
