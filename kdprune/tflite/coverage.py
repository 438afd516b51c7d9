"""Which operators of a file a delegate or a microcontroller's runtime supports.

For the GPU delegate and TFLite Micro these are tables, taken from their sources.
XNNPACK is part of the runtime, and is queried.
"""

from __future__ import annotations

from kdprune.tflite.format import File
from kdprune.tflite.interpreter import open_interpreter

# Operators that `CheckGpuDelegateCompatibility` accepts; each has limits on shapes
# and attributes besides. Source: tensorflow/lite/tools/versioning/
# gpu_compatibility.cc of https://github.com/tensorflow/tensorflow (03a5e4e); the
# check of TensorFlow 2.21's own `tf.lite.experimental.Analyzer` passes every operator.
GPU = frozenset(
    """ABS ADD ADD_N ATAN2 AVERAGE_POOL_2D BATCH_MATMUL CAST CEIL CONCATENATION CONV_2D
    COS CUMSUM DENSIFY DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV
    DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP FLOOR FLOOR_DIV FLOOR_MOD
    FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS
    LESS_EQUAL LOG LOGICAL_AND LOGISTIC LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD
    MUL NEG NOT_EQUAL ONE_HOT PACK PAD PADV2 POW PRELU QUANTIZE REDUCE_MAX REDUCE_MIN
    REDUCE_PROD RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR
    RSQRT SELECT SELECT_V2 SIGN SIN SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT
    SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE
    TRANSPOSE_CONV""".split()
)
# It computes in float: 8-bit tensors are taken where quantized inference is enabled
# (the default of its Java and C++ options), others of integers are not.
# Source: https://ai.google.dev/edge/litert/performance/gpu
_GPU_TYPES = frozenset(("float32", "float16", "int8", "uint8"))

# Operators that TFLite Micro's Python interpreter registers, all that it has kernels
# for but signal processing. Source: python/tflite_micro/python_ops_resolver.cc of
# https://github.com/tensorflow/tflite-micro (03e16b2).
MICRO = frozenset(
    """ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_TO_SPACE_ND
    BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM
    DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV ELU EQUAL EXP EXPAND_DIMS FILL FLOOR
    FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL
    HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND
    LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM
    MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_MAX
    RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR ROUND RSQRT SELECT_V2
    SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE
    SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV
    UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE""".split()
)
_MICRO_TYPES = frozenset(("float32", "int8", "uint8", "int16"))


def gpu_runs(op: str, kind: str) -> bool:
    """Whether the GPU delegate takes an operator, by its name and type.

    Args:
        op: Its name, such as "CONV_2D".
        kind: Its type, as `inspect_tflite` writes it. 8-bit types need quantized
            inference enabled in the delegate's options.

    Returns:
        True or False; shapes and attributes are not looked at.
    """
    return op in GPU and _parts(kind) <= _GPU_TYPES


def micro_runs(op: str, kind: str) -> bool:
    """Whether TFLite Micro has a kernel, by an operator's name and type.

    It does not mix float activations with 8-bit weights. Shapes and attributes are
    not looked at: `kdprune.kit.micro.measure_arena` runs the file.

    Args:
        op: Its name, such as "CONV_2D".
        kind: Its type, as `inspect_tflite` writes it.

    Returns:
        True or False.
    """
    hybrid = kind.startswith("float32, ")
    return op in MICRO and _parts(kind) <= _MICRO_TYPES and not hybrid


def xnnpack_leaves(data: File) -> list[str]:
    """The operators of a file that XNNPACK, on this machine, does not run.

    Args:
        data: A `.tflite` file's content, or its path.

    Returns:
        Their names, sorted, one for each operator: none if XNNPACK takes all. The
        runtime of another processor may leave others.

    Raises:
        ValueError: If the runtime can't run the file.
    """
    return sorted(name for _, name in xnnpack_left(data))


def xnnpack_left(data: File) -> list[tuple[int, str]]:
    """The same as `(number, name)`, by their place in the order of execution.

    Args:
        data: A `.tflite` file's content, or its path.

    Raises:
        ValueError: If the runtime can't run the file.
    """
    ops = open_interpreter(data)._get_ops_details()
    delegates = [op for op in ops if op["op_name"] == "DELEGATE"]
    others = [op for op in ops if op["op_name"] != "DELEGATE"]
    made_by = {int(i): op for op in others for i in op["outputs"]}
    taken: set[int] = set()
    for delegate in delegates:
        # It stands for all that lies between what it takes and what it gives.
        edge = set(map(int, delegate["inputs"]))
        waiting = list(map(int, delegate["outputs"]))
        while waiting:
            index = waiting.pop()
            op = made_by.get(index)
            if index not in edge and op is not None and op["index"] not in taken:
                taken.add(op["index"])
                waiting += map(int, op["inputs"])
    return [(op["index"], op["op_name"]) for op in others if op["index"] not in taken]


def _parts(kind: str) -> set[str]:
    return set(kind.removesuffix(" weights").replace(" to ", ", ").split(", "))
