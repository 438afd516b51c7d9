"""Post-training quantization in two steps, so that ranges and layers can be chosen.

The converter's first step writes the observed range of every tensor into a float file,
its second one quantizes it. Between the two the ranges can be narrowed; the second can
leave layers in float, and can put the float layers beside the integer ones to compare
them (`kdprune.tflite.layers`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.lite.python.convert import mlir_quantize

from kdprune.images import spread
from kdprune.tflite.format import read_tflite, set_ranges
from kdprune.tflite.interpreter import open_interpreter
from kdprune.tflite.names import layers_of

RANGE_METHODS = ("minmax", "percentile", "mse")
_PERCENTILE = 99.99
_SHARES = np.linspace(0.3, 1.0, 36)  # Of the extremes, that "mse" tries.
_IMAGES = 200  # To sample values from.
_VALUES = 2048  # Sampled from each tensor for each image.


def observe(converter: tf.lite.TFLiteConverter, images: NDArray) -> bytes:
    """The model as a float file in which every tensor's observed range is noted.

    Args:
        converter: A `tf.lite.TFLiteConverter`, fresh.
        images: float32 in [0, 1], shape `(n, height, width, channels)`.

    Returns:
        The content of the file, for `narrow` and `quantize_calibrated`.
    """
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter._experimental_calibrate_only = True
    return bytes(converter.convert())


def narrow(content: bytes, values: Mapping[int, NDArray], range_method: str) -> bytes:
    """Clips the ranges of a file's tensors in order to have finer steps.

    Args:
        content: What `observe` returned.
        values: What `sample_values` found in it.
        range_method: "percentile" leaves out the outer 0.01 % at either end, "mse"
            clips as much as makes the mean squared error smallest. Input and output
            keep their ranges.

    Returns:
        The content of the file, for `quantize_calibrated`.
    """
    narrowed = _percentile if range_method == "percentile" else _least_squares
    tensors = read_tflite(content).tensors
    return set_ranges(
        content,
        {
            index: narrowed(found, tensors[index].low[0], tensors[index].high[0])
            for index, found in values.items()
        },
    )


def quantize_calibrated(
    content: bytes,
    dtype: str = "int8",
    float_layers: Sequence[str] = (),
    verify: bool = False,
) -> bytes:
    """Makes an 8-bit file of a calibrated one.

    Args:
        content: What `observe` or `narrow` returned.
        dtype: "int8" or "uint8", of input and output.
        float_layers: Names of Keras layers to leave in float, as
            `check_float_layers` has found them right.
        verify: Keep each float operator beside its integer one, with a
            `NumericVerify` operator that takes both outputs: to look at, not to ship.

    Returns:
        The content of the file.
    """
    outputs = _tensors_by_layer(content)
    return mlir_quantize(
        content,
        # Else operators without an integer form stay in float, without a word; but
        # with it the ends are always int8.
        fully_quantize=verify or (dtype == "int8" and not float_layers),
        input_data_type=tf.dtypes.as_dtype(dtype),
        output_data_type=tf.dtypes.as_dtype(dtype),
        enable_numeric_verify=verify,
        denylisted_nodes=[tensor for name in float_layers for tensor in outputs[name]],
    )


def check_float_layers(content: bytes, names: Collection[str]) -> None:
    """Raises `ValueError` for a layer that can't be left in float.

    Args:
        content: What `observe` or `narrow` returned.
        names: Names of Keras layers; those that were folded into others
            (BatchNormalization, most ReLU) have no operator of their own.
    """
    outputs = _tensors_by_layer(content)
    unknown = [name for name in names if name not in outputs]
    if unknown:
        raise ValueError(
            "float_layers must be layers with an operator in the file: "
            f"{', '.join(outputs)}. Received: {', '.join(unknown)}"
        )


def _tensors_by_layer(content: bytes) -> dict[str, list[str]]:
    """`{layer: [output tensors]}` of a float file, in the order of execution."""
    graph = read_tflite(content)
    tensors: dict[str, list[str]] = {}
    for op in graph.ops:
        for index in op.outputs:
            name = graph.tensors[index].name
            for layer in layers_of(name):
                tensors.setdefault(layer, []).append(name)
    return tensors


def sample_values(content: bytes, images: NDArray) -> dict[int, NDArray]:
    """`{tensor: values}` of what operators give, the last one's scores excepted.

    Args:
        content: What `observe` returned.
        images: float32 in [0, 1], shape `(n, height, width, channels)`, without those
            that only span the input's range.
    """
    interpreter = open_interpreter(content, "builtin", keep_all=True)
    graph = read_tflite(content)
    outputs = [
        index
        for op in graph.ops[:-1]
        for index in op.outputs
        if len(graph.tensors[index].low) == 1
    ]
    values: dict[int, list[NDArray]] = {index: [] for index in outputs}
    source = interpreter.get_input_details()[0]["index"]
    rng = np.random.default_rng(0)
    for image in images[spread(len(images), _IMAGES)]:
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        for index in outputs:
            tensor = interpreter.get_tensor(index).ravel()
            if tensor.size > _VALUES:
                tensor = rng.choice(tensor, _VALUES, replace=False)
            values[index].append(tensor)
    return {index: np.concatenate(parts) for index, parts in values.items()}


def _percentile(values: NDArray, low: float, high: float) -> tuple[float, float]:
    least, most = np.percentile(values, [100 - _PERCENTILE, _PERCENTILE])
    return max(low, min(least, 0.0)), min(high, max(most, 0.0))


def _least_squares(values: NDArray, low: float, high: float) -> tuple[float, float]:
    """The share of both extremes that has the smallest error in 256 steps."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if low == high:
        return low, high

    def error(share):
        scale = share * (high - low) / 255
        steps = np.rint(values / scale)
        zero = np.rint(share * low / scale)
        return np.mean((np.clip(steps, zero, zero + 255) * scale - values) ** 2)

    share = min(_SHARES[::-1], key=error)
    return share * low, share * high
