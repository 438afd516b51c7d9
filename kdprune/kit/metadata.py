"""TFLite metadata: what a file says of itself to the apps that load it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np

from kdprune.tflite.format import Tensor, read_tflite, set_metadata

LABELS = "labels.txt"

# The tables that are written, their fields in the order of the schema. A union is
# two fields, its type and its value.
# Reference: metadata_schema.fbs of TensorFlow Lite, identifier M001.
_TABLES = {
    "AssociatedFile": ("name", "description", "type"),
    "Content": ("properties_type", "properties"),
    "FeatureProperties": (),
    "ImageProperties": ("color_space",),
    "NormalizationOptions": ("mean", "std"),
    "ProcessUnit": ("options_type", "options"),
    "Stats": ("max", "min"),
    "TensorMetadata": (
        "name",
        "description",
        "dimension_names",
        "content",
        "process_units",
        "stats",
        "associated_files",
    ),
    "SubGraphMetadata": (
        "name",
        "description",
        "input_tensor_metadata",
        "output_tensor_metadata",
    ),
    "ModelMetadata": (
        "name",
        "description",
        "version",
        "subgraph_metadata",
        "author",
        "license",
        "associated_files",
        "min_parser_version",
    ),
}
# A table to write: number of the field to its value.
_Table = dict[int, Any]
_FEATURE_PROPERTIES, _IMAGE_PROPERTIES = 1, 2
_NORMALIZATION = 1
_AXIS_LABELS = 2
_LOWEST = {"int8": -128, "uint8": 0}
_COLOR_SPACES = {3: 1, 1: 2}  # Channels: RGB, GRAYSCALE; 0 is UNKNOWN.


def add_metadata(
    data: bytes,
    classes: Sequence[str],
    *,
    name: str,
    description: str,
    version: str,
    scores: str,
) -> bytes:
    """Embeds metadata and labels into an image classifier's `.tflite` file.

    MediaPipe Tasks and Android Studio read from it what the input is, how pixels
    become numbers, and what the classes are called. Metadata that is there already
    is replaced. The model itself stays as it is: operators, tensors and weights.

    The metadata is a buffer of the file; the labels are a zip archive after its
    end, where the runtimes do not look.

    Args:
        data: A `.tflite` file's content: an image `(1, height, width, channels)`
            in, probabilities `(1, classes)` out. Bytes stand for what the input of an
            8-bit file says, of another one for [0, 1].
        classes: The classes' names, in the order of the outputs.
        name: The model's name.
        description: What the model does, in a sentence.
        version: The model's version.
        scores: What its outputs are, in a sentence.

    Returns:
        The new file's content.
    """
    graph = read_tflite(data)
    (image,) = (graph.tensors[index] for index in graph.inputs)
    metadata = _table(
        "ModelMetadata",
        name=name,
        description=description,
        version=version,
        subgraph_metadata=[
            _table(
                "SubGraphMetadata",
                input_tensor_metadata=[_describe_image(image)],
                output_tensor_metadata=[_describe_scores(scores)],
            )
        ],
        min_parser_version="1.0.0",
    )
    content = set_metadata(data, "TFLITE_METADATA", _pack(metadata))
    return _append_labels(content, classes)


def _describe_image(image: Tensor) -> _Table:
    color = _COLOR_SPACES.get(image.shape[3], 0)
    scale, zero = 1 / 255, 0
    if image.dtype in _LOWEST:
        scale = float(image.scale[0])
        zero = int(image.zero_point[0]) - _LOWEST[image.dtype]
    low, high = (round((byte - zero) * scale, 4) for byte in (0, 255))
    normalization = _table(
        "NormalizationOptions",
        mean=np.array([zero], np.float32),
        std=np.array([float(f"{1 / scale:.6g}")], np.float32),
    )
    return _table(
        "TensorMetadata",
        name="image",
        description="The image; bytes from 0 to 255 stand for values from "
        f"{low:g} to {high:g}.",
        content=_table(
            "Content",
            properties_type=_IMAGE_PROPERTIES,
            properties=_table("ImageProperties", color_space=color),
        ),
        process_units=[
            _table("ProcessUnit", options_type=_NORMALIZATION, options=normalization)
        ],
        stats=_table(
            "Stats", max=np.array([high], np.float32), min=np.array([low], np.float32)
        ),
    )


def _describe_scores(description: str) -> _Table:
    labels = _table(
        "AssociatedFile",
        name=LABELS,
        description="The classes' names, one per line.",
        type=_AXIS_LABELS,
    )
    return _table(
        "TensorMetadata",
        name="scores",
        description=description,
        content=_table(
            "Content",
            properties_type=_FEATURE_PROPERTIES,
            properties=_table("FeatureProperties"),
        ),
        stats=_table(
            "Stats", max=np.array([1], np.float32), min=np.array([0], np.float32)
        ),
        associated_files=[labels],
    )


def _table(kind: str, **fields: Any) -> _Table:
    """A table to write: number of the field to its value."""
    order = _TABLES[kind]
    return {order.index(field): value for field, value in fields.items()}


def _pack(metadata: _Table) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, metadata), b"M001")
    return bytes(builder.Output())


def _write(builder: flatbuffers.Builder, value: Any) -> int:
    """Writes a string, an array, a list of tables or a table; returns its place."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        places = [_write(builder, part) for part in value]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return builder.EndVector()
    # Whatever a table refers to is written before it; numbers are within it.
    written = {
        field: _write(builder, part)
        for field, part in value.items()
        if not isinstance(part, int)
    }
    builder.StartObject(max(value, default=-1) + 1)
    for field, part in value.items():
        if field in written:
            builder.PrependUOffsetTRelativeSlot(field, written[field], 0)
        else:
            builder.PrependUint8Slot(field, part, 0)
    return builder.EndObject()


def _append_labels(data: bytes, classes: Sequence[str]) -> bytes:
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as archive:
        # With the fixed date of a bare ZipInfo, the same kit has the same bytes.
        archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(classes) + "\n")
    return file.getvalue()
