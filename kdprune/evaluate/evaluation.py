"""All figures of one model or model file, in the form of `metrics.json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from numpy.typing import ArrayLike, NDArray

from kdprune._answers import of_labels
from kdprune._registry import suggesting
from kdprune.benchmark.latency import measure_latency
from kdprune.evaluate.compare import agreement
from kdprune.evaluate.metrics import score
from kdprune.evaluate.prediction import predict, predict_for_labels, reorder_scores
from kdprune.images import check, spread
from kdprune.intake.pixels import Given, surely_ahead, usual_ranges
from kdprune.tflite.sizes import describe_file

# Of labels, of a single unit, and of uneven classes.
_OF_TASKS = (
    "balanced_accuracy",
    "task",
    "auc",
    "macro_f1",
    "macro_f1_ci",
    "mean_average_precision",
    "f1_by_label",
    "average_precision_by_label",
)

# Images that are scored in other pixel ranges, too.
_CHECKED = 200


@dataclass(frozen=True)
class Evaluation:
    """One evaluated model.

    Attributes:
        entry: Its entry in the `models` list of `metrics.json`.
        scores: Its probabilities, float32 `(n, classes)`, to compare with.
    """

    entry: dict[str, Any]
    scores: NDArray[np.float32]


@suggesting
def evaluate_model(
    model: keras.Model | str | os.PathLike,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    source: tuple[str, NDArray] | None = None,
    input_range: Given | None = None,
    resolver: str = "xnnpack",
    threads: int = 1,
    latency: bool = True,
    order: Sequence[int] | None = None,
    check_range: bool = True,
    classes: int | None = None,
) -> Evaluation:
    """Measures a model or file: accuracy, calibration, size, zeros, MACs, latency.

    Args:
        model: A Keras model, or the path of a `.tflite`, `.keras` or `.h5` file.
        images: uint8, or float in [0, 1], shape `(n, height, width, channels)`.
        labels: True classes, integers `(n,)`; or, where several labels may apply to
            an image, zeros and ones `(n, labels)`.
        source: `(name, scores)` of the model it was made from, for `agreement`.
        input_range: What the model takes for black and white, see `predict`.
        resolver: Kernels for a `.tflite`, see `predict`.
        threads: Threads for a `.tflite`.
        latency: Whether to time it.
        order: Where in the model's outputs each class of the labels is; None if in
            that order.
        check_range: Whether to score up to 200 of the images in the other usual pixel
            ranges, too, and to refuse a range that another one surely beats.
        classes: How many classes (or labels) the data has, of which the images may
            show fewer: a model of another number of outputs is refused.

    Returns:
        An `Evaluation`. Its entry's name is the file's stem or the model's name, its
        stage None. What does not apply is `None`: latency, threads and resolver of a
        Keras model, path and bytes of one that is not a file, agreement without a
        source.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file, the images and the labels do not fit together, or the
            model is surely right more often on pixels of another range.
    """
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    description = describe_file(model)
    shape = (description["output"] or {}).get("shape")
    if classes is not None and shape:  # Without one, predict says what is wrong.
        outputs = shape[-1]
        name = getattr(model, "name", "model") if path is None else str(path)
        check_outputs(outputs, classes, name)
    several = of_labels(labels)
    scores, units = predict_for_labels(
        model,
        images,
        labels,
        input_range=input_range,
        resolver=resolver,
        threads=threads,
    )
    if order is not None:
        scores = reorder_scores(scores, order)
    if check_range and not several:
        shown = check(images), np.asarray(labels)
        _check_range(model, *shown, scores, input_range, order)
    result = score(scores, labels, binary=units == 1)
    on_runtime = description["format"] == "tflite"
    timing: dict = {}
    if latency and path is not None and on_runtime:
        timing = measure_latency(path, threads=threads, resolver=resolver) or {}
    entry = {
        "name": getattr(model, "name", "model") if path is None else path.stem,
        "stage": None,
        "format": description["format"],
        "dtype": description["input"]["dtype"],
        "path": None if path is None else str(path),
        "accuracy": result["accuracy"],
        "accuracy_ci": result["accuracy_ci"],
        "test_images": result["test_images"],
        "bytes": description["bytes"],
        "bytes_gzip": description["bytes_gzip"],
        "parameters": description["parameters"],
        "nonzero_parameters": description["nonzero_parameters"],
        "macs": description["macs"],
        "latency_ms_p50": timing.get("latency_ms_p50"),
        "latency_ms_p90": timing.get("latency_ms_p90"),
        "threads": threads if on_runtime else None,
        "resolver": resolver if on_runtime else None,
        "agreement": (
            None if source is None else agreement(source[1], scores, several)
        ),
        "agreement_with": None if source is None else source[0],
        "ece": result["ece"],
        "per_class": result["per_class"],
        "confusion": result["confusion"],
        "sparsity_by_layer": description["sparsity_by_layer"],
    }
    entry |= {key: result[key] for key in _OF_TASKS if key in result}
    return Evaluation(entry, scores)


def check_outputs(outputs: int, classes: int, name: str) -> None:
    """Raises a `ValueError` unless there is an output for each class, and no other.

    Args:
        outputs: How many a model has; a single unit is of two classes.
        classes: How many classes or labels the data has.
        name: What the model is called in the error.
    """
    if outputs != classes and (outputs, classes) != (1, 2):
        raise ValueError(
            f"{name}: expected {classes} outputs, one for each class of the data. "
            f"Received: {outputs} outputs; measure it on data of its classes"
        )


def _check_range(
    model: keras.Model | str | os.PathLike,
    images: NDArray,
    labels: NDArray,
    scores: NDArray,
    given: Given | None,
    order: Sequence[int] | None,
) -> None:
    """Refuses a pixel range if the model is surely right more often in another."""
    shown = spread(len(images), _CHECKED)
    right = scores[shown].argmax(axis=1) == labels[shown]
    for other in usual_ranges(images.shape[-1]):
        if right.all():
            return
        found = predict(model, images[shown], input_range=other)
        if order is not None:
            found = reorder_scores(found, order)
        better = found.argmax(axis=1) == labels[shown]
        if surely_ahead(better, right):
            name = getattr(model, "name", model)
            said = "the range it was taken for" if given is None else f"{given}"
            raise ValueError(
                f"{name}: of {len(shown)} images it is right on "
                f"{100 * better.mean():.1f} % in the pixel range {other.name}, on "
                f"{100 * right.mean():.1f} % in {said}; give that as input_range, or "
                "check_range=False"
            )
