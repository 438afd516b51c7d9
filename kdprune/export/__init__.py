"""Turning trained models into `.tflite` files, and refusing the bad ones."""

from kdprune.export.convert import convert_tflite, layer_report, write_file
from kdprune.export.gate import check_tflite, inspect_tflite, paired_drop
from kdprune.export.kit import write_kit
from kdprune.export.layers import sensitive_layers

__all__ = [
    "check_tflite",
    "convert_tflite",
    "inspect_tflite",
    "layer_report",
    "paired_drop",
    "sensitive_layers",
    "write_file",
    "write_kit",
]
