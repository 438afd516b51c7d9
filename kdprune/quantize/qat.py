"""Wrapping a float model for quantization-aware training, and its ranges."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from numpy.typing import ArrayLike
from tensorflow_model_optimization.python.core.quantization.keras import (
    quantize_layer,
)

from kdprune import _graph
from kdprune import images as pixels
from kdprune._registry import suggesting
from kdprune.intake import for_bytes, to_unit_range
from kdprune.intake.pixels import read_chain
from kdprune.models.precision import cast_model
from kdprune.quantize.configs import (
    CONFIGS,
    FloatOutput,
    Output,
    Plain,
    config_of,
    round_depthwise_kernels,
)
from kdprune.quantize.obstacles import check_model, check_no_obstacles, explained
from kdprune.quantize.rewrite import (
    FLOAT_KINDS,
    Rewritten,
    activation_name,
    only_reader,
    rewrite,
)
from kdprune.quantize.schemes import average_centroid_gradients, new_scheme, use_layout
from kdprune.tflite.aware import widen_ranges

tfmot_quantize = tfmot.quantization.keras


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a QAT model was made from, which is what rebuilds it.

    Attributes:
        base: The float32 model before quantization, weights included: the zeros
            that sparsity-preserving QAT keeps are read from them.
        preserve_sparsity: Whether the zeros of `base` are kept.
        preserve_clusters: Whether the number of distinct weights is kept.
        float_layers: Names of the layers that stay in float.
        changes: What was rewritten before, a line for each thing.
    """

    base: keras.Model
    preserve_sparsity: bool
    preserve_clusters: bool = False
    float_layers: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@suggesting
def quantize_model(
    model: keras.Model,
    preserve_sparsity: bool = False,
    calibration: ArrayLike | None = None,
    preserve_clusters: bool = False,
    float_layers: Collection[str] = (),
) -> keras.Model:
    """Wraps a float model for quantization-aware training.

    The input is quantized over the fixed range [0, 1], so that the int8 file takes
    the bytes of an image as they are (scale exactly 1/255). TFMOT's own input range
    starts empty and widens with every image that leaves [0, 1]. A model that starts
    with `Rescaling` from another range (see `take_model`) keeps it in front, out of
    quantization, and the file's input has the scale and zero point of that range;
    one made for bytes takes [0, 1] from then on.

    Every activation's range starts at [-6, 6] and follows the data by 0.1 % a step,
    too slowly for a short training; with `calibration` it starts where the float
    model's activations are (see `calibrate_ranges`).

    What int8 has no operator for is rewritten first, exactly (models inside the model,
    BatchNormalization behind an activation, hard-sigmoid, swish and more;
    `kdprune.quantize.rewrite`), and compared on random images. Layers that are frozen
    stay frozen, and their weights what they are.

    Training moves every weight, and with it away from what pruning and clustering
    have made of it, unless that is to be preserved: PQAT, CQAT, and both, PCQAT.

    Reference: Jacob et al., 2018, https://arxiv.org/abs/1712.05877; keeping zeros
    and clusters: TFMOT's collaborative optimization.

    Args:
        model: Functional or Sequential `tf_keras` model, images in [0, 1] in,
            logits out; left as it was. A mixed-precision one is rebuilt in float32.
        preserve_sparsity: Keep weights that are zero at zero (prune-preserving
            QAT). Covers all kernels but depthwise ones.
        calibration: Images to start the ranges from, uint8 or float in [0, 1],
            shape `(n, height, width, channels)`; None keeps TFMOT's start.
        preserve_clusters: Keep each kernel's number of distinct weights (CQAT),
            for what `strip_clustering` returned; kernels of more than 1,024
            distinct weights are taken for not clustered. The centroids are trained,
            each by the mean of its weights' gradients.
            Call `calibrate_ranges` when training is over, which puts the last ones
            into the kernels.
        float_layers: Names of layers to leave in float, with the normalization and
            ReLU that belong to them. LayerNormalization is anyway. All that are stand
            in `quantized_from.float_layers` of the result.

    Returns:
        A float32 `keras.Model`, whatever the global precision policy is, to be
        compiled and fitted. Keras can't save it; `save_quantized` can.

    Raises:
        ValueError: If the model can't be quantized, or layers of it: all of them, each
            with what to do (see `qat_obstacles`).
    """
    quantized = wrap_model(model, preserve_sparsity, preserve_clusters, float_layers)
    if calibration is not None:
        calibrate_ranges(quantized, calibration)
    return quantized


def wrap_model(
    model: keras.Model,
    preserve_sparsity: bool,
    preserve_clusters: bool,
    float_layers: Collection[str] = (),
    as_before: bool = False,
) -> keras.Model:
    """`quantize_model` without calibration.

    Args:
        model: As there.
        preserve_sparsity: As there.
        preserve_clusters: As there.
        float_layers: As there.
        as_before: Wrap it as TFMOT does, with nothing rewritten, into the form that
            earlier versions have saved weights of.
    """
    check_model(model)
    with _float32_policy():
        # What the file's input says of its pixels is no layer of the network.
        try:
            base = for_bytes(to_unit_range(cast_model(model, "float32")))
        except ValueError:
            check_no_obstacles(model, float_layers)  # Which may be why.
            raise
        front = [call.layer for call in read_chain(base).calls]
        core = read_chain(base).bypassed()
        if as_before:
            rewritten = Rewritten(core)
        else:
            check_no_obstacles(core, float_layers)
            try:
                rewritten = rewrite(core, float_layers, preserve_clusters)
            except ValueError:
                raise
            except Exception as error:
                raise explained(error, core, rewrite) from error
        if front:
            copies = [_graph.remake(one) for one in front]
            rewritten.model = _graph.rebuild(rewritten.model, first=copies)

        def wrapped(one: Rewritten) -> keras.Model:
            plain = {layer.name for layer in front}
            return _wrapped(one, preserve_sparsity, preserve_clusters, as_before, plain)

        try:
            quantized = wrapped(rewritten)
        except Exception as error:
            raise explained(
                error, rewritten.model, lambda alone: wrapped(Rewritten(alone))
            ) from error
    for layer in quantized.layers:
        if isinstance(layer, quantize_layer.QuantizeLayer):
            layer.quantizer = tfmot_quantize.quantizers.FixedQuantizer(
                num_bits=8, init_min=0.0, init_max=1.0, narrow_range=False
            )
        if isinstance(layer, tfmot_quantize.QuantizeWrapper):
            average_centroid_gradients(layer)
            if not as_before:
                round_depthwise_kernels(layer)
            _keep_frozen(layer)
    quantized.quantized_from = Origin(
        base,
        bool(preserve_sparsity),
        bool(preserve_clusters),
        tuple(name for group in rewritten.float_groups for name in group),
        tuple(rewritten.changes),
    )
    return quantized


def _wrapped(
    rewritten: Rewritten,
    preserve_sparsity: bool,
    preserve_clusters: bool,
    as_before: bool,
    plain: set[str],
) -> keras.Model:
    # Plain layers bring bytes, as which the input is rounded, to what they mean.
    model = rewritten.model
    finals = {tensor._keras_history.layer.name for tensor in model.outputs}
    configs = {
        layer.name: None if as_before else config_of(layer, layer.name in finals)
        for layer in model.layers
    }
    # The converter rounds the weights, one for each channel, to what they are.
    configs |= {
        name: Plain() if _has_relu(model.get_layer(name)) else Output()
        for name in rewritten.lines
    }
    for group in rewritten.float_groups:
        configs |= {name: Plain() for name in group}
        last = model.get_layer(group[-1])
        alone = isinstance(last, FLOAT_KINDS)
        configs[last.name] = Output() if alone else FloatOutput()

    def annotated(layer: Any) -> Any:
        config = configs.get(layer.name)
        if layer.name in plain:
            return _graph.remake(layer)
        if config is None and isinstance(layer, keras.layers.InputLayer):
            return layer
        return tfmot_quantize.quantize_annotate_layer(layer, config)

    scheme = new_scheme(preserve_sparsity, preserve_clusters)
    if not as_before:
        use_layout(scheme, joins=_may_join(model, configs))
    with tfmot_quantize.quantize_scope({kind.__name__: kind for kind in CONFIGS}):
        return tfmot_quantize.quantize_apply(
            keras.models.clone_model(model, clone_function=annotated), scheme
        )


def _has_relu(layer: Any) -> bool:
    """Whether nothing but a ReLU reads a layer, which becomes one operator with it."""
    reader = only_reader(layer)
    return isinstance(reader, keras.layers.ReLU) or (
        isinstance(reader, keras.layers.Activation)
        and activation_name(reader) == "relu"
    )


def _may_join(model: keras.Model, configs: dict[str, Any]) -> bool:
    """Whether all that Concatenate layers read can go without rounding of its own."""
    joined = [
        tensor._keras_history.layer
        for node in _graph.nodes(model)
        if isinstance(node.layer, keras.layers.Concatenate)
        for tensor in node.keras_inputs
    ]
    return all(
        len(layer._outbound_nodes) == 1 and configs.get(layer.name) is None
        for layer in joined
    )


def _keep_frozen(wrapper: Any) -> None:
    """Holds the kernel of a frozen layer, which TFMOT trains all the same."""
    if not wrapper.layer.trainable:
        # In place: Keras takes what is assigned for new weights of the layer.
        wrapper._non_trainable_weights.extend(wrapper._trainable_weights)
        wrapper._trainable_weights.clear()


def calibrate_ranges(
    model: keras.Model, images: ArrayLike, batch_size: int = 100
) -> None:
    """Sets every range of a QAT model from its weights and from images.

    An activation's range becomes the mean of the batches' extremes, what TFMOT's
    moving average would tend to, and has a least size, which what is 0 on all images
    gets; a kernel's becomes its own extremes. To be used
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
    widen_ranges(model)


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
    # A fixed range is the operator's own, and may be what clips its values.
    fixed = tfmot_quantize.quantizers.FixedQuantizer
    wrappers = [
        wrapper
        for wrapper in wrappers
        if not any(isinstance(one, fixed) for one in wrapper._output_quantizers)
    ]
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
