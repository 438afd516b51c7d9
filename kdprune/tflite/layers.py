"""The error of each layer in 8 bits, its ranges and saturation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdprune.tflite.format import read_tflite, set_constants
from kdprune.tflite.interpreter import open_interpreter
from kdprune.tflite.names import layers_of


def compare_layers(content: bytes, images: Iterable[NDArray]) -> list[dict[str, Any]]:
    """Measures every operator's integer output against its float output.

    Both get the same input, the integer one's, so that each error is the
    operator's own and not its predecessors'.

    Args:
        content: What `quantize_calibrated(..., verify=True)` returned.
        images: float32 in [0, 1], shape `(n, height, width, channels)`, n > 0.

    Returns:
        List of dicts, one for each operator in the order of execution: `layer`
        (Keras layer), `op`, `tensor`;
        `sqnr_db`: mean square of the float output over that of the error, in
        decibels, None without an error: below about 20 a layer is sensitive;
        `rmse` and `rmse_over_scale`: the error's root mean square, and the same in
        steps: 0.29 for plain rounding, more where values are clipped or weights
        too coarse;
        `low`, `high`: the quantized range, the real values that the integers cover;
        `seen_low`, `seen_high`: the observed range of the float output;
        `saturation`: share of values more than half a step outside that range;
        `weight_low`, `weight_high`, `weight_sqnr_db`: of the weights (with what
        was folded into them), None for an operator without;
        `channel_errors`: mean error (float minus integer) of each channel, over
        the positions where the float output is not 0, a list of floats.
    """
    interpreter = open_interpreter(content, "builtin", keep_all=True)
    ops = interpreter._get_ops_details()
    made_by = {int(index): op for op in ops for index in op["outputs"]}
    details = {int(d["index"]): d for d in interpreter.get_tensor_details()}
    pairs = [
        _Pair(interpreter, made_by, details, *map(int, op["inputs"]))
        for op in ops
        if op["op_name"] == "NumericVerify"
    ]
    source = interpreter.get_input_details()[0]
    scale, zero_point = source["quantization"]
    for image in images:
        steps = np.clip(np.rint(image / scale) + zero_point, -128, 127)
        interpreter.set_tensor(source["index"], steps.astype(np.int8)[None])
        interpreter.invoke()
        for pair in pairs:
            pair.add()
    return [pair.figures() for pair in pairs]


def sensitive_layers(report: list[dict[str, Any]], count: int) -> list[str]:
    """The most sensitive layers: those of the lowest SQNR, worst first.

    Args:
        report: What `layer_report` returned.
        count: How many at most.

    Returns:
        List of names, for `convert_tflite(..., float_layers=)`.
    """
    rows = [row for row in report if row["layer"] and row["sqnr_db"] is not None]
    names = [row["layer"] for row in sorted(rows, key=lambda row: row["sqnr_db"])]
    return list(dict.fromkeys(names))[:count]


def correct_biases(content: bytes, report: list[dict[str, Any]]) -> bytes:
    """Adds each channel's mean error to its bias, in an int8 file.

    Rounded weights shift a layer's mean; the shift is known, and the bias free.

    Reference: Nagel et al., 2019, https://arxiv.org/abs/1906.04721, section 4.2
    (here with the means of calibration images).

    Args:
        content: The file of `quantize_calibrated`.
        report: What `compare_layers` returned of the same calibrated file.

    Returns:
        The content of the file with its biases changed. Operators without a bias
        of their own are left as they are.
    """
    graph = read_tflite(content)
    biases = {}
    for op in graph.ops:
        index = op.inputs[2] if len(op.inputs) == 3 else -1
        if index >= 0 and graph.tensors[index].dtype == "int32":
            biases[graph.tensors[op.outputs[0]].name] = index
    buffers = Counter(graph.tensors[index].buffer for index in biases.values())
    corrected = {}
    for row in report:
        index = biases.get(row["tensor"], -1)
        if index < 0 or buffers[graph.tensors[index].buffer] > 1:
            continue
        bias = graph.tensors[index]
        steps = bias.data + np.rint(np.asarray(row["channel_errors"]) / bias.scale)
        # Of a channel without weights they are so fine that more than fit are asked.
        limits = np.iinfo(np.int32)
        corrected[index] = np.clip(steps, limits.min, limits.max).astype(np.int32)
    return set_constants(content, corrected)


class _Pair:
    """One operator's integer and float outputs, summed up over images."""

    def __init__(self, interpreter, made_by, details, integer, real):
        self.interpreter, self.integer, self.real = interpreter, integer, real
        self.ops = made_by[integer], made_by[real]
        self.tensor = details[real]["name"]
        self.scale, self.zero_point = details[integer]["quantization"]
        self.details = details
        self.count = self.clipped = 0
        self.signal = self.noise = 0.0
        self.seen = [np.inf, -np.inf]
        self.errors = self.active = 0.0

    def add(self):
        real = self.interpreter.get_tensor(self.real).astype(np.float64)
        integers = self.interpreter.get_tensor(self.integer).astype(np.float64)
        error = real - (integers - self.zero_point) * self.scale
        low, high = self.span()
        half = self.scale / 2
        self.count += real.size
        self.clipped += int(((real < low - half) | (real > high + half)).sum())
        self.signal += float((real**2).sum())
        self.noise += float((error**2).sum())
        self.seen = [min(self.seen[0], real.min()), max(self.seen[1], real.max())]
        # A rectified output says nothing of the sum before it where it is 0.
        active = (real != 0).reshape(-1, real.shape[-1])
        self.errors += (error.reshape(active.shape) * active).sum(axis=0)
        self.active += active.sum(axis=0)

    def span(self):
        return [(limit - self.zero_point) * self.scale for limit in (-128, 127)]

    def figures(self):
        rmse = (self.noise / self.count) ** 0.5
        low, high = self.span()
        return {
            "layer": next(iter(layers_of(self.tensor)), None),
            "op": self.ops[0]["op_name"],
            "tensor": self.tensor,
            "sqnr_db": _decibels(self.signal, self.noise),
            "rmse": rmse,
            "rmse_over_scale": rmse / self.scale,
            "low": low,
            "high": high,
            "seen_low": float(self.seen[0]),
            "seen_high": float(self.seen[1]),
            "saturation": self.clipped / self.count,
            **self._weights(),
            "channel_errors": (self.errors / np.maximum(self.active, 1)).tolist(),
        }

    def _weights(self):
        integer, real = (
            op["inputs"][1] if len(op["inputs"]) > 1 else -1 for op in self.ops
        )
        detail = self.details.get(int(integer), {})
        scales = detail.get("quantization_parameters", {}).get("scales", ())
        weighted = self.ops[0]["op_name"] in _WEIGHTED and len(scales)
        if not weighted:
            return dict.fromkeys(("weight_low", "weight_high", "weight_sqnr_db"))
        weights = self.interpreter.get_tensor(int(real)).astype(np.float64)
        axis = detail["quantization_parameters"]["quantized_dimension"]
        shape = [-1 if i == axis else 1 for i in range(weights.ndim)]
        rounded = self.interpreter.get_tensor(int(integer)) * scales.reshape(shape)
        return {
            "weight_low": float(weights.min()),
            "weight_high": float(weights.max()),
            "weight_sqnr_db": _decibels(
                (weights**2).sum(), ((weights - rounded) ** 2).sum()
            ),
        }


_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def _decibels(signal, noise):
    """None without noise, and where there is nothing but noise."""
    return float(10 * np.log10(signal / noise)) if noise and signal else None
