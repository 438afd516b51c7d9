"""Wrapping a float model for quantization-aware training, and its ranges."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from numpy.typing import ArrayLike
from tensorflow_model_optimization.python.core.quantization.keras import (
    quantize_aware_activation,
    quantize_layer,
)
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_registry,
)

from kdprune import _graph
from kdprune import images as pixels
from kdprune.models.precision import cast_model
from kdprune.quantize.fold import find_obstacles
from kdprune.quantize.schemes import average_centroid_gradients, new_scheme

tfmot_quantize = tfmot.quantization.keras

_USE_PTQ = (
    "replace it, or quantize after training: convert_tflite(..., calibration=), in a "
    "recipe method: ptq"
)
_FIXES = {
    "BatchNormalization": "put it directly after its convolution or dense layer and "
    "before the activation, with nothing else reading that layer",
    "Rescaling": "leave it out and give the model images in [0, 1]",
    "Normalization": "leave it out and give the model images in [0, 1]",
    "Functional": "build the model without models inside it",
    "Sequential": "build the model without models inside it",
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a QAT model was made from, which is what rebuilds it.

    Attributes:
        base: The float32 model before quantization, weights included: the zeros
            that sparsity-preserving QAT keeps are read from them.
        preserve_sparsity: Whether the zeros of `base` are kept.
        preserve_clusters: Whether the number of distinct weights is kept.
    """

    base: keras.Model
    preserve_sparsity: bool
    preserve_clusters: bool = False


def quantize_model(
    model: keras.Model,
    preserve_sparsity: bool = False,
    calibration: ArrayLike | None = None,
    preserve_clusters: bool = False,
) -> keras.Model:
    """Wraps a float model for quantization-aware training.

    The input is quantized over the fixed range [0, 1], so that the int8 file takes
    the bytes of an image as they are (scale exactly 1/255). TFMOT's own input range
    starts empty and widens with every image that leaves [0, 1].

    Every activation's range starts at [-6, 6] and follows the data by 0.1 % a step,
    too slowly for a short training; with `calibration` it starts where the float
    model's activations are (see `calibrate_ranges`).

    Training moves every weight, and with it away from what pruning and clustering
    have made of it, unless that is to be preserved: PQAT, CQAT, and both, PCQAT.

    Reference: Jacob et al., 2018, https://arxiv.org/abs/1712.05877; keeping zeros
    and clusters: TFMOT's collaborative optimization.

    Args:
        model: Functional or Sequential `tf_keras` model, images in [0, 1] in,
            logits out; left as it was. A mixed-precision one is rebuilt in float32.
        preserve_sparsity: Keep weights that are zero at zero (prune-preserving
            QAT). Covers the kernels of Conv2D and Dense, not depthwise ones.
        calibration: Images to start the ranges from, uint8 or float in [0, 1],
            shape `(n, height, width, channels)`; None keeps TFMOT's start.
        preserve_clusters: Keep each kernel's number of distinct weights (CQAT),
            for what `strip_clustering` returned; kernels of more than 1,024
            distinct weights are taken for not clustered. The centroids are trained,
            each by the mean of its weights' gradients.
            Call `calibrate_ranges` when training is over, which puts the last ones
            into the kernels.

    Returns:
        A float32 `keras.Model`, whatever the global precision policy is, to be
        compiled and fitted. Keras can't save it; `save_quantized` can.

    Raises:
        ValueError: If the model, or a layer of it, can't be quantized.
    """
    _check_model(model)
    scheme = new_scheme(preserve_sparsity, preserve_clusters)
    with _float32_policy():
        try:
            base = cast_model(model, "float32")
            with tfmot_quantize.quantize_scope():
                annotated = tfmot_quantize.quantize_annotate_model(base)
                quantized = tfmot_quantize.quantize_apply(annotated, scheme)
        except (RuntimeError, ValueError) as error:
            raise ValueError(_explain(model, error)) from error
    for layer in quantized.layers:
        if isinstance(layer, quantize_layer.QuantizeLayer):
            layer.quantizer = tfmot_quantize.quantizers.FixedQuantizer(
                num_bits=8, init_min=0.0, init_max=1.0, narrow_range=False
            )
        if isinstance(layer, tfmot_quantize.QuantizeWrapper):
            average_centroid_gradients(layer)
    quantized.quantized_from = Origin(
        base, bool(preserve_sparsity), bool(preserve_clusters)
    )
    if calibration is not None:
        calibrate_ranges(quantized, calibration)
    return quantized


def calibrate_ranges(
    model: keras.Model, images: ArrayLike, batch_size: int = 100
) -> None:
    """Sets every range of a QAT model from its weights and from images.

    An activation's range becomes the mean of the batches' extremes, what TFMOT's
    moving average would tend to; a kernel's becomes its own extremes. To be used
    before a training, and after weights were set from elsewhere (an average of
    weights, say), since ranges are otherwise those of the last training steps.
    Weights and BatchNorm statistics stay as they are.

    Args:
        model: What `quantize_model` returned.
        images: uint8 or float in [0, 1], shape `(n, height, width, channels)`.
        batch_size: Images whose extremes are taken together.

    Raises:
        ValueError: If `model` is not quantization-aware, `batch_size` is no whole
            number above 0, or `images` are none, NaN, beyond [0, 1] or of another
            shape than the model's.
    """
    wrappers = [
        layer
        for layer in getattr(model, "layers", [])
        if isinstance(layer, tfmot_quantize.QuantizeWrapper)
    ]
    if not wrappers:
        raise ValueError(
            "calibrate_ranges expects what quantize_model returns. "
            f"Received: {type(model).__name__}"
        )
    if (
        isinstance(batch_size, bool)
        or not isinstance(batch_size, int)
        or batch_size < 1
    ):
        raise ValueError(
            f"batch_size must be a whole number above 0. Received: {batch_size!r}"
        )
    checked = pixels.as_float(images, model.input_shape[1:], "calibration images")
    for wrapper in wrappers:
        for weight, quantizer, ranges in wrapper._weight_vars:
            quantizer(weight, training=True, weights=ranges)
    with _observing(wrappers) as observer:
        for start in range(0, len(checked), batch_size):
            model(checked[start : start + batch_size], training=False)
    observer.assign()


class _Observer:
    """Stands in for a quantizer: passes values through, notes their extremes."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Any, list[float], list[float]]] = {}

    def __call__(self, inputs: Any, training: Any, weights: Any, **_: Any) -> Any:
        _, lows, highs = self.seen.setdefault(id(weights), (weights, [], []))
        lows.append(min(0.0, float(tf.reduce_min(inputs))))
        highs.append(max(0.0, float(tf.reduce_max(inputs))))
        return inputs

    def assign(self) -> None:
        for ranges, lows, highs in self.seen.values():
            ranges["min_var"].assign(np.mean(lows))
            ranges["max_var"].assign(np.mean(highs))


@contextlib.contextmanager
def _observing(wrappers: Sequence[Any]) -> Iterator[_Observer]:
    """Puts one observer in the place of all activation quantizers."""
    observer = _Observer()
    outputs = [wrapper._output_quantizers for wrapper in wrappers]
    activations = [a for wrapper in wrappers for a in wrapper._quantize_activations]
    quantizers = [activation.quantizer for activation in activations]
    try:
        for wrapper in wrappers:
            wrapper._output_quantizers = [observer for _ in wrapper._output_quantizers]
        for activation in activations:
            activation.quantizer = observer
        yield observer
    finally:
        for wrapper, output in zip(wrappers, outputs, strict=True):
            wrapper._output_quantizers = output
        for activation, quantizer in zip(activations, quantizers, strict=True):
            activation.quantizer = quantizer


@contextlib.contextmanager
def _float32_policy() -> Iterator[None]:
    """TFMOT's own layers take the global policy, and fail under mixed ones."""
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float32")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(policy)


def _check_model(model: Any) -> None:
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
    for layer in model.layers:
        if isinstance(layer, tfmot_quantize.QuantizeWrapper):
            raise ValueError(
                "quantize_model expects a float model. "
                f"Received: {name}, which is quantization-aware already"
            )
        if type(layer).__name__ == "PruneLowMagnitude":
            raise ValueError(
                "quantize_model expects a model without pruning wrappers: call "
                f"strip_pruning first. Received: {name} with {layer.name!r}"
            )


def _explain(model: keras.Model, error: Exception) -> str:
    """One line for TFMOT's refusal: the layer, its kind, and what to do."""
    named = re.match(r"Layer (\S+?):<class '[\w.]*?(\w+)'> is not", str(error))
    if named:
        name, kind = named.groups()
    else:
        layer = next(filter(_is_refused, model.layers), None)
        if layer is None:
            words = " ".join(str(error).split())
            return f"model {model.name!r} can't be quantized: {words}"
        name, kind = layer.name, type(layer).__name__
        if _activation(layer) not in _ACTIVATIONS:
            kind = f"{kind} with activation {_activation(layer)}"
    fix = _FIXES.get(kind, _USE_PTQ)
    if kind == "BatchNormalization":
        fix += _describe_folding(model, name)
    return f"layer {name!r} ({kind}) can't be trained quantization-aware: {fix}"


def _describe_folding(model: keras.Model, name: str) -> str:
    """Whether the normalization can be moved into the layers behind it."""
    obstacles = find_obstacles(model)
    if not obstacles:
        return "; or take kdprune.fold_batch_norm(model), which scores alike without it"
    name = name if name in obstacles else next(iter(obstacles))
    reason = obstacles[name]
    return f" ({name!r} can't be folded into the layers behind it: {reason})"


_REGISTRY = default_8bit_quantize_registry.Default8BitQuantizeRegistry()
_ACTIVATIONS = (
    quantize_aware_activation.QuantizeAwareActivation._PRE_QUANT_ACTIVATIONS
    | quantize_aware_activation.QuantizeAwareActivation._POST_QUANT_ACTIVATIONS
    | {"relu6"}
)


def _is_refused(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, keras.layers.BatchNormalization | keras.layers.InputLayer):
        return False
    return not _REGISTRY.supports(layer) or _activation(layer) not in _ACTIVATIONS


def _activation(layer: keras.layers.Layer) -> str:
    activation = getattr(layer, "activation", None) or keras.activations.linear
    return getattr(activation, "__name__", type(activation).__name__)
