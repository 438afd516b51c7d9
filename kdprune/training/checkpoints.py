"""One checkpoint that holds all a run needs to go on: written whole or not at all."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kdprune import _io
from kdprune._log import logger

_NAME = re.compile(r"epoch-(\d+)$")
_SUMS = "sums.json"


class ForeignCheckpoint(ValueError):
    """A checkpoint is of another model or optimizer than what is to be trained."""


class Checkpoints:
    """The newest resumable state of a training run, in a folder of its own.

    A checkpoint is a folder `epoch-N`, written under another name and moved into
    place, then the older one is removed: a run killed at any moment leaves the
    old state or the new. It holds the checksums of its files: one that was changed,
    cut short or copied is not gone on from.

    Args:
        folder: Where the checkpoints live; made when the first is saved.
        **trackables: Named objects with variables (model, optimizer) to save.
    """

    def __init__(self, folder: Path, **trackables: Any) -> None:
        self.folder = folder
        self._checkpoint = tf.train.Checkpoint(**trackables)

    def save(self, epoch: int, state: Any, weights: list | None = None) -> None:
        """Saves after `epoch` epochs.

        Args:
            epoch: Epochs that are done.
            state: JSON-able values that are not variables.
            weights: Weights to keep beside the current ones (the best so far), a
                list of arrays, or None.

        Raises:
            OSError: If the checkpoint can't be written (no space, no permission);
                the one before it is kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / f"epoch-{epoch}"
        try:
            with _io.writing_folder(new) as partial:
                self._checkpoint.write(str(partial / "variables"))
                if weights is not None:
                    np.savez(partial / "kept.npz", *weights)
                _io.write_json(partial / "state.json", state)
                sums = {file.name: _io.sha256(file) for file in partial.iterdir()}
                _io.write_json(partial / _SUMS, {"epoch": epoch, "sha256": sums})
        except (OSError, tf.errors.OpError) as error:
            raise OSError(
                f"the checkpoint of epoch {epoch} could not be written to "
                f"{self.folder}: {_first_line(error)}. The one before it is kept; "
                "free some space and run the same command again."
            ) from error
        for old in self._all():
            if old != new:
                shutil.rmtree(old)

    def restore(self) -> tuple[int, Any, list | None] | None:
        """Loads the newest checkpoint into the trackables.

        A checkpoint that is damaged is removed, with a line that says so.

        Returns:
            `(epochs done, state, kept weights or None)`, or None if there is no
            checkpoint that is whole.

        Raises:
            ForeignCheckpoint: If it is of another model or optimizer.
        """
        for newest in reversed(self._all()):
            damage = _damage(newest)
            if damage is None:
                break
            logger.warning(
                "the checkpoint %s is damaged (%s): it is removed, and training goes "
                "on from the one before, or starts again",
                newest,
                damage,
            )
            shutil.rmtree(newest)
        else:
            return None
        try:
            status = self._checkpoint.read(str(newest / "variables"))
            status.assert_existing_objects_matched()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            # TensorFlow's assertion lists the variables with all their values.
            missing = isinstance(error, AssertionError)
            reason = "it lacks variables of theirs" if missing else _first_line(error)
            raise ForeignCheckpoint(
                f"the checkpoint {newest} is not of this model and optimizer: "
                f"{reason}. Remove that folder to start again."
            ) from error
        state = _io.read_json(newest / "state.json")
        weights = None
        if (newest / "kept.npz").exists():
            with np.load(newest / "kept.npz") as kept:
                weights = [kept[name] for name in kept.files]
        return _epoch(newest), state, weights

    def _all(self) -> list[Path]:
        if not self.folder.exists():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.search(path.name)]
        return sorted(found, key=_epoch)


def _epoch(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _damage(checkpoint: Path) -> str | None:
    """What in a checkpoint is not as it was saved, or None."""
    told = _io.read_object(checkpoint / _SUMS)
    if not (checkpoint / _SUMS).exists():
        # Of a version that wrote none: what it is of is told by its state alone.
        state = _io.read_json(checkpoint / "state.json")
        if state is None:
            return "state.json can't be read"
        if isinstance(state, list) and len(state) != _epoch(checkpoint):
            return f"it is of epoch {len(state)}"
        return None
    if told.get("epoch") != _epoch(checkpoint):
        return f"it is of epoch {told.get('epoch')}"
    expected = told.get("sha256")
    found = {path.name for path in checkpoint.iterdir() if path.name != _SUMS}
    if not isinstance(expected, dict) or found != set(expected):
        return "files are missing, or there are others"
    changed = (n for n in sorted(found) if _io.sha256(checkpoint / n) != expected[n])
    wrong = next(changed, None)
    return None if wrong is None else f"{wrong} was changed"


def _first_line(error: BaseException) -> str:
    """What happened, without TensorFlow's marks of where in its graph."""
    text = re.sub(r"\{\{.*?\}\} *| *\[Op:\w+\]", "", str(error)).strip()
    return _io.first_line(text or type(error).__name__).rstrip(".")
