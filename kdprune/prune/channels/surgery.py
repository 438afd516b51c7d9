"""Rebuilding a model without some of its channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kdprune._graph import rebuild
from kdprune.prune.channels.graph import ChannelGraph, Ids, LayerRecord, WeightAxes
from kdprune.prune.inference import run_layers

# The settings that initialize weights, where not `{weight}_initializer`.
_INITIALIZERS = {
    "depthwise_kernel": "depthwise_initializer",
    "pointwise_kernel": "pointwise_initializer",
}


class KeptChannels:
    """Tells which of the channels with given ids stay.

    Args:
        graph: The channels of the model.
        removed: The roots of the channels to remove.
    """

    def __init__(self, graph: ChannelGraph, removed: Sequence[int] | Ids) -> None:
        stays = np.ones(len(graph.roots), bool)
        stays[np.asarray(removed, np.int64)] = False
        self._kept = stays[graph.roots]

    def __call__(self, ids: Ids) -> np.ndarray:
        return self._kept[ids]

    def shape(self, weight: WeightAxes) -> tuple[int, ...]:
        """The shape that is left of a weight."""
        shape = list(weight.variable.shape)
        for axis, ids in weight.axes.items():
            shape[axis] = int(self(ids).sum())
        return tuple(shape)

    def values(self, weight: WeightAxes, values: np.ndarray) -> np.ndarray:
        """What is left of an array of a weight's shape."""
        for axis, ids in weight.axes.items():
            values = np.compress(self(ids), values, axis)
        return values


def remove_channels(graph: ChannelGraph, removed: Sequence[int] | Ids) -> keras.Model:
    """Rebuilds the model without the channels removed, weights carried over.

    Args:
        graph: The channels of the model.
        removed: The roots of the channels to remove.

    Returns:
        A new `keras.Model` of the same layer names; Sequential if the model was.
        It is not compiled. The model it was made from is left as it is.

    Raises:
        ValueError: If a layer cannot be made again from its configuration.
    """
    kept = KeptChannels(graph, removed)

    def config(layer):
        record = graph.records.get(id(layer))
        if record is None:
            return None
        changes = record.result.config(kept) if record.result.config else {}
        return {**_initializers(record, kept), **changes}

    def weights(old, new):
        record = graph.records.get(id(old))
        changed = {id(w.variable): w for w in record.result.weights} if record else {}
        return [
            kept.values(changed[id(variable)], variable.numpy())
            if id(variable) in changed
            else variable.numpy()
            for variable in old.weights
        ]

    return rebuild(graph.model, config=config, weights=weights)


def _initializers(record: LayerRecord, kept: KeptChannels) -> dict[str, object]:
    """Initializers that are arrays of a weight's shape lose what the weight does."""
    changes = {}
    for weight in record.result.weights:
        for name, value in vars(record.layer).items():
            if value is not weight.variable:
                continue
            setting = _INITIALIZERS.get(name, f"{name}_initializer")
            initializer = getattr(record.layer, setting, None)
            if isinstance(initializer, keras.initializers.Constant):
                constant = np.asarray(initializer.value)
                if constant.shape == tuple(weight.variable.shape):
                    left = keras.initializers.Constant(kept.values(weight, constant))
                    changes[setting] = left
    return changes


def with_zeros(
    graph: ChannelGraph, removed: Sequence[int] | Ids, images: Sequence[Any]
) -> list[Any]:
    """What a smaller model has to compute: the original, removed channels at zero.

    Args:
        graph: The channels of the original.
        removed: The roots of the channels to remove.
        images: An array `(n, …)` for each of its inputs.

    Returns:
        Its outputs, with removed channels zeroed wherever a layer with weights takes
        them; no smaller model is made for that.
    """
    kept = KeptChannels(graph, removed)
    users = {
        key: record
        for key, record in graph.records.items()
        if any(weight.uses is not None for weight in record.result.weights)
    }

    def call_layer(layer, args, kwargs):
        if id(layer) not in users:
            return layer(*args, **kwargs)
        mask = kept(users[id(layer)].inputs[0]).astype(np.float32)
        return layer(args[0] * mask, *args[1:], **kwargs)

    return run_layers(graph.model, images, call_layer)
