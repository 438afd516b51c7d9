"""How a layer is called, as the files of Keras 3 and of tf_keras write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# A call's arguments inside one another.
_DEEPEST = 8
# What stands in a tf_keras file for a first argument that is no tensor of the graph.
_CONSTANT = "_CONSTANT_VALUE"
# What constants may be of: text and objects have no place in a network.
_NUMBERS = """
    bool float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64
""".split()
# Layers whose first argument stays a list, of one tensor as well.
_KEEP_LISTS = ("TFOpLambda", "SlicingOpLambda")

# Output tensors by the name of the layer and the number of the call.
Values = Mapping[tuple, list]


class NotYet(Exception):
    """A tensor whose layer has not been called."""


def calls_of(entry: dict, name: str, older: bool) -> list[tuple[int, Any]]:
    """The calls of a layer in a file, numbered from 0."""
    calls = entry.get("inbound_nodes") or []
    if not isinstance(calls, list):
        raise ValueError(f"layer {name!r} is called in a form that is not known")
    if older and entry["class_name"] in _KEEP_LISTS:
        calls = [{"kept": call} for call in calls]
    return list(enumerate(calls))


def read_call(
    call: Any, values: Values, name: str, older: bool
) -> tuple[list, dict[str, Any]]:
    """The arguments of a call: tensors of the graph, plain values, lists of them.

    Raises:
        NotYet: If a tensor in them is not made yet.
        ValueError: If they are not in a known form.
    """
    if older:
        return _read_older(call, values, name)
    if not isinstance(call, dict):
        raise ValueError(f"layer {name!r} is called in a form that is not known")
    args, kwargs = call.get("args", []), call.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ValueError(f"layer {name!r} is called in a form that is not known")
    made = [_value(item, values, 0) for item in args]
    named = {key: _value(item, values, 0) for key, item in kwargs.items()}
    return made, named


def tensor_of(history: Any, values: Values) -> Any:
    """The tensor that `[layer, call, output]` names.

    Raises:
        NotYet: If its layer has not been called.
        ValueError: If it names none.
    """
    if (
        not isinstance(history, list)
        or len(history) != 3
        or not isinstance(history[0], str)
        or not all(isinstance(number, int) for number in history[1:])
    ):
        raise ValueError("a tensor of the graph is named in a form that is not known")
    name, call, index = history
    if (name, call) not in values:
        raise NotYet
    outputs = values[name, call]
    if not 0 <= index < len(outputs):
        raise ValueError(f"layer {name!r} has no output {index}")
    return outputs[index]


def _value(item: Any, values: Values, depth: int) -> Any:
    """An argument in a Keras 3 file."""
    if depth > _DEEPEST:
        raise ValueError("a layer's arguments are nested too deeply")
    if isinstance(item, list):
        return [_value(one, values, depth + 1) for one in item]
    if not isinstance(item, dict):
        return item
    if item.get("class_name") == "__keras_tensor__":
        config = item.get("config")
        history = config.get("keras_history") if isinstance(config, dict) else None
        return tensor_of(history, values)
    if item.get("class_name") in ("__numpy__", "__tensor__"):
        config = item.get("config")
        return config.get("value") if isinstance(config, dict) else None
    if item.get("class_name") == "__ellipsis__":
        return Ellipsis
    if item.get("class_name") == "slice":  # Of an operation, which checks it.
        return item
    raise ValueError(
        f"a layer is called on {str(item.get('class_name'))[:60]!r}, which is not known"
    )


def _read_older(call: Any, values: Values, name: str) -> tuple[list, dict[str, Any]]:
    """The same of a tf_keras file.

    A node is a structure of `[layer, call, output, {argument: value}]`, the named
    arguments repeated in each; of one layer's calls the lists stay lists.
    """
    kept = isinstance(call, dict)
    node = call["kept"] if kept else call
    kwargs: dict[str, Any] = {}

    def first(item: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("a layer's arguments are nested too deeply")
        if _is_entry(item):
            if len(item) == 4 and not isinstance(item[3], dict):
                raise ValueError(
                    f"layer {name!r} is called in a form that is not known"
                )
            kwargs.update(item[3] if len(item) == 4 else {})
            if item[0] == _CONSTANT:
                return _older_value(item[2], values, depth + 1)
            return tensor_of(item[:3], values)
        if isinstance(item, list):
            return [first(one, depth + 1) for one in item]
        if isinstance(item, dict):
            return {key: first(one, depth + 1) for key, one in item.items()}
        raise ValueError(f"layer {name!r} is called in a form that is not known")

    made = first(node, 0)
    if not kept and isinstance(made, list) and len(made) == 1:
        made = made[0]
    named = {key: _older_value(item, values, 0) for key, item in kwargs.items()}
    return [made], named


def _older_value(item: Any, values: Values, depth: int) -> Any:
    """An argument in a tf_keras file; a tensor is `[layer, call, output]`."""
    if depth > _DEEPEST:
        raise ValueError("a layer's arguments are nested too deeply")
    if _is_entry(item) and len(item) == 3:
        return tensor_of(item, values)
    if isinstance(item, (list, tuple)):
        return [_older_value(one, values, depth + 1) for one in item]
    if not isinstance(item, dict):
        return item
    kind, config = item.get("class_name"), item.get("config")
    if kind is None:
        return {key: _older_value(one, values, depth + 1) for key, one in item.items()}
    if kind in ("__numpy__", "__tensor__") and isinstance(config, dict):
        if (dtype := config.get("dtype")) not in _NUMBERS:
            raise ValueError(f"a constant of type {str(dtype)[:40]!r} is not known")
        return np.asarray(config.get("value"), dtype)
    if kind == "__ellipsis__":
        return Ellipsis
    raise ValueError(f"a layer is called on {str(kind)[:60]!r}, which is not known")


def _is_entry(item: Any) -> bool:
    return isinstance(item, list) and len(item) in (3, 4) and isinstance(item[0], str)
