"""A model from its file or from memory, or all that is refused of it."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras

from kdprune._graph import is_graph_model, is_tfmot_layer, named_layers, nodes
from kdprune._io import first_line
from kdprune.doctor.findings import Obstacle
from kdprune.intake import select_output, with_channel
from kdprune.models import load_model
from kdprune.models.io import find_problems
from kdprune.models.saved_model import check_saved_model, is_saved_model
from kdprune.models.taking import as_tf_keras

_LOADING = "loading"
_SUFFIXES = (".keras", ".h5", ".hdf5")
_PLAIN_LAYERS = (
    "write it with layers that Keras has; a layer of your own can stay where it only "
    "trains"
)


def load(
    model: Any,
    output: str | None = None,
    allowed: Callable[[pathlib.Path], object] = lambda path: None,
) -> tuple[keras.Model | None, list[Obstacle]]:
    """The model as a `tf_keras` model, and what is refused of it.

    Args:
        model: A path, or a model of tf_keras or Keras 3.
        output: The layer whose output counts, of a model with several.
        allowed: Called with the path of a file once all of it is on the allow-list,
            before it is loaded.

    Returns:
        `(model, obstacles)`; None where it can't be loaded at all.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a file or an object of another kind.
    """
    if isinstance(model, str | os.PathLike):
        return _load_file(pathlib.Path(model), output, allowed)
    try:
        found = as_tf_keras(model)
    except ValueError as error:
        return None, _split(str(error))
    if not isinstance(found, keras.Model):
        raise ValueError(
            "expected a model of Keras, or the path of a .keras or .h5 file. Received: "
            f"{type(model).__module__}.{type(model).__name__}"
        )
    return _chosen(found, output)


def _chosen(
    model: keras.Model, output: str | None
) -> tuple[keras.Model, list[Obstacle]]:
    """The model up to the output that counts, and what is in the way of it."""
    if output is not None and is_graph_model(model):
        try:
            model = select_output(model, output)
        except ValueError as error:
            return model, [Obstacle(_LOADING, "", str(error))]
    model = with_channel(model)
    return model, check_graph(model)


def _load_file(
    path: pathlib.Path, output: str | None, allowed: Callable[[pathlib.Path], object]
) -> tuple[keras.Model | None, list[Obstacle]]:
    if path.is_dir():
        if not is_saved_model(path):
            problem = "it is a folder; save the Keras model itself as .keras"
            return None, [Obstacle(_LOADING, "", problem)]
        return None, _of_saved_model(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}")
    if path.suffix == ".tflite":
        raise ValueError(
            f"{path}: a .tflite file is not trained any more; kdprune fits and kdprune "
            "evaluate take it. Expected: a .keras or .h5 file"
        )
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"expected a .keras or .h5 file. Received: {path.name!r}")
    try:
        config, problems = find_problems(path)
    except ValueError as error:
        return None, [Obstacle(_LOADING, "", _without(path, error))]
    obstacles = [_explained(problem) for problem in problems]
    obstacles += _of_config(config, output)
    if not problems:
        allowed(path)
        try:
            model = load_model(path)
        except ValueError as error:
            obstacles.append(Obstacle(_LOADING, "", _without(path, error)))
            return None, _distinct(obstacles)
        return _chosen(model, output)
    return None, _distinct(obstacles)


def _of_saved_model(path: pathlib.Path) -> list[Obstacle]:
    """What a SavedModel is not taken for, and what keeps it from being scored."""
    remedy, more = "save the Keras model itself as .keras", []
    try:
        check_saved_model(path)
        remedy += (
            "; as it is, kdprune evaluate scores it, and convert_tflite makes an int8 "
            "file of it after training"
        )
    except ValueError as error:
        more.append(Obstacle(_LOADING, "", _without(path, error)))
    what = "a SavedModel has no layers to prune, to train or to rewrite"
    return [Obstacle(_LOADING, "", what, remedy), *more]


def check_graph(model: keras.Model) -> list[Obstacle]:
    """What keeps a loaded model from being worked on, beside what its layers are."""
    if not is_graph_model(model):
        return [
            Obstacle(
                _LOADING,
                "",
                f"{type(model).__name__} is a subclassed model, whose graph is Python "
                "code, or is not built",
                "build it from keras.Input and calls of its layers",
            )
        ]
    found = [_inputs(len(model.inputs)), _outputs([_name(t) for t in model.outputs])]
    shape = tuple(model.inputs[0].shape)
    if len(shape) != 4 or None in shape[1:]:
        found.append(
            Obstacle(
                _LOADING,
                _name(model.inputs[0]),
                f"its input has the shape {shape}",
                "build the model for images of one size, as keras.Input((96, 96, 3))",
            )
        )
    if len(model.outputs[0].shape) != 2 or model.outputs[0].shape[1] is None:
        found.append(
            Obstacle(
                _LOADING,
                _name(model.outputs[0]),
                f"its output has the shape {tuple(model.outputs[0].shape)}",
                "expected a classifier: a row of scores for each image",
            )
        )
    every = list(named_layers(model))
    for path, layer in every:
        found += _of_layer(path, layer)
    found.append(_channels_first(every))
    found += _changing(model, "")
    return [one for one in found if one is not None]


def _of_layer(path: str, layer: Any) -> list[Obstacle | None]:
    found: list[Obstacle | None] = []
    if is_tfmot_layer(layer):
        found.append(
            Obstacle(
                _LOADING,
                path,
                f"it is wrapped by {type(layer).__name__}",
                "strip the wrappers, or give the float model",
            )
        )
    if type(layer).__name__ == "Lambda":
        found.append(
            Obstacle(_LOADING, path, "a Lambda layer is arbitrary code", _PLAIN_LAYERS)
        )
    weights = [np.asarray(weight) for weight in layer.weights]
    wrong = sum(values.size - int(np.isfinite(values).sum()) for values in weights)
    if wrong:
        found.append(
            Obstacle(
                _LOADING,
                path,
                f"{wrong:,} of its {sum(values.size for values in weights):,} weights "
                "are NaN or infinite",
                "its training diverged: save an earlier state, or train it again with "
                "a smaller learning rate",
            )
        )
    return found


def _channels_first(layers: list[tuple[str, Any]]) -> Obstacle | None:
    names = [
        path
        for path, layer in layers
        if getattr(layer, "data_format", None) == "channels_first"
    ]
    if not names:
        return None
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Obstacle(
        _LOADING,
        f"{names[0]}{more}",
        "images with channels first, which devices do not run",
        "build the model for (height, width, channels)",
    )


def _changing(model: keras.Model, prefix: str) -> list[Obstacle | None]:
    """Dropout and its like called with `training=True`: another answer each time."""
    found: list[Obstacle | None] = []
    for node in nodes(model):
        layer, path = node.layer, prefix + node.layer.name
        if is_graph_model(layer):
            found += _changing(layer, f"{path}/")
        elif node.call_kwargs.get("training") is True and not _augments(layer):
            found.append(_changes(path, type(layer).__name__))
    return found


def _augments(layer: Any) -> bool:
    """Whether it changes training images at random, and is left out in use."""
    return type(layer).__name__.startswith("Random")


def _of_config(config: dict[str, Any], output: str | None) -> list[Obstacle]:
    """What a configuration that is not built says of inputs, outputs and calls."""
    inner = config.get("config")
    if not isinstance(inner, dict):
        return []
    layers = inner.get("layers")
    layers = (
        [x for x in layers if isinstance(x, dict)] if isinstance(layers, list) else []
    )
    found: list[Obstacle | None] = []
    if "input_layers" in inner:  # Not in a Sequential or a subclassed model.
        found.append(_inputs(len(_ends(inner.get("input_layers")))))
        if output is None:
            found.append(_outputs(_ends(inner.get("output_layers"))))
    for layer in layers:
        kind = str(layer.get("class_name"))
        # Keras 3 writes training=True of each random layer by itself.
        if not kind.startswith("Random") and _training_call(layer.get("inbound_nodes")):
            found.append(_changes(str(layer.get("name"))[:60], kind))
    return [one for one in found if one is not None]


def _ends(named: Any) -> list[str]:
    """The layers that `input_layers` or `output_layers` name."""
    if not isinstance(named, list):
        return []
    if named and isinstance(named[0], str):
        return [named[0]]
    return [str(one[0]) for one in named if isinstance(one, list) and one]


def _training_call(calls: Any) -> bool:
    pending, left = [calls], 100_000
    while pending and left:
        item, left = pending.pop(), left - 1
        if isinstance(item, dict):
            if item.get("training") is True:
                return True
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return False


def _inputs(count: int) -> Obstacle | None:
    if count == 1:
        return None
    return Obstacle(
        _LOADING,
        "",
        f"it has {count} inputs",
        "expected one image; a classifier of several inputs can't be compressed",
    )


def _outputs(names: list[str]) -> Obstacle | None:
    if len(names) <= 1:
        return None
    return Obstacle(
        _LOADING,
        "",
        f"it has {len(names)} outputs, {', '.join(names)}",
        f"choose the one that counts: --model-output {names[0]}",
    )


def _changes(path: str, kind: str) -> Obstacle:
    return Obstacle(
        _LOADING,
        path,
        f"{kind} is called with training=True, so that the model's outputs change from "
        "call to call",
        "call it without",
    )


def _explained(problem: str) -> Obstacle:
    """A line of what is refused, as `where: problem`."""
    where, text = "", problem
    if problem.startswith("layer '"):
        name, quote, rest = problem.removeprefix("layer '").partition("'")
        if quote:
            where, text = name, rest.lstrip(": ")
    # What is known better says itself what to do.
    custom = ";" not in text and ("not a layer" in text or "cannot be read" in text)
    return Obstacle(_LOADING, where, text, _PLAIN_LAYERS if custom else "")


def _split(message: str) -> list[Obstacle]:
    return [_explained(part) for part in message.split("; layer ")]


def _distinct(obstacles: list[Obstacle]) -> list[Obstacle]:
    return list(dict.fromkeys(obstacles))


def _without(path: pathlib.Path, error: Exception) -> str:
    return first_line(error, limit=2000).removeprefix(f"{path}: ")


def _name(tensor: Any) -> str:
    return tensor._keras_history.layer.name
