"""Which channels of a model go together: found from its graph, never declared."""

import difflib
import fnmatch
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune._graph import check_float_model, is_graph_model, walk
from kdprune.prune.channels.calls import Call, CannotFollow, Trace
from kdprune.prune.channels.ids import ChannelIds
from kdprune.prune.channels.layers import follow


@dataclass
class Followed:
    """A layer that is cut with channels, and what its handler found.

    Attributes:
        layer: The layer.
        path: Its name, after the names of the nested models it is in:
            `"nested/layer"`.
        inputs: The id vectors of its inputs.
        trace: Its output's ids, its weights' axes, its configuration.
    """

    layer: keras.layers.Layer
    path: str
    inputs: list
    trace: Trace


@dataclass
class ChannelGraph:
    """The channels of a model and which of them can only be removed together.

    Attributes:
        model: The model.
        followed: `{id(layer): Followed}`, in the order of execution.
        roots: For every id the one that stands for all it is coupled with.
        pinned: `{root: (layer name, reason)}` of what cannot be removed.
        unfollowed: `{path: reason}` of the layers with weights that were given up on.
    """

    model: keras.Model
    followed: dict = field(default_factory=dict)
    roots: np.ndarray | None = None
    pinned: dict | None = None
    unfollowed: dict = field(default_factory=dict)


def follow_channels(model, ignore=()):
    """Finds the channels of a model and how they are coupled.

    Args:
        model: A built Functional or Sequential model.
        ignore: Names or patterns (`"head*"`, `"nested/conv"`) of layers whose
            output channels are all kept.

    Returns:
        A `ChannelGraph`.

    Raises:
        ValueError: If the model has no graph or is wrapped for quantization, or
            a name in `ignore` matches no layer.
    """
    check_float_model(model)
    return _Follower(model, ignore).result()


class _Follower:
    """Walks the model with id vectors in place of tensors."""

    def __init__(self, model, ignore):
        self.graph = ChannelGraph(model)
        self.ids = ChannelIds()
        self.ignore = [ignore] if isinstance(ignore, str) else list(ignore)
        self.paths = set()

    def result(self):
        graph = self.graph
        names = [tensor._keras_history.layer.name for tensor in graph.model.inputs]
        inputs = [
            self._pinned(tensor.shape, name, "it is an input of the model")
            for tensor, name in zip(graph.model.inputs, names, strict=True)
        ]
        outputs = self._walk(graph.model, inputs, "")
        for tensor, ids in zip(graph.model.outputs, outputs, strict=True):
            if ids is not None:
                layer = tensor._keras_history.layer.name
                self.ids.pin(ids, layer, "it is an output of the model")
        self._check_ignored()
        graph.roots = self.ids.roots()
        graph.pinned = self.ids.pinned(graph.roots)
        return graph

    def _walk(self, model, inputs, prefix):
        def call(node, args, kwargs):
            return self._call(node, args, kwargs, prefix)

        return walk(model, inputs, call)

    def _call(self, node, args, kwargs, prefix):
        layer, path = node.layer, prefix + node.layer.name
        values = tf.nest.flatten((args, kwargs))
        originals = tf.nest.flatten((node.call_args, node.call_kwargs))
        tensors = {id(tensor) for tensor in node.keras_inputs}
        inputs = [
            ids
            for ids, tensor in zip(values, originals, strict=True)
            if id(tensor) in tensors
        ]
        if is_graph_model(layer):
            outputs = self._nested(layer, inputs, path)
        else:
            call = Call(
                layer,
                self.ids,
                inputs,
                [*args, *kwargs.values()],
                kwargs,
                [tuple(tensor.shape) for tensor in node.keras_inputs],
                tuple(tf.nest.flatten(node.outputs)[0].shape),
            )
            outputs = self._layer(call, node, path)
        self._ignore(path, outputs)
        return outputs

    def _layer(self, call, node, path):
        """The output ids of one call of a layer that is not a model."""
        earlier = self.graph.followed.get(id(call.layer))
        if earlier is not None:
            self._tie(earlier, call.inputs, path)
            return [earlier.trace.output]
        try:
            trace = follow(call)
        except CannotFollow as reason:
            if call.layer.weights:
                self.graph.unfollowed[path] = str(reason)
            for ids in call.inputs:
                if ids is not None:
                    self.ids.pin(ids, path, str(reason))
            outputs = tf.nest.flatten(node.outputs)
            return [self._pinned(t.shape, path, str(reason)) for t in outputs]
        if trace.tied:
            found = Followed(call.layer, path, call.inputs, trace)
            self.graph.followed[id(call.layer)] = found
        return [trace.output]

    def _nested(self, model, inputs, path):
        """Goes through a nested model, whose input layers are of fixed width."""
        for tensor, ids in zip(model.inputs, inputs, strict=True):
            layer = tensor._keras_history.layer
            if ids is None:
                continue
            if id(layer) in self.graph.followed:
                self._tie(self.graph.followed[id(layer)], [ids], f"{path}/{layer.name}")
            else:
                self.graph.followed[id(layer)] = Followed(
                    layer, f"{path}/{layer.name}", [ids], _input_trace(tensor, ids)
                )
        return self._walk(model, inputs, f"{path}/")

    def _tie(self, earlier, inputs, path):
        """Another call of a shared layer sees the channels that the first one saw."""
        if earlier.path != path:
            raise ValueError(
                f"layer {earlier.path!r} is also used as {path!r}; a layer that is "
                "shared between a model and another nested in it cannot be cut"
            )
        for first, ids in zip(earlier.inputs, inputs, strict=True):
            self.ids.unite(first, ids)

    def _pinned(self, shape, name, reason):
        """New ids for a tensor whose channels all stay."""
        if len(shape) < 2 or shape[-1] is None:
            return None
        ids = self.ids.fresh(shape[-1])
        self.ids.pin(ids, name, reason)
        return ids

    def _ignore(self, path, outputs):
        self.paths.add(path)
        if any(_matches(path, pattern) for pattern in self.ignore):
            for ids in outputs:
                if ids is not None:
                    self.ids.pin(ids, path, "it is to be ignored")

    def _check_ignored(self):
        for pattern in self.ignore:
            if not any(_matches(path, pattern) for path in self.paths):
                near = difflib.get_close_matches(pattern, self.paths, n=3, cutoff=0.4)
                hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
                raise ValueError(
                    f"ignore names layers of the model; {hint}Received: {pattern!r}"
                )


def _matches(path, pattern):
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(
        path.rpartition("/")[2], pattern
    )


def _input_trace(tensor, ids):
    shape = tuple(tensor.shape)
    return Trace(
        ids,
        config=lambda kept: {"batch_input_shape": (*shape[:-1], int(kept(ids).sum()))},
    )
