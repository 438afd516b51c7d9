"""Turning trained models into `.tflite` files, and refusing the bad ones."""

from kdprune.export.convert import convert_tflite, write_file
from kdprune.export.gate import check_tflite, inspect_tflite
from kdprune.export.kit import write_kit

__all__ = [
    "check_tflite",
    "convert_tflite",
    "inspect_tflite",
    "write_file",
    "write_kit",
]
