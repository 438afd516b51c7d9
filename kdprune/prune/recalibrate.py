"""Batch normalization statistics of a model whose weights or channels changed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune._graph import check_float_model, frozen_layers, is_graph_model, walk
from kdprune._log import logger
from kdprune._registry import suggesting
from kdprune.models.kernels import kernel_name
from kdprune.prune.inference import batches, run_layers


@suggesting
def recalibrate_batch_norm(model: keras.Model, data: Any) -> None:
    """Recalibrates batch normalization's means and variances, in place.

    After channels or blocks are removed, the features that reach a normalization
    layer are not those whose statistics it holds, which costs more accuracy than
    the removal itself. Each batch is normalized by its own statistics, as in
    training, while dropout and the like are off; the moving statistics become
    those of all the data (mean of means, and variance within plus between
    batches). Nothing else changes; frozen layers are measured too, which is logged.
    Normalization that the graph does not show (inside a subclassed model, or a layer of
    one's own) is left as it is and logged.

    Reference: Wu and Johnson, 2021, https://arxiv.org/abs/2105.07576, section 3.

    Args:
        model: A built Functional or Sequential model.
        data: Images, uint8 or floats in [0, 1]: an array, a pair
            `(images, labels)`, or an iterable of batches. A few hundred are
            enough.

    Raises:
        ValueError: If the model has no graph, or there are no images.
    """
    check_float_model(model)
    held = set(map(id, frozen_layers(model).values()))
    say_frozen([one.name for one in _normalizations(model).values() if id(one) in held])
    _recalibrate(model, data)


def recalibrate_after(before: keras.Model, after: keras.Model, data: Any) -> list[str]:
    """Recalibrates what was made of a model, in place, and leaves be what is frozen.

    Of the frozen normalizations those are measured alone which channels or blocks were
    removed in front of: what they hold is not of what reaches them any more.

    Args:
        before: The model.
        after: What is left of it; its layers are called as they were.
        data: As for `recalibrate_batch_norm`.

    Returns:
        Names of the frozen normalizations that were measured; see `say_frozen`.
    """
    check_float_model(after)
    held = frozen_layers(after).values()
    was, now = _inputs_of_layers(before), _inputs_of_layers(after)
    frozen = [one for one in _normalizations(after).values() if one in held]
    same = [one for one in frozen if was.get(one.name) == now.get(one.name)]
    _recalibrate(after, data, same)
    return [one.name for one in frozen if one not in same]


def say_frozen(names: list[str]) -> None:
    """Logs that frozen normalizations got other statistics, if there are any."""
    if names:
        logger.warning(
            "statistics of frozen normalizations are measured again: %s",
            ", ".join(dict.fromkeys(names)),
        )


class _Computed(str):
    """Stands for a tensor: equal where its channels, those that are left, are the same.

    That is where the same layers made them, and none that sums over channels lost any.
    """


def _inputs_of_layers(model: keras.Model) -> dict[str, list[list[str]]]:
    """What each layer is called on, a list for each call, by the layer's name."""
    found: dict[str, list[list[str]]] = defaultdict(list)

    def run(model, inputs):
        def call(node, args, kwargs):
            layer = node.layer
            given = tf.nest.flatten((args, kwargs))
            given = [one for one in given if isinstance(one, _Computed)]
            if is_graph_model(layer):
                outputs = run(layer, given)
                return tf.nest.pack_sequence_as(layer._nested_outputs, outputs)
            sums = kernel_name(layer) in ("kernel", "pointwise_kernel")
            widths = [t.shape[-1] for t in node.keras_inputs] if sums else []
            content = repr((layer.name, widths, given)).encode()
            found[layer.name].append(given)
            made = _Computed(hashlib.sha256(content).hexdigest())
            return tf.nest.map_structure(lambda _: made, node.outputs)

        return walk(model, inputs, call)

    run(model, [_Computed(place) for place, _ in enumerate(model.inputs)])
    return found


def _recalibrate(model: keras.Model, data: Any, spared: Collection[Any] = ()) -> None:
    found = {
        key: one for key, one in _normalizations(model).items() if one not in spared
    }
    if not found:
        return
    totals: dict[str, tuple] = {}
    step = tf.function(
        lambda images: _moments(model, found, images), reduce_retracing=True
    )
    for images, _ in batches(data):
        for key, (count, mean, variance) in step(images).items():
            new = tuple(np.asarray(x, np.float64) for x in (count, mean, variance))
            totals[key] = _merged(totals[key], new) if key in totals else new
    hidden = [layer.name for key, layer in found.items() if key not in totals]
    if hidden:
        logger.warning(
            "batch normalization that the model's graph does not show is not "
            "recalibrated: %s",
            ", ".join(hidden),
        )
    for key, (_, mean, variance) in totals.items():
        layer = found[key]
        layer.moving_mean.assign(mean.astype(layer.moving_mean.dtype.name))
        layer.moving_variance.assign(variance.astype(layer.moving_mean.dtype.name))


def _moments(model, found, images):
    """`{key: (count, mean, variance)}` of the input of every one that was found."""
    seen: dict[str, tuple] = {}

    def call_layer(layer, args, kwargs):
        key = str(id(layer))
        if key not in found:
            return layer(*args, **kwargs)
        inputs = tf.cast(args[0], tf.float32)
        axes = [axis for axis in range(inputs.shape.rank) if axis not in layer.axis]
        mean, variance = tf.nn.moments(inputs, axes)
        count = tf.cast(tf.size(inputs) / tf.size(mean), tf.float32)
        new = (count, mean, variance)
        seen[key] = _merged(seen[key], new) if key in seen else new  # Shared layer.
        return tf.cast(_normalized(layer, inputs, mean, variance), args[0].dtype)

    run_layers(model, images, call_layer)
    return seen


def _normalized(layer, inputs, mean, variance):
    shape = [1] * inputs.shape.rank
    for axis in layer.axis:
        shape[axis] = inputs.shape[axis]

    def spread(values):
        return (
            None if values is None else tf.reshape(tf.cast(values, tf.float32), shape)
        )

    return tf.nn.batch_normalization(
        inputs,
        spread(mean),
        spread(variance),
        spread(layer.beta),
        spread(layer.gamma),
        layer.epsilon,
    )


def _merged(one, other):
    """The count, mean and variance of two sets of numbers together."""
    (count, mean, variance), (count_2, mean_2, variance_2) = one, other
    total = count + count_2
    share = count_2 / total
    shift = mean_2 - mean
    within = variance * (1 - share) + variance_2 * share
    return total, mean + shift * share, within + shift**2 * share * (1 - share)


def _normalizations(model):
    """`{key: layer}` of the batch normalizations, those of nested models too."""
    return {
        str(id(layer)): layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    }
