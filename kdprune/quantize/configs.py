"""How each kind of layer is quantized, where TFMOT does not say or says it wrongly.

TFMOT asks a `QuantizeConfig` of each layer which of its tensors are rounded. Its own
list is the default; this table holds the layers beside it. An output's range is
learned from data, but where the operator of the file has a fixed one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_registry,
    default_8bit_quantizers,
)

from kdprune.quantize.rewrite import activation_name

layers = keras.layers
_keras: Any = tfmot.quantization.keras
_Quantizer: Any = _keras.quantizers.Quantizer
_MovingAverage: Any = _keras.quantizers.MovingAverageQuantizer
_Base: Any = _keras.QuantizeConfig
_REGISTRY = default_8bit_quantize_registry.Default8BitQuantizeRegistry()


class Plain(_Base):
    """Rounds nothing: what follows does, or the operator only moves values."""

    def get_weights_and_quantizers(self, layer: Any) -> list:
        return []

    def get_activations_and_quantizers(self, layer: Any) -> list:
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:
        pass

    def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:
        pass

    def get_output_quantizers(self, layer: Any) -> list:
        return []

    def get_config(self) -> dict:
        return {}


class Output(Plain):
    """Rounds what the layer gives, over a range that is learned."""

    def get_output_quantizers(self, layer: Any) -> list:
        return [_moving_average(_MovingAverage)]


class FloatOutput(Plain):
    """Leaves a layer in float; what it gives is rounded for those that follow."""

    def get_output_quantizers(self, layer: Any) -> list:
        return [_moving_average(_AfterFloat)]


class Fixed(Plain):
    """Rounds what the layer gives over the range that the operator has in files.

    Args:
        low: Lower end, a multiple of the step `(high - low) / 255`.
        high: Upper end.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def get_output_quantizers(self, layer: Any) -> list:
        fixed = _keras.quantizers.FixedQuantizer
        return [
            fixed(num_bits=8, init_min=self.low, init_max=self.high, narrow_range=False)
        ]

    def get_config(self) -> dict:
        return {"low": self.low, "high": self.high}


class Clipped(Fixed):
    """`ReLU(max_value=high)`: a ReLU, clipped by the range of what it gives.

    The converter has a fused ReLU6, and none for other bounds.
    """

    def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:
        layer.max_value = None


class Slopes(Output):
    """PReLU: the converter rounds the slopes itself, if nothing else does.

    A fake-quantized slope ends as a float operator. What is rounded by arithmetic
    becomes a constant, which the converter then rounds to the same steps.
    """

    def get_weights_and_quantizers(self, layer: Any) -> list:
        return [(layer.alpha, Rounded())]

    def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:
        (layer.alpha,) = quantize_weights


class Rounded(_Quantizer):
    """Symmetric int8 steps, gradients passed straight through.

    Args:
        axes: What has one step; all of the tensor if None.
    """

    def __init__(self, axes: tuple[int, ...] | None = None) -> None:
        self.axes = axes

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict:
        return {}

    def __call__(self, inputs: Any, training: Any, weights: Any, **_: Any) -> Any:
        largest = tf.reduce_max(tf.abs(inputs), axis=self.axes, keepdims=True)
        step = tf.stop_gradient(largest) / 127.0
        rounded = tf.math.divide_no_nan(tf.stop_gradient(inputs), step)
        rounded = tf.stop_gradient(tf.round(rounded) * step)
        return rounded + (inputs - tf.stop_gradient(inputs))

    def get_config(self) -> dict:
        return {"axes": self.axes}


def round_depthwise_kernels(wrapper: Any) -> None:
    """Gives each channel of a depthwise kernel steps of its own, as files have them.

    TFMOT has one range for all, and the converter rounds to others what was rounded to
    these, so that files of depthwise networks stray from their models. Its variables
    stay, unused, and with them the form of what is saved.

    Args:
        wrapper: A `QuantizeWrapper`, built; one of another layer stays as it is.
    """
    if isinstance(wrapper.layer, layers.DepthwiseConv2D):
        wrapper._weight_vars = [
            (weight, Rounded((0, 1)) if _is_usual(quantizer) else quantizer, ranges)
            for weight, quantizer, ranges in wrapper._weight_vars
        ]


def _is_usual(quantizer: Any) -> bool:
    return type(quantizer) is default_8bit_quantizers.Default8BitConvWeightsQuantizer


_NEXT_TO_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


class _AfterFloat(_MovingAverage):
    """Rounds what a float layer gives, and keeps the converter from rounding it too.

    The converter makes an int8 operator of whatever stands between two known ranges.
    So one more stands between: a leaky ReLU of the slope next to 1, which changes no
    value by more than a rounding.
    """

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        given = tf.nn.leaky_relu(inputs, alpha=_NEXT_TO_ONE)
        return super().__call__(given, training, weights, **kwargs)


CONFIGS = (Plain, Output, FloatOutput, Fixed, Clipped, Slopes)
# TFLite's LOGISTIC and SOFTMAX give 0 to 255 / 256, its TANH -1 to 127 / 128.
_PROBABILITY = (0.0, 255 / 256)
_FIXED_RANGES = {
    "sigmoid": _PROBABILITY,
    "softmax": _PROBABILITY,
    "tanh": (-1.0, 127 / 128),
}
_ROUNDED_ACTIVATIONS = ("exponential", "hard_silu")
# Those that TFMOT quantizes as the file computes.
_ACTIVATIONS = ("linear", "relu", "gelu", *_FIXED_RANGES, *_ROUNDED_ACTIVATIONS)
# Those that are put in terms of others before.
_REWRITTEN = ("hard_sigmoid", "leaky_relu", "relu6", "swish")


def _activation(layer: Any, final: bool) -> Plain | None:
    name = activation_name(layer)
    if name in _FIXED_RANGES and not final:
        return Fixed(*_FIXED_RANGES[name])
    return Output() if name in _ROUNDED_ACTIVATIONS else None


def _relu(layer: Any, final: bool) -> Plain | None:
    high = layer.max_value
    return None if high in (None, 6) else Clipped(0.0, float(high))


def _softmax(layer: Any, final: bool) -> Plain | None:
    return None if final else Fixed(*_PROBABILITY)


def _output(layer: Any, final: bool) -> Plain | None:
    return Output()


def _plain(layer: Any, final: bool) -> Plain | None:
    return Plain()


# `config(layer, whether it gives the model's output)`; None is TFMOT's own.
TABLE: dict[type, Callable[[Any, bool], Plain | None]] = {
    layers.Activation: _activation,
    layers.LayerNormalization: _output,
    layers.Maximum: _output,
    layers.Minimum: _output,
    layers.Multiply: _output,
    layers.PReLU: lambda layer, final: Slopes(),
    layers.ReLU: _relu,
    layers.Resizing: _output,
    layers.Softmax: _softmax,
    layers.Subtract: _output,
    **dict.fromkeys(
        (layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise), _plain
    ),
}


def config_of(layer: Any, final: bool) -> Plain | None:
    """The config of a layer of a rewritten model; None for TFMOT's own.

    Args:
        layer: A layer that has no obstacle.
        final: Whether it gives the model's output.
    """
    found = TABLE.get(type(layer))
    return None if found is None else found(layer, final)


def takes(layer: Any) -> bool:
    """Whether a layer's class can be quantized, in this table or in TFMOT's."""
    return type(layer) in (*TABLE, *_TAKEN_APART) or _REGISTRY.supports(layer)


def takes_activation(name: str) -> bool:
    """Whether a layer with this activation becomes int8 operators."""
    return name in (*_ACTIVATIONS, *_REWRITTEN)


# What is made of others before it is quantized, here or by TFMOT.
_TAKEN_APART = (
    *(layers.Average, layers.BatchNormalization, layers.InputLayer),
    *(layers.Normalization, layers.Rescaling, layers.SeparableConv2D),
)


def _moving_average(kind: Any) -> Any:
    return kind(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
