"""The order of a model's outputs: read from where it is told, mapped by name."""

from __future__ import annotations

import os
import re
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from numpy.typing import NDArray

from kdprune._graph import is_graph_model, nodes, rebuild
from kdprune._io import read_object, sha256

layers = keras.layers

MAX_LABELS_BYTES = 2**22
# What gives its channels in the order in which it takes them.
_IN_ORDER = (
    layers.Activation,
    layers.Softmax,
    layers.ReLU,
    layers.Dropout,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.AveragePooling2D,
    layers.MaxPooling2D,
    layers.Rescaling,
)
_OUTPUT_LAST = (layers.Dense, layers.Conv1D, layers.Conv2D)


def read_labels(file: str | os.PathLike) -> tuple[str, ...]:
    """Reads class names, one in a line, in the order of a model's outputs.

    Numbers in front of all names, 0, 1, …, as Teachable Machine writes them, are left
    out.

    Args:
        file: A text file in UTF-8.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no text, or names nothing or the same class twice.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"labels file not found: {path}")
    if path.stat().st_size > MAX_LABELS_BYTES:
        raise ValueError(
            f"{path}: expected class names, one in a line. Received: "
            f"{path.stat().st_size:,} bytes"
        )
    return _parse(path.read_bytes(), str(path))


def find_labels(file: str | os.PathLike) -> tuple[str, ...] | None:
    """The class names that come with a model file, in the order of its outputs.

    Those are the labels in a `.tflite` file's metadata, or, of a file that a run of
    kdprune made, the classes in the record beside it.

    Args:
        file: A model file.

    Returns:
        The names; None if nothing tells them.

    Raises:
        ValueError: If labels are there but can't be read.
    """
    path = Path(file)
    if path.suffix == ".tflite" and zipfile.is_zipfile(path):
        return _of_metadata(path)
    return _of_record(path)


def find_order(
    file: str | os.PathLike,
    classes: Sequence[str],
    given: str | os.PathLike | Sequence[str] | None = None,
) -> tuple[int, ...] | None:
    """Where in a model's outputs each class of the data is.

    Args:
        file: The model file.
        classes: The data's classes, in the order of its labels.
        given: The model's class names in the order of its outputs, or a file with
            them, see `read_labels`; by default what `find_labels` finds.

    Returns:
        The output of each class; None if that is the order of the classes, or nothing
        tells another one. Names may differ in case and between "_", "-" and space.

    Raises:
        FileNotFoundError: If the labels' file is not there.
        ValueError: If the names are not those of the classes: one line with both.
    """
    names: Sequence[str] | None
    if given is None:
        names = find_labels(file)
        # Data without names of its own has no order to compare.
        if names is None or tuple(classes) == tuple(map(str, range(len(classes)))):
            return None
    else:
        names = read_labels(given) if isinstance(given, str | os.PathLike) else given
    for alike in (str, _alike):
        place = {alike(name): index for index, name in enumerate(names)}
        wanted = [alike(name) for name in classes]
        if len(place) == len(names) and sorted(place) == sorted(wanted):
            order = tuple(place[name] for name in wanted)
            return None if order == tuple(range(len(classes))) else order
    raise ValueError(
        f"{os.fspath(file)}: expected the classes of the data, {_listed(classes)}. "
        f"Received: labels {_listed(names)}; use data of these classes, or name the "
        "outputs with the key `labels` or --labels"
    )


def reorder_outputs(model: keras.Model, order: Sequence[int]) -> keras.Model:
    """Gives a model's outputs another order, by its last layer's weights.

    Args:
        model: A graph model of one output `(batch, units)`, logits or what an
            activation makes of them; left as it is.
        order: The output to put in each place. Of a single unit, the second of two
            classes, `(1, 0)` turns its sign.

    Returns:
        The new model.

    Raises:
        ValueError: If the order is not one of so many outputs, or the weights that
            make the outputs are not found at the end of the model.
    """
    units = int(model.output_shape[-1])
    if sorted(order) != list(range(max(units, 2))):
        raise ValueError(
            f"expected an order of the model's {units} outputs. Received: {list(order)}"
        )
    index = np.asarray(order)
    last = _last_layers(model)

    def weights(old: Any, new: Any) -> list[NDArray] | None:
        if not any(old is layer for layer in last):
            return None
        values = old.get_weights()
        if units == 1:
            return [-value for value in values]
        return [value[..., index] for value in values]

    changed = rebuild(model, weights=weights)
    shape = [size or 32 for size in model.input_shape[1:]]
    images = np.random.default_rng(0).random((4, *shape), np.float32)
    before, after = (np.asarray(m(images, training=False)) for m in (model, changed))
    expected = -before if units == 1 else before[:, index]
    if not np.allclose(after, expected, rtol=1e-4, atol=1e-5):
        raise ValueError(_not_found("its outputs did not change as they should"))
    return changed


def _last_layers(model: keras.Model) -> list[Any]:
    """The layers that make the outputs: one of weights, and normalization behind it."""
    found: list[Any] = []
    tensor = model.outputs[0]
    calls = {id(t): node for node in nodes(model) for t in _flat(node.outputs)}
    while id(tensor) in calls:
        node = calls[id(tensor)]
        layer = node.layer
        if is_graph_model(layer):
            return [*found, *_last_layers(layer)]
        if isinstance(layer, layers.BatchNormalization):
            found.append(layer)
        elif isinstance(layer, _OUTPUT_LAST) and layer.get_weights():
            if len(layer._inbound_nodes) > 1 or getattr(layer, "groups", 1) > 1:
                break
            return [*found, layer]
        elif isinstance(layer, layers.Flatten | layers.Reshape):
            if int(np.prod(node.keras_inputs[0].shape[1:-1])) != 1:
                break
        elif not isinstance(layer, _IN_ORDER):
            break
        (tensor,) = node.keras_inputs
    raise ValueError(_not_found("they are not made by a Dense or Conv2D at its end"))


def _not_found(why: str) -> str:
    return (
        f"the model's outputs can't be given the data's order: {why}; put the classes "
        "of the data into the model's order"
    )


def _flat(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _of_metadata(path: Path) -> tuple[str, ...] | None:
    """The labels that a `.tflite` file carries behind its end."""
    try:
        with zipfile.ZipFile(path) as archive:
            texts = [i for i in archive.infolist() if i.filename.endswith(".txt")]
            labels = [i for i in texts if "label" in i.filename.lower()] or texts
            if not labels:
                return None
            if labels[0].file_size > MAX_LABELS_BYTES:
                raise ValueError("its labels are unreasonably large")
            content = archive.read(labels[0])
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: its labels cannot be read ({error}); remove them, or name the "
            "outputs with the key `labels` or --labels"
        ) from error
    return _parse(content, f"{path}, {labels[0].filename}")


def _of_record(path: Path) -> tuple[str, ...] | None:
    """The classes of the run that made this very file, by its SHA-256."""
    records = [path.parent / "record.json", *sorted(path.parent.glob("*/record.json"))]
    digest = None
    for place in records:
        record = read_object(place)
        if not isinstance(record.get("outputs"), dict):
            continue
        digest = digest or sha256(path)
        outputs = [o for o in record["outputs"].values() if isinstance(o, dict)]
        data = record.get("data")
        classes = data.get("classes") if isinstance(data, dict) else None
        if isinstance(classes, list) and digest in [o.get("sha256") for o in outputs]:
            return tuple(map(str, classes))
    return None


def _parse(content: bytes, name: str) -> tuple[str, ...]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: expected class names as text in UTF-8. Received: other bytes"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    numbered = [re.fullmatch(r"(\d+)[\s:,]+(\S.*)", line) for line in names]
    if names and all(
        match and int(match[1]) == index for index, match in enumerate(numbered)
    ):
        names = [match[2] for match in numbered if match]
    twice = sorted({label for label in names if names.count(label) > 1})
    if not names or twice:
        raise ValueError(
            f"{name}: expected class names, one in a line, each once. Received: "
            f"{f'{twice[0]!r} twice' if twice else 'none'}"
        )
    return tuple(names)


def _alike(name: str) -> str:
    text = unicodedata.normalize("NFC", name).casefold()
    return " ".join(re.split(r"[\s_-]+", text.strip()))


def _listed(names: Sequence[str], shown: int = 12) -> str:
    more = len(names) - shown
    listed = ", ".join(names[:shown])
    return f"{listed} and {more} more" if more > 0 else listed
