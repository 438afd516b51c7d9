"""Saving and loading Keras models, where a model file is data and never code.

Keras itself imports whatever module a `.keras` file names and runs the Lambda
layers of an `.h5` file. Here models are built from tables of known layers and
functions (`kdprune.intake`), and the weights are read as plain numbers.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune._graph import config_of, is_graph_model, named_layers
from kdprune._io import (
    first_line,
    is_vouched,
    scratch,
    sha256,
    vouch,
    wants_space,
    write_file,
)
from kdprune._registry import suggesting
from kdprune.intake import (
    build_keras3,
    build_tf_keras,
    keras_config,
    load_keras3_weights,
    select_output,
    with_channel,
)
from kdprune.models import hdf5
from kdprune.models.saved_model import (
    SavedGraph,
    is_saved_model,
    load_saved_model,
    refuse_saved_model,
)

# A thousand layers take a megabyte, in some 20,000 objects and lists 12 deep.
MAX_CONFIG_BYTES = 32 * 2**20
MAX_CONFIG_PARTS = 500_000
MAX_CONFIG_DEPTH = 100
# Keras stores weights uncompressed; a file recompressed by hand shrinks a
# little, one that claims to unpack to more than this is a bomb.
MAX_EXPANSION = 100
# Layers may hold a few numbers that are not saved (seeds, counters).
UNSAVED_NUMBERS = 4096

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_SAVED_BY, _US = "saved_by", "kdprune"  # In the metadata.
# What Keras, h5py and zipfile raise on damaged or inconsistent content.
_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OSError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    SystemError,  # Of h5py, when it visits a name that is no text.
    zlib.error,
    zipfile.BadZipFile,
    tf.errors.OpError,
)


@suggesting
def save_model(model: keras.Model, path: str | os.PathLike, half: bool = False) -> None:
    """Saves a model as float32 `.keras`, atomically.

    The file holds the architecture and the weights, without optimizer or losses.
    It is written beside `path`, flushed to disk and moved into place, so a
    killed run leaves the old file or the new one. The same model gives the same
    bytes each time.

    Args:
        model: A Functional or Sequential `tf_keras` model, built. Under a
            mixed-precision policy it is saved as its float32 equivalent.
        path: Where to save; must end in `.keras`. Folders are created.
        half: Store the weights as float16, in half the bytes; they are read back
            as float32, each within 0.05 % of what it was.

    Raises:
        ValueError: If the model could not be loaded again (a subclassed model,
            Lambda layers, layers still wrapped for pruning or quantization).
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"models are saved as .keras. Received: {path.name!r}")
    if not is_graph_model(model):
        raise ValueError(
            "save_model takes a built Functional or Sequential tf_keras model. "
            f"Received: {type(model).__name__}"
        )
    if any(isinstance(layer, SavedGraph) for layer in model.layers):
        raise ValueError("a SavedModel has no layers, and cannot be saved as .keras")
    for _, layer in named_layers(model):
        config_of(layer)  # Else Keras would raise what it likes.
    config = json.loads(json.dumps(_config(model)))
    plain = _build(config, "this model cannot be saved")
    plain.set_weights([np.asarray(w, np.float32) for w in model.get_weights()])
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch() as folder:
        raw = folder / "model.keras"
        plain.save(raw)
        content = _reproducible(raw, half)
    write_file(path, content)
    vouch(sha256(content))


def _config(model: keras.Model) -> dict[str, Any]:
    """A model's config without how it was compiled: a loss may be any function."""
    models = (m for m in (model, *model.submodules) if isinstance(m, keras.Model))
    compiled = [m for m in models if m._is_compiled]
    try:
        for one in compiled:
            one._is_compiled = False
        return keras.saving.serialize_keras_object(model)
    finally:
        for one in compiled:
            one._is_compiled = True


@suggesting
def load_model(path: str | os.PathLike, output: str | None = None) -> keras.Model:
    """Loads a `.keras` or `.h5` file of tf_keras or Keras 3, running none of its code.

    A Keras 3 model is rebuilt in tf_keras, layer by layer, and given its weights. It
    computes in float32 whatever its precision was.

    Args:
        path: The model file. It may come from anyone: every layer, initializer,
            regularizer, constraint and activation in it must be on the
            allow-list, and its weights must fit its layers.
        output: Of a model of several outputs, the name of the layer whose output to
            take; None for the model as it is.

    Returns:
        The `keras.Model`, not compiled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a model, is damaged, or contains something that is
            not on the allow-list, or has no such output.
    """
    path = Path(path)
    refuse_saved_model(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}")
    readers = {".keras": _load_keras, ".h5": _load_h5, ".hdf5": _load_h5}
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: a model to load must be a .keras or .h5 file. "
            f"Received: {path.suffix or 'no suffix'}"
        )
    model = readers[path.suffix](path)
    if output is None:
        return model
    try:
        return select_output(model, output)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def open_model(path: str | os.PathLike) -> keras.Model:
    """A model to score or to convert: of a file, or of a SavedModel's folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: As `load_model`, or `load_saved_model`.
    """
    if is_saved_model(path):
        return load_saved_model(path)
    return with_channel(load_model(path))


@dataclass(frozen=True)
class KerasFile:
    """What a model file says of itself.

    Attributes:
        config: The model's configuration as parsed from JSON; empty where there is
            none, in a file of weights.
        third: Whether Keras 3 has written it.
        ours: Whether `save_model` has, which leaves its name in the file.
    """

    config: dict[str, Any]
    third: bool
    ours: bool


def read_config(path: str | os.PathLike) -> KerasFile:
    """Reads what a model file says of itself; no layer is made of it.

    Args:
        path: A `.keras` or `.h5` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no model file, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}")
    if path.suffix == ".keras":
        with _explained(path, "is not a complete .keras file"):
            with zipfile.ZipFile(path) as archive:
                metadata = _parse(_member(archive, _METADATA, MAX_CONFIG_BYTES))
                config = _parse(_member(archive, _CONFIG, MAX_CONFIG_BYTES))
        third = _is_keras_3(metadata.get("keras_version"))
        return KerasFile(config, third, metadata.get(_SAVED_BY) == _US)
    with _explained(path, "is not a complete .h5 file"):
        hdf5.check(path, MAX_EXPANSION * path.stat().st_size)
        return _read_h5(path)


def _read_h5(path: Path) -> KerasFile:
    with h5py.File(path) as file:
        third = _is_keras_3(_text(file.attrs.get("keras_version")))
        text = _text(file.attrs.get("model_config"))
        if text is None:
            return KerasFile({}, third, False)
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError("its configuration is unreasonably large")
        return KerasFile(_parse(text), third, False)


def find_problems(path: str | os.PathLike) -> tuple[dict[str, Any], list[str]]:
    """What keeps a model file from being loaded: all of it, not the first.

    Args:
        path: A `.keras` or `.h5` file.

    Returns:
        `(config, problems)`: the model's configuration, and a line for each thing in
        it that is not known.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no model file, or is damaged.
    """
    file = read_config(path)
    if not file.config:
        return {}, []
    return file.config, keras_config.find_problems(file.config, file.third)


def _load_keras(path: Path) -> keras.Model:
    file = read_config(path)
    with scratch() as folder:
        weights = folder / "model.weights.h5"
        with _explained(path, "is not a complete .keras file"):
            with zipfile.ZipFile(path) as archive:
                limit = MAX_EXPANSION * path.stat().st_size
                weights.write_bytes(_member(archive, _WEIGHTS, limit))
            if not is_vouched(sha256(path)):
                hdf5.check(weights, MAX_EXPANSION * weights.stat().st_size)
        return _rebuild(file, weights, path)


def _load_h5(path: Path) -> keras.Model:
    file = read_config(path)
    if not file.config:
        raise ValueError(
            f"{path}: holds no model, perhaps only weights; save the whole model"
        )
    return _rebuild(file, path, path)


def _rebuild(file: KerasFile, weights: Path, path: Path) -> keras.Model:
    make = _rebuild_keras_3 if file.third else _assemble
    model = make(file.config, weights, path)
    if keras_config.is_frozen(file.config):
        # Only now, since the order of the weights in a file goes by what is trained.
        model.trainable = False
    return model


def _rebuild_keras_3(config: dict[str, Any], weights: Path, path: Path) -> keras.Model:
    """The tf_keras model that computes what a Keras 3 file describes."""
    with _explained(path, "its weights cannot be read"):
        numbers = count_numbers(weights)
    with _explained(path, "saved by Keras 3, it cannot be rebuilt", whole=True):
        with _at_most(numbers):
            model, places = build_keras3(config)
        load_keras3_weights(places, weights)
    return model


def _assemble(config: dict[str, Any], weights: Path, path: Path) -> keras.Model:
    """Builds the model of a parsed `config` and fills it from `weights`."""
    with _explained(path, "its weights cannot be read"):
        numbers = count_numbers(weights)
    model = _build(config, path, numbers)
    with _explained(path, "its weights do not fit its layers"):
        model.load_weights(str(weights))
    return model


def _build(
    config: dict[str, Any], source: object, numbers: int | None = None
) -> keras.Model:
    """Builds the model that a configuration of tf_keras describes.

    Args:
        config: The configuration as parsed from JSON.
        source: What to call it in errors.
        numbers: How many numbers the weights file holds. A configuration that
            asks for more is stopped before the memory is taken.
    """
    with _explained(source, "it cannot be read", whole=True), _at_most(numbers):
        return build_tf_keras(config)


def _numbered(config: Any, numbers: dict[int, int]) -> Any:
    """Counts shared objects from 0, which Keras tells apart by places in memory."""
    if isinstance(config, dict):
        found = {key: _numbered(value, numbers) for key, value in config.items()}
        shared = found.pop("shared_object_id", None)
        # A function is one object wherever it is named.
        if shared is not None and found.get("class_name") != "function":
            found["shared_object_id"] = numbers.setdefault(shared, len(numbers))
        return found
    if isinstance(config, list):
        return [_numbered(value, numbers) for value in config]
    return config


@contextmanager
def _at_most(numbers: int | None) -> Iterator[None]:
    """Refuses to create variables of more elements in total than `numbers`."""
    if numbers is None:
        yield
        return
    left = numbers + UNSAVED_NUMBERS

    def create(next_creator, **kwargs):
        nonlocal left
        left -= tf.TensorShape(kwargs.get("shape")).num_elements() or 0
        if left < 0:
            raise ValueError(f"they need more than the {numbers:,} numbers it holds")
        return next_creator(**kwargs)

    with tf.variable_creator_scope(create):
        yield


def count_numbers(path: Path) -> int:
    """Counts the numbers in an HDF5 file; refuses links out of it and bombs."""
    count = size = 0

    # An exception raised inside a visit is garbled by h5py; a value ends it.
    def visit_link(name, link):
        return None if isinstance(link, h5py.HardLink) else name

    def visit(name, item):
        nonlocal count, size
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual or item.dtype.kind not in "fiub":
                return name
            count += item.size
            size += item.nbytes
        return None

    with h5py.File(path) as file:
        odd = file.visititems_links(visit_link) or file.visititems(visit)
    if odd:
        raise ValueError(f"{odd!r} is not a plain array of numbers in this file")
    if size > MAX_EXPANSION * path.stat().st_size:
        raise ValueError(f"it claims to unpack to {size:,} bytes")
    return count


def _reproducible(source: Path, half: bool) -> bytes:
    """The content of a `.keras` archive without the dates in it."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(members[_METADATA])
    metadata.pop("date_saved", None)
    metadata[_SAVED_BY] = _US
    members[_CONFIG] = json.dumps(_numbered(json.loads(members[_CONFIG]), {})).encode()
    members[_METADATA] = json.dumps(metadata).encode()
    if half:
        members[_WEIGHTS] = _halved(members[_WEIGHTS])
    finished = io.BytesIO()
    with zipfile.ZipFile(finished, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return finished.getvalue()


def _halved(content: bytes) -> bytes:
    """The same HDF5 file with its float32 arrays as float16."""
    halved = io.BytesIO()
    with h5py.File(io.BytesIO(content)) as old, h5py.File(halved, "w") as new:

        def copy_item(name, item):
            if not isinstance(item, h5py.Dataset):
                copied = new.require_group(name)
            elif item.dtype == np.float32:
                copied = new.create_dataset(name, data=item[()].astype(np.float16))
            else:
                copied = new.create_dataset(name, data=item[()])
            copied.attrs.update(item.attrs)

        new.attrs.update(old.attrs)
        old.visititems(copy_item)
    return halved.getvalue()


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Reads one member, at most `limit` bytes whatever its header claims."""
    buffer = io.BytesIO()
    with archive.open(name) as file:
        while chunk := file.read(2**20):
            buffer.write(chunk)
            if buffer.tell() > limit:
                raise ValueError(f"{name} unpacks to more than {limit:,} bytes")
    return buffer.getvalue()


def _parse(text: str | bytes) -> dict[str, Any]:
    """The configuration in `text`, of no more parts and levels than models have.

    Raises:
        ValueError: If it is no JSON object, or larger or deeper than those of models,
            which takes whatever walks through it too long, or too deep.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    parts = text.count("{") + text.count("[")
    if parts > MAX_CONFIG_PARTS:
        raise ValueError(
            f"its configuration has {parts:,} parts; at most {MAX_CONFIG_PARTS:,} are "
            "read"
        )
    deep = f"its configuration is nested more than {MAX_CONFIG_DEPTH} deep"
    try:
        config = json.loads(text)
    except RecursionError as error:
        raise ValueError(deep) from error
    if not isinstance(config, dict):
        raise ValueError("its configuration is not a JSON object")
    level: list[Any] = [config]
    for _ in range(MAX_CONFIG_DEPTH):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [v for part in inner for v in part if isinstance(v, dict | list)]
    if level:
        raise ValueError(deep)
    return config


def _text(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _is_keras_3(version: object) -> bool:
    return str(version).startswith("3")


@contextmanager
def _explained(source: object, problem: str, whole: bool = False) -> Iterator[None]:
    """Turns the many errors of damaged content into one line that names it.

    `whole` keeps a message that may name many things at full length.
    """
    try:
        yield
    except _DAMAGE as error:
        if wants_space(error):  # For a temporary copy: the file may be whole.
            raise
        detail = first_line(error, limit=10_000 if whole else 200)
        raise ValueError(f"{source}: {problem} ({detail})") from error
