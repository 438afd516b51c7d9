"""Which Keras layer a tensor of a `.tflite` file came from, by its name."""

from __future__ import annotations

import re

# What converters append to a Keras layer's name to name its weights.
_WEIGHT_NAME = re.compile(
    r"([^/]+)/(Conv2D|depthwise|separable_conv2d|MatMul|Tensordot|conv2d_transpose"
    r"|kernel|LastValueQuant|AllValuesQuant)[_\d]*"
    r"(/(MatMul|ReadVariableOp|resource|FakeQuant\w*)[_\d]*)*$"
)


def layers_of(tensor: str) -> list[str]:
    """The Keras layers an operator's output is named after, the last first.

    "model/relu/Relu;model/conv/Conv2D" is of "conv", and of "relu" folded into it.
    A model inside the model counts as one layer.
    """
    paths = [path.split("/") for path in reversed(tensor.split(";"))]
    return [path[1] for path in paths if len(path) > 2]


def layer_of_weights(tensor: str) -> str | None:
    """The Keras layer in the name of its weights: `net/conv1/Conv2D` -> `conv1`."""
    for part in reversed(tensor.split(";")):
        found = _WEIGHT_NAME.search(part)
        if found:
            return found[1].removeprefix("quant_")
    return None


def short_name(tensor: str) -> str:
    """A name for any operator's output: `net/quant_add/add;...` -> `add`."""
    parts = tensor.split(";")[0].split("/")
    return parts[-2].removeprefix("quant_") if len(parts) > 1 else parts[0]
