"""Normalizations in 8 bits: how large what RSQRT makes may be.

A layer normalization divides by a deviation, `x * r - mean * r` with `r = 1 /
sqrt(variance + epsilon)`. Where all is the same, in a black image or a channel that is
off, r is a thousand times as large as elsewhere, and so are both products, whose
difference is 0. Their ranges then leave a step or two for everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdprune.images import spread
from kdprune.tflite.format import Graph, Op, read_tflite, set_ranges
from kdprune.tflite.interpreter import open_interpreter

_STEPS = 255
_IMAGES = 32  # To try limits on.
_LIMITS = 2.0 ** -np.arange(0, 5, 0.5)  # Of the largest that 8 bits can tell, tried.
_WORTH = 0.8  # Of the squared error: what is as good stays as it was observed.
_MAKE: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "MUL": np.multiply,
    "ADD": np.add,
    "SUB": np.subtract,
}
_FUSED: dict[str, Callable[[NDArray], NDArray]] = {
    "NONE": lambda values: values,
    "RELU": lambda values: np.maximum(values, 0),
    "RELU_N1_TO_1": lambda values: np.clip(values, -1, 1),
    "RELU6": lambda values: np.clip(values, 0, 6),
    "TANH": np.tanh,
}

Ranges = dict[int, tuple[float, float]]
Values = Callable[[int], NDArray]


def limit_norms(content: bytes, images: NDArray) -> bytes:
    """Chooses the ranges of what RSQRT makes, and of what is multiplied by it.

    The variance has 255 steps, of which one less than half is none: 8 bits tell no r
    beyond that of one step from others. Limits from there down are tried by computing
    the normalization in 8 bits on some images; that of the least squared error is
    taken, if the observed ranges are worse.

    Args:
        content: What `observe` returned.
        images: What it was shown.

    Returns:
        The content of the file, for `narrow` and `quantize_calibrated`; the same one
        where nothing is normalized so, or nothing is gained.
    """
    graph = read_tflite(content)
    norms = list(_find_norms(graph))
    if not norms:
        return content
    chosen = images[spread(len(images), _IMAGES)]
    ranges: list[list[Ranges]] = [[{} for _ in _LIMITS] for _ in norms]
    for values in _run(content, chosen):
        for norm, found in zip(norms, ranges, strict=True):
            for limit, ends in zip(norm.limits, found, strict=True):
                _widen(ends, norm.compute(values, limit))
    errors = np.zeros((len(norms), 1 + len(_LIMITS)))
    for values in _run(content, chosen):
        for norm, found, sums in zip(norms, ranges, errors, strict=True):
            expected = values(norm.end)
            tries = [(norm.high, norm.noted), *zip(norm.limits, found, strict=True)]
            for column, (limit, ends) in enumerate(tries):
                made = norm.compute(values, limit, {**ends, norm.end: norm.noted_end})
                sums[column] += np.mean((made[norm.end] - expected) ** 2)
    taken: Ranges = {}
    for norm, found, sums in zip(norms, ranges, errors, strict=True):
        best = int(sums.argmin())
        if best and sums[best] < _WORTH * sums[0]:
            del found[best - 1][norm.end]
            taken |= found[best - 1]
    return set_ranges(content, taken) if taken else content


@dataclass(frozen=True)
class _Norm:
    """An RSQRT, and the operators up to what it normalizes.

    Attributes:
        given: The tensor it takes.
        made: The tensor it makes.
        ops: Those that what it makes goes through.
        end: What the last of them makes.
        step: Of 8 bits, of what it takes.
        high: The largest that it was observed to make.
        noted: The observed ranges of what is made on the way, `made` first.
        noted_end: That of the end.
    """

    given: int
    made: int
    ops: tuple[Op, ...]
    end: int
    step: float
    high: float
    noted: Ranges
    noted_end: tuple[float, float]

    @property
    def limits(self) -> NDArray:
        return min(self.high, self.step**-0.5) * _LIMITS

    def compute(
        self, values: Values, limit: float, ranges: Mapping | None = None
    ) -> dict[int, NDArray]:
        """What is made of an image, in float or in 8 bits of these ranges.

        Args:
            values: `values(tensor)` is what the file makes of the image.
            limit: The largest that RSQRT makes.
            ranges: `{tensor: (low, high)}` of all that is made.
        """
        given = values(self.given)
        if ranges is not None:
            given = np.rint(given / self.step) * self.step
        with np.errstate(divide="ignore"):
            made = {self.made: np.minimum(given**-0.5, limit)}
        if ranges is not None:
            made[self.made] = _rounded(made[self.made], ranges[self.made])
        for op in self.ops:
            (output,) = op.outputs
            first, second = (made[i] if i in made else values(i) for i in op.inputs[:2])
            if op.name in _MAKE:
                found = _FUSED[op.fused](_MAKE[op.name](first, second))
            else:
                found = first.reshape(values(output).shape)
            made[output] = found
            if ranges is not None:
                made[output] = _rounded(found, ranges[output])
        return made


def _find_norms(graph: Graph) -> Iterator[_Norm]:
    """Those whose ranges have been observed."""
    for op in graph.ops:
        if op.name != "RSQRT":
            continue
        made = op.outputs[0]
        ops = tuple(_way(graph, made))
        tensors = [op.inputs[0], made, *(one.outputs[0] for one in ops)]
        if not ops or any(len(graph.tensors[i].low) != 1 for i in tensors):
            continue
        noted = {i: _ends(graph, i) for i in tensors}
        low, high = noted.pop(op.inputs[0])
        end = ops[-1].outputs[0]
        if high > low:
            step = (high - low) / _STEPS
            largest = float(graph.tensors[made].high[0])
            ends = noted.pop(end)
            yield _Norm(op.inputs[0], made, ops, end, step, largest, noted, ends)


def _way(graph: Graph, made: int) -> Iterator[Op]:
    """The operators from RSQRT to where what is multiplied by it meets again."""
    reached = {made}
    for op in graph.ops:
        given = [i for i in op.inputs if i in reached]
        if not given or len(op.inputs) != 2 or op.fused not in _FUSED:
            continue
        others = [i for i in op.inputs if i not in reached]
        if op.name in ("ADD", "SUB"):
            if others and graph.tensors[others[0]].data is None:
                continue
        elif op.name not in ("MUL", "RESHAPE"):
            continue
        yield op
        if len(given) == 2:
            return
        reached.add(op.outputs[0])


def _run(content: bytes, images: NDArray) -> Iterator[Values]:
    interpreter = open_interpreter(content, "builtin", keep_all=True)
    source = interpreter.get_input_details()[0]["index"]
    for image in images:
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        yield interpreter.get_tensor


def _ends(graph: Graph, index: int) -> tuple[float, float]:
    tensor = graph.tensors[index]
    return min(0.0, float(tensor.low[0])), max(0.0, float(tensor.high[0]))


def _widen(ranges: Ranges, values: Mapping[int, NDArray]) -> None:
    for index, found in values.items():
        low, high = ranges.get(index, (0.0, 0.0))
        ranges[index] = min(low, float(found.min())), max(high, float(found.max()))


def _rounded(values: NDArray, ends: tuple[float, float]) -> NDArray:
    low, high = ends
    step = (high - low) / _STEPS
    if step == 0:
        return np.zeros_like(values)
    zero = np.rint(low / step)
    return np.clip(np.rint(values / step), zero, zero + _STEPS) * step
