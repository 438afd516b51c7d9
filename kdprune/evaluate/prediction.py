"""Running a model over images: Keras models and `.tflite` files alike."""

import sys
import time
from pathlib import Path

import numpy as np

from kdprune.tflite.interpreter import open_interpreter

KERAS_BATCH = 250
SECONDS_BETWEEN_NOTES = 5.0
# What the runtime fixes an integer softmax's output to: 256 steps from 0.
_SOFTMAX_QUANTIZATION = {"int8": (1 / 256, -128), "uint8": (1 / 256, 0)}


def predict(
    model_or_path, images, *, input_range=(0.0, 1.0), resolver="xnnpack", threads=1
):
    """Computes class probabilities for every image.

    A `.tflite` file runs on the LiteRT runtime, one image at a time as a device
    would. Pixels become the real values the model was trained on, and those
    become integers by the file's own scale and zero point.

    Args:
        model_or_path: A `keras.Model`, or the path of a `.tflite`, `.keras` or
            `.h5` file.
        images: uint8 pixels, shape `(n, height, width, channels)`.
        input_range: The real values that pixels 0 and 255 stand for: `(0, 1)`,
            or `(0, 255)` for a model that takes raw pixels, or `(-1, 1)`.
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
    images = _check_images(images)
    values = _real_values(input_range)
    if isinstance(model_or_path, (str, Path)):
        path = Path(model_or_path)
        if path.suffix == ".tflite":
            return _predict_tflite(path, images, values, resolver, threads)
        # Imported here: scoring a .tflite needs no TensorFlow.
        from kdprune.models.io import load_model

        return _predict_keras(load_model(path), images, values, str(path))
    name = getattr(model_or_path, "name", type(model_or_path).__name__)
    return _predict_keras(model_or_path, images, values, f"model {name!r}")


def to_probabilities(outputs):
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


def input_table(detail, values):
    """What to feed for each of the 256 pixel values.

    Args:
        detail: The interpreter's description of its input.
        values: The 256 real values, float64.

    Returns:
        256 values of the input's own type, quantized with rounding and clipping
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


def _predict_tflite(path, images, values, resolver, threads):
    interpreter = open_interpreter(path, resolver, threads)
    source = interpreter.get_input_details()[0]
    target = interpreter.get_output_details()[0]
    _check_shapes(str(path), tuple(source["shape"][1:]), target["shape"], images)
    table = input_table(source, values)
    raw = np.empty((len(images), target["shape"][-1]), target["dtype"])
    note = _progress(path.name, len(images))
    for i, image in enumerate(images):
        interpreter.set_tensor(source["index"], table[image][None])
        interpreter.invoke()
        raw[i] = interpreter.get_tensor(target["index"])[0]
        note(i + 1)
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


def _predict_keras(model, images, values, name):
    for port in ("input_shape", "output_shape"):
        if not isinstance(getattr(model, port, None), tuple):
            raise ValueError(f"{name}: expected one input and one output, built")
    _check_shapes(name, model.input_shape[1:], model.output_shape, images)
    table = values.astype(np.float32)
    note = _progress(name, len(images))
    outputs = []
    for start in range(0, len(images), KERAS_BATCH):
        batch = table[images[start : start + KERAS_BATCH]]
        outputs.append(np.asarray(model.predict_on_batch(batch), np.float32))
        note(start + len(batch))
    return to_probabilities(np.concatenate(outputs))


def _check_images(images):
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(
            "images must be uint8 of shape (n, height, width, channels), n > 0. "
            f"Received: {images.dtype} {images.shape}"
        )
    return images


def _check_shapes(name, image_shape, output_shape, images):
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


def _real_values(input_range):
    """The 256 real values pixels stand for; in float64, so that 0-255 is exact."""
    low, high = input_range
    if not low < high:
        raise ValueError(f"input_range must be (low, high). Received: {input_range}")
    return np.arange(256) / 255 * (high - low) + low


def _progress(name, total):
    """A function to call with the number done; speaks up every few seconds."""
    due = time.monotonic() + SECONDS_BETWEEN_NOTES

    def note(done):
        nonlocal due
        if time.monotonic() >= due and done < total:
            due = time.monotonic() + SECONDS_BETWEEN_NOTES
            print(f"{name}: {done:,} of {total:,} images", file=sys.stderr)

    return note
