"""Whether what is worked on says what the original does."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import NDArray

from kdprune.doctor.findings import Obstacle, Proof
from kdprune.intake import Taken

_SECONDS = 120
_TOLERANCE = 1e-4  # Of the largest output: sums in another order.
# In a process of its own: the file has been held against the allow-list, and still
# nothing of it runs where this program does.
_PROGRAM = """
import sys
import numpy as np
import keras

model = keras.saving.load_model(sys.argv[1], compile=False, safe_mode=True)
np.save(sys.argv[3], np.asarray(model(np.load(sys.argv[2]), training=False)))
"""


class Original:
    """The outputs of the model as its own Keras computes them, while others work."""

    def __init__(self, path: pathlib.Path, values: NDArray) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="kdprune-")
        place = pathlib.Path(self.folder.name)
        self.outputs = place / "outputs.npy"
        np.save(place / "values.npy", values)
        environment = dict(os.environ, KERAS_BACKEND="tensorflow")
        environment.pop("TF_USE_LEGACY_KERAS", None)
        arguments = [str(path), str(place / "values.npy"), str(self.outputs)]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _PROGRAM, *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> NDArray | None:
        """Its outputs, or None where Keras 3 can't load or run the file."""
        try:
            status = self.process.wait(_SECONDS)
            return np.load(self.outputs) if status == 0 else None
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.process.kill()
            self.process.wait()
            self.folder.cleanup()


def start_original(path: Any, values: NDArray) -> Original | None:
    """Starts Keras 3 on a file of it; None where it is not installed."""
    spec = importlib.util.find_spec("keras")
    return None if spec is None else Original(pathlib.Path(path), values)


def prove(
    loaded: keras.Model, taken: Taken, images: NDArray, original: Original | None
) -> tuple[Proof, list[Obstacle]]:
    """Compares outputs of what is worked on with the original's.

    Args:
        loaded: The model as it was given, in tf_keras.
        taken: What was made of it.
        images: uint8, `(n, height, width, channels)`.
        original: Keras 3 at work on the file, where the file is one of it.

    Returns:
        `(proof, obstacles)`; it is one where they differ.
    """
    values = taken.range.apply(images)
    name = "the model as loaded"
    expected = None
    if original is not None:
        expected, name = original.wait(), "Keras 3"
    if expected is None:
        suffix = ""
        if original is not None:
            suffix = " (Keras 3 itself does not run the file)"
        expected, name = _numbers(loaded(values, training=False)), f"{name}{suffix}"
        name = f"the model as loaded{suffix}"
    unit = images.astype(np.float32) / np.float32(255)
    found = _scored(_numbers(taken.model(unit, training=False)), taken.head.activation)
    largest = float(np.abs(expected).max()) or 1.0
    deviation = float(np.abs(expected - found).max()) / largest
    proof = Proof(name, len(images), deviation)
    if deviation <= _TOLERANCE:
        return proof, []
    problem = (
        f"outputs differ from those of {name} by {deviation:.2g} of the largest, on "
        f"{len(images)} images"
    )
    remedy = "please report it, with the model's layers"
    return proof, [Obstacle("loading", "", problem, remedy)]


def _scored(logits: NDArray, activation: str) -> NDArray:
    kinds = {"softmax": tf.nn.softmax, "sigmoid": tf.nn.sigmoid}
    return _numbers(kinds[activation](logits)) if activation in kinds else logits


def _numbers(tensor: Any) -> NDArray:
    return np.asarray(tensor, np.float64)
