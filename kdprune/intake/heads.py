"""What a model's outputs mean: its head, split off so that scores are logits.

Training, distillation and the choice of a class work on logits; what turned them into
probabilities in the user's model is put back when a file is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tf_keras as keras

from kdprune._graph import (
    check_graph_model,
    final_activation,
    is_graph_model,
    nodes,
    rebuild,
    remake,
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


def find_head(model: keras.Model) -> Head:
    """What a classifier's outputs mean.

    Args:
        model: A graph model of one output `(batch, units)`, from float32 images.

    Raises:
        ValueError: If there are several outputs, or the output is not one row of
            scores for each image.
    """
    model = select_output(model, None)
    shape = model.outputs[0].shape
    if shape.rank != 2 or shape[1] is None:
        raise ValueError(
            "expected a classifier, whose output is a row of scores for each image. "
            f"Received: an output of shape {tuple(shape)}"
        )
    activation, layer = final_activation(model)
    return Head("none" if layer is None else activation, shape[1])


def split_head(model: keras.Model, share: bool = False) -> tuple[keras.Model, Head]:
    """Takes the final activation off a classifier.

    Args:
        model: A graph model of one output `(batch, units)`, from float32 images.
        share: Whether the new model may have its layers in common with the given one,
            which is then not to be used any more: that takes no time.

    Returns:
        `(model, head)`: a model that gives logits (the same one if it did already)
        and what its outputs mean.

    Raises:
        ValueError: If there are several outputs, or the output is not one row of
            scores for each image.
    """
    head = find_head(model)
    model = select_output(model, None)
    _, layer = final_activation(model)
    if layer is None:
        return model, head
    if share and (call := _call_of(model, layer)) in nodes(model):
        return _cut(model, call), head
    if hasattr(layer, "kernel"):  # An activation inside of a layer that does more.
        changed = rebuild(
            model, config=lambda one: {"activation": None} if one is layer else None
        )
    else:
        call = _call_of(model, layer)
        changed = rebuild(model, bypass={call: call.keras_inputs[0]})
    return changed, head


def _cut(model: keras.Model, last: Any) -> keras.Model:
    """A flat model without the activation of its last call, all else in common."""
    layer, tensor = last.layer, last.keras_inputs[0]
    if hasattr(layer, "kernel"):
        plain = remake(layer, activation=None)
        tensor = plain(tensor)
        plain.set_weights(layer.get_weights())
    for given in last.keras_inputs:
        users = given._keras_history.layer._outbound_nodes
        if last in users:  # Who counts them shall not find the old one.
            users.remove(last)
    return keras.Model(model.inputs, tensor, name=model.name, trainable=model.trainable)


def check_head(head: Head, task: str, classes: Sequence[str], name: str) -> None:
    """Refuses a model whose outputs are not of the data's labels.

    Args:
        head: What `split_head` found.
        task: The data's: "classes", "labels" or "binary".
        classes: Names of its classes or labels.
        name: What the model is called in the error.

    Raises:
        ValueError: In one line: what is expected of a model of this data.
    """
    count, units = len(classes), head.units
    single = units == 1 and head.activation != "softmax"
    if task == "labels":
        fits = head.activation != "softmax" and units == count > 1
        expected = f"{count} outputs by sigmoid or logits, one for each label"
    elif task == "binary":
        fits = single
        expected = "one unit by sigmoid or logits, the second of two classes"
    else:
        fits = (single and count == 2) or (
            head.activation != "sigmoid" and units == count
        )
        expected = f"{count} outputs by softmax or logits, one for each class"
        expected += ", or a single unit" if count == 2 else ""
    if fits:
        return
    ending = {"none": "logits"}.get(head.activation, head.activation)
    received = f"{units} output{'' if units == 1 else 's'} by {ending}"
    hint = "use a model trained on this data"
    if task == "classes" and head.activation == "sigmoid" and units == count:
        hint = "give labels as zeros and ones (n, labels) if several may apply"
    elif task == "labels" and head.activation == "softmax":
        hint = "a softmax gives one of several classes, labels (n,)"
    elif task == "binary" and units == 2:
        hint = "leave task: binary out"
    listed = ", ".join(map(str, classes[:3])) + (", …" if count > 3 else "")
    raise ValueError(
        f"{name}: expected {expected} ({listed}). Received: {received}; {hint}"
    )


def select_output(model: keras.Model, output: str | None) -> keras.Model:
    """Makes a model of one output of one that has several.

    Args:
        model: A graph model.
        output: The name of the layer that gives the output; None for the only one.

    Raises:
        ValueError: If there are several outputs and none is named, or none is called
            so: with the names of all.
    """
    check_graph_model(model)
    outputs = {tensor._keras_history.layer.name: tensor for tensor in model.outputs}
    if isinstance(model.output, dict):
        outputs |= model.output
    listed = ", ".join(outputs)
    if output is None:
        if len(model.outputs) > 1:
            raise ValueError(
                "expected a model of one output, or which of them to take: "
                f"output=NAME when it is loaded. Received: {listed}"
            )
        return model
    if output not in outputs:
        raise ValueError(f"output must be one of {listed}. Received: {output!r}")
    if len(model.outputs) == 1:
        return model
    return keras.Model(
        model.inputs, outputs[output], name=model.name, trainable=model.trainable
    )


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
