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
from kdprune.intake import check_unit_range
from kdprune.models import load_model
from kdprune.tflite.format import read_tflite
from kdprune.tflite.interpreter import open_interpreter

KERAS_BATCH = 250
# What the runtime fixes an integer softmax's output to: 256 steps from 0.
_SOFTMAX_QUANTIZATION = {"int8": (1 / 256, -128), "uint8": (1 / 256, 0)}


def predict(
    model_or_path: keras.Model | str | os.PathLike,
    images: ArrayLike,
    *,
    input_range: tuple[float, float] = (0.0, 1.0),
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
        input_range: The real values that black and white (pixels 0 and 255) stand
            for: `(0, 1)`, or `(0, 255)` for a model that takes raw pixels, or
            `(-1, 1)`.
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
    to_real = _real_values(input_range, array.dtype)
    if isinstance(model_or_path, str | os.PathLike):
        path = Path(model_or_path)
        if path.suffix == ".tflite":
            return _predict_tflite(path, array, to_real, resolver, threads)
        model, name = load_model(path), str(path)
    else:
        model = model_or_path
        name = f"model {getattr(model, 'name', type(model).__name__)!r}"
    if tuple(input_range) == (0, 1):
        check_unit_range(model, name)
    return _predict_keras(model, array, to_real, name)


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
    to_real: Callable[[NDArray], NDArray],
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
    feed = _each(images.dtype, lambda part: quantize_input(source, to_real(part)))
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
    to_real: Callable[[NDArray], NDArray],
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
    feed = _each(images.dtype, lambda part: to_real(part).astype(np.float32))
    starts = range(0, len(images), KERAS_BATCH)
    outputs = [
        np.asarray(
            model.predict_on_batch(feed(images[start : start + KERAS_BATCH])),
            np.float32,
        )
        for start in progress(starts, f"{name}, batches of {KERAS_BATCH}")
    ]
    return to_probabilities(np.concatenate(outputs))


def _each(
    dtype: np.dtype, convert: Callable[[NDArray], NDArray]
) -> Callable[[NDArray], NDArray]:
    """A function of pixels; of bytes all 256 values are converted beforehand."""
    if dtype != np.uint8:
        return convert
    table = convert(np.arange(256, dtype=np.uint8))
    return lambda pixels: table[pixels]


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


def _real_values(
    input_range: tuple[float, float], dtype: np.dtype
) -> Callable[[NDArray], NDArray]:
    """A function from pixels to real values; in float64, so that 0-255 is exact."""
    low, high = input_range
    if not low < high:
        raise ValueError(f"input_range must be (low, high). Received: {input_range}")
    white = 255 if dtype == np.uint8 else 1
    return lambda pixels: pixels.astype(np.float64) / white * (high - low) + low
