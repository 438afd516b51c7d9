"""One-shot masks: which weights become zero, and how they stay zero in training.

Masks are a dict from `"layer/weight"`, such as `"conv1/kernel"`, to a boolean array
of the weight's shape, True where a weight stays. `weight_masks` chooses weights by
their size or gradient, `activation_masks` by what they make; `apply_masks` zeroes the
others, under any training loop of Keras, until `strip_masks`.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune._former import former_arguments
from kdprune._graph import frozen_layers, is_graph_model, named_layers, rebuild
from kdprune._log import logger
from kdprune._registry import nearest
from kdprune.models.kernels import kernel_name, kernel_of, say_left_out
from kdprune.prune.channels.groups import find_channels, find_groups
from kdprune.prune.channels.importance import ChannelStatistics, activation_rate
from kdprune.prune.inference import batches, label_loss
from kdprune.prune.magnitude import layers_to_prune

Masks = dict[str, np.ndarray]

CRITERIA = ("magnitude", "gradient", "taylor")
# The weights that masks may be for, and the setting that constrains each. The mean
# of a normalization needs none: its input is zero wherever it is masked.
_CONSTRAINTS = {
    "kernel": "kernel_constraint",
    "depthwise_kernel": "depthwise_constraint",
    "pointwise_kernel": "pointwise_constraint",
    "bias": "bias_constraint",
    "gamma": "gamma_constraint",
    "beta": "beta_constraint",
    "moving_mean": None,
}


@former_arguments(by="criterion", beta="relative_threshold")
def weight_masks(
    model: keras.Model,
    threshold: float | None = None,
    *,
    relative_threshold: float | None = None,
    criterion: str = "magnitude",
    data: Any = None,
    exclude: Collection[str] = (),
) -> Masks:
    """Masks the weights that score below a threshold.

    The kernels that `prune_magnitude` prunes are masked, each weight for itself; what
    is left out is logged in the same way. With L the
    model's mean cross-entropy over all of `data`, in inference mode, a weight's score
    is

        "magnitude"   |w|
        "gradient"    |dL/dw|
        "taylor"      |w * dL/dw|, the loss's change by its removal, to first order

    Unstructured sparsity reduces the compressed size, not memory or latency.

    Reference: the last is the connection sensitivity of Lee et al., 2019,
    https://arxiv.org/abs/1810.02340, section 4, but for its scale.

    Args:
        model: A Functional or Sequential `keras.Model`; left as it is.
        threshold: Weights that score less go; in the unit of the score.
        relative_threshold: In place of `threshold`: a fraction, in (0, 1), of the
            largest score in the layer.
        criterion: One of `CRITERIA`.
        data: For gradients: images and their labels, arrays `(images, labels)` or
            an iterable of batches of such pairs.
        exclude: Names of layers to leave alone.

    Returns:
        The masks of the kernels, `{"layer/kernel": booleans}` ("layer/pointwise_kernel"
        of a separable convolution).

    Raises:
        ValueError: If an argument is not valid, gradients lack images or labels, or
            nothing would be left of a layer.
    """
    if (threshold is None) == (relative_threshold is None):
        raise ValueError(
            "give either threshold or relative_threshold. "
            f"Received: {threshold=}, {relative_threshold=}"
        )
    if threshold is not None and not threshold > 0:
        raise ValueError(f"threshold must be positive. Received: {threshold}")
    if relative_threshold is not None and not 0 < relative_threshold < 1:
        raise ValueError(
            f"relative_threshold must be in (0, 1). Received: {relative_threshold}"
        )
    if criterion not in CRITERIA:
        raise ValueError(
            f"criterion must be one of {', '.join(CRITERIA)}. Received: {criterion!r}"
            f"{nearest(criterion, CRITERIA)}"
        )
    layers = layers_to_prune(model, exclude=exclude)
    say_left_out(model, layers, exclude)
    masks = {}
    for name, scores in _scores(model, layers, criterion, data).items():
        limit = threshold
        if relative_threshold is not None:
            limit = relative_threshold * scores.max()
        mask = masks[f"{name}/{kernel_name(layers[name])}"] = scores >= limit
        if not mask.any():
            raise ValueError(
                f"threshold {threshold} leaves nothing of layer {name!r}, whose "
                f"largest score is {scores.max():.3g}; lower it, or exclude the layer"
            )
    return masks


def activation_masks(
    model: keras.Model,
    alpha: float,
    data: Any,
    ignore: str | Iterable[str] = (),
) -> Masks:
    """Masks all weights that make the channels that are seldom active.

    A channel's rate is the share of its activations that are not zero, over images
    and positions, measured where the channel is used, after normalization and
    activation. Channels with a rate below `alpha` become zero altogether: filters,
    biases, and the factors, shifts and means of normalizations. Channels that are
    added to each other are judged, and go, together.

    With `prune_channels(..., importance="activation_rate", threshold=alpha)` the same
    channels are removed, and the model gets smaller and faster. Channels of frozen
    layers are masked as others are, which is logged.

    Args:
        model: A built Functional or Sequential model; left as it is.
        alpha: In (0, 1].
        data: Images, an array or an iterable of batches.
        ignore: Names or patterns of layers whose output channels are all kept.

    Returns:
        The masks of all weights concerned, `{"layer/weight": booleans}`.

    Raises:
        ValueError: If an argument is not valid, or nothing would be left of a layer.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1]. Received: {alpha}")
    graph = find_channels(model, ignore)
    statistics = ChannelStatistics(graph, data)
    names = {id(v): name for name, v in weights_by_name(model).items()}
    masks: Masks = {}
    for group in find_groups(graph):
        rates = activation_rate(group, statistics)
        rare = rates < alpha
        if rare.all():
            raise ValueError(
                f"alpha {alpha} leaves nothing of layer {group.name!r}, whose most "
                f"active channel has a rate of {rates.max():.3g}; lower it, or ignore "
                "the layer"
            )
        for member in group.weights if rare.any() else ():
            weight, axis = member.weight, member.axis
            name = names.get(id(weight.variable))
            # Not the weights that use the channels: those of the next layer.
            if name is None or weight.uses == axis or weight.makes not in (None, axis):
                continue
            mask = masks.setdefault(name, np.ones(weight.variable.shape, bool))
            np.moveaxis(mask, axis, 0)[member.index[rare].ravel()] = False
    masked = {name.rpartition("/")[0] for name in masks}
    if held := [path for path in frozen_layers(model) if path in masked]:
        logger.warning(
            "masks zero channels of frozen layers: %s; ignore=[...] spares them",
            ", ".join(held),
        )
    return masks


# --- Zeros that stay ---


@keras.utils.register_keras_serializable("kdprune")
class MaskConstraint(keras.constraints.Constraint):
    """Sets weights back to zero after each step of an optimizer.

    Args:
        mask: Booleans of the weight's shape, True where it may move.
    """

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = np.array(mask, bool)

    def __call__(self, weight: tf.Tensor) -> tf.Tensor:
        return tf.where(self.mask, weight, tf.zeros_like(weight))

    def get_config(self) -> dict[str, Any]:
        bits = base64.b64encode(np.packbits(self.mask).tobytes()).decode("ascii")
        return {"shape": list(self.mask.shape), "bits": bits}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MaskConstraint:
        shape = config["shape"]
        bits = np.frombuffer(base64.b64decode(config["bits"]), np.uint8)
        count = int(np.prod(shape, dtype=np.int64))
        if not 0 <= count <= 8 * bits.size:
            raise ValueError(f"a mask of shape {shape} has {8 * bits.size} bits")
        return cls(np.unpackbits(bits, count=count).reshape(shape))


@keras.utils.register_keras_serializable("kdprune")
class HeldZeros(MaskConstraint):
    """What `MaskConstraint` is called in files of earlier versions."""


def apply_masks(model: keras.Model, masks: Masks | None = None) -> keras.Model:
    """Zeroes the masked weights and makes them stay zero while the model learns.

    The zeros are kept by a constraint on the weight, which every Keras optimizer
    applies after its step: in `fit`, in a `Distiller`, in a loop of one's own, in any
    precision and under `tf.distribute`. No callback is needed. After training, call
    `strip_masks`; averages that an optimizer keeps of the weights (`use_ema`) are
    made zero again there, and there only.

    Args:
        model: A built Functional or Sequential model; left as it is.
        masks: Of `weight_masks` or `activation_masks`. Without any, the zeros that
            the model has in its kernels are kept.

    Returns:
        A new `keras.Model` of the same layers and names, not compiled.

    Raises:
        ValueError: If a mask is not of a weight of the model, or that weight is
            under another constraint.

    Example:
        >>> masked = apply_masks(model, weight_masks(model, relative_threshold=0.1))
        >>> masked.compile("adam", loss).fit(images, labels)
        >>> save_model(strip_masks(masked), "pruned.keras")
    """
    if not is_graph_model(model):
        raise ValueError(
            "weights are masked in built Functional and Sequential models. "
            f"Received: {type(model).__name__}; build it from keras.Input and calls of "
            "its layers."
        )
    masks = _zeros(model) if masks is None else masks
    variables = weights_by_name(model)
    layers = dict(named_layers(model))
    for name, mask in masks.items():
        if name not in variables or np.shape(mask) != tuple(variables[name].shape):
            known = tuple(variables[name].shape) if name in variables else "none"
            raise ValueError(
                f"masks are arrays of the shape of a weight. Received: {name!r} of "
                f"shape {np.shape(mask)}, where the model's is {known}"
            )
        path, _, weight = name.rpartition("/")
        setting = _CONSTRAINTS[weight]
        other = getattr(layers[path], setting, None) if setting else None
        if other is not None:
            raise ValueError(
                f"weight {name!r} is under a constraint already "
                f"({type(other).__name__}); remove that (strip_masks), then mask it"
            )
    return _rebuilt(model, masks, constrain=True)


def strip_masks(model: keras.Model) -> keras.Model:
    """Removes what `apply_masks` added; every masked weight is exactly zero.

    Returns:
        A plain `keras.Model` of the same layers, weights and names.
    """
    return _rebuilt(model, _applied_masks(model), constrain=False)


def check_masks(model: keras.Model, masks: Masks) -> None:
    """Raises a `ValueError` unless every masked weight is exactly zero.

    Args:
        model: The model, best as loaded from its file.
        masks: What it was masked with.

    Raises:
        ValueError: If a weight is missing or not zero; the message names it.
    """
    variables = weights_by_name(model)
    for name, mask in masks.items():
        if name not in variables:
            raise ValueError(f"masks are of weights of the model. Received: {name!r}")
        count = np.count_nonzero(variables[name].numpy()[~np.asarray(mask, bool)])
        if count:
            raise ValueError(
                f"expected zeros wherever {name!r} is masked. Received: {count} other "
                "weights; train what apply_masks returns and save what strip_masks "
                "returns"
            )


def weights_by_name(model: keras.Model) -> dict[str, Any]:
    """`{"layer/weight": variable}` of the weights that masks may be for.

    Layers of nested models are `"nested/layer"`.
    """
    return {
        f"{path}/{weight}": getattr(layer, weight)
        for path, layer in named_layers(model)
        for weight, setting in _CONSTRAINTS.items()
        if isinstance(getattr(layer, weight, None), tf.Variable)
        and (setting is None or hasattr(layer, setting))
    }


def _zeros(model):
    masks = {
        name: variable.numpy() != 0
        for name, variable in weights_by_name(model).items()
        if name.endswith(("/kernel", "_kernel"))
    }
    return {name: mask for name, mask in masks.items() if not mask.all()}


def _applied_masks(model):
    """The masks that constraints of a model keep."""
    masks = {}
    for path, layer in named_layers(model):
        for weight, setting in _CONSTRAINTS.items():
            constraint = getattr(layer, setting, None) if setting else None
            if isinstance(constraint, MaskConstraint):
                masks[f"{path}/{weight}"] = constraint.mask
    return masks


def _rebuilt(model, masks, constrain):
    """The same model, masked, with constraints that keep the zeros or without."""
    layers = dict(named_layers(model))
    settings: dict[str, dict] = defaultdict(dict)
    for name, mask in masks.items():
        path, _, weight = name.rpartition("/")
        if _CONSTRAINTS[weight]:
            constraint = MaskConstraint(mask) if constrain else None
            settings[path][_CONSTRAINTS[weight]] = constraint
    changes = {id(layers[path]): entries for path, entries in settings.items()}
    rebuilt = rebuild(model, config=lambda layer: changes.get(id(layer)))
    variables = weights_by_name(rebuilt)
    for name, mask in masks.items():
        values = variables[name].numpy()
        variables[name].assign(np.where(mask, values, np.zeros_like(values)))
    return rebuilt


# --- Scores of weights ---


def _scores(model, layers, criterion, data):
    """`{layer: score of each weight of its kernel}`."""
    kernels = {name: kernel_of(layer).numpy() for name, layer in layers.items()}
    if criterion == "magnitude":
        return {name: np.abs(kernel) for name, kernel in kernels.items()}
    if data is None:
        raise ValueError(
            f"{criterion=} is measured on images: give data=(images, labels). "
            "Received: None"
        )
    gradients = _gradients(model, [*map(kernel_of, layers.values())], data)
    if criterion == "taylor":
        gradients = [
            gradient * kernel
            for gradient, kernel in zip(gradients, kernels.values(), strict=True)
        ]
    return {name: np.abs(g) for name, g in zip(kernels, gradients, strict=True)}


def _gradients(model, variables, data):
    """The gradient of the mean loss over all images, one array per variable."""

    @tf.function(reduce_retracing=True)
    def step(images, labels):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = tf.reduce_sum(label_loss(model, images, labels))
        return tape.gradient(loss, variables, unconnected_gradients="zero")

    totals, count = [0.0] * len(variables), 0
    for images, labels in batches(data, model):
        new = step(images, labels)
        totals = [total + part.numpy() for total, part in zip(totals, new, strict=True)]
        count += len(tf.nest.flatten(images)[0])
    return [total / count for total in totals]
