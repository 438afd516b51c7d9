"""What keeps a model from quantization-aware training: all of it, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdprune import _graph
from kdprune._registry import nearest
from kdprune.intake.tf_operations import is_operation
from kdprune.models.precision import cast_model
from kdprune.quantize.configs import takes, takes_activation
from kdprune.quantize.rewrite import (
    activation_name,
    flat_graph,
    float_groups,
    normalization_is_folded,
    per_channel,
)

layers = keras.layers

_OTHERWISE = (
    "leave it in float (float_layers), or quantize after training: convert_tflite(..., "
    "calibration=), in a recipe method: ptq"
)
_INT8_ACTIVATIONS = (
    "relu, relu6, leaky_relu, hard_silu, hard_sigmoid, swish, gelu, sigmoid and tanh"
)
_AFFINE = (layers.BatchNormalization, layers.Normalization, layers.Rescaling)


def qat_obstacles(
    model: keras.Model, float_layers: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Lists all that keeps a model from quantization-aware training.

    Nothing is trained or converted for it; it takes about as long as a copy of the
    model.

    Args:
        model: A built Functional or Sequential `tf_keras` model; left as it is.
        float_layers: Names of layers that are to stay in float, which are no
            obstacles then.

    Returns:
        `(layer, reason)` of each, the reason with the layer's kind and what to do;
        empty where `quantize_model` takes the model.

    Raises:
        ValueError: If it is no float graph of `tf_keras` layers, or `float_layers`
            names a layer that it has not.

    Example:
        >>> for layer, reason in kdprune.quantize.qat_obstacles(model):
        ...     print(layer, reason)
    """
    check_model(model)
    try:
        # Looked at only: there is nothing to copy where it is of that precision.
        every = _graph.named_layers(model)
        single = all(layer.compute_dtype == "float32" for _, layer in every)
        flat, _ = flat_graph(model if single else cast_model(model, "float32"))
    except Exception as error:  # Of any type: it is explained.
        return [(model.name, _kind(error) + _text(error))]
    _check_names(flat, float_layers)
    in_float = {name for group in float_groups(flat, float_layers) for name in group}
    finals = {tensor._keras_history.layer.name for tensor in flat.outputs}
    found = [
        (layer.name, reason)
        for layer in flat.layers
        for reason in [_obstacle(layer, layer.name in finals, layer.name in in_float)]
        if reason
    ]
    return found


def check_no_obstacles(model: keras.Model, float_layers: Collection[str]) -> None:
    """Raises one `ValueError` that names every obstacle of a model."""
    found = qat_obstacles(model, float_layers)
    if not found:
        return
    if len(found) == 1:
        name, reason = found[0]
        kind, _, rest = reason.partition(": ")
        if name == model.name:  # Of the whole model.
            raise ValueError(
                f"model {name!r} can't be trained quantization-aware: {reason}"
            )
        raise ValueError(
            f"layer {name!r} ({kind}) can't be trained quantization-aware: {rest}"
        )
    by_reason: dict[str, list[str]] = {}
    for name, reason in found:
        by_reason.setdefault(reason, []).append(repr(name))
    listed = "; ".join(
        f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()
    )
    raise ValueError(
        f"{len(found)} layers of model {model.name!r} can't be trained "
        f"quantization-aware: {listed}"
    )


def explained(
    error: Exception, model: keras.Model, attempt: Callable[[keras.Model], Any]
) -> ValueError:
    """What went wrong in TFMOT or Keras, as one line that names the layer.

    Args:
        error: Of any type.
        model: What was tried: a flat graph.
        attempt: What was done to it. It is tried with each layer alone if the error
            names none: a layer is at fault that fails with an error of that type.
    """
    words = _text(error)
    said = re.search(r'layer "(?:quant_)?([^"]+)" \(type (\w+)\)\.? *', words)
    said = said or re.search(r"Layer (\S+):<class '[\w.]*?(\w+)'> is [^.]*\.", words)
    if said:
        names, kinds = [said[1]], [said[2]]
        words = words[said.end() :] if said[0].startswith("layer") else said[0]
    else:
        failing = _failing_alone(model, attempt, type(error))
        names = [layer.name for layer in failing]
        kinds = [type(layer).__name__ for layer in failing]
    words = _kind(error) + words
    if not names:
        return ValueError(f"model {model.name!r} can't be quantized: {words}")
    listed = ", ".join(
        f"layer {name!r} ({kind})" for name, kind in zip(names, kinds, strict=True)
    )
    return ValueError(
        f"{listed} can't be trained quantization-aware ({words}); {_OTHERWISE}"
    )


def _text(error: Exception) -> str:
    """What an error says, in one line, without the arguments that Keras repeats."""
    text = " ".join(str(error).split()).partition(" Call arguments received by")[0]
    return text.partition(" Provided weights: ")[0]


def _kind(error: Exception) -> str:
    """The type of an error that says little without it, such as a KeyError."""
    known = isinstance(error, ValueError | RuntimeError)
    return "" if known else f"{type(error).__name__}: "


def _failing_alone(
    model: keras.Model, attempt: Callable[[keras.Model], Any], kind: type[Exception]
) -> list[Any]:
    found = {}
    for node in _graph.nodes(model):
        given = [keras.Input(one.shape[1:], dtype=one.dtype) for one in _tensors(node)]
        stands = dict(zip(map(id, _tensors(node)), given, strict=True))
        args, kwargs = tf.nest.map_structure(
            lambda one, stands=stands: stands.get(id(one), one),
            (node.call_args, node.call_kwargs),
        )
        try:
            made = _graph.remake(node.layer)
            alone = keras.Model(given, made(*args, **kwargs))
        except Exception:  # Then nothing is learned of it.
            continue
        try:
            attempt(alone)
        except kind:
            found[id(node.layer)] = node.layer
        except Exception:  # What it needs beside it is missing.
            pass
    return [*found.values()]


def _tensors(node: Any) -> list[Any]:
    return list({id(one): one for one in node.keras_inputs}.values())


def check_model(model: Any) -> None:
    """Raises a `ValueError` for what is no built float graph of `tf_keras` layers."""
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        hint = "; import kdprune before Keras" if kind.startswith("keras.") else ""
        raise ValueError(
            f"quantize_model expects a tf_keras (Keras 2) model{hint}. Received: {kind}"
        )
    name = f"{type(model).__name__} {model.name!r}"
    if not isinstance(model, keras.Sequential) and not _graph.is_graph_model(model):
        raise ValueError(
            "quantize_model needs a layer graph: build the model as Functional or "
            f"Sequential. Received: the subclassed {name}"
        )
    if not model.built:
        raise ValueError(
            "quantize_model needs a built model: give it a keras.Input. "
            f"Received: {name}, not built"
        )
    for path, layer in _graph.named_layers(model):
        if _graph.is_quantized_layer(layer):
            raise ValueError(
                "quantize_model expects a float model. "
                f"Received: {name}, which is quantization-aware already"
            )
        if _graph.is_tfmot_layer(layer):
            raise ValueError(
                "quantize_model expects a model without wrappers: call strip_pruning "
                f"first, or strip_clustering. Received: {name} with {path!r}"
            )


def _check_names(flat: keras.Model, names: Collection[str]) -> None:
    if isinstance(names, str):
        raise ValueError(f"float_layers must be a list of names. Received: {names!r}")
    known = [layer.name for layer in flat.layers]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            "float_layers must be names of the model's layers. Received: "
            f"{', '.join(map(repr, unknown))}{nearest(unknown[0], known)}"
        )


def _obstacle(layer: Any, final: bool, in_float: bool) -> str | None:
    """`"kind: what to do"`, or None where there is nothing in the way."""
    kind = type(layer).__name__
    if isinstance(layer, layers.Lambda):
        return f"{kind}: what it computes can't be seen; write it with layers of Keras"
    if isinstance(layer, keras.Model):
        return f"{kind}: a subclassed model has no graph; build it from keras.Input"
    if is_operation(layer):
        function = getattr(layer, "symbol", "") or layer.name
        return (
            f"{kind}: no layer computes the function {function!r}; write it with "
            "layers of Keras, or quantize after training: convert_tflite(..., "
            "calibration=), in a recipe method: ptq"
        )
    if getattr(layer, "data_format", None) == "channels_first":
        return f"{kind}: it takes channels first; expected (height, width, channels)"
    if in_float:
        return None
    if isinstance(layer, _AFFINE) and per_channel(layer) is None:
        return (
            f"{kind}: it has not one number for each channel on the last axis; "
            f"{_OTHERWISE}"
        )
    if isinstance(layer, layers.BatchNormalization) and (
        layer.trainable
        and len(layer._inbound_nodes) > 1
        and not normalization_is_folded(layer)
    ):
        return f"{kind}: it is called several times; give each call a layer of its own"
    if isinstance(layer, layers.ReLU) and (
        layer.threshold or (layer.negative_slope and layer.max_value is not None)
    ):
        return (
            f"{kind} with a threshold, or with slope and bound: int8 has no operator "
            f"for it; use a plain ReLU, or {_OTHERWISE}"
        )
    if not takes(layer):
        return f"{kind}: int8 has no exact operator for it; {_OTHERWISE}"
    activation = getattr(layer, "activation", None)
    if isinstance(activation, layers.Layer):
        if activation.weights:
            return (
                f"{kind} with activation {type(activation).__name__}: that has "
                "weights; make it a layer of its own behind"
            )
        return _obstacle(activation, final, in_float)
    name = activation_name(layer)
    if activation is not None and not takes_activation(name):
        return (
            f"{kind} with activation {name}: int8 has no exact operator for it; use "
            f"one of {_INT8_ACTIVATIONS}, or {_OTHERWISE}"
        )
    return None
