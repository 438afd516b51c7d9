"""Models as their users have them: files of any Keras, rebuilt as tf_keras models.

A file is data. What it describes is built from a table of known layers and functions,
each with the settings that it may have; nothing that it names is imported, looked up or
called. Whatever is not in the table is refused by name.
"""

from kdprune.intake.file_input import ByteInput, byte_input, for_bytes, split_input
from kdprune.intake.heads import (
    Head,
    check_head,
    find_head,
    select_output,
    split_head,
)
from kdprune.intake.keras_config import build_keras3, build_tf_keras
from kdprune.intake.keras_weights import load_keras3_weights
from kdprune.intake.pixels import (
    PixelRange,
    parse_range,
    split_pixels,
)
from kdprune.intake.taking import (
    Taken,
    range_of,
    take_model,
    to_unit_range,
    with_channel,
)

__all__ = [
    "ByteInput",
    "Head",
    "PixelRange",
    "Taken",
    "build_keras3",
    "build_tf_keras",
    "byte_input",
    "check_head",
    "find_head",
    "for_bytes",
    "load_keras3_weights",
    "parse_range",
    "range_of",
    "select_output",
    "split_head",
    "split_input",
    "split_pixels",
    "take_model",
    "to_unit_range",
    "with_channel",
]
