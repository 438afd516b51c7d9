"""Model factories: float32 images in [0, 1] in, logits out.

Every factory takes `input_shape` and `classes` and arguments of its own, and
builds Conv -> BatchNorm -> ReLU without preprocessing layers, which is what
quantization-aware training accepts.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kdprune._graph import clone, frozen_layers, named_layers
from kdprune._log import logger
from kdprune._plain import typed_arguments
from kdprune._registry import add, nearest
from kdprune.models.blocks import INIT, conv_bn, depthwise
from kdprune.models.mobile import (
    bsconv_resnet,
    inverted_residual,
    inverted_residual_31k,
    inverted_residual_69k,
)

layers = keras.layers

# Takes the tensor of images and arguments of its own, returns that of the features.
Factory = Callable[..., Any]


def build_model(
    name: str | Factory,
    input_shape: Sequence[int] = (32, 32, 3),
    classes: int = 10,
    **arguments: Any,
) -> keras.Model:
    """Builds an untrained model by name.

    Args:
        name: A key of `MODELS`, or a factory (see `register_model`).
        input_shape: `(height, width, channels)` of the images, values in [0, 1].
        classes: Number of classes or labels; 1 for a single unit that tells two
            classes apart.
        **arguments: The factory's own, e.g. `width` of `resnet9`.

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)` to logits
        `(batch, classes)`. Logits are float32 under every precision policy.

    Raises:
        ValueError: If the name, an argument or a shape is not valid.

    Example:
        >>> build_model("resnet8").count_params()
        78426
    """
    factory, name = _find_factory(name)
    arguments = _check_arguments(name, factory, arguments)
    shape = tuple(int(size) for size in input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            "input_shape must be (height, width, channels), all positive. "
            f"Received: {input_shape}"
        )
    if classes < 1:
        raise ValueError(f"classes must be at least 1. Received: {classes}")
    images = keras.Input(shape, name="images")
    try:
        features = factory(images, **arguments)
    except ValueError as error:
        if "dimension" not in str(error):
            raise
        # Keras fails at the layer that has no pixels left, in many lines.
        raise ValueError(
            f"images are too small for model {name!r}, which halves them several "
            f"times. Received: {shape[0]} x {shape[1]} pixels; use larger images."
        ) from error
    if not hasattr(features, "_keras_history") or len(features.shape) != 2:
        received = getattr(features, "shape", type(features).__name__)
        raise ValueError(
            f"the factory of model {name!r} must return features, a tensor of Keras "
            f"of shape (batch, features). Received: {received}"
        )
    logits = layers.Dense(classes, name="logits", dtype="float32")(features)
    return keras.Model(images, logits, name=name)


def register_model(
    name: str, factory: Factory | None = None, *, replace: bool = False
) -> Any:
    """Adds a factory of models that `build_model` and recipes know by its name.

    Args:
        name: Lower-case letters, digits and underscores.
        factory: `factory(images)` takes the tensor of images, float in [0, 1], and
            returns that of the features, shape `(batch, features)`, from which
            `build_model` makes the logits. What else it takes by name, recipes and
            `build_model` may give. If it is left out, a decorator is returned.
        replace: Whether a factory of this name may be replaced.

    Returns:
        The factory, or the decorator.

    Raises:
        ValueError: If the name is not fit or is taken, or the factory not callable.

    Example:
        >>> @register_model("tiny")
        ... def tiny(images, filters=8):
        ...     x = keras.layers.Conv2D(filters, 3, activation="relu")(images)
        ...     return keras.layers.GlobalAveragePooling2D()(x)
        >>> build_model("tiny", filters=4)
    """
    if factory is None:
        return lambda given: register_model(name, given, replace=replace)
    return add(MODELS, "model", name, factory, replace)


def reset_weights(model: keras.Model) -> keras.Model:
    """Builds the same layers once more, with weights initialized again.

    Training a pruned shape from scratch shows what of a pruned model's accuracy is
    owed to the weights it kept (Liu et al., 2019, https://arxiv.org/abs/1810.05270).
    Frozen layers whose weights are drawn again are trained as well, which is logged:
    frozen, they would stay noise. Those that start from constants stay frozen.

    Args:
        model: A Functional or Sequential `keras.Model`; it is left as it was.

    Returns:
        A new, uncompiled model. The initializers are those of the layers, and draw
        from Keras's global random numbers unless they have seeds of their own.

    Raises:
        ValueError: If it is no such model, or one of its layers cannot be made again
            from its configuration.
    """
    new = clone(model)
    held, made = frozen_layers(model), dict(named_layers(new))
    drawn = {path: made[path] for path in held if _differ(held[path], made[path])}
    if drawn:
        # Of a model inside the model, too, which holds all that it has.
        still = [made[path] for path in held if path not in drawn]
        new.trainable = True
        for layer in still:
            layer.trainable = False
        logger.warning(
            "frozen layers are trained, since their weights are drawn again: %s",
            ", ".join(drawn),
        )
    return new


def _differ(one: Any, other: Any) -> bool:
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return any(not np.array_equal(*pair) for pair in pairs)


def check_model_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as `MODELS[name]` takes them; see `_plain.typed_arguments`.

    Raises:
        ValueError: If there is no such model, or it takes no such arguments.
    """
    return _check_arguments(name, _find_factory(name)[0], arguments)


def _find_factory(name: str | Factory) -> tuple[Factory, str]:
    """A factory, and what its models are called."""
    if callable(name):
        called = str(getattr(name, "__name__", type(name).__name__))
        # Keras takes no other characters in the name of a model.
        return name, re.sub(r"\W", "_", called).strip("_") or "model"
    if name not in MODELS:
        raise ValueError(
            f"model name must be one of {', '.join(MODELS)}. "
            f"Received: {name!r}{nearest(name, MODELS)}"
        )
    return MODELS[name], name


def _check_arguments(
    name: str, factory: Factory, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    parameters = list(inspect.signature(factory).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(arguments)
    known = [parameter.name for parameter in parameters]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        takes = f"takes {', '.join(known)}" if known else "takes no arguments"
        raise ValueError(
            f"model {name!r} {takes}. "
            f"Received: {', '.join(unknown)}{nearest(unknown[0], known)}"
        )
    try:
        return typed_arguments(factory, arguments)
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error}") from error


def _article_cnn(x: Any, filters: Sequence[int], units: int) -> Any:
    """Convolutions without padding, max pooling between them, a hidden layer."""
    for index, width in enumerate(filters):
        x = layers.Conv2D(width, 3, activation="relu", name=f"conv{index + 1}")(x)
        if index < len(filters) - 1:
            x = layers.MaxPooling2D(name=f"pool{index + 1}")(x)
    x = layers.Flatten(name="flatten")(x)
    return layers.Dense(units, activation="relu", name="hidden")(x)


def article_teacher(images: Any) -> Any:
    """The articles' teacher: Conv 32-64-64, Dense 64; 122,570 parameters."""
    return _article_cnn(images, (32, 64, 64), 64)


def article_student(images: Any) -> Any:
    """The articles' student: Conv 16-32-32, Dense 32; 31,082 parameters."""
    return _article_cnn(images, (16, 32, 32), 32)


def resnet9(images: Any, width: int = 64) -> Any:
    """A strong, quick CIFAR teacher: eight convolutions, two residual pairs.

    Reference: the DAWNBench entries of 2018 on CIFAR-10 (D. Page, "How to train
    your ResNet"). 6.58 M parameters at width 64, 1.65 M at width 32.

    Args:
        images: The input tensor.
        width: Channels of the first convolution; the last has eight times that.
    """

    def residual(x, filters, name):
        y = conv_bn(x, filters, f"{name}a")
        return layers.Add(name=f"{name}_add")([x, conv_bn(y, filters, f"{name}b")])

    def pooled(x, filters, name):
        return layers.MaxPooling2D(name=f"{name}_pool")(conv_bn(x, filters, name))

    x = conv_bn(images, width, "stem")
    x = residual(pooled(x, 2 * width, "stage1"), 2 * width, "residual1")
    x = pooled(x, 4 * width, "stage2")
    x = residual(pooled(x, 8 * width, "stage3"), 8 * width, "residual3")
    return layers.GlobalMaxPooling2D(name="features")(x)


def resnet(images: Any, depth: int = 8, filters: Sequence[int] = (16, 32, 64)) -> Any:
    """CIFAR ResNet of basic blocks (He et al., 2015, arXiv:1512.03385, 4.2).

    Shortcuts that change the shape are 1x1 convolutions without BatchNorm, as
    in the MLPerf Tiny reference. `depth=8, filters=(16, 32, 64)` is that shape.

    Args:
        images: The input tensor.
        depth: Weighted layers, `2 * len(filters) * blocks + 2`.
        filters: Channels of each stage; each after the first halves the map.
    """
    filters = tuple(filters)
    blocks, rest = divmod(depth - 2, 2 * len(filters)) if filters else (0, 1)
    if rest or blocks < 1:
        raise ValueError(
            f"depth must be 2 * {len(filters)} * blocks + 2 with blocks >= 1 for "
            f"{len(filters)} stages. Received: depth={depth}, filters={filters}"
        )
    x = conv_bn(images, filters[0], "stem")
    for stage, width in enumerate(filters):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            x = _basic_block(x, width, strides, f"stage{stage + 1}_block{block + 1}")
    return layers.GlobalAveragePooling2D(name="features")(x)


def resnet8(images: Any) -> Any:
    """`resnet(depth=8, filters=(16, 32, 64))`: the MLPerf Tiny reference's shape."""
    return resnet(images)


def _basic_block(x, filters, strides, name):
    y = conv_bn(x, filters, f"{name}a", strides=strides)
    y = conv_bn(y, filters, f"{name}b", activation="linear")
    if strides > 1 or x.shape[-1] != filters:
        x = layers.Conv2D(
            filters,
            1,
            strides,
            padding="same",
            kernel_initializer=INIT,
            name=f"{name}_shortcut",
        )(x)
    x = layers.Add(name=f"{name}_add")([x, y])
    return layers.Activation("relu", name=f"{name}_relu")(x)


def dscnn(images: Any, width: int = 32, blocks: int = 4) -> Any:
    """Depthwise-separable convolutions (MobileNet: Howard et al., 2017,
    arXiv:1704.04861), for devices where parameters count more than speed.

    Args:
        images: The input tensor.
        width: Channels of the first block; doubled where the map is halved.
        blocks: Depthwise-separable blocks; every second halves the map.
    """
    x = conv_bn(images, width, "stem", strides=2)
    for block in range(blocks):
        strides = 2 if block % 2 else 1
        width = width * strides
        name = f"block{block + 1}"
        x = depthwise(x, strides, f"{name}_depthwise")
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_depthwise_bn")(x)
        x = layers.Activation("relu", name=f"{name}_depthwise_relu")(x)
        x = conv_bn(x, width, f"{name}_pointwise", kernel=1)
    return layers.GlobalAveragePooling2D(name="features")(x)


def whitened_cnn(images: Any, width: int = 64, activation: str = "gelu") -> Any:
    """Six convolutions behind a fixed patch-whitening layer: the quickest teacher.

    At width 64 it needs a third of `resnet9`'s multiplications (1.98 M
    parameters). Design after K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a
    single GPU" (2024, arXiv:2404.00498, section 3): whitened 2x2 patches, Dirac
    initialization, pooling inside the first convolution of each block.

    Args:
        images: The input tensor.
        width: Channels of the first block; the later ones have four times that.
        activation: Any Keras activation.
    """
    kernel, bias = whitening_filters(images.shape[-1])
    x = layers.Conv2D(
        kernel.shape[-1],
        kernel.shape[0],
        kernel_initializer=keras.initializers.Constant(kernel),
        bias_initializer=keras.initializers.Constant(bias),
        trainable=False,
        name="whitening",
    )(images)
    x = layers.Activation(activation, name="whitening_act")(x)
    for block, filters in enumerate((width, 4 * width, 4 * width)):
        for index in range(2):
            name = f"block{block + 1}{'ab'[index]}"
            x = layers.Conv2D(
                filters,
                3,
                padding="same",
                use_bias=False,
                kernel_initializer=Dirac(),
                name=f"{name}_conv",
            )(x)
            if index == 0:
                x = layers.MaxPooling2D(name=f"{name}_pool")(x)
            x = layers.BatchNormalization(
                momentum=0.9, epsilon=1e-5, name=f"{name}_bn"
            )(x)
            x = layers.Activation(activation, name=f"{name}_act")(x)
    # Maxima are large and noisy: scaled down, so that the head learns gently.
    x = layers.GlobalMaxPooling2D(name="pool")(x)
    return layers.Rescaling(1 / 9, name="features")(x)


def whitening_filters(channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """2x2 filters that decorrelate the patches of natural images.

    The eigenvectors of a patch covariance, each divided by its standard
    deviation, with both signs. The covariance is a prior for natural images in
    [0, 1] (variance 1/16, correlation 0.95 between neighbouring pixels, 0.91
    across a diagonal, 0.95 and 0.86 between colours), so that no data is needed
    to build the model; the spectrum of CIFAR-10's own patches is within a factor
    of two of it on every axis that carries signal.

    Returns:
        `(kernel, bias)`: shapes `(2, 2, channels, 8 * channels)` and
        `(8 * channels,)`, float32. The bias centres an image of mean 0.473.
    """
    distance = np.abs(np.subtract.outer(np.arange(channels), np.arange(channels)))
    colour = np.select([distance == 0, distance == 1], [1.0, 0.95], default=0.86)
    if channels > 3:  # Unknown bands: whiten their patches, not their mixture.
        colour = np.eye(channels)
    near, far = 0.95, 0.91
    space = np.array(
        [
            [1, near, near, far],
            [near, 1, far, near],
            [near, far, 1, near],
            [far, near, near, 1],
        ]
    )
    variances, vectors = np.linalg.eigh(np.kron(space, colour) / 16)
    filters = (vectors / np.sqrt(variances + 3e-5)).T
    filters = np.concatenate([filters, -filters])
    bias = -0.473 * filters.sum(axis=1)
    kernel = filters.reshape(-1, 2, 2, channels).transpose(1, 2, 3, 0)
    return kernel.astype("float32"), bias.astype("float32")


@keras.utils.register_keras_serializable("kdprune")
class Dirac(keras.initializers.Initializer):
    """Passes the first input channels through unchanged; the rest is uniform.

    Reference: Zagoruyko & Komodakis, 2017 (arXiv:1706.00388), as used by Jordan,
    2024 (arXiv:2404.00498, section 3.3).
    """

    def __call__(self, shape, dtype=None, **kwargs):
        height, width, fan_in, filters = shape
        limit = 1.0 / np.sqrt(height * width * fan_in)
        weights = keras.initializers.RandomUniform(-limit, limit)(
            shape, dtype="float32"
        )
        identity = np.zeros(shape, "float32")
        shared = np.arange(min(fan_in, filters))
        identity[height // 2, width // 2, shared, shared] = 1.0
        mask = (np.arange(filters) < fan_in).astype("float32")
        return identity + weights * (1.0 - mask)


MODELS: dict[str, Factory] = {
    "article_teacher": article_teacher,
    "article_student": article_student,
    "resnet9": resnet9,
    "resnet": resnet,
    "resnet8": resnet8,
    "dscnn": dscnn,
    "whitened_cnn": whitened_cnn,
    "inverted_residual": inverted_residual,
    "inverted_residual_31k": inverted_residual_31k,
    "inverted_residual_69k": inverted_residual_69k,
    "bsconv_resnet": bsconv_resnet,
}
