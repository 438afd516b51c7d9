"""Small networks of depthwise convolutions: more accuracy for bytes and MACs.

Both families, and the presets named by their trainable parameters, take float32 images
in [0, 1] and end in the features that `build_model` turns into logits. Against a ResNet
of the same size they gain some two points on CIFAR-10 and take about twice as long on a
phone's processor, where depthwise convolutions are bound by memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from kdprune.models.blocks import INIT, conv_bn, depthwise

layers = keras.layers

# (output channels, expansion channels, stride) of each block.
_BLOCKS = (
    (16, 32, 1),
    (24, 80, 2),
    (24, 96, 1),
    (24, 96, 1),
    (48, 112, 2),
    (48, 144, 1),
    (48, 144, 1),
)
_BLOCKS_69K = (
    (16, 32, 1),
    (24, 96, 2),
    (24, 112, 1),
    (24, 112, 1),
    (48, 128, 2),
    (48, 160, 1),
    (48, 176, 1),
)
_BLOCKS_31K = (
    (16, 32, 1),
    (24, 56, 2),
    (24, 56, 1),
    (24, 56, 1),
    (32, 72, 2),
    (32, 80, 1),
    (32, 96, 1),
)


def inverted_residual(
    images: Any, stem: int = 16, blocks: Sequence[Sequence[int]] = _BLOCKS
) -> Any:
    """MobileNetV2's blocks for small images, block by block as specified.

    A block is a 1x1 convolution that expands, a 3x3 depthwise one and a 1x1 one that
    projects, each with batch normalization, ReLU after the first two; where the
    shapes agree, the input is added. No activation follows the projection, since
    ReLU would lose information in few channels.

    Reference: Sandler et al., 2018, "MobileNetV2", arXiv:1801.04381, section 3.3.

    Args:
        images: The input tensor.
        stem: Channels of the first 3x3 convolution, of stride 1.
        blocks: Output channels, expansion channels and stride (1 or 2) of each block.
            The default has 63,034 parameters (59,722 trainable) and 9.61 M MACs on
            32 x 32 images of ten classes.

    Returns:
        Features `(batch, channels)`.

    Raises:
        ValueError: If a block is not three positive whole numbers, its stride 1 or 2.
    """
    _check_blocks(blocks)
    x = conv_bn(images, stem, "stem")
    for index, (output, expansion, strides) in enumerate(blocks):
        name = f"block{index + 1}"
        y = conv_bn(x, expansion, f"{name}_expand", kernel=1)
        y = depthwise(y, strides, f"{name}_depthwise")
        y = _bn(y, f"{name}_depthwise")
        y = layers.Activation("relu", name=f"{name}_depthwise_relu")(y)
        y = conv_bn(y, output, f"{name}_project", kernel=1, activation=None)
        if strides == 1 and x.shape[-1] == output:
            y = layers.Add(name=f"{name}_add")([x, y])
        x = y
    return layers.GlobalAveragePooling2D(name="features")(x)


def inverted_residual_69k(images: Any) -> Any:
    """`inverted_residual` for the budget of MLPerf Tiny's ResNet-8.

    On 32 x 32 images of ten classes it has 69,114 trainable parameters and 10.95 M
    MACs, and its int8 file 97,472 bytes; that ResNet-8 has 12.50 M and 98,496.

    Args:
        images: The input tensor.

    Returns:
        Features `(batch, 48)`.
    """
    return inverted_residual(images, blocks=_BLOCKS_69K)


def inverted_residual_31k(images: Any) -> Any:
    """`inverted_residual` of no more trainable parameters than `article_student`.

    On 32 x 32 images of ten classes it has 30,922 trainable parameters and 6.26 M
    MACs; the articles' student has 31,082.

    Args:
        images: The input tensor.

    Returns:
        Features `(batch, 32)`.
    """
    return inverted_residual(images, blocks=_BLOCKS_31K)


def bsconv_resnet(
    images: Any, filters: Sequence[int] = (24, 48, 80), blocks: int = 2
) -> Any:
    """A ResNet whose 3x3 convolutions are blueprint-separable (BSConv-U).

    Each is a 1x1 convolution followed by a 3x3 depthwise one, with nothing between:
    all kernels of a filter are multiples of one blueprint, which is what trained
    kernels resemble.

    Reference: Haase & Amthor, 2020, "Rethinking Depthwise Separable Convolutions",
    arXiv:2003.13549, section 4.1.

    Args:
        images: The input tensor.
        filters: Channels of each stage; each after the first halves the image. The
            default has 46,850 trainable parameters and 10.24 M MACs on 32 x 32
            images of ten classes.
        blocks: Residual blocks of two convolutions in each stage.

    Returns:
        Features `(batch, channels)`.

    Raises:
        ValueError: If there are no filters, or a number is not positive.
    """
    if not filters or min(filters) < 1 or blocks < 1:
        raise ValueError(
            "filters must be positive whole numbers, one for each stage, and blocks "
            f"at least 1. Received: filters={filters!r}, blocks={blocks!r}"
        )
    x = conv_bn(images, filters[0], "stem")
    for stage, width in enumerate(filters):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            x = _bsconv_block(x, width, strides, f"stage{stage + 1}_block{block + 1}")
    return layers.GlobalAveragePooling2D(name="features")(x)


def _bsconv_block(x: Any, width: int, strides: int, name: str) -> Any:
    y = _bsconv(x, width, strides, f"{name}a")
    y = layers.Activation("relu", name=f"{name}a_relu")(y)
    y = _bsconv(y, width, 1, f"{name}b")
    if strides > 1 or x.shape[-1] != width:
        x = conv_bn(x, width, f"{name}_shortcut", 1, strides, activation=None)
    x = layers.Add(name=f"{name}_add")([x, y])
    return layers.Activation("relu", name=f"{name}_relu")(x)


def _bsconv(x: Any, width: int, strides: int, name: str) -> Any:
    x = layers.Conv2D(
        width, 1, use_bias=False, kernel_initializer=INIT, name=f"{name}_pointwise"
    )(x)
    return _bn(depthwise(x, strides, f"{name}_depthwise"), name)


def _bn(x: Any, name: str) -> Any:
    return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)


def _check_blocks(blocks: Sequence[Sequence[int]]) -> None:
    for index, block in enumerate(blocks or [()]):
        numbers = [n for n in block if isinstance(n, int) and n > 0]
        if len(block) != 3 or len(numbers) != 3 or block[2] not in (1, 2):
            raise ValueError(
                "blocks must each be [output channels, expansion channels, stride], "
                f"with a stride of 1 or 2. Received: {list(block)} as block {index + 1}"
            )
