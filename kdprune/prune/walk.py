"""Walking a model's graph: one traversal for channels, tensors and rebuilding."""

import tensorflow as tf
import tf_keras as keras

_GRAPH_CALLS = {
    model_class.call for model_class in (keras.Sequential, *keras.Sequential.__mro__)
    if model_class.__name__ in ("Sequential", "Functional")
}  # fmt: skip


def walk(model, inputs, call):
    """Carries values along a model's graph, layer call by layer call.

    The values may be anything that stands for a tensor: the numbers themselves,
    symbolic tensors of a model being built, or the identities of channels.

    Args:
        model: A graph model (see `is_graph_model`).
        inputs: One value for each of `model.inputs`.
        call: `call(node, args, kwargs)`: the arguments of the layer's call, with
            values in place of tensors. Returns the output values, nested as the
            layer's own outputs are.

    Returns:
        One value for each of `model.outputs`.
    """
    values = {id(t): value for t, value in zip(model.inputs, inputs, strict=True)}

    def value_of(argument):
        return values.get(id(argument), argument)

    for node in nodes(model):
        args = tf.nest.map_structure(value_of, node.call_args)
        kwargs = tf.nest.map_structure(value_of, node.call_kwargs)
        outputs = tf.nest.flatten(call(node, args, kwargs))
        for tensor, value in zip(tf.nest.flatten(node.outputs), outputs, strict=True):
            values[id(tensor)] = value
    return [values[id(t)] for t in model.outputs]


def nodes(model):
    """Lists the calls of layers in a graph model, in the order of execution."""
    depths = sorted(model._nodes_by_depth, reverse=True)
    every = (node for depth in depths for node in model._nodes_by_depth[depth])
    return [node for node in every if not node.is_input]


def is_graph_model(layer):
    """True for a built Functional or Sequential model, nested ones included.

    A subclass with a `call` of its own is not one: its graph, if any, need not
    be what it computes.
    """
    return (
        isinstance(layer, keras.Model)
        and bool(getattr(layer, "_nodes_by_depth", None))
        and type(layer).call in _GRAPH_CALLS
    )


def check_model(model):
    """Raises a `ValueError` unless the model's channels can be followed and cut."""
    if not is_graph_model(model):
        raise ValueError(
            "channels are found on the graph of a built Functional or Sequential "
            "tf_keras model; a subclassed model has no graph: build it from "
            "keras.Input and calls of its layers. "
            f"Received: {type(model).__name__}"
        )
    for layer in model.layers:
        if is_graph_model(layer):
            check_model(layer)
        elif type(layer).__module__.startswith("tensorflow_model_optimization."):
            raise ValueError(
                f"layer {layer.name!r} is wrapped for quantization or weight pruning "
                f"({type(layer).__name__}); cut channels from the float model first, "
                "then quantize or prune what is left"
            )
