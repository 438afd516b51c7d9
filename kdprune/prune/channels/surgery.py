"""Rebuilding a model without some of its channels."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune.prune.walk import is_graph_model, walk


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


def rebuild(graph, removed, skipped=(), bypassed=None):
    """Builds the model anew without the channels removed, weights carried over.

    Args:
        graph: A `ChannelGraph`.
        removed: The roots of the channels to remove.
        skipped: The ids of calls of layers (nodes of the graph) to leave out.
        bypassed: `{id(node): tensor}`: the calls to leave out whose output is
            replaced by one of their inputs.

    Returns:
        A new `keras.Model` of the same layer names; Sequential if the model was.
        It is not compiled. The model it was made from is left as it is.

    Raises:
        ValueError: If a layer cannot be made again from its configuration.
    """
    kept = Kept(graph, removed)
    return _Rebuilder(graph, kept, skipped, bypassed or {}).model(graph.model)


class _Rebuilder:
    def __init__(self, graph, kept, skipped, bypassed):
        self.graph = graph
        self.kept = kept
        self.skipped = skipped
        self.bypassed = bypassed
        # Of all nested models: a layer may be shared with one of them.
        self.made = {}

    def model(self, model):
        inputs = [self._input(tensor) for tensor in model.inputs]

        def call(node, args, kwargs):
            layer = node.layer
            if id(node) in self.skipped:
                return [None] * len(tf.nest.flatten(node.outputs))
            if id(node) in self.bypassed:
                return _input_value(node, self.bypassed[id(node)], args, kwargs)
            return self._layer(layer)(*args, **kwargs)

        if isinstance(model, keras.Sequential):
            layers = [layer for layer in model.layers if not _is_input(layer)]
            start = inputs[0]._keras_history.layer
            copy = keras.Sequential(
                [start, *(self._layer(layer) for layer in layers)], name=model.name
            )
        else:
            outputs = walk(model, inputs, call)
            copy = keras.Model(
                _packed(model, "_nested_inputs", inputs),
                _packed(model, "_nested_outputs", outputs),
                name=model.name,
            )
        if not self.skipped:
            _check_complete(model, copy)
        for layer in model.layers:
            if id(layer) in self.made and not is_graph_model(layer):
                self._carry_weights(layer, self.made[id(layer)])
        return copy

    def _input(self, tensor):
        layer = tensor._keras_history.layer
        return keras.layers.InputLayer(**self._config(layer)).output

    def _layer(self, layer):
        """The layer's or nested model's copy, made once."""
        if id(layer) not in self.made:
            nested = is_graph_model(layer)
            self.made[id(layer)] = self.model(layer) if nested else self._copy(layer)
        return self.made[id(layer)]

    def _copy(self, layer):
        try:
            made = type(layer).from_config(self._config(layer))
        except (NotImplementedError, TypeError) as error:
            raise ValueError(_unmade(layer, error)) from error
        if made.name != layer.name:
            raise ValueError(_unmade(layer, "its name is not in it"))
        return made

    def _config(self, layer):
        config = layer.get_config()
        followed = self.graph.followed.get(id(layer))
        if followed is not None and followed.trace.config is not None:
            config.update(followed.trace.config(self.kept))
        return config

    def _carry_weights(self, old, new):
        followed = self.graph.followed.get(id(old))
        cut = {id(w.variable): w for w in followed.trace.weights} if followed else {}
        new.set_weights(
            [
                self.kept.values(cut[id(variable)])
                if id(variable) in cut
                else variable.numpy()
                for variable in old.weights
            ]
        )
        if hasattr(new, "finalize_state"):
            new.finalize_state()  # Normalization computes with copies.


def _check_complete(model, copy):
    lost = {x.name for x in model.layers} - {x.name for x in copy.layers}
    if lost:
        raise ValueError(
            f"layers {sorted(lost)} of {model.name!r} are not on the way to its "
            "outputs (losses or metrics added to the model?); build the model "
            "without them"
        )


def _input_value(node, tensor, args, kwargs):
    """The value that stands for one of the tensors a layer is called on."""
    originals = tf.nest.flatten((node.call_args, node.call_kwargs))
    values = tf.nest.flatten((args, kwargs))
    return next(v for t, v in zip(originals, values, strict=True) if t is tensor)


def _unmade(layer, problem):
    return (
        f"layer {layer.name!r} ({type(layer).__name__}) cannot be made again from its "
        "configuration; give it get_config and from_config "
        f"({str(problem).strip().splitlines()[0][:200]})"
    )


def _is_input(layer):
    return isinstance(layer, keras.layers.InputLayer)


def _packed(model, attribute, tensors):
    """The tensors nested (a dict, a list, a single one) as the model's own are."""
    return tf.nest.pack_sequence_as(getattr(model, attribute), tensors)
