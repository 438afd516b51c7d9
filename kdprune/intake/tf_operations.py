"""Functions of TensorFlow between the layers of a tf_keras graph, as layers.

`x * tf.nn.relu6(x + 3) * (1 / 6)`, as the MobileNetV3 of `tf_keras.applications` has
it, leaves `TFOpLambda` layers in the graph, of which neither quantization-aware
training nor channel pruning knows what they do.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdprune._graph import nodes, rebuild
from kdprune.intake.keras_ops import make_operation

# What the functions are called as operations of Keras 3.
_KINDS = {
    "__operators__.add": "Add",
    "identity": "Identity",
    "math.add": "Add",
    "math.divide": "TrueDivide",
    "math.maximum": "Maximum",
    "math.minimum": "Minimum",
    "math.multiply": "Multiply",
    "math.negative": "Negative",
    "math.sigmoid": "Sigmoid",
    "math.softplus": "Softplus",
    "math.subtract": "Subtract",
    "math.tanh": "Tanh",
    "math.truediv": "TrueDivide",
    "nn.elu": "Elu",
    "nn.gelu": "Gelu",
    "nn.relu": "Relu",
    "nn.relu6": "Relu6",
    "nn.sigmoid": "Sigmoid",
    "nn.silu": "Silu",
    "nn.softmax": "Softmax",
    "nn.swish": "Silu",
    "nn.tanh": "Tanh",
}
# Arguments that change nothing at these values.
_USUAL: dict[str, tuple] = {
    "approximate": (False,),
    "axis": (-1, None),
    "beta": (1.0,),
}


def is_operation(layer: Any) -> bool:
    """Whether a layer is a function of TensorFlow that was called on a tensor."""
    return type(layer).__name__ in (
        "TFOpLambda",
        "SlicingOpLambda",
        "InstanceMethod",
        "InstanceProperty",
        "ClassMethod",
    )


def replace_operations(model: keras.Model) -> tuple[keras.Model, list[str]]:
    """Puts layers in the place of functions of TensorFlow, where some do the same.

    Args:
        model: A built Functional or Sequential model; left as it is.

    Returns:
        `(model, changes)`: a new model (the same one, where there is nothing to do),
        and a line for each thing done. Functions that no layer computes stay.
    """
    if not any(is_operation(node.layer) for node in nodes(model)):
        return model, []
    changes: list[str] = []

    def call(node: Any, args: Any, kwargs: Any, copied: Any) -> Any:
        layer = node.layer
        kind = _KINDS.get(getattr(layer, "symbol", ""))
        if kind is None or len(layer._inbound_nodes) != 1:
            return copied()
        given = list(args)
        for key, value in kwargs.items():
            if key in _USUAL:
                if value not in _USUAL[key]:
                    return copied()
            elif key != "name":
                given.append(value)
        given = [item.numpy() if _is_constant(item) else item for item in given]
        name = layer.name.replace(".", "_")
        try:
            made = make_operation(kind, name, given, {}, _settings(kind))
        except ValueError:  # Unsupported, or of shapes that the layer does not take.
            return copied()
        kind = type(made._keras_history.layer).__name__
        changes.append(f"function {layer.name!r}: a {kind} layer {name!r}")
        return made

    replaced = rebuild(model, call=call)
    return (replaced, changes) if changes else (model, [])


def _settings(kind: str) -> dict[str, Any]:
    return {"approximate": False} if kind == "Gelu" else {}


def _is_constant(item: Any) -> bool:
    return tf.is_tensor(item) and not hasattr(item, "_keras_history")
