"""What a model's outputs mean: its head, split off so that scores are logits.

Training, distillation and the choice of a class work on logits; what turned them into
probabilities in the user's model is put back when a file is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdprune._graph import is_graph_model, nodes, rebuild

layers = keras.layers

# What Keras and TensorFlow call the functions.
_FUNCTIONS = {
    "softmax": "softmax",
    "softmax_v2": "softmax",
    "sigmoid": "sigmoid",
}
# Layers that leave each score what it is when the model is used.
_SAME = (layers.Dropout, layers.Flatten, layers.Identity, layers.Reshape)


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


def choose_output(model: keras.Model, output: str | None = None) -> keras.Model:
    """The model with one of its outputs.

    Args:
        model: A graph model.
        output: The name of the layer that gives the output, or of the output itself
            where they have names of their own; None where there is only one.

    Raises:
        ValueError: If there are several and none is chosen, or none of that name.
    """
    names = output_names(model)
    if output is None and len(names) == 1:
        return model
    if output is None or output not in names:
        received = "several outputs" if output is None else repr(output)
        raise ValueError(
            f"expected the name of one of the model's outputs, {', '.join(names)} "
            f"(output={names[0]!r}). Received: {received}"
        )
    return keras.Model(model.inputs, model.outputs[names.index(output)])


def output_names(model: keras.Model) -> list[str]:
    """The names of a model's outputs, told apart by number where two are the same."""
    if isinstance(model._nested_outputs, dict):
        # In the order in which Keras flattens them.
        return [str(key) for key in sorted(model._nested_outputs)]
    names = [tensor._keras_history.layer.name for tensor in model.outputs]
    return [
        name if names.count(name) == 1 else f"{name}_{names[:place].count(name)}"
        for place, name in enumerate(names)
    ]


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
    if len(model.outputs) != 1:
        raise ValueError(
            "expected a model of one output. Received: "
            f"{', '.join(output_names(model))}"
        )
    shape = model.outputs[0].shape
    if shape.rank != 2 or shape[1] is None:
        raise ValueError(
            "expected a classifier, whose output is a row of scores for each image. "
            f"Received: an output of shape {tuple(shape)}"
        )
    activation, place = _final(model)
    if activation is None:
        return model, Head("none", shape[1])
    if isinstance(place, layers.Layer):
        changed = rebuild(
            model, config=lambda layer: {"activation": None} if layer is place else None
        )
    else:
        (tensor,) = place.keras_inputs
        changed = rebuild(model, bypass={place: tensor})
    return changed, Head(activation, shape[1])


def join_head(model: keras.Model, head: Head) -> keras.Model:
    """Puts a head back behind a model that gives logits."""
    if head.activation == "none":
        return model
    scores = layers.Activation(head.activation, name=f"{model.name}_head")
    return keras.Model(model.inputs, scores(model.outputs[0]), name=model.name)


def _final(model: keras.Model) -> tuple[str | None, Any]:
    """The last activation, and the layer that has it or the call that is nothing else.

    Looks past what only copies or reshapes scores, and into nested models.
    """
    call = _maker(model, model.outputs[0])
    while call is not None:
        layer = call.layer
        if is_graph_model(layer):
            model = layer
            call = _maker(model, model.outputs[0])
            continue
        name = _activation_of(layer)
        if name in _FUNCTIONS:
            alone = isinstance(layer, (layers.Activation, layers.Softmax))
            return _FUNCTIONS[name], call if alone else layer
        linear = isinstance(layer, layers.Activation) and name == "linear"
        if not (linear or isinstance(layer, _SAME)) or len(call.keras_inputs) != 1:
            return None, None
        call = _maker(model, call.keras_inputs[0])
    return None, None


def _maker(model: keras.Model, tensor: Any) -> Any:
    """The call that made a tensor; None for an input of the model."""
    for node in nodes(model):
        if any(made is tensor for made in tf.nest.flatten(node.outputs)):
            return node
    return None


def _activation_of(layer: Any) -> str:
    if isinstance(layer, layers.Softmax):
        return "softmax"
    activation = getattr(layer, "activation", None)
    if isinstance(activation, layers.Softmax):
        return "softmax"
    return getattr(activation, "__name__", "")
