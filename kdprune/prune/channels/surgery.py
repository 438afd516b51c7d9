"""Rebuilding a model without some of its channels."""

import numpy as np

from kdprune._graph import rebuild


class Kept:
    """Tells which of the channels with given ids stay.

    Args:
        graph: A `ChannelGraph`.
        removed: The roots of the channels to remove.
    """

    def __init__(self, graph, removed):
        stays = np.ones(len(graph.roots), bool)
        stays[np.asarray(removed, np.int64)] = False
        self._kept = stays[graph.roots]

    def __call__(self, ids):
        return self._kept[ids]

    def shape(self, weight):
        """The shape that is left of a `Weight`."""
        shape = list(weight.variable.shape)
        for axis, ids in weight.axes.items():
            shape[axis] = int(self(ids).sum())
        return tuple(shape)

    def values(self, weight):
        """What is left of a `Weight`'s numbers."""
        values = weight.variable.numpy()
        for axis, ids in weight.axes.items():
            values = np.compress(self(ids), values, axis)
        return values


def remove_channels(graph, removed):
    """Builds the model anew without the channels removed, weights carried over.

    Args:
        graph: A `ChannelGraph`.
        removed: The roots of the channels to remove.

    Returns:
        A new `keras.Model` of the same layer names; Sequential if the model was.
        It is not compiled. The model it was made from is left as it is.

    Raises:
        ValueError: If a layer cannot be made again from its configuration.
    """
    kept = Kept(graph, removed)

    def config(layer):
        followed = graph.followed.get(id(layer))
        if followed is None or followed.trace.config is None:
            return None
        return followed.trace.config(kept)

    def weights(old, new):
        followed = graph.followed.get(id(old))
        cut = {id(w.variable): w for w in followed.trace.weights} if followed else {}
        return [
            kept.values(cut[id(v)]) if id(v) in cut else v.numpy() for v in old.weights
        ]

    return rebuild(graph.model, config=config, weights=weights)
