"""What a model's outputs mean: its head, split off so that scores are logits.

Training, distillation and the choice of a class work on logits; what turned them into
probabilities in the user's model is put back when a file is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tf_keras as keras

from kdprune._graph import (
    check_graph_model,
    final_activation,
    is_graph_model,
    nodes,
    rebuild,
)


@dataclass(frozen=True)
class Head:
    """How a model's logits become what it says.

    Attributes:
        activation: "softmax": one of several classes. "sigmoid": each output a class
            of its own, several or none of which apply; of a single unit, the second
            of two classes. "none": the model gave logits, of one of several classes.
        units: Number of outputs.
    """

    activation: str
    units: int

    @property
    def kind(self) -> str:
        """The task: "classes" (one of several), "labels" (any of several), "binary"."""
        if self.units == 1:
            return "binary"
        return "labels" if self.activation == "sigmoid" else "classes"


def split_head(model: keras.Model) -> tuple[keras.Model, Head]:
    """Takes the final activation off a classifier.

    Args:
        model: A graph model of one output `(batch, units)`, from float32 images.

    Returns:
        `(model, head)`: a model that gives logits (the same one if it did already)
        and what its outputs mean.

    Raises:
        ValueError: If there are several outputs, or the output is not one row of
            scores for each image.
    """
    check_graph_model(model)
    if len(model.outputs) != 1:
        names = (tensor._keras_history.layer.name for tensor in model.outputs)
        raise ValueError(
            f"expected a model of one output. Received: {', '.join(names)}; make one "
            "of the output that matters, keras.Model(model.input, model.outputs[0])"
        )
    shape = model.outputs[0].shape
    if shape.rank != 2 or shape[1] is None:
        raise ValueError(
            "expected a classifier, whose output is a row of scores for each image. "
            f"Received: an output of shape {tuple(shape)}"
        )
    activation, layer = final_activation(model)
    if layer is None:
        return model, Head("none", shape[1])
    if hasattr(layer, "kernel"):  # An activation inside of a layer that does more.
        changed = rebuild(
            model, config=lambda one: {"activation": None} if one is layer else None
        )
    else:
        call = _call_of(model, layer)
        changed = rebuild(model, bypass={call: call.keras_inputs[0]})
    return changed, Head(activation, shape[1])


def _call_of(model: keras.Model, layer: Any) -> Any:
    """The call of a layer that is called once, in the model or in one inside it."""
    for node in nodes(model):
        if node.layer is layer:
            return node
        if is_graph_model(node.layer):
            found = _call_of(node.layer, layer)
            if found is not None:
                return found
    return None
