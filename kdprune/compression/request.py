"""What a user asks of `compress`, checked as far as that needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Collection, Sequence
from typing import Any

from kdprune._plain import read_yaml_file

DEVICES = ("android", "micro", "both")
RECIPE = "recipe.yaml"
SUFFIXES = (".keras", ".h5", ".hdf5")
# Data sets that are called by their names; a folder of that name is `./cifar10`.
NAMED = ("cifar10", "shapes")
# The stages of the recipe: the user's model, and what is made and found out of it.
ORIGINAL, SMALLER, TEACHER, INT8 = "original", "smaller", "teacher", "int8"
FILES, MEASURED = "files", "measured"


@dataclasses.dataclass(frozen=True)
class Request:
    """A model, images, and how small and how good the file is to be.

    Attributes:
        model: The model's file, `.keras` or `.h5`.
        images: A folder, an `.npz` file, or the name of a data set.
        output: The run's folder; the model's name with `-compressed`, beside it, if
            None.
        max_drop: Accuracy that the file may lose, as a share of images in (0, 1).
        target_macs: The most multiply-accumulates of one image, or None.
        target_bytes: The most bytes of the int8 file, or None.
        ratio: Share of channels to remove, in (0, 1), or None. One target at most.
        teacher: A model file that teaches in place of the original.
        epochs: Epochs of training, where there is any; by the data's size if None.
        input_range: What the model takes for black and white, `(low, high)`, or what
            else a `load` stage takes; found out if None.
        model_output: Of a model of several outputs, the layer whose output counts.
        labels: A text file of the classes in the order of the model's outputs.
        on_error: "stop" at image files that can't be used, or "skip" them.
        resize: How images of other proportions come to the model's size, out of
            `RESIZES`.
        value_range: `(low, high)` that the values of an `.npz` file lie in, if not
            [0, 1] or bytes; what the model takes then, if `input_range` says nothing.
        devices: What the file is for, out of `DEVICES`.
        data_dir: Where a data set that is given by name is.
        command: What to call again, for the recipe's head.
        title: What to call the model, if not like its file.
    """

    model: pathlib.Path
    images: str
    output: pathlib.Path | None = None
    max_drop: float = 0.01
    target_macs: int | None = None
    target_bytes: int | None = None
    ratio: float | None = None
    teacher: pathlib.Path | None = None
    epochs: int | None = None
    input_range: Any = None
    model_output: str | None = None
    labels: pathlib.Path | None = None
    on_error: str = "stop"
    resize: str = "stretch"
    value_range: tuple[float, float] | None = None
    devices: str = "both"
    data_dir: str | None = None
    command: str = ""
    title: str | None = None

    @property
    def folder(self) -> pathlib.Path:
        """The run's folder."""
        if self.output is not None:
            return pathlib.Path(self.output)
        return self.model.with_name(f"{self.model.stem}-compressed")

    @property
    def recipe(self) -> pathlib.Path:
        """Where the recipe is written."""
        return self.folder / RECIPE

    @property
    def name(self) -> str:
        """The model's name as recipes and kits take it."""
        called = (self.title or self.model.stem).lower()
        found = re.sub(r"[^a-z0-9]+", "_", called).strip("_")
        return found if re.match(r"[a-z]", found) else f"model_{found}".rstrip("_")

    @property
    def target(self) -> dict[str, float]:
        """The target that was given, by its key; empty if the network stays."""
        keys = ("target_macs", "target_bytes", "ratio")
        given = {key: getattr(self, key) for key in keys}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def dataset(self) -> str:
        """The kind of the data set: "folder", "npz", or a name."""
        if self.images in NAMED:
            return self.images
        return "npz" if self.images.endswith(".npz") else "folder"

    @property
    def path(self) -> pathlib.Path:
        """Where the images are, if they are not called by a name."""
        return pathlib.Path(self.data_dir or "", self.images).expanduser().absolute()

    def check(self, coming: Collection[pathlib.Path] = ()) -> None:
        """Raises `ValueError` or `OSError` for what cannot be, in one line.

        Args:
            coming: Files that are not there yet and will be.
        """
        self._check_numbers()
        for path, what in ((self.model, "model"), (self.teacher, "teacher")):
            if path is not None and path not in coming:
                _check_model_file(pathlib.Path(path), what)
        if self.labels is not None and not pathlib.Path(self.labels).is_file():
            raise FileNotFoundError(f"labels not found: {self.labels}")
        known = self.dataset in NAMED or self.path in coming
        if not known and not self.path.exists():
            raise FileNotFoundError(
                f"images not found: {self.path}; expected a folder of class folders, "
                f"an .npz file, or one of {', '.join(NAMED)}"
            )
        if self.dataset == "folder" and not self.path.is_dir():
            raise ValueError(
                f"images: expected a folder of class folders, an .npz file, or one of "
                f"{', '.join(NAMED)}. Received: the file {self.path}"
            )
        for key, value, default, kind in (
            ("on_error", self.on_error, "stop", "folder"),
            ("resize", self.resize, "stretch", "folder"),
            ("value_range", self.value_range, None, "npz"),
        ):
            if value != default and self.dataset != kind:
                said = "a folder of images" if kind == "folder" else "an .npz file"
                raise ValueError(f"{key}: is for {said}. Received: {self.images}")
        check_folder(self.folder, self.model)

    def _check_numbers(self) -> None:
        if len(self.target) > 1:
            raise ValueError(
                "expected one target of target_macs, target_bytes and ratio at most. "
                f"Received: {', '.join(self.target)}"
            )
        for key in ("max_drop", "ratio"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 1:
                said = " (1 point is 0.01)" if key == "max_drop" else ""
                raise ValueError(
                    f"{key}: expected a share between 0 and 1{said}. Received: {value}"
                )
        for key in ("target_macs", "target_bytes", "epochs"):
            value = getattr(self, key)
            if value is not None and (value != int(value) or value < 1):
                raise ValueError(
                    f"{key}: expected a whole number, at least 1. Received: {value}"
                )
        if self.devices not in DEVICES:
            raise ValueError(
                f"expected what the file is for, out of {', '.join(DEVICES)}. "
                f"Received: {self.devices!r}"
            )


def check_folder(folder: pathlib.Path, model: pathlib.Path) -> None:
    """Refuses a folder with another model's run, or with other files, in it.

    Raises:
        ValueError: If it is one.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"output: expected a folder. Received: the file {folder}")
    recipe = folder / RECIPE
    if recipe.is_file():
        file = _model_of(recipe)
        if file is not None and pathlib.Path(file) != model.absolute():
            raise ValueError(
                f"{folder} holds the run of another model, {file}; choose another "
                "folder by -o (in Python: output=)"
            )
        if file is not None:
            return
    # What a killed process was writing, and a lock, have hidden names.
    found = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if found:
        raise ValueError(
            f"{folder} holds other files ({', '.join(found[:3])}); choose another "
            "folder by -o (in Python: output=), a new or an empty one"
        )


def command_of(arguments: Sequence[str]) -> str:
    """A call of the command, as it can be pasted into a shell."""
    return shlex.join(["kdprune", *arguments])


def _model_of(recipe: pathlib.Path) -> str | None:
    """The model's file that a recipe in a run's folder names; None if it is no such."""
    try:
        content: Any = read_yaml_file(recipe)
        return str(content["stages"][ORIGINAL]["file"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _check_model_file(path: pathlib.Path, what: str) -> None:
    if path.is_dir():
        raise ValueError(
            f"{what}: expected a .keras or .h5 file. Received: the folder {path}; of a "
            "SavedModel, save the Keras model it was made from"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{what} not found: {path}")
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{what}: expected a .keras or .h5 file of Keras 3 or tf_keras. "
            f"Received: {path}"
        )
