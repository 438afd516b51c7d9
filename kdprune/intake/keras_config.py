"""A configuration of Keras 3 or tf_keras, rebuilt as a tf_keras model.

Layers are made from the tables of `keras_layers` and called as the file says; nodes
of Keras 3 that are operations rather than layers (`x * 2`, what `preprocess_input`
does) become layers that compute the same. Nothing that a configuration names is
imported or looked up: modules and registered names in it are not read.
"""

from __future__ import annotations

import collections
from typing import Any

import tf_keras as keras

from kdprune._io import first_line
from kdprune.intake.keras_calls import NotYet, calls_of, read_call, tensor_of
from kdprune.intake.keras_layers import (
    ALIASES,
    KERAS_3,
    TF_KERAS,
    Tables,
    Unsupported,
    check_precision,
    find_layer,
    make_layer,
)
from kdprune.intake.keras_ops import OPERATIONS, make_operation
from kdprune.intake.keras_weights import Place, snake_case

_MODELS = ("Functional", "Sequential", "Model")
# Types of inputs that are no precision.
_WHOLE = ("int8", "uint8", "int16", "int32", "int64", "bool")
# Models inside models; and layers in all, at which no classifier arrives.
_DEEPEST, _MOST_LAYERS = 8, 20_000
_MOST_NAMED = 8  # Problems in one message.
_NO_SHAPE = (
    "its input shape is not known; build the model (call it, or start it with "
    "keras.Input) before it is saved"
)


def build_keras3(config: dict) -> tuple[keras.Model, list[Place]]:
    """Rebuilds what a Keras 3 file describes, with untrained weights.

    Args:
        config: The configuration as parsed from JSON, of a `.keras` or `.h5` file.

    Returns:
        `(model, places)`: a Functional or Sequential tf_keras model in float32, and
        where its weights are in the file, for `load_keras3_weights`. Layers keep
        their names. How the model was compiled is left out.

    Raises:
        ValueError: If it holds anything that is not known, naming all of it, or if
            its layers do not make a model.
    """
    return _build(config, KERAS_3)


def build_tf_keras(config: dict) -> keras.Model:
    """The same of a file that tf_keras, or Keras 2, has written.

    The model has the layers of the file in their order, so that its own
    `load_weights` reads the file's weights.

    Raises:
        ValueError: As `build_keras3`.
    """
    return _build(_decoded(config), TF_KERAS)[0]


def is_frozen(config: dict) -> bool:
    """Whether a model's configuration says that none of its weights is trained."""
    settings = config.get("config")  # A list of layers, in files of old.
    return isinstance(settings, dict) and settings.get("trainable") is False


def find_problems(config: dict, third: bool) -> list[str]:
    """What keeps a configuration from being rebuilt, all that it names.

    Args:
        config: As for `build_keras3`.
        third: Whether Keras 3 has written it.
    """
    builder = _Builder(KERAS_3 if third else TF_KERAS)
    config = config if third else _decoded(config)
    try:
        builder.check(config, 0)
    except ValueError as error:
        builder.problems[str(error)] = None
    return list(builder.problems)


def _decoded(item: Any) -> Any:
    """A configuration with lists in place of what tf_keras writes of tuples."""
    if isinstance(item, list):
        return [_decoded(one) for one in item]
    if not isinstance(item, dict):
        return item
    if item.get("class_name") in ("__tuple__", "TensorShape"):
        return [_decoded(one) for one in item.get("items") or ()]
    return {key: _decoded(value) for key, value in item.items()}


def _build(config: dict, tables: Tables) -> tuple[keras.Model, list[Place]]:
    builder = _Builder(tables)
    builder.check(config, 0)
    if builder.problems:
        raise ValueError(_in_one_line(builder.problems))
    model, places = builder.model(config, "")
    if not model.built:
        raise ValueError(_NO_SHAPE)
    return model, places


class _Builder:
    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.problems: dict[str, None] = {}
        self.count = 0

    def check(self, item: Any, depth: int) -> None:
        """Collects what is not known, so that all of it is said at once."""
        if not isinstance(item, dict) or item.get("class_name") not in _MODELS:
            kind = item.get("class_name") if isinstance(item, dict) else item
            raise ValueError(
                "expected a Functional or Sequential model. Received: "
                f"{str(kind)[:60]!r}; a subclassed model has no graph: build it from "
                "keras.Input and calls of its layers"
            )
        if depth > _DEEPEST:
            raise ValueError(f"models are nested more than {_DEEPEST} deep")
        for entry in _entries(item):
            self.count += 1
            if self.count > _MOST_LAYERS:
                raise ValueError(f"it has more than {_MOST_LAYERS:,} layers")
            kind, settings = entry["class_name"], entry["config"]
            name = _name(entry)
            if kind in _MODELS:
                self.check(entry, depth + 1)
            elif kind == "InputLayer" or self._is_operation(entry):
                continue
            elif find_layer(_alias(kind), self.tables) is None:
                self.problems[_unknown(kind, name)] = None
            else:
                try:
                    make_layer(kind, settings, self.tables)
                except Unsupported as error:
                    self.problems[f"layer {name!r}: {error}"] = None

    def model(self, item: dict, prefix: str) -> tuple[keras.Model, list[Place]]:
        """A model and the places of its weights, below `prefix` in a `.keras` file."""
        if item["class_name"] == "Sequential":
            return self._sequential(item, prefix)
        return self._functional(item, prefix)

    def _sequential(self, item: dict, prefix: str) -> tuple[keras.Model, list[Place]]:
        entries, config = _entries(item), item["config"]
        made, places = [], []
        shape = config.get("build_input_shape") if isinstance(config, dict) else None
        if entries and entries[0]["class_name"] != "InputLayer":
            if shape is None:
                shape = _first_shape(entries[0])
            if not isinstance(shape, (list, tuple)) or len(shape) < 2:
                raise ValueError(_NO_SHAPE)
            made.append(keras.Input(tuple(shape[1:]))._keras_history.layer)
        for entry, path in zip(entries, self._paths(entries, prefix), strict=True):
            layer, place = self._layer(entry, path)
            made.append(layer)
            places.append(place)
        name = config.get("name") if isinstance(config, dict) else None
        return keras.Sequential(made, name=_text(name)), places

    def _functional(self, item: dict, prefix: str) -> tuple[keras.Model, list[Place]]:
        entries, config = _entries(item), item["config"]
        layers: dict[str, Any] = {}
        places: list[Place] = []
        for entry, path in zip(entries, self._paths(entries, prefix), strict=True):
            name = _name(entry)
            if name in layers:
                raise ValueError(f"two layers are called {name!r}")
            if self._is_operation(entry):
                layers[name] = entry
                continue
            layers[name], place = self._layer(entry, path)
            places.append(place)
        ends = config.get("input_layers"), config.get("output_layers")
        values = _call_all(entries, layers, ends, self.tables.older)
        inputs = _outputs_of(values, ends[0], "inputs")
        outputs = _outputs_of(values, ends[1], "outputs")
        return keras.Model(inputs, outputs, name=_text(config.get("name"))), places

    def _layer(self, entry: dict, path: str) -> tuple[Any, Place]:
        kind, name = entry["class_name"], _name(entry)
        if kind in _MODELS:
            model, inner = self.model(entry, f"{path}/")
            if is_frozen(entry):
                model.trainable = False
            return model, Place(model, path, name, inner)
        if kind == "InputLayer":
            layer = _input_layer(entry["config"], name, self.tables.older)
            return layer, Place(None, path, name)
        layer = make_layer(kind, {**entry["config"], "name": name}, self.tables)
        return layer, Place(layer, path, name)

    def _is_operation(self, entry: dict) -> bool:
        return not self.tables.older and _is_operation(entry)

    def _paths(self, entries: list[dict], prefix: str) -> list[str]:
        """Where Keras keeps each layer's weights: by class, counted up."""
        used: collections.Counter[str] = collections.Counter()
        found = []
        for entry in entries:
            if self._is_operation(entry):
                found.append("")
                continue
            name = snake_case(entry["class_name"])
            count = used[name]
            used[name] += 1
            found.append(
                f"{prefix}layers/{name}_{count}" if count else f"{prefix}layers/{name}"
            )
        return found


def _entries(item: dict) -> list[dict]:
    """The layers of a model's configuration, each a dict with class and settings."""
    config = item.get("config")
    found = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(found, list):
        raise ValueError("a model in it has no list of layers")
    for entry in found:
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("class_name"), str)
            and isinstance(entry.get("config"), (dict, list))
        ):
            raise ValueError("a layer in it has no class and settings")
    return found


def _name(entry: dict) -> str:
    config = entry["config"]
    name = entry.get("name") or (
        config.get("name") if isinstance(config, dict) else None
    )
    if not isinstance(name, str) or not name:
        raise ValueError(f"a layer of class {entry['class_name'][:60]!r} has no name")
    return name


def _text(name: Any) -> str | None:
    return name if isinstance(name, str) else None


def _is_operation(entry: dict) -> bool:
    """Whether a node is an operation: it has neither a precision nor `trainable`.

    `Add`, `Multiply`, `Subtract` and others are names of layers as well.
    """
    config = entry["config"]
    return (
        entry["class_name"] in OPERATIONS
        and isinstance(config, dict)
        and not {"dtype", "trainable"} & set(config)
    )


def _alias(kind: str) -> str:
    return ALIASES.get(kind, kind)


_WHY = {
    "Lambda": "is a Lambda, which is code; replace it by plain layers",
    "PruneLowMagnitude": "is wrapped for pruning; strip the wrappers before saving",
    "QuantizeWrapperV2": "is quantization-aware, which has a saved form of its own",
}


def _unknown(kind: str, name: str) -> str:
    if kind in _WHY:
        return f"layer {name!r} {_WHY[kind]}"
    return f"layer {name!r} is of the class {kind[:60]!r}, which cannot be read"


def _input_layer(config: Any, name: str, older: bool) -> Any:
    shape = dtype = None
    if isinstance(config, dict):
        shape = config.get("batch_shape") or config.get("batch_input_shape")
        dtype = config.get("dtype")
    if not isinstance(shape, (list, tuple)) or len(shape) < 2:
        raise ValueError(f"input {name!r} has no shape")
    if not older or dtype not in _WHOLE:
        check_precision(dtype)
        dtype = None
    for size in shape[1:]:
        if older and size is None:
            continue  # Refused where one size is needed.
        if not isinstance(size, int) or size < 1:
            raise ValueError(
                f"input {name!r} has the shape {shape}. Expected: an image of one "
                "size, such as (32, 32, 3); build the model for it"
            )
    return keras.layers.InputLayer(tuple(shape[1:]), dtype=dtype, name=name)


def _first_shape(entry: dict) -> Any:
    """The input's shape as the first layer of an older Sequential model gives it."""
    config = entry["config"]
    build = entry.get("build_config")
    if isinstance(config, dict) and config.get("batch_input_shape"):
        return config["batch_input_shape"]
    return build.get("input_shape") if isinstance(build, dict) else None


def _call_all(
    entries: list[dict], layers: dict[str, Any], ends: Any, older: bool
) -> dict[tuple, list]:
    """Calls each layer on what the file says; `{(layer, call): output tensors}`."""
    values: dict[tuple, list] = {}
    waiting = []
    for entry in entries:
        name = _name(entry)
        if entry["class_name"] == "InputLayer":
            values[name, 0] = [layers[name].output]
            continue
        waiting += [(entry, name, *one) for one in calls_of(entry, name, older)]
    if older:
        waiting = _counted_as_named(waiting, ends)
    first = {name: index for _, name, index, _ in reversed(waiting)}
    while waiting:
        left = []
        for entry, name, index, call in waiting:
            if index > first[name] and (name, index - 1) not in values:
                left.append((entry, name, index, call))
                continue
            try:
                args, kwargs = read_call(call, values, name, older)
            except NotYet:
                left.append((entry, name, index, call))
                continue
            made = _call(entry, layers[name], name, args, kwargs, older)
            values[name, index] = made
        if len(left) == len(waiting):
            raise ValueError(f"layer {left[0][1]!r} is called on what is never made")
        waiting = left
    return values


def _counted_as_named(waiting: list[tuple], ends: Any) -> list[tuple]:
    """The calls of nested models counted from 1 where the file does so.

    Their first call was made as they were built, and is in none of the nodes; older
    versions of Keras 2 did not count it.
    """
    from_zero: set[str] = set()
    pending: list[Any] = [ends, [call for *_, call in waiting]]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            if len(item) >= 3 and isinstance(item[0], str) and item[1] == 0:
                from_zero.add(item[0])
            pending.extend(item)
    return [
        (entry, name, index + 1, call)
        if entry["class_name"] in _MODELS and name not in from_zero
        else (entry, name, index, call)
        for entry, name, index, call in waiting
    ]


def _call(
    entry: dict, layer: Any, name: str, args: list, kwargs: dict, older: bool
) -> list:
    if isinstance(layer, dict):
        return [
            make_operation(entry["class_name"], name, args, kwargs, entry["config"])
        ]
    if not older:
        kwargs = _checked_arguments(layer, name, args, kwargs)
    try:
        made = layer(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"layer {name!r} cannot be called: {first_line(error)}"
        ) from error
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _checked_arguments(layer: Any, name: str, args: list, kwargs: dict) -> dict:
    """The named arguments of a call in a Keras 3 file, without what changes nothing."""
    # What Keras fills in by itself.
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    plain = [item for item in args[1:] if item is not None]
    if type(layer).__name__.startswith("Random"):
        kwargs.pop("training", None)  # Keras 3 writes True of each by itself.
    if True in (kwargs.get("training"), *(x for x in plain if isinstance(x, bool))):
        raise ValueError(
            f"layer {name!r} is called with training=True, so that the "
            "model's outputs change from call to call; call it without"
        )
    if set(kwargs) - {"training"}:
        raise ValueError(
            f"layer {name!r} is called with {', '.join(sorted(kwargs))[:80]}, which is "
            "not supported"
        )
    return kwargs


def _outputs_of(values: dict, named: Any, what: str) -> Any:
    """The tensors that `input_layers` or `output_layers` name; one stands alone."""
    try:
        if isinstance(named, list) and len(named) == 3 and isinstance(named[0], str):
            return tensor_of(named, values)
        if isinstance(named, list) and named:
            found = [tensor_of(one, values) for one in named]
            return found[0] if len(found) == 1 else found
    except NotYet:
        pass
    raise ValueError(f"the model's {what} are not tensors of its layers")


def _in_one_line(problems: dict[str, None]) -> str:
    found = list(problems)
    more = len(found) - _MOST_NAMED
    tail = f"; and {more} more" if more > 0 else ""
    return "; ".join(found[:_MOST_NAMED]) + tail
