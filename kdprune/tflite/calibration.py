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
from tensorflow.lite.python.optimize.calibrator import Calibrator

from kdprune.images import spread
from kdprune.tflite.format import WITH_KERNEL, Graph, read_tflite, set_ranges
from kdprune.tflite.interpreter import open_interpreter
from kdprune.tflite.names import layers_of

STEPS = 255  # From one end of a range to the other.
# What only moves or averages values may make them smaller by that much more than sums
# are made.
MOVED = 2.0**-9
# The sizes of what these make say nothing of the sizes of what they are given.
_NOT_LINEAR = tuple("DIV EXP LOG POW RSQRT SQRT SQUARE SQUARED_DIFFERENCE".split())
RANGE_METHODS = ("minmax", "percentile", "mse")
_PERCENTILE = 99.99
# What these give has the scale of what they take: they move values, average them or
# choose among them.
_SAME_SCALE = frozenset(
    """AVERAGE_POOL_2D BATCH_TO_SPACE_ND BROADCAST_TO CONCATENATION DEPTH_TO_SPACE
    EXPAND_DIMS GATHER GATHER_ND MAXIMUM MAX_POOL_2D MINIMUM MIRROR_PAD PACK PAD PADV2
    REDUCE_MAX REDUCE_MIN RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2
    SELECT SELECT_V2 SLICE SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQUEEZE
    STRIDED_SLICE TILE TRANSPOSE UNPACK""".split()
)
_SHARES = np.linspace(0.3, 1.0, 36)  # Of the extremes, that "mse" tries.
_IMAGES = 200  # To sample values from.
_VALUES = 2048  # Sampled from each tensor for each image.


def observe(
    converter: tf.lite.TFLiteConverter, images: NDArray, bounds: tuple[float, float]
) -> bytes:
    """The model as a float file in which every tensor's observed range is noted.

    The input's is that of all bytes, whatever the images are, as is that of what only
    moves its values. Adding a black and a white image would do so too, but would also
    widen the ranges of all activations to values that no image reaches: it cost
    EfficientNetV2B0 3.5 points of agreement.

    Args:
        converter: A `tf.lite.TFLiteConverter`, fresh.
        images: float32 as the model takes them, shape `(n, height, width, channels)`.
        bounds: What the bytes 0 and 255 are to the model.

    Returns:
        The content of the file, for `narrow` and `quantize_calibrated`.
    """
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter._experimental_calibrate_only = True
    content = bytes(converter.convert())
    graph = read_tflite(content)
    ranges = {}
    for index in _pixels(graph):
        tensor = graph.tensors[index]
        ends = (float(tensor.low[0]), float(tensor.high[0]), *bounds)
        ranges[index] = min(ends), max(ends)
    return set_ranges(content, ranges | dict.fromkeys(graph.inputs, bounds))


def _pixels(graph: Graph) -> list[int]:
    """The tensors with a range that hold values of the input: moved, averaged, chosen.

    There may be others beside them, as in a concatenation.
    """
    found = set(graph.inputs)
    for op in graph.ops:
        if op.name in _SAME_SCALE and not found.isdisjoint(op.inputs):
            found.update(op.outputs)
    return [index for index in sorted(found) if len(graph.tensors[index].low) == 1]


def narrow(content: bytes, values: Mapping[int, NDArray], range_method: str) -> bytes:
    """Clips the ranges of a file's tensors in order to have finer steps.

    Args:
        content: What `observe` returned.
        values: What `sample_values` found in it.
        range_method: "percentile" leaves out the outer 0.01 % at either end, "mse"
            clips as much as makes the mean squared error smallest. Input and output
            keep their ranges, as does what only moves the input's values.

    Returns:
        The content of the file, for `quantize_calibrated`.
    """
    narrowed = _percentile if range_method == "percentile" else _least_squares
    graph = read_tflite(content)
    tensors, kept = graph.tensors, set(_pixels(graph))
    return set_ranges(
        content,
        {
            index: narrowed(found, tensors[index].low[0], tensors[index].high[0])
            for index, found in values.items()
            if index not in kept
        },
    )


def widen(content: bytes) -> bytes:
    """Gives every tensor of a file its least range.

    What is 0 on all images has none; a file of it has a step of 1e-9 or 0, which the
    runtime refuses, or what reads it.

    Args:
        content: What `observe` or `narrow` returned.

    Returns:
        The content of the file, for `quantize_calibrated`.
    """
    graph = read_tflite(content)
    steps = {
        index: (max(0.0, tensor.high[0]) - min(0.0, tensor.low[0])) / STEPS
        for index, tensor in enumerate(graph.tensors)
        if len(tensor.low) == 1
    }
    ranges = {}
    for op in graph.ops:
        given = [float(steps[i]) for i in op.inputs if i in steps]
        if not given:
            continue
        step = sums = max(given)
        if op.name in (*WITH_KERNEL, "MUL"):
            # The first input of a transposed convolution is a shape, of integers.
            taken = [graph.tensors[i] for i in op.inputs[:2] if i >= 0]
            constants = [t.data for t in taken if t.dtype == "float32"]
            factors = [np.abs(c).max() / 127 for c in constants if c is not None]
            sums = float(np.prod(given) * np.prod(factors))
        elif op.name in _NOT_LINEAR:
            sums = 0.0
        elif op.name not in ("ADD", "SUB"):
            sums *= MOVED
        for index in op.outputs:
            if index not in steps:
                continue
            least = least_step(steps[index], step, sums)
            if least > steps[index]:
                steps[index], ranges[index] = least, around_zero(least)
    return set_ranges(content, ranges) if ranges else content


def least_step(step: float, given: float, sums: float) -> float:
    """How fine the steps of an operator's output may be.

    Kernels multiply by the ratio of steps, which XNNPACK has below 256. So a step is at
    least 1/128 of what is summed up, which is more than all of an output that has any
    use; one that is 0 has the step of its input, as have all behind it.

    Args:
        step: The step of its output.
        given: That of its input, the largest one.
        sums: That of the sums it makes, such as of input times kernel.

    Returns:
        The step, or a larger one.
    """
    if step > 0 and step >= sums / 128:
        return step
    return sums / 128 if step > sums * 2.0**-16 else max(given, sums)


def around_zero(step: float) -> tuple[float, float]:
    """The range of 255 such steps around 0."""
    return -128 * step, 127 * step


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


def quantize_wide(content: bytes) -> bytes:
    """Makes an int16x8 file of a calibrated one.

    Args:
        content: What `observe` returned.

    Returns:
        The content of the file.

    Raises:
        ValueError: If an operator has no 16-bit form that runs, with its layer's name.
    """
    for op in (graph := read_tflite(content)).ops:
        if op.name == "RSQRT":  # It is written, and ends the process that runs it.
            name = next(iter(layers_of(graph.tensors[op.outputs[0]].name)), "?")
            raise ValueError(
                f"layer {name!r} is normalized by RSQRT, which runs in 8 bits, not "
                "in 16: quantize to int8"
            )
    wide, bias = np.dtype("int16").num, np.dtype("int64").num
    quantizer = Calibrator(content)._calibrator
    return bytes(quantizer.QuantizeModel(wide, wide, False, wide, bias, False, False))


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
        images: float32 as the model takes them, shape `(n, height, width, channels)`.
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
