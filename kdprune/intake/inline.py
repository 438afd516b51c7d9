"""One flat graph: nested models entered, what only training needs left out.

Not made by `_graph.rebuild`: that asks about a layer, whereas here what becomes of one
depends on the calls of the models around it (whose name it may get, whether it is
frozen), and nested models are to vanish, which `rebuild` keeps.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdprune._graph import (
    DROPOUT,
    RANDOM,
    TRAINING_ONLY,
    check_graph_model,
    check_repeatable,
    is_graph_model,
    nodes,
    remake,
    walk,
)

layers = keras.layers


def inline(
    model: keras.Model, keep_dropout: bool = False
) -> tuple[keras.Model, list[str]]:
    """Makes a model of one flat graph that computes the same.

    Quantization-aware training and channel pruning work on flat graphs; a transfer
    learning model is a base inside a model. Dropout, noise and random augmentation do
    nothing when a model is used, and are left out. A nested model that is called with
    `training=False` keeps its batch normalization as it is: there it is frozen.

    Args:
        model: A built Functional or Sequential model; left as it is.
        keep_dropout: Keep dropout and noise, for a model that is to be trained, but
            in models that are called with `training=False`.

    Returns:
        `(model, changes)`: a new model of the same name, inputs and outputs (the
        same one, where there is nothing to do), and a line for each thing done.
        Layers keep their names; where two models have one of a name, the nested
        one's gets that of its model in front.

    Raises:
        ValueError: If it is not a graph model, a layer cannot be made again, or
            dropout, noise or batch normalization is called with `training=True`, so
            that the model's outputs change from call to call, or with the batch.
    """
    check_graph_model(model)
    check_repeatable(model)
    inliner = _Inliner(model, RANDOM if keep_dropout else TRAINING_ONLY)
    if not inliner.needed:
        return model, []
    return inliner.flat(model), inliner.changes()


def one_graph(model: keras.Model) -> keras.Model:
    """The model with the graphs of models inside it made part of its own.

    As `inline` makes it, with dropout and noise; the same one if there are none inside.
    """
    check_graph_model(model)
    if not any(is_graph_model(node.layer) for node in nodes(model)):
        return model
    return inline(model, keep_dropout=True)[0]


class _Inliner:
    def __init__(self, model: keras.Model, left_out: tuple[type, ...]) -> None:
        self.left_out = left_out
        self.made: dict[int, tuple[Any, Any]] = {}
        self.names: set[str] = {layer.name for layer in _inputs(model)}
        self.nested: dict[str, int] = {}
        self.dropped: dict[str, None] = {}
        self.needed = any(
            is_graph_model(node.layer) or isinstance(node.layer, left_out)
            for node in nodes(model)
        )

    def flat(self, model: keras.Model) -> keras.Model:
        inputs = [remake(layer).output for layer in _inputs(model)]
        outputs = self._run(model, inputs, False, not model.trainable)
        copy = keras.Model(
            tf.nest.pack_sequence_as(model._nested_inputs, inputs),
            tf.nest.pack_sequence_as(model._nested_outputs, outputs),
            name=model.name,
        )
        for old, new in self.made.values():
            new.set_weights(old.get_weights())
        return copy

    def changes(self) -> list[str]:
        found = [
            f"model {name!r} inside the model: its {count} layers are part of the graph"
            for name, count in self.nested.items()
        ]
        if self.dropped:
            found.append(f"left out, as they only train: {', '.join(self.dropped)}")
        return found

    def _run(self, model: keras.Model, inputs: list, frozen: bool, held: bool) -> list:
        """Makes the calls of a model that is as in use, or whose weights stay."""

        def call(node: Any, args: Any, kwargs: Any) -> Any:
            layer = node.layer
            if is_graph_model(layer):
                self.nested[layer.name] = len(layer.layers)
                tensors = [t for t in tf.nest.flatten((args, kwargs)) if _is_tensor(t)]
                stays = held or not layer.trainable
                inner = frozen or stays or kwargs.get("training") is False
                outputs = self._run(layer, tensors, inner, stays)
                return tf.nest.pack_sequence_as(layer._nested_outputs, outputs)
            idle = frozen and isinstance(layer, DROPOUT)
            if idle or isinstance(layer, self.left_out):
                kind = f"{layer.name} ({type(layer).__name__})"
                self.dropped[kind] = None
                return args[0]
            kwargs = {k: v for k, v in kwargs.items() if (k, v) != ("training", False)}
            return self._copy(layer, model, frozen, held)(*args, **kwargs)

        return walk(model, inputs, call)

    def _copy(self, layer: Any, model: keras.Model, frozen: bool, held: bool) -> Any:
        if id(layer) not in self.made:
            changes: dict[str, Any] = {"name": self._free_name(layer.name, model.name)}
            normalizes = isinstance(layer, layers.BatchNormalization)
            if held or not layer.trainable or (frozen and normalizes):
                changes["trainable"] = False
            self.made[id(layer)] = layer, remake(layer, **changes)
        return self.made[id(layer)][1]

    def _free_name(self, name: str, model_name: str) -> str:
        candidates = [name, f"{model_name}_{name}"]
        number = 1
        while candidates[0] in self.names:
            candidates.pop(0)
            if not candidates:
                number += 1
                candidates.append(f"{model_name}_{name}_{number}")
        self.names.add(candidates[0])
        return candidates[0]


def _inputs(model: keras.Model) -> list:
    return [tensor._keras_history.layer for tensor in model.inputs]


def _is_tensor(item: Any) -> bool:
    return hasattr(item, "_keras_history")
