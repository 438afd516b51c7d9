"""Whether what is worked on says what the original does."""

from __future__ import annotations

import contextlib
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
from kdprune.doctor.loading import is_keras3
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
values = np.load(sys.stdin.readline().strip())
np.save(sys.argv[2], np.asarray(model(values, training=False)))
"""


class Original:
    """A model as its own Keras computes it, while others work.

    Loading takes most of the time, and does not wait for the values.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Original:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdin is not None
            with contextlib.suppress(OSError):  # It had ended before it read on.
                self.process.stdin.close()
            self.folder.cleanup()

    def start(self, path: pathlib.Path) -> None:
        """Has Keras 3 load a file of it, if it is installed."""
        if not is_keras3(path) or importlib.util.find_spec("keras") is None:
            return
        self.folder = tempfile.TemporaryDirectory(prefix="kdprune-")
        environment = dict(os.environ, KERAS_BACKEND="tensorflow")
        environment.pop("TF_USE_LEGACY_KERAS", None)
        arguments = [str(path), str(pathlib.Path(self.folder.name, "outputs.npy"))]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _PROGRAM, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def give(self, values: NDArray) -> None:
        """Hands on what the model is to be called on."""
        if self.process is None:
            return
        place = pathlib.Path(self.folder.name, "values.npy")
        np.save(place, values)
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # It could not load the file.
            self.process.stdin.write(f"{place}\n")
            self.process.stdin.flush()

    def wait(self) -> NDArray | None:
        """The outputs, or None where Keras 3 can't load or run the file."""
        assert self.process is not None
        try:
            status = self.process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        return np.load(self.folder.name + "/outputs.npy") if status == 0 else None


def prove(
    loaded: keras.Model, taken: Taken, images: NDArray, original: Original
) -> tuple[Proof, list[Obstacle]]:
    """Compares outputs of what is worked on with the original's.

    Args:
        loaded: The model as it was given, in tf_keras.
        taken: What was made of it.
        images: uint8, `(n, height, width, channels)`.
        original: Keras 3 at work on the file, if that is one of it.

    Returns:
        `(proof, obstacles)`; it is one where they differ.
    """
    values = taken.range.apply(images)
    name = "the model as loaded"
    expected = None
    if original.process is not None:
        expected, name = original.wait(), "Keras 3"
    if expected is None:
        suffix = ""
        if original.process is not None:
            suffix = " (Keras 3 itself does not run the file)"
        expected = _numbers(loaded(values, training=False))
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
