"""The graph of a Keras model: its calls, its layers, and rebuilding it.

Every function here takes built Functional and Sequential models, nested ones included.
What wraps a layer (pruning, clustering, quantization) is looked through where it says
so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdprune._io import first_line

layers = keras.layers
Layer = keras.layers.Layer

_GRAPH_CALLS = {
    model_class.call for model_class in (keras.Sequential, *keras.Sequential.__mro__)
    if model_class.__name__ in ("Sequential", "Functional")
}  # fmt: skip
# Layers that pass images or features through when the model is used.
RANDOM = tuple(
    getattr(layers, name)
    for name in """
    RandomBrightness RandomContrast RandomCrop RandomFlip RandomHeight RandomRotation
    RandomTranslation RandomWidth RandomZoom
    """.split()
)
DROPOUT = (
    *(layers.AlphaDropout, layers.Dropout, layers.GaussianDropout),
    *(layers.GaussianNoise, layers.SpatialDropout1D, layers.SpatialDropout2D),
)
TRAINING_ONLY = (*RANDOM, *DROPOUT)
# In training these go by the batch that an image is in; frozen, as in use.
_BY_BATCH = (layers.BatchNormalization,)
# What makes probabilities of scores, by what Keras and TensorFlow call the functions.
_HEADS = {"softmax": "softmax", "softmax_v2": "softmax", "sigmoid": "sigmoid"}
HEADS = ("softmax", "sigmoid")
# What a model says that ends in either.
_MEANS = {
    "softmax": "its scores are of one of several classes, for labels (n,)",
    "sigmoid": "its scores are of labels that apply or not, for labels (n, labels)",
}
# Layers and functions that leave each score what it is when the model is used.
_SAME = (layers.Dropout, layers.Flatten, layers.Identity, layers.Reshape)
_SAME_FUNCTIONS = ("cast", "identity", "reshape", "squeeze")


# --- Models and their calls ---


def is_graph_model(layer: Any) -> bool:
    """True for a built Functional or Sequential model, nested ones included.

    A subclass with a `call` of its own is not one: its graph, if any, need not
    be what it computes.
    """
    return (
        isinstance(layer, keras.Model)
        and bool(getattr(layer, "_nodes_by_depth", None))
        and type(layer).call in _GRAPH_CALLS
    )


def check_graph_model(model: Any) -> None:
    """Raises a `ValueError` unless it is a built Functional or Sequential model."""
    if not is_graph_model(model):
        kind = type(model)
        third = kind.__module__.startswith("keras.")
        hint = " of Keras 3; build it with tf_keras" if third else ""
        raise ValueError(
            "expected a built Functional or Sequential tf_keras model; a subclassed "
            "model has no graph: build it from keras.Input and calls of its layers. "
            f"Received: {kind.__name__}{hint}"
        )


def check_repeatable(model: Any) -> None:
    """Raises a `ValueError` if dropout or the like is at work when a model is used.

    That is where a call has `training=True`, also around a model inside the model: then
    a graph model's outputs change from call to call, or with the batch.
    """
    layer = _changing(model, False)
    if layer is not None:
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) is called with "
            "training=True, so that the model's outputs change from call to call or "
            "with the batch; call it without"
        )


def _changing(model, training):
    for node in nodes(model):
        layer, given = node.layer, (*node.call_args[1:], *node.call_kwargs.values())
        said = node.call_kwargs.get("training")
        on = said is not False and (training or any(one is True for one in given))
        if is_graph_model(layer):
            found = _changing(layer, on)
            if found is not None:
                return found
        elif on and isinstance(layer, TRAINING_ONLY + _BY_BATCH):
            if layer.trainable or not isinstance(layer, _BY_BATCH):  # Else as in use.
                return layer
    return None


def check_float_model(model: Any) -> None:
    """Raises a `ValueError` for wrapped layers, or what is no model to work on.

    That is one without a graph, or one of which `check_repeatable` refuses a layer.
    """
    check_graph_model(model)
    for path, layer in named_layers(model):
        if is_tfmot_layer(layer):
            raise ValueError(
                f"layer {path!r} is wrapped for quantization or weight pruning "
                f"({type(layer).__name__}); change the float model first, then "
                "quantize it or prune its weights"
            )
    check_repeatable(model)


def check_trains(model: Any) -> None:
    """Raises a `ValueError` for a built model that is frozen altogether."""
    if model.built and not model.trainable_weights:
        raise ValueError(
            f"nothing of model {model.name!r} is left to train: expected a layer with "
            "weights that is not frozen. Received: trainable = False of all"
        )


def nodes(model: keras.Model, inputs: bool = False) -> list:
    """Lists the calls of layers in a graph model, in the order of execution.

    Args:
        model: A graph model (see `is_graph_model`).
        inputs: Whether to list what stands for the model's inputs, too.
    """
    depths = sorted(model._nodes_by_depth, reverse=True)
    every = (node for depth in depths for node in model._nodes_by_depth[depth])
    return [node for node in every if inputs or not node.is_input]


def walk(
    model: keras.Model, inputs: Sequence, call: Callable[[Any, Any, Any], Any]
) -> list:
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
    return _walk(model, inputs, call, nodes(model))


def _walk(model, inputs, call, calls):
    values = {id(t): value for t, value in zip(model.inputs, inputs, strict=True)}

    def value_of(argument):
        return values.get(id(argument), argument)

    for node in calls:
        args = tf.nest.map_structure(value_of, node.call_args)
        kwargs = tf.nest.map_structure(value_of, node.call_kwargs)
        outputs = tf.nest.flatten(call(node, args, kwargs))
        for tensor, value in zip(tf.nest.flatten(node.outputs), outputs, strict=True):
            values[id(tensor)] = value
    return [values[id(t)] for t in model.outputs]


# --- Layers by name, and what wraps them ---


def named_layers(
    model: keras.Model, prefix: str = ""
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields `(path, layer)` of all layers; nested models are entered.

    A layer of a nested model is `"nested/layer"`. Wrappers are yielded as they are.
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from named_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer


def frozen_layers(model: keras.Model, prefix: str = "") -> dict[str, Any]:
    """`{path: layer}` of the layers with weights that training is to leave alone.

    They, or a model or wrapper that they are inside of, have `trainable = False`. Paths
    are those of `named_layers`.
    """
    found: dict[str, Any] = {}
    for layer in model.layers:
        path, held = prefix + layer.name, not (model.trainable and layer.trainable)
        if isinstance(layer, keras.Model):
            inside = dict(named_layers(layer, f"{path}/"))
            kept = {name: one for name, one in inside.items() if one.weights}
            found |= kept if held else frozen_layers(layer, f"{path}/")
        elif layer.weights and (held or not unwrapped(layer).trainable):
            found[path] = layer
    return found


def is_tfmot_layer(layer: Any) -> bool:
    """True for the layers of TensorFlow Model Optimization.

    These are its wrappers for pruning, clustering and quantization, and the layer with
    which a quantization-aware model starts, which wraps nothing.
    """
    return type(layer).__module__.startswith("tensorflow_model_optimization.")


def is_quantized_layer(layer: Any) -> bool:
    """True for the layers of a quantization-aware model; see `is_tfmot_layer`."""
    return type(layer).__module__.startswith(
        "tensorflow_model_optimization.python.core.quantization."
    )


def unwrapped(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The layer inside a wrapper, or the layer itself."""
    return layer.layer if isinstance(layer, layers.Wrapper) else layer


def final_activation(model: keras.Model) -> tuple[str, keras.layers.Layer | None]:
    """What makes probabilities of a model's scores, and the layer that does it.

    Looks at the layers that give the (first) output, past those that only copy,
    cast or reshape it, into models inside the model and into wrappers. What Python
    code hides, that of a subclassed model or a lambda, is not seen.

    Args:
        model: A `keras.Model` of any kind; a Sequential one need not be built.

    Returns:
        `("softmax", layer)` or `("sigmoid", layer)`, or `("", None)` for scores.
    """
    for layer in map(unwrapped, _from_output(model)):
        activation = getattr(layer, "activation", None)
        # Inside what quantization-aware training makes of it.
        activation = getattr(activation, "activation", activation)
        name = getattr(activation, "__name__", "")
        # What a layer of one TensorFlow function calls.
        function = getattr(getattr(layer, "function", None), "__name__", "")
        if any(isinstance(x, layers.Softmax) for x in (layer, activation)):
            return "softmax", layer
        if name in _HEADS or function in _HEADS:
            return _HEADS.get(name) or _HEADS[function], layer
        linear = isinstance(layer, layers.Activation) and name == "linear"
        if not (linear or isinstance(layer, _SAME) or function in _SAME_FUNCTIONS):
            break
    return "", None


def ends_in_softmax(model: keras.Model) -> bool:
    """Whether a model's output is probabilities of classes; see `final_activation`."""
    return final_activation(model)[0] == "softmax"


def head_of(model: keras.Model, name: str, head: str | None = None) -> str:
    """What makes probabilities of a model's scores: "softmax" or "sigmoid".

    That is what the model ends in. Where it gives logits, a single unit is the second
    of two classes, by sigmoid, and several are one of several classes, by softmax,
    unless `head` says that each is a label of its own.

    Args:
        model: A `keras.Model` of any kind.
        name: What it is called in errors.
        head: "softmax" or "sigmoid", where it is known; it must agree with the model.

    Raises:
        ValueError: If `head` is another than the model's, or there is a softmax of a
            single unit, which is always 1.
    """
    if head not in (None, *HEADS):
        raise ValueError(f"head must be one of {', '.join(HEADS)}. Received: {head!r}")
    shape = getattr(model, "output_shape", None)
    one = isinstance(shape, tuple) and len(shape) == 2 and shape[-1] == 1
    found = final_activation(model)[0]
    if one and "softmax" in (found, head):
        raise ValueError(
            f"{name}: expected sigmoid or logits of a single unit, whose softmax is "
            "always 1. Received: softmax; end it in sigmoid, or in two units"
        )
    if head and found and head != found:
        raise ValueError(
            f"{name}: expected a model that ends in {head} or gives logits. Received: "
            f"one that ends in {found}; {_MEANS[found]}"
        )
    return found or ("sigmoid" if one else head or "softmax")


def _from_output(model, output=0):
    """Yields the layers from a model's output back to where they branch."""
    if isinstance(model, keras.Sequential):
        for layer in reversed(model.layers):
            yield from _from_output(layer)
    elif getattr(model, "_is_graph_network", False):
        inputs = [model.outputs[output]]
        while len(inputs) == 1:
            layer, node, output = inputs[0]._keras_history
            yield from _from_output(layer, output)
            inputs = layer._inbound_nodes[node].keras_inputs
    else:
        yield model  # A layer, or a model without a graph.


# --- Rebuilding a model ---


def rebuild(
    model: keras.Model,
    *,
    config: Callable[[keras.layers.Layer], Mapping[str, Any] | None] | None = None,
    replace: Callable[[keras.layers.Layer], keras.layers.Layer | None] | None = None,
    insert: Callable[[keras.layers.Layer], keras.layers.Layer | None] | None = None,
    bypass: Mapping[Any, Any] | None = None,
    first: Sequence[keras.layers.Layer] = (),
    call: Callable[[Any, Any, Any, Callable[[], Any]], Any] | None = None,
    weights: Callable[[keras.layers.Layer, keras.layers.Layer], Sequence | None]
    | None = None,
) -> keras.Model:
    """Rebuilds a model with some of its layers changed and its weights carried over.

    Every layer is made from its configuration, once, however often it is called and
    in however many nested models. Calls that no output needs after a bypass are left
    out. The functions are asked about each layer that is not a model.

    Args:
        model: A built Functional or Sequential model; left as it is.
        config: `config(layer)` returns the entries of the layer's configuration that
            change, if any. It is asked about input layers, too.
        replace: `replace(layer)` returns a new layer that stands in its place, such as
            a wrapper around a copy, or None to copy it.
        insert: `insert(layer)` returns a new layer that is called on each output of
            the layer, or None.
        bypass: `{call: tensor}`: calls (see `nodes`) whose output is replaced by one
            of their inputs.
        first: New layers that are called one after the other on the model's input, of
            which there is one, before all others; with weights of their own.
        call: `call(node, args, kwargs, copied)` returns the output tensors that stand
            for a call of a layer, made from its arguments by whatever new layers, whose
            weights are then theirs; `copied()` calls the layer's copy. The new model is
            no Sequential one.
        weights: `weights(old, new)` returns the arrays for the new layer, or None
            for those of the old one. Where only one of the two is wrapped, they are
            those of the layer inside; a wrapper's own variables are initialized.

    Returns:
        A new model, not compiled, of the same inputs, outputs and names; Sequential
        if the model was, else a plain `keras.Model`.

    Raises:
        ValueError: If it is not a graph model, a layer cannot be made again from its
            configuration, or a layer is not on the way to the outputs.

    Example:
        >>> # The same model, its convolutions frozen.
        >>> rebuild(model, config=lambda layer: {"trainable": False}
        ...         if isinstance(layer, keras.layers.Conv2D) else None)
    """
    check_graph_model(model)
    return _Rebuilder(
        config or _nothing,
        replace or _nothing,
        insert or _nothing,
        bypass or {},
        call,
        weights or _nothing,
    ).rebuilt(model, first)


class UnmadeLayer(ValueError):
    """A layer cannot be made again from its configuration."""


def remake(layer: keras.layers.Layer, /, **changes: Any) -> Any:
    """Makes a layer again from its configuration, with weights of its own.

    Args:
        layer: Any layer; left as it is.
        changes: The entries of its configuration that change.

    Raises:
        UnmadeLayer: If its class does not give or take such a configuration, whatever
            it raises then.
    """
    config = {**config_of(layer), **changes}
    try:
        made = type(layer).from_config(config)
    except Exception as error:  # Of any type: the class may be anyone's.
        raise _unmade(layer, error) from error
    if made.name != changes.get("name", layer.name):
        raise _unmade(layer, "its name is not in it")
    return made


def config_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """A layer's configuration.

    Raises:
        UnmadeLayer: As `remake`, if its class gives none.
    """
    try:
        return dict(layer.get_config())
    except Exception as error:
        raise _unmade(layer, error) from error


def clone(model: keras.Model, *inputs: Any) -> keras.Model:
    """A model of the same layers with weights of their own, initialized again.

    Args:
        model: A built Functional or Sequential model; left as it is.
        inputs: The tensors it is called on, if of another size than its own.

    Raises:
        UnmadeLayer: As `remake`, of the layer, also where it is in a nested model.
    """
    check_graph_model(model)

    def again(layer):
        return clone(layer) if is_graph_model(layer) else remake(layer)

    made = keras.models.clone_model(model, *inputs, clone_function=again)
    made._trainable = model._trainable  # The setter would change its layers.
    return made


def _nothing(*_: keras.layers.Layer) -> None:
    return None


class _Rebuilder:
    def __init__(self, config, replace, insert, bypass, call, weights):
        self.config = config
        self.replace = replace
        self.insert = insert
        self.call = call
        self.weights = weights
        self.bypass = {id(node): tensor for node, tensor in bypass.items()}
        # `{id(layer): (layer, its copy, what follows it)}` of all nested models: a
        # layer may be shared with one of them.
        self.made: dict[int, tuple[Any, Any, Any]] = {}

    def rebuilt(self, model, first):
        copy = self._model(model, first)
        for old, new, _ in self.made.values():
            if not is_graph_model(old):
                _carry_weights(old, new, self.weights(old, new))
        return copy

    def _model(self, model, first=()):
        _check_complete(model)
        inputs = [self._input(tensor) for tensor in model.inputs]
        if isinstance(model, keras.Sequential) and self.call is None:
            return self._sequential(model, [inputs[0]._keras_history.layer, *first])
        given = inputs
        for layer in first:
            given = [layer(tensor) for tensor in given]
        outputs = _walk(model, given, self._call, _needed(model, self.bypass))
        return keras.Model(
            tf.nest.pack_sequence_as(model._nested_inputs, inputs),
            tf.nest.pack_sequence_as(model._nested_outputs, outputs),
            name=model.name,
            trainable=model._trainable,
        )

    def _sequential(self, model, stack):
        for node in nodes(model):
            if id(node) not in self.bypass:
                stack += [made for made in self._made(node.layer) if made is not None]
        copy = keras.Sequential(stack, name=model.name)
        copy._trainable = model._trainable  # The setter would change its layers.
        return copy

    def _input(self, tensor):
        layer = tensor._keras_history.layer
        return remake(layer, **(self.config(layer) or {})).output

    def _call(self, node, args, kwargs):
        if id(node) in self.bypass:
            return _input_value(node, self.bypass[id(node)], args, kwargs)
        if self.call is not None and not is_graph_model(node.layer):
            return self.call(
                node, args, kwargs, lambda: self._copied(node, args, kwargs)
            )
        return self._copied(node, args, kwargs)

    def _copied(self, node, args, kwargs):
        made, following = self._made(node.layer)
        outputs = made(*args, **kwargs)
        if following is None:
            return outputs
        return tf.nest.map_structure(following, outputs)

    def _made(self, layer):
        """`(copy, what follows it or None)` of a layer or nested model, made once."""
        if id(layer) not in self.made:
            if is_graph_model(layer):
                made, following = self._model(layer), None
            else:
                made = self.replace(layer)
                if made is None:
                    made = remake(layer, **(self.config(layer) or {}))
                following = self.insert(layer)
            self.made[id(layer)] = layer, made, following
        return self.made[id(layer)][1:]


def _carry_weights(old, new, values):
    if type(old) is not type(new):
        old, new = unwrapped(old), unwrapped(new)
    values = old.get_weights() if values is None else values
    try:
        new.set_weights(values)
    except ValueError as error:
        raise ValueError(
            f"the weights of layer {old.name!r} do not fit the {type(new).__name__} "
            f"that takes its place ({first_line(error)}); give them by `weights`"
        ) from error


def _needed(model, bypass):
    """The calls that the outputs need, in the order of execution."""
    calls = nodes(model)
    makers = {id(t): node for node in calls for t in tf.nest.flatten(node.outputs)}
    needed, pending = set(), [*model.outputs]
    while pending:
        node = makers.get(id(pending.pop()))
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            instead = bypass.get(id(node))
            pending += node.keras_inputs if instead is None else [instead]
    return [node for node in calls if id(node) in needed]


def _check_complete(model):
    used = {id(node.layer) for node in _needed(model, {})}
    used |= {id(tensor._keras_history.layer) for tensor in model.inputs}
    lost = sorted(layer.name for layer in model.layers if id(layer) not in used)
    if lost:
        raise ValueError(
            f"layers {lost} of {model.name!r} are not on the way to its outputs "
            "(losses or metrics added to the model?); build the model without them"
        )


def _input_value(node, tensor, args, kwargs):
    """The value that stands for one of the tensors a layer is called on."""
    originals = tf.nest.flatten((node.call_args, node.call_kwargs))
    values = tf.nest.flatten((args, kwargs))
    return next(v for t, v in zip(originals, values, strict=True) if t is tensor)


def _unmade(layer: keras.layers.Layer, problem: object) -> UnmadeLayer:
    # Keras says first, at length, what the configuration was.
    said = " ".join(str(problem).split()).rpartition("Exception encountered: ")[2]
    said = said.partition(". ")[0][:200].rstrip(".")
    if isinstance(problem, KeyError):
        said = f"KeyError: {said}"
    what = "give its class a get_config that returns all that its __init__ takes"
    if said.startswith("Unknown "):
        what = "register that class by keras.utils.register_keras_serializable"
    return UnmadeLayer(
        f"layer {layer.name!r} ({type(layer).__name__}) cannot be made again from its "
        f"configuration ({said}); {what}"
    )
