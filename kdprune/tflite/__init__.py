"""The `.tflite` format: written, read, inspected, held against its Keras model."""

from kdprune.tflite.convert import (
    Calibration,
    convert_tflite,
    input_range_of,
    layer_report,
    meant_by_bytes,
)
from kdprune.tflite.coverage import xnnpack_leaves
from kdprune.tflite.format import (
    read_tflite,
    share_content,
    tensor_names,
    write_names,
)
from kdprune.tflite.gate import (
    RefusedFile,
    check_tflite,
    compare_kernels,
    content_of,
    images_to_prove,
    paired_drop,
    provable_drop,
)
from kdprune.tflite.inspection import float_layers_of, input_bounds, inspect_tflite
from kdprune.tflite.interpreter import open_interpreter
from kdprune.tflite.layers import sensitive_layers
from kdprune.tflite.sizes import describe_file
from kdprune.tflite.slim import Slimmed, slim_tflite

__all__ = [
    "Calibration",
    "check_tflite",
    "compare_kernels",
    "content_of",
    "convert_tflite",
    "describe_file",
    "float_layers_of",
    "images_to_prove",
    "input_bounds",
    "input_range_of",
    "inspect_tflite",
    "layer_report",
    "meant_by_bytes",
    "open_interpreter",
    "paired_drop",
    "provable_drop",
    "read_tflite",
    "RefusedFile",
    "Slimmed",
    "sensitive_layers",
    "share_content",
    "slim_tflite",
    "tensor_names",
    "write_names",
    "xnnpack_leaves",
]
