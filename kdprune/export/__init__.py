"""Turning trained models into `.tflite` files, and refusing the bad ones."""

from kdprune.export.convert import convert_tflite, layer_report, write_file
from kdprune.export.coverage import xnnpack_leaves
from kdprune.export.gate import (
    check_tflite,
    compare_kernels,
    images_to_prove,
    paired_drop,
)
from kdprune.export.inspection import float_layers_of, inspect_tflite
from kdprune.export.kit import write_kit
from kdprune.export.layers import sensitive_layers

__all__ = [
    "check_tflite",
    "compare_kernels",
    "convert_tflite",
    "float_layers_of",
    "images_to_prove",
    "inspect_tflite",
    "layer_report",
    "paired_drop",
    "sensitive_layers",
    "write_file",
    "write_kit",
    "xnnpack_leaves",
]
