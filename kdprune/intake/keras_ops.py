"""Operations between the layers of a Keras 3 graph, as tf_keras layers.

`x * 2.0` or `preprocess_input(x)` leave nodes in the graph that are no layers. Those
with a constant become `Rescaling`, those of two tensors a merging layer, activations
`Activation`: layers that the other parts of the package know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras as keras

from kdprune.intake.keras_layers import Unsupported, activation
from kdprune.intake.pixels import turning_layer

layers = keras.layers

_MERGES = {
    "Add": layers.Add,
    "Subtract": layers.Subtract,
    "Multiply": layers.Multiply,
    "Maximum": layers.Maximum,
    "Minimum": layers.Minimum,
}
# Names of the operations by those of the activations that they compute.
_FUNCTIONS = {
    "Elu": "elu",
    "Gelu": "gelu",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "LogSoftmax": "log_softmax",
    "Relu": "relu",
    "Relu6": "relu6",
    "Selu": "selu",
    "Sigmoid": "sigmoid",
    "Silu": "silu",
    "Softmax": "softmax",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
}
OPERATIONS = frozenset(
    {*_MERGES, *_FUNCTIONS, "TrueDivide", "Divide", "Negative", "GetItem", "Stack"}
    | {"Reshape", "Concatenate", "Mean", "Identity"}
)


def make_operation(kind: str, name: str, args: list, kwargs: dict, config: dict) -> Any:
    """Calls the layer that computes what an operation does.

    Args:
        kind: The operation's class, one of `OPERATIONS`.
        name: What to call the layer.
        args: Its arguments, tensors of the graph and constants.
        kwargs: Its named arguments.
        config: Its settings, `axis` and the like.

    Returns:
        The output tensor.

    Raises:
        Unsupported: If there is no layer that does the same.
    """
    settings = {key: value for key, value in config.items() if key != "name"}
    if kind == "GetItem" and len(args) == 2 and not kwargs and not settings:
        channel = _channel(*args)
        if channel is not None:
            return channel
    if kind == "Stack" and len(args) == 1 and settings == {"axis": -1} and not kwargs:
        source = _turned_around(args[0])
        if source is not None:
            return turning_layer(int(source.shape[-1]), name)(source)
    tensors = [item for item in args if _is_tensor(item)]
    if kind in _FUNCTIONS and len(args) == len(tensors) == 1 and not kwargs:
        return _activate(kind, name, tensors[0], settings)
    if kind == "Identity" and len(tensors) == 1:
        return layers.Activation("linear", name=name)(tensors[0])
    if kind == "Negative" and len(tensors) == 1:
        return layers.Rescaling(-1.0, name=name)(tensors[0])
    if len(args) == 2 and not kwargs and not settings:
        if kind in _MERGES and len(tensors) == 2:
            return _MERGES[kind](name=name)(tensors)
        if len(tensors) == 1:
            rescaled = _rescale(kind, args)
            if rescaled is not None:
                scale, offset = rescaled
                return layers.Rescaling(scale, offset, name=name)(tensors[0])
    raise Unsupported(
        f"the operation {kind} ({name!r}) has no layer that does the same; use layers "
        "of Keras in its place"
    )


@dataclass(frozen=True)
class _Channel:
    """One channel of an image, `x[..., index]`, of which only a `Stack` is known."""

    source: Any
    index: int


def _channel(source: Any, key: Any) -> _Channel | None:
    if not _is_tensor(source) or len(source.shape) != 4 or not isinstance(key, list):
        return None
    if len(key) != 2 or key[0] is not Ellipsis or type(key[1]) is not int:
        return None
    return _Channel(source, key[1])


def _turned_around(parts: Any) -> Any:
    """The image whose channels these are, the last one first; None if they are not."""
    if not isinstance(parts, list) or not parts:
        return None
    if not all(isinstance(part, _Channel) for part in parts):
        return None
    source, count = parts[0].source, parts[0].source.shape[-1]
    turned = [part.index for part in parts] == list(range(count))[::-1]
    return source if turned and all(p.source is source for p in parts) else None


def _rescale(kind: str, args: list) -> tuple | None:
    """`(scale, offset)` of an operation of a tensor and a constant, or None."""
    first = _is_tensor(args[0])
    constant = args[1] if first else args[0]
    numbers = np.asarray(constant)
    if numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        return None
    value = numbers.tolist()
    negative, reciprocal = (-numbers).tolist(), None
    if kind in ("TrueDivide", "Divide") and first and (numbers != 0).all():
        reciprocal = (1.0 / numbers).tolist()
    return {
        "Add": (1.0, value),
        "Multiply": (value, 0.0),
        "Subtract": (1.0, negative) if first else (-1.0, value),
        "TrueDivide": (reciprocal, 0.0) if reciprocal is not None else None,
        "Divide": (reciprocal, 0.0) if reciprocal is not None else None,
    }.get(kind)


def _activate(kind: str, name: str, tensor: Any, settings: dict) -> Any:
    usual: dict[str, tuple] = {
        "axis": (-1, None),
        "approximate": (False,),
        "alpha": (1.0,),
    }
    for key, value in settings.items():
        if value not in usual.get(key, ()):
            raise Unsupported(f"the operation {kind} ({name!r}) has {key}={value!r}")
    if kind == "Gelu" and settings.get("approximate", True) is not False:
        raise Unsupported(
            f"the operation Gelu ({name!r}) is the approximate one; use "
            "approximate=False"
        )
    return layers.Activation(activation(_FUNCTIONS[kind]), name=name)(tensor)


def _is_tensor(item: Any) -> bool:
    return hasattr(item, "_keras_history")
