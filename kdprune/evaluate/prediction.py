"""Running a model over images: Keras models and `.tflite` files alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from kdprune import images as pixels
from kdprune._answers import of_labels
from kdprune._graph import (
    HEADS,
    check_repeatable,
    final_activation,
    head_of,
    is_graph_model,
)
from kdprune._io import first_line
from kdprune._log import progress
from kdprune.intake import (
    PixelRange,
    byte_input,
    parse_range,
    range_of,
    select_output,
)
from kdprune.intake.pixels import BYTES, SIGNED, UNIT, Given, check_channels
from kdprune.models.io import open_model
from kdprune.tflite.format import read_tflite
from kdprune.tflite.inspection import head_of_file
from kdprune.tflite.interpreter import open_interpreter

KERAS_BATCH = 250
# Of its span: how far an input's range may be from a usual one that it is taken for.
_NEARLY = 0.25


def predict(
    model_or_path: keras.Model | str | os.PathLike,
    images: ArrayLike,
    *,
    input_range: Given | None = None,
    resolver: str = "xnnpack",
    threads: int = 1,
    head: str | None = None,
) -> NDArray[np.float32]:
    """Computes the probabilities of classes or labels for every image.

    A `.tflite` file runs on the LiteRT runtime, one image at a time as a device
    would. Pixels become the real values the model was trained on, and those
    become integers by the file's own scale and zero point.

    Args:
        model_or_path: A `keras.Model`, or the path of a `.tflite`, `.keras` or
            `.h5` file, or of a SavedModel's folder. A Keras file's model is not
            compared here with the original, see `take_model(path, compare=True)`.
        images: uint8, or float in [0, 1], shape `(n, height, width, channels)`.
        input_range: What the model takes for black and white: `(0, 1)`, `(0, 255)`,
            `(-1, 1)`, "imagenet" and others (see `take_model`). By default what stands
            at the front of a Keras model tells it, else it is (0, 1); a file with an
            8-bit input takes bytes as they are.
        resolver: Kernels for a `.tflite`: `"xnnpack"`, `"builtin"` or
            `"reference"`. The same file scores up to 0.2 points apart on them.
        threads: Threads for a `.tflite`, at least 1.
        head: What makes probabilities of its outputs: "softmax" for one of several
            classes, "sigmoid" for labels of which several may apply. By default what
            the model ends in; of logits, softmax.

    Returns:
        Probabilities, float32, shape `(n, classes)`. Logits go through the softmax or
        sigmoid; outputs that are probabilities already are returned as they are. Of a
        single unit, the second of two classes, `(n, 2)`: of both of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no model, the images do not fit its input, or it
            ends in another head.
    """
    return _predict(
        model_or_path,
        images,
        input_range=input_range,
        resolver=resolver,
        threads=threads,
        head=head,
    )[0]


def predict_for_labels(
    model_or_path: keras.Model | str | os.PathLike,
    images: ArrayLike,
    labels: ArrayLike,
    **options: Any,
) -> tuple[NDArray[np.float32], int]:
    """Computes the probabilities that are to be held against labels.

    Args:
        model_or_path: As for `predict`.
        images: As there.
        labels: Classes `(n,)`; or zeros and ones `(n, labels)`, of which several may
            apply to an image: logits go through a sigmoid then.
        options: The others of `predict`.

    Returns:
        `(probabilities, units)`: what `predict` returns, and the number of outputs.

    Raises:
        ValueError: As `predict`, or if the model's head is not of such labels.
    """
    several = of_labels(labels)
    scores, head, units = _predict(
        model_or_path, images, **options, head="sigmoid" if several else None
    )
    name = model_or_path
    if isinstance(model_or_path, keras.Model):
        name = f"model {model_or_path.name!r}"
    if head == "sigmoid" and units > 1 and not several:
        raise ValueError(
            f"{name}: expected labels (n, {units}), zeros and ones, for a model that "
            "ends in sigmoid, whose outputs are labels that apply or not. Received: "
            f"labels of shape {np.shape(labels)}"
        )
    if several and units == 1:
        raise ValueError(
            f"{name}: expected labels (n,), 0 or 1, for a model of one unit. Received: "
            f"labels of shape {np.shape(labels)}"
        )
    return scores, units


def _predict(
    model_or_path: keras.Model | str | os.PathLike,
    images: ArrayLike,
    *,
    input_range: Given | None = None,
    resolver: str = "xnnpack",
    threads: int = 1,
    head: str | None = None,
) -> tuple[NDArray[np.float32], str, int]:
    """What `predict` returns, the head that made it, and the model's units."""
    array = pixels.check(images)
    given = None if input_range is None else parse_range(input_range)
    if isinstance(model_or_path, str | os.PathLike):
        path = Path(model_or_path)
        if path.suffix == ".tflite":
            return _predict_tflite(path, array, given, resolver, threads, head)
        model, name = open_model(path), str(path)
    else:
        model = model_or_path
        name = f"model {getattr(model, 'name', type(model).__name__)!r}"
    return _predict_keras(model, array, given or range_of(model), name, head)


def _finish(
    outputs: NDArray, head: str, done: bool, step: float = 0.0
) -> tuple[NDArray[np.float32], str, int]:
    """Probabilities of a model's outputs, of both classes where it has one unit."""
    outputs = np.asarray(outputs, np.float32)
    units = outputs.shape[1]
    if head == "softmax":
        return outputs if done else to_probabilities(outputs, step), head, units
    if not done:
        outputs = expit(outputs)
    if units == 1:
        outputs = np.concatenate([1 - outputs, outputs], axis=1)
    return outputs, head, units


def reorder_scores(
    scores: NDArray[np.float32], order: Sequence[int]
) -> NDArray[np.float32]:
    """Puts scores `(n, classes)` into the order of the labels.

    Args:
        scores: A model's scores, in its own order.
        order: The output of each class.

    Raises:
        ValueError: If that is not an order of so many classes.
    """
    if sorted(order) != list(range(scores.shape[1])):
        raise ValueError(
            f"expected an order of {scores.shape[1]} outputs. Received: {list(order)}"
        )
    return scores[:, np.asarray(order)]


def to_probabilities(outputs: ArrayLike, step: float = 0.0) -> NDArray[np.float32]:
    """Applies a softmax to logits; leaves what already are probabilities alone.

    Rows that are all non-negative and all sum to 1 are taken for probabilities:
    logits do not do that by chance over more than a few images.

    Args:
        outputs: A model's outputs, `(n, classes)`.
        step: What they were rounded to, of an integer file: rounded probabilities sum
            to 1 but for half a step each.
    """
    outputs = np.asarray(outputs, np.float32)
    sums = outputs.sum(axis=1)
    rounding = step / 2 * outputs.shape[1]
    inside = outputs.min() >= -step / 2 and outputs.max() <= 1 + 1e-3 + step
    if inside and np.abs(sums - 1).max() < 1e-3 + rounding:
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
    asked: str | None,
) -> tuple[NDArray[np.float32], str, int]:
    interpreter = open_interpreter(path, resolver, threads)
    source = interpreter.get_input_details()[0]
    target = interpreter.get_output_details()[0]
    _check_shapes(str(path), tuple(source["shape"][1:]), target["shape"], images)
    found = head_of_file(read_tflite(path))
    one = target["shape"][-1] == 1
    if asked and asked not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}. Received: {asked!r}")
    if asked and found and asked != found:
        raise ValueError(
            f"{path}: expected a file that ends in {asked} or gives logits. Received: "
            f"one that ends in {found}"
        )
    if one and "softmax" in (found, asked):
        raise ValueError(
            f"{path}: expected sigmoid or logits of a single unit, whose softmax is "
            "always 1. Received: softmax"
        )
    head = found or asked or ("sigmoid" if one else "softmax")
    feed = _file_feed(source, given, images)
    raw = np.empty((len(images), target["shape"][-1]), target["dtype"])
    for i, image in enumerate(progress(images, path.name)):
        interpreter.set_tensor(source["index"], feed(image)[None])
        try:
            interpreter.invoke()
        except RuntimeError as error:
            said = first_line(error)
            raise ValueError(
                f"{path}: the runtime ({resolver}) cannot score image {i}: {said}"
            ) from error
        raw[i] = interpreter.get_tensor(target["index"])[0]
    if not np.issubdtype(raw.dtype, np.integer):
        return _finish(raw, head, bool(found))
    scale, zero_point = target["quantization"]
    if not scale:
        raise ValueError(f"{path}: its integer output has no scale")
    outputs = ((raw.astype(np.float64) - zero_point) * scale).astype(np.float32)
    return _finish(outputs, head, bool(found), float(scale))


def _predict_keras(
    model: keras.Model,
    images: NDArray,
    range_: PixelRange,
    name: str,
    head: str | None,
) -> tuple[NDArray[np.float32], str, int]:
    if is_graph_model(model):
        select_output(model, None)  # Says which there are, if several.
        check_repeatable(model)
    for port in ("input_shape", "output_shape"):
        if not isinstance(getattr(model, port, None), tuple):
            raise ValueError(
                f"{name}: expected a built Keras model with one input and one output, "
                f"or a model file's path. Received: {type(model).__name__}"
            )
    _check_shapes(name, model.input_shape[1:], model.output_shape, images)
    head = head_of(model, name, head)
    feed = _feed(range_, images, lambda values: values.astype(np.float32))
    starts = range(0, len(images), KERAS_BATCH)
    outputs = [
        np.asarray(
            model.predict_on_batch(feed(images[start : start + KERAS_BATCH])),
            np.float32,
        )
        for start in progress(starts, f"{name}, batches of {KERAS_BATCH}")
    ]
    found = np.concatenate(outputs)
    done = bool(final_activation(model)[0])
    if not done and head == "sigmoid" and not is_graph_model(model):
        # What Python code hides is told by its values.
        done = bool(found.min() >= 0 and found.max() <= 1)
    return _finish(found, head, done)


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
