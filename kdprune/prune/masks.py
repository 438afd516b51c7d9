"""One-shot masks: which weights go, by their size, their gradient, or activations.

Masks are a dict from `"layer/weight"`, such as `"conv1/kernel"`, to a boolean array
of the weight's shape, True where a weight stays. `hold_masks` applies them.
"""

import numpy as np
import tensorflow as tf

from kdprune.prune.channels.groups import find_channels, find_groups
from kdprune.prune.channels.importance import ChannelStatistics, activation_rate
from kdprune.prune.holding import weights_by_name
from kdprune.prune.inference import batches, label_loss
from kdprune.prune.magnitude import layers_to_prune

CRITERIA = ("magnitude", "gradient", "taylor")


def weight_masks(
    model, threshold=None, *, beta=None, by="magnitude", data=None, exclude=()
):
    """Masks the weights that score below a threshold.

    Kernels of Conv2D and Dense layers are masked, each weight for itself. With L the
    model's mean cross-entropy over all of `data`, in inference mode, a weight's score
    is

        "magnitude"   |w|
        "gradient"    |dL/dw|
        "taylor"      |w * dL/dw|, the loss's change by its removal, to first order

    Zeros save bytes after compression, not memory or time.

    Reference: the last is the connection sensitivity of Lee et al., 2019,
    https://arxiv.org/abs/1810.02340, section 4, but for its scale.

    Args:
        model: A Functional or Sequential `keras.Model`; left as it is.
        threshold: Weights that score less go; in the unit of the score.
        beta: In place of `threshold`: a fraction, in (0, 1), of the largest score in
            the layer.
        by: One of `CRITERIA`.
        data: For gradients: float images and their labels, arrays `(images, labels)`
            or an iterable of batches of such pairs.
        exclude: Names of layers to leave alone.

    Returns:
        The masks of the kernels, `{"layer/kernel": booleans}`.

    Raises:
        ValueError: If an argument is not valid, gradients lack images or labels, or
            nothing would be left of a layer.
    """
    if (threshold is None) == (beta is None):
        raise ValueError(
            "give either threshold or beta. "
            f"Received: threshold={threshold}, beta={beta}"
        )
    if threshold is not None and not threshold > 0:
        raise ValueError(f"threshold must be positive. Received: {threshold}")
    if beta is not None and not 0 < beta < 1:
        raise ValueError(f"beta must be in (0, 1). Received: {beta}")
    if by not in CRITERIA:
        raise ValueError(f"by must be one of {', '.join(CRITERIA)}. Received: {by!r}")
    layers = layers_to_prune(model, exclude=exclude)
    masks = {}
    for name, scores in _scores(model, layers, by, data).items():
        limit = threshold if beta is None else beta * scores.max()
        masks[f"{name}/kernel"] = scores >= limit
        if not masks[f"{name}/kernel"].any():
            raise ValueError(
                f"threshold {threshold} leaves nothing of layer {name!r}, whose "
                f"largest score is {scores.max():.3g}; lower it, or exclude the layer"
            )
    return masks


def activation_masks(model, alpha, data, ignore=()):
    """Masks all weights that make the channels that are seldom active.

    A channel's rate is the share of its activations that are not zero, over images
    and positions, measured where the channel is used, after normalization and
    activation. Channels with a rate below `alpha` become zero altogether: filters,
    biases, and the factors, shifts and means of normalizations. Channels that are
    added to each other are judged, and go, together.

    With `prune_channels(..., importance="activation_rate", threshold=alpha)` the same
    channels are removed, and the model gets smaller and faster.

    Args:
        model: A built Functional or Sequential model; left as it is.
        alpha: In (0, 1].
        data: Float images, an array or an iterable of batches.
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
    masks = {}
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
    return masks


def _scores(model, layers, by, data):
    """`{layer: score of each weight of its kernel}`."""
    kernels = {name: layer.kernel.numpy() for name, layer in layers.items()}
    if by == "magnitude":
        return {name: np.abs(kernel) for name, kernel in kernels.items()}
    if data is None:
        raise ValueError(
            f"by={by!r} is measured on images: give data=(images, labels). "
            "Received: None"
        )
    gradients = _gradients(model, [layer.kernel for layer in layers.values()], data)
    if by == "taylor":
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
    for images, labels in batches(data, labelled=True):
        new = step(images, labels)
        totals = [total + part.numpy() for total, part in zip(totals, new, strict=True)]
        count += len(labels)
    return [total / count for total in totals]
