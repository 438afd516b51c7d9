"""Everything about one model file, in the form `metrics.json` keeps it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdprune.benchmark.latency import measure_latency
from kdprune.evaluate.compare import agreement
from kdprune.evaluate.metrics import score
from kdprune.evaluate.prediction import predict
from kdprune.tflite.sizes import describe_file


@dataclass(frozen=True)
class Evaluation:
    """One evaluated model.

    Attributes:
        entry: Its entry in the `models` list of `metrics.json`.
        scores: Its probabilities, float32 `(n, classes)`, to compare with.
    """

    entry: dict
    scores: np.ndarray


def evaluate_model(
    path,
    images,
    labels,
    *,
    source=None,
    input_range=(0.0, 1.0),
    resolver="xnnpack",
    threads=1,
    latency=True,
):
    """Measures a model file: accuracy, calibration, size, zeros, MACs, latency.

    Args:
        path: A `.tflite`, `.keras` or `.h5` file.
        images: uint8 pixels, shape `(n, height, width, channels)`.
        labels: True classes, integers `(n,)`.
        source: `(name, scores)` of the model it was made from, for `agreement`.
        input_range: The real values that pixels 0 and 255 stand for.
        resolver: Kernels for a `.tflite`, see `predict`.
        threads: Threads for a `.tflite`.
        latency: Whether to time it.

    Returns:
        An `Evaluation`. Its entry goes by the file's stem, and has no stage: who
        knows better sets "name" and "stage". What does not apply to a file is `None`:
        latency, threads and resolver of a Keras file, agreement without a source.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file, the images and the labels do not fit together.
    """
    path = Path(path)
    description = describe_file(path)
    scores = predict(
        path, images, input_range=input_range, resolver=resolver, threads=threads
    )
    result = score(scores, labels)
    timing = {}
    if latency:
        timing = measure_latency(path, threads=threads, resolver=resolver) or {}
    on_runtime = description["format"] == "tflite"
    entry = {
        "name": path.stem,
        "stage": None,
        "format": description["format"],
        "dtype": description["input"]["dtype"],
        "path": str(path),
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
        "agreement": None if source is None else agreement(source[1], scores),
        "agreement_with": None if source is None else source[0],
        "ece": result["ece"],
        "per_class": result["per_class"],
        "confusion": result["confusion"],
        "sparsity_by_layer": description["sparsity_by_layer"],
    }
    return Evaluation(entry, scores)
