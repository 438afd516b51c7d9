"""The weights of a Keras 3 file, given to a model that was rebuilt from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np


@dataclass
class Place:
    """Where a layer's weights are in a file.

    Attributes:
        layer: The rebuilt `keras.layers.Layer`, None for one that has no weights.
        path: In a `.weights.h5` file: `layers/conv2d_1`.
        name: The layer's name in the file, which an `.h5` file goes by.
        inner: The places of a nested model's layers.
    """

    layer: Any
    path: str
    name: str
    inner: list[Place] = field(default_factory=list)


def snake_case(name: str) -> str:
    """`Conv2D` as `conv2d`, `BatchNormalization` as `batch_normalization`."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def load_keras3_weights(places: list[Place], path: str | Path) -> None:
    """Gives the layers of a rebuilt model the weights in a file.

    Args:
        places: What `build_keras3` returned beside the model.
        path: An HDF5 file: the `model.weights.h5` of a `.keras` archive, a
            `.weights.h5` file or a whole `.h5` model.

    Raises:
        ValueError: If an array is missing, left over, of another shape, or not
            finite; names the layer.
    """
    with h5py.File(path) as file:
        if "model_weights" in file or "layer_names" in file.attrs:
            arrays = _of_h5(file, places)
        else:
            arrays = _of_keras(file, places)
        for layer, name, found in arrays:
            _give(layer, name, found)


def _of_keras(file: h5py.File, places: list[Place]) -> list[tuple]:
    """`(layer, name, arrays)` of each layer, by its place in the `.keras` format."""
    found = []
    for place in places:
        if place.inner:
            found += _of_keras(file, place.inner)
        elif place.layer is not None and place.layer.weights:
            group = file.get(f"{place.path}/vars")
            if not isinstance(group, h5py.Group):
                raise ValueError(f"layer {place.name!r} has no weights in the file")
            keys = sorted(group, key=lambda key: (len(key), key))
            found.append((place.layer, place.name, [group[key][()] for key in keys]))
    return found


def _of_h5(file: h5py.File, places: list[Place]) -> list[tuple]:
    """The same from an `.h5` file, where a nested model's arrays stand in one list."""
    groups = file["model_weights"] if "model_weights" in file else file
    found = []
    for place in places:
        group = groups.get(place.name)
        names = [] if group is None else list(group.attrs.get("weight_names", ()))
        arrays = [group[_text(name)][()] for name in names]
        if not place.inner:
            if place.layer is not None and (place.layer.weights or arrays):
                found.append((place.layer, place.name, arrays))
            continue
        # All that can be trained first, as `trainable` says, then the rest.
        owners = [item for item in _flat(place.inner) if item.layer is not None]
        slots = [
            (item, weight)
            for trainable in (True, False)
            for item in owners
            for weight in (
                item.layer.trainable_weights
                if trainable
                else item.layer.non_trainable_weights
            )
        ]
        if len(slots) != len(arrays):
            raise ValueError(
                f"model {place.name!r} has {len(arrays)} arrays in the file. Expected: "
                f"{len(slots)}"
            )
        given = {id(weight): a for (_, weight), a in zip(slots, arrays, strict=True)}
        found += [
            (
                item.layer,
                item.name,
                [given[id(weight)] for weight in item.layer.weights],
            )
            for item in owners
            if item.layer.weights
        ]
    return found


def _flat(places: list[Place]) -> list[Place]:
    return [
        leaf
        for place in places
        for leaf in (_flat(place.inner) if place.inner else [place])
    ]


def _give(layer: Any, name: str, arrays: list[np.ndarray]) -> None:
    wanted = [tuple(weight.shape) for weight in layer.weights]
    shapes = [tuple(array.shape) for array in arrays]
    if shapes != wanted:
        raise ValueError(
            f"layer {name!r} has weights of the shapes {shapes} in the file. Expected: "
            f"{wanted}"
        )
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"layer {name!r} has weights that are not finite numbers")
    layer.set_weights(arrays)


def _text(name: Any) -> str:
    return name.decode("utf-8") if isinstance(name, bytes) else str(name)
