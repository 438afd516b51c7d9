"""Running a model over images: Keras models and `.tflite` files alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from numpy.typing import ArrayLike, NDArray

from kdprune import images as pixels
from kdprune._graph import check_classes
from kdprune._log import progress
from kdprune.intake import PixelRange, byte_input, parse_range, range_of
from kdprune.intake.pixels import BYTES, SIGNED, UNIT, Given, check_channels
from kdprune.models import load_model
from kdprune.tflite.format import read_tflite
from kdprune.tflite.interpreter import open_interpreter

KERAS_BATCH = 250
# What the runtime fixes an integer softmax's output to: 256 steps from 0.
_SOFTMAX_QUANTIZATION = {"int8": (1 / 256, -128), "uint8": (1 / 256, 0)}
# Of its span: how far an input's range may be from a usual one that it is taken for.
_NEARLY = 0.25


def predict(
    model_or_path: keras.Model | str | os.PathLike,
    images: ArrayLike,
    *,
    input_range: Given | None = None,
    resolver: str = "xnnpack",
    threads: int = 1,
) -> NDArray[np.float32]:
    """Computes class probabilities for every image.

    A `.tflite` file runs on the LiteRT runtime, one image at a time as a device
    would. Pixels become the real values the model was trained on, and those
    become integers by the file's own scale and zero point.

    Args:
        model_or_path: A `keras.Model`, or the path of a `.tflite`, `.keras` or
            `.h5` file.
        images: uint8, or float in [0, 1], shape `(n, height, width, channels)`.
        input_range: What the model takes for black and white: `(0, 1)`, `(0, 255)`,
            `(-1, 1)`, "imagenet" and others (see `take_model`). By default what stands
            at the front of a Keras model tells it, else it is (0, 1); a file with an
            8-bit input takes bytes as they are.
        resolver: Kernels for a `.tflite`: `"xnnpack"`, `"builtin"` or
            `"reference"`. The same file scores up to 0.2 points apart on them.
        threads: Threads for a `.tflite`, at least 1.

    Returns:
        Probabilities, float32, shape `(n, classes)`. Logits go through a
        softmax; outputs that are probabilities already are returned as they are.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no model, or the images do not fit its input.
    """
    array = pixels.check(images)
    given = None if input_range is None else parse_range(input_range)
    if isinstance(model_or_path, str | os.PathLike):
        path = Path(model_or_path)
        if path.suffix == ".tflite":
            return _predict_tflite(path, array, given, resolver, threads)
        model, name = load_model(path), str(path)
    else:
        model = model_or_path
        name = f"model {getattr(model, 'name', type(model).__name__)!r}"
    return _predict_keras(model, array, given or range_of(model), name)


def to_probabilities(outputs: ArrayLike) -> NDArray[np.float32]:
    """Applies a softmax to logits; leaves what already are probabilities alone.

    Rows that are all non-negative and all sum to 1 are taken for probabilities:
    logits do not do that by chance over more than a few images.
    """
    outputs = np.asarray(outputs, np.float32)
    sums = outputs.sum(axis=1)
    if outputs.min() >= 0 and np.abs(sums - 1).max() < 1e-3:
        return outputs
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def quantize_input(detail: dict[str, Any], values: NDArray) -> NDArray:
    """Real values as a file's input takes them.

    Args:
        detail: The interpreter's description of its input.
        values: Real values, float64, any shape.

    Returns:
        Values of the input's own type, quantized with rounding and clipping
        where it is an integer type.
    """
    if not np.issubdtype(detail["dtype"], np.integer):
        return values.astype(detail["dtype"])
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    if not scale:
        raise ValueError(
            f"the model takes {np.dtype(detail['dtype']).name} without saying what "
            "the numbers mean; convert it again with a quantized input"
        )
    steps = np.rint(values / scale) + zero_point
    return np.clip(steps, limits.min, limits.max).astype(detail["dtype"])


def _predict_tflite(
    path: Path,
    images: NDArray,
    given: PixelRange | None,
    resolver: str,
    threads: int,
) -> NDArray[np.float32]:
    interpreter = open_interpreter(path, resolver, threads)
    source = interpreter.get_input_details()[0]
    target = interpreter.get_output_details()[0]
    _check_shapes(str(path), tuple(source["shape"][1:]), target["shape"], images)
    if read_tflite(path).ops[-1].name == "LOGISTIC":
        raise ValueError(
            f"{path}: expected a file that gives one of several classes. Received: one "
            "that ends in sigmoid, for several labels, which is not supported yet"
        )
    feed = _file_feed(source, given, images)
    raw = np.empty((len(images), target["shape"][-1]), target["dtype"])
    for i, image in enumerate(progress(images, path.name)):
        interpreter.set_tensor(source["index"], feed(image)[None])
        interpreter.invoke()
        raw[i] = interpreter.get_tensor(target["index"])[0]
    if not np.issubdtype(raw.dtype, np.integer):
        return to_probabilities(raw)
    scale, zero_point = target["quantization"]
    if not scale:
        raise ValueError(f"{path}: its integer output has no scale")
    outputs = ((raw.astype(np.float64) - zero_point) * scale).astype(np.float32)
    # Rounding keeps integer probabilities from summing to 1, so that those are
    # known by the quantization the runtime prescribes for a softmax.
    if (scale, zero_point) == _SOFTMAX_QUANTIZATION.get(raw.dtype.name):
        return outputs
    return to_probabilities(outputs)


def _predict_keras(
    model: keras.Model,
    images: NDArray,
    range_: PixelRange,
    name: str,
) -> NDArray[np.float32]:
    for port in ("input_shape", "output_shape"):
        if not isinstance(getattr(model, port, None), tuple):
            raise ValueError(
                f"{name}: expected a built Keras model with one input and one output, "
                f"or a model file's path. Received: {type(model).__name__}"
            )
    _check_shapes(name, model.input_shape[1:], model.output_shape, images)
    check_classes(model, name)
    feed = _feed(range_, images, lambda values: values.astype(np.float32))
    starts = range(0, len(images), KERAS_BATCH)
    outputs = [
        np.asarray(
            model.predict_on_batch(feed(images[start : start + KERAS_BATCH])),
            np.float32,
        )
        for start in progress(starts, f"{name}, batches of {KERAS_BATCH}")
    ]
    return to_probabilities(np.concatenate(outputs))


def _feed(
    range_: PixelRange, images: NDArray, convert: Callable[[NDArray], NDArray]
) -> Callable[[NDArray], NDArray]:
    """A function from images to inputs; of bytes all 256 are converted beforehand."""
    check_channels(range_, images.shape[-1])
    if images.dtype != np.uint8 or not range_.uniform:
        return lambda part: convert(range_.values(part))
    table = convert(range_.values(np.arange(256, dtype=np.uint8)))
    return lambda part: table[part]


def _file_feed(
    source: dict[str, Any], given: PixelRange | None, images: NDArray
) -> Callable[[NDArray], NDArray]:
    """A function from images to what a file takes.

    Without a range, bytes go into an 8-bit input as they are, as a camera's do. Only
    where the input's range is nearly a usual one, as converters leave it that take it
    from images, they are quantized.
    """
    bits = np.iinfo(source["dtype"]) if source["dtype"] in (np.int8, np.uint8) else None
    if given is None and bits is not None and source["quantization"][0]:
        scale, zero = source["quantization"]
        given = _nearly(scale, bits.min - zero)
        if given is None:

            def as_they_are(part: NDArray) -> NDArray:
                return (pixels.as_uint8(part).astype(np.int16) + bits.min).astype(
                    source["dtype"]
                )

            return lambda part: as_they_are(part[None])[0]
    return _feed(given or UNIT, images, lambda values: quantize_input(source, values))


def _nearly(scale: float, black: int) -> PixelRange | None:
    """The usual range that an input almost has: black lies so many steps from 0."""
    for range_ in (UNIT, BYTES, SIGNED):
        said = byte_input(range_)
        if said is None or np.isclose(scale, said.scale, rtol=1e-5):
            continue
        low, high = range_.bounds
        off = abs(scale * black - low) + abs(scale * (black + 255) - high)
        if off < _NEARLY * (high - low):
            return range_
    return None


def _check_shapes(
    name: str, image_shape: tuple, output_shape: tuple, images: NDArray
) -> None:
    fits = len(image_shape) == 3 and all(
        wanted in (None, -1, given)
        for wanted, given in zip(image_shape, images.shape[1:], strict=True)
    )
    if not fits:
        wanted = " x ".join(str(size) for size in image_shape) or "no image"
        given = " x ".join(str(size) for size in images.shape[1:])
        raise ValueError(f"{name}: takes images of {wanted}. Received: {given}")
    if len(output_shape) != 2:
        raise ValueError(
            f"{name}: a classifier gives (batch, classes). "
            f"Received: {tuple(int(s or -1) for s in output_shape)}"
        )
    if output_shape[-1] == 1:
        raise ValueError(
            f"{name}: expected an output for each of several classes. Received: one "
            "unit, for two classes, which is not supported yet"
        )
