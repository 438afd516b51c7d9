"""The precision a model computes in, as a property of that model."""

from __future__ import annotations

import math

import tf_keras as keras

from kdprune._graph import (
    UnmadeLayer,
    config_of,
    is_graph_model,
    named_layers,
    rebuild,
)
from kdprune._io import first_line

# Channels that a processor's bfloat16 kernels take at a time.
_LANES = 16


def cast_model(model: keras.Model, policy: str) -> keras.Model:
    """Rebuilds a model under another precision policy, weights carried over.

    Variables stay float32; only what layers compute in changes. Output layers
    keep computing in float32, so that losses see full precision. So do depthwise
    convolutions with strides: the gradient of their input takes twelve times as long in
    bfloat16 as in float32 on a processor (`scripts/bench_precision.py`), which would
    cost more than all other layers of a mobile network gain.

    Args:
        model: A Functional or Sequential `keras.Model`.
        policy: "float32", "mixed_bfloat16" or "mixed_float16".

    Returns:
        A new model of the same layers and names; `model` is left as it was.

    Raises:
        ValueError: If the model is subclassed, a layer can't be made again from its
            configuration, or a layer doesn't know the policy.
    """
    if not is_graph_model(model):
        raise ValueError(
            "precision can be changed for Functional and Sequential models. "
            f"Received: {type(model).__name__} {model.name!r}; use float32 for it."
        )
    policies = _policies(model, policy, keep_outputs=True)

    def config(layer):
        if id(layer) in policies and "dtype" in config_of(layer):
            return {"dtype": policies[id(layer)]}
        return None

    try:
        return rebuild(model, config=config)
    except UnmadeLayer:
        raise
    except (TypeError, ValueError) as error:
        if policy == "float32":
            raise ValueError(
                f"model {model.name!r} can't be copied in float32: {first_line(error)}"
            ) from error
        # A function of TensorFlow, say 2.0 * x, keeps its constants in float32.
        raise ValueError(
            f"model {model.name!r} can't compute in {policy}: "
            f"{first_line(error)} Use precision float32 for it."
        ) from error


def fits_bfloat16(model: keras.Model) -> bool:
    """Whether a processor's bfloat16 kernels are made for a model's convolutions.

    They take 16 channels at a time. A convolution of another number of filters, such
    as channel pruning leaves, falls back to others that are slower than those of
    float32: a `resnet8` with 8 or 12 filters in its first stage takes 1.6 to 2.1 times
    as long (AMD EPYC with AVX512-BF16, `scripts/bench_precision.py`).

    Returns:
        True if at least half of the values that convolutions write are in channels of
        a multiple of 16, or there is no convolution.
    """
    written = {True: 0, False: 0}
    for layer in _convolutions(model):
        shape = layer.get_output_at(0).shape[1:]
        # Height and width may be left open: then all layers count by their filters.
        written[layer.filters % _LANES == 0] += math.prod(n or 1 for n in shape)
    return written[True] >= written[False]


def _convolutions(model):
    kinds = keras.layers.Conv2D | keras.layers.SeparableConv2D
    return [layer for _, layer in named_layers(model) if isinstance(layer, kinds)]


def _policies(model, policy, keep_outputs):
    """`{id(layer): policy}`; the outputs of a model may be those of a nested one."""
    outputs = {id(layer) for layer in _output_layers(model)} if keep_outputs else ()
    policies: dict[int, str] = {}
    for layer in model.layers:
        is_output = id(layer) in outputs
        if is_graph_model(layer):
            policies |= _policies(layer, policy, is_output)
        elif not isinstance(layer, keras.layers.InputLayer):
            exact = is_output or _is_slow_in_bfloat16(layer)
            policies[id(layer)] = "float32" if exact else policy
    return policies


def _is_slow_in_bfloat16(layer):
    return isinstance(layer, keras.layers.DepthwiseConv2D) and max(layer.strides) > 1


def _output_layers(model):
    if isinstance(model, keras.Sequential):
        return model.layers[-1:]
    return [tensor._keras_history.layer for tensor in model.outputs]
