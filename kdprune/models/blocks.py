"""What the networks are built of: convolution, batch normalization, activation."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

layers = keras.layers

# He-normal is the initialization of the ResNet papers; Keras's default (Glorot
# uniform) trains the deep stacks noticeably slower.
INIT = "he_normal"


def conv_bn(
    x: Any,
    filters: int,
    name: str,
    kernel: int = 3,
    strides: int = 1,
    activation: str | None = "relu",
) -> Any:
    """Conv -> BatchNorm -> activation, in the order quantization-aware training takes.

    Args:
        x: The input tensor.
        filters: Channels of the convolution, which has no bias.
        name: In front of the layers' names: `stem_conv`, `stem_bn`, `stem_relu`.
        kernel: Its size in pixels, square.
        strides: Its stride, in both directions.
        activation: A Keras activation's name; None for no such layer.
    """
    x = layers.Conv2D(
        filters,
        kernel,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer=INIT,
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    if activation is None:
        return x
    return layers.Activation(activation, name=f"{name}_{activation}")(x)


def depthwise(x: Any, strides: int, name: str) -> Any:
    """A 3x3 depthwise convolution without bias, of stride 1 or 2."""
    return layers.DepthwiseConv2D(
        3,
        strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=INIT,
        name=name,
    )(x)
