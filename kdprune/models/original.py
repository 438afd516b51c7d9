"""What a model says in the Keras that saved it, beside what the rebuilt one says.

The original is computed in a process of its own, from a copy of the file in which
Keras finds nothing but what is known (`kdprune.intake.plain`): nothing that a file
names is imported there either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tf_keras as keras
from numpy.typing import NDArray

from kdprune._io import first_line, writing
from kdprune.intake.comparison import (
    ROUNDING_LIMIT,
    Comparison,
    compare_outputs,
)
from kdprune.intake.plain import plain_config
from kdprune.models.io import KerasFile, count_numbers, read_config

_SECONDS = 300
# Every sum of a model is rounded, not only its weights once: a few times as much.
_ROUNDINGS, _MARGIN = 3, 4.0
# It waits for the values, which may not be known before it has started.
_PROGRAM = """
import sys
import numpy as np
name, path, values, outputs = sys.argv[1:]
if name == "keras":
    import keras
else:
    import tf_keras as keras
model = keras.models.load_model(path, compile=False, safe_mode=True)
if not sys.stdin.readline():
    sys.exit(1)
found = []
values = np.load(values)
if values.ndim > len(model.inputs[0].shape):  # Images without channels.
    values = values[..., 0]
for batch in np.array_split(values, max(1, len(values) // 8)):
    made = model(batch, training=False)
    made = made if isinstance(made, (list, tuple)) else [made]
    found.append([np.asarray(one) for one in made])
np.savez(outputs, *(np.concatenate(parts) for parts in zip(*found)))
"""


class Original:
    """A file's model in its own Keras, which starts while others work.

    Attributes:
        name: What computes it: "Keras 3" or "tf_keras".
    """

    def __init__(self, path: str | os.PathLike | None = None) -> None:
        """Starts it, if the file is known."""
        self.name, self._why_not = "Keras", ""
        self.path: Path | None = None
        self._process: subprocess.Popen | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="kdprune-")
        self._given = False
        if path is not None:
            self.start(path)

    def __enter__(self) -> Original:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, path: str | os.PathLike) -> None:
        """Has the Keras that saved a file load it.

        Args:
            path: A `.keras` or `.h5` file in which all is known.
        """
        self.path = Path(path)
        try:
            self._start(Path(path), read_config(path))
        except (OSError, ValueError) as error:
            self._why_not = first_line(error)

    def _start(self, path: Path, file: KerasFile) -> None:
        self.name = "Keras 3" if file.third else "tf_keras"
        module = "keras" if file.third else "tf_keras"
        if file.ours:
            raise ValueError("it was saved by kdprune")
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"{module} is not installed")
        folder = Path(self._folder.name)
        copy = folder / f"model{'.keras' if path.suffix == '.keras' else '.h5'}"
        _write_plain(path, copy, plain_config(file.config))
        environment = dict(os.environ, KERAS_BACKEND="tensorflow")
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("TF_USE_LEGACY_KERAS", None)
        arguments = [module, copy, folder / "values.npy", folder / "outputs.npz"]
        errors = (folder / "errors").open("w")
        # -P: what lies in the folder that the user is in is not imported.
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-W",
                "ignore",
                "-c",
                _PROGRAM,
                *map(str, arguments),
            ],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        errors.close()

    def give(self, values: NDArray) -> None:
        """Hands on what the model is to be called on, before the answer is asked for.

        Args:
            values: As for `compare`, whose values are left aside then.
        """
        if self._process is None or self._given:
            return
        assert self._process.stdin is not None
        self._given = True
        with writing(Path(self._folder.name) / "values.npy") as partial:
            np.save(partial, np.asarray(values, np.float32))
        with contextlib.suppress(OSError):  # It could not load the file.
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()

    def compare(self, model: keras.Model, values: NDArray) -> Comparison:
        """Compares a model's outputs with the original's, and ends the original.

        Args:
            model: The rebuilt model, its outputs those of the file.
            values: What it takes, float32 `(n, …)`, in its own pixel range.

        Returns:
            A `Comparison`; where the original can't be loaded or run, it says why.
        """
        try:
            values = np.asarray(values, np.float32)
            expected = self._outputs(values)
            if values.ndim > model.inputs[0].shape.rank:  # Images without channels.
                values = values[..., 0]
        finally:
            self.close()
        if expected is None:
            return Comparison(self.name, why_not=self._why_not)
        found = compare_outputs(self.name, expected, outputs_of(model, values))
        return allow_rounding(found, model, values)

    def close(self) -> None:
        """Ends the process, and removes its files."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._folder.cleanup()

    def _outputs(self, values: NDArray[np.float32]) -> list[NDArray] | None:
        if self._process is None:
            return None
        folder = Path(self._folder.name)
        self.give(values)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS)
        if self._process.returncode == 0:
            with np.load(folder / "outputs.npz") as arrays:
                return [arrays[name] for name in arrays.files]
        said = (folder / "errors").read_text(errors="replace").strip().splitlines()
        why = said[-1][:200] if said else f"no answer within {_SECONDS} s"
        self._why_not = f"it does not run the file ({why})"
        return None


def outputs_of(model: Any, values: NDArray) -> list[NDArray]:
    """A model's outputs as arrays, of either Keras, eight images at a time."""
    found = []
    for batch in np.array_split(values, max(1, len(values) // 8)):
        made = model(batch, training=False)
        made = made if isinstance(made, (list, tuple)) else [made]
        found.append([np.asarray(one) for one in made])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def allow_rounding(
    found: Comparison, model: keras.Model, values: NDArray
) -> Comparison:
    """Raises a comparison's limit to what roundings alone do to the model.

    A deep network can amplify the last bit of its sums, which another Keras rounds
    otherwise, beyond any limit that is right for others. Whether this one does shows
    in its outputs where every weight is moved by its last bit.

    Args:
        found: Where it agrees already, it is returned as it is.
        model: The one whose outputs were compared; its weights are moved and put back.
        values: What it was compared on.

    Returns:
        The comparison, its limit at least the former one and at most
        `ROUNDING_LIMIT`, unless it was above that before.
    """
    if found.agrees or not 0 <= (found.deviation or 0.0) <= ROUNDING_LIMIT:
        return found
    weights, before = model.get_weights(), outputs_of(model, values)
    random = np.random.default_rng(0)
    largest = 0.0
    try:
        for _ in range(_ROUNDINGS):
            model.set_weights([_last_bit_moved(one, random) for one in weights])
            moved = compare_outputs("", before, outputs_of(model, values))
            largest = max(largest, moved.deviation or 0.0)
    finally:
        model.set_weights(weights)
    limit = max(found.limit, min(_MARGIN * largest, ROUNDING_LIMIT))
    return dataclasses.replace(found, limit=limit)


def _last_bit_moved(weight: NDArray, random: np.random.Generator) -> NDArray:
    """Each number's neighbour above or below, by chance; integers as they are."""
    if not np.issubdtype(weight.dtype, np.floating):
        return weight
    up = random.random(weight.shape) < 0.5
    return np.nextafter(weight, np.where(up, np.inf, -np.inf).astype(weight.dtype))


def _write_plain(path: Path, copy: Path, config: dict[str, Any]) -> None:
    """Writes a file that holds a configuration, and the weights of another one."""
    text = json.dumps(config)
    if copy.suffix == ".keras":
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
            target.writestr("config.json", text)
            target.writestr("metadata.json", source.read("metadata.json"))
            weights = copy.with_suffix(".weights.h5")
            with source.open("model.weights.h5") as old, weights.open("wb") as new:
                shutil.copyfileobj(old, new)
            count_numbers(weights)
            target.write(weights, "model.weights.h5")
        return
    shutil.copyfile(path, copy)
    copy.chmod(0o600)
    count_numbers(copy)
    with h5py.File(copy, "r+") as file:
        file.attrs.pop("training_config", None)
        file.attrs["model_config"] = text
