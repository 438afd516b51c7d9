"""How much each channel of a coupled group matters.

An importance is a function of a `Group` and `ChannelStatistics` that returns one
number per channel; the channels with the smallest go first. Its settings are given
with `functools.partial(l2, reduction="max", normalize="none")`, and any function of
two arguments will do in its place. Those in `IMPORTANCES` judge a channel by every
layer that makes (or uses) it: the layers' scores are brought to one scale by
`normalize` and become one by `reduction`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from kdprune._registry import add, nearest
from kdprune.prune.channels.graph import ChannelGraph
from kdprune.prune.channels.groups import Group, InputMember, Member
from kdprune.prune.inference import batches, label_loss, run_layers

# One number for each channel of a group.
Scores = np.ndarray
Importance = Callable[[Group, "ChannelStatistics"], Any]

_REDUCTIONS: dict[str, Callable] = {"mean": np.mean, "max": np.max, "sum": np.sum}
_SCALES: dict[str, Callable] = {
    "mean": np.mean,
    "max": np.max,
    "none": lambda scores: 1.0,
}


def l1(
    group: Group,
    statistics: ChannelStatistics | None = None,
    reduction: str = "mean",
    normalize: str = "mean",
) -> Scores:
    """The sum of a filter's absolute weights.

    Reference: Li et al., 2017, https://arxiv.org/abs/1608.08710, section 3.1.
    """
    scores = [np.abs(filters).sum(axis=1) for filters in _filters(group)]
    return _combine(scores, reduction, normalize)


def l2(
    group: Group,
    statistics: ChannelStatistics | None = None,
    reduction: str = "mean",
    normalize: str = "mean",
) -> Scores:
    """The Euclidean norm of a filter."""
    scores = [np.linalg.norm(filters, axis=1) for filters in _filters(group)]
    return _combine(scores, reduction, normalize)


def fpgm(
    group: Group,
    statistics: ChannelStatistics | None = None,
    reduction: str = "mean",
    normalize: str = "mean",
) -> Scores:
    """The sum of a filter's distances to the others, small near their median.

    Reference: He et al., 2019, https://arxiv.org/abs/1811.00250, section 3.3.
    """
    scores = [_distances(filters).sum(axis=1) for filters in _filters(group)]
    return _combine(scores, reduction, normalize)


def bn_scale(
    group: Group,
    statistics: ChannelStatistics | None = None,
    reduction: str = "mean",
    normalize: str = "none",
) -> Scores:
    """The size of batch normalization's factor; a group without one is kept.

    Reference: Liu et al., 2017, https://arxiv.org/abs/1708.06519, section 3.
    """
    if not group.scales:
        return np.full(len(group.roots), np.inf)
    scores = [
        np.abs(member.rows(member.weight.variable.numpy())).mean(axis=1)
        for member in group.scales
    ]
    return _combine(scores, reduction, normalize)


def taylor(
    group: Group,
    statistics: ChannelStatistics,
    reduction: str = "sum",
    normalize: str = "none",
) -> Scores:
    """The squared change of the loss when a filter is removed, to first order.

    The square of the sum of gradient times weight over the filter, averaged over
    batches, comparable across layers as it is.

    Reference: Molchanov et al., 2019, https://arxiv.org/abs/1906.10771, eq. 8.
    """
    scores = [statistics.taylor(member) for member in group.makers]
    return _combine(scores, reduction, normalize)


def gradient(
    group: Group,
    statistics: ChannelStatistics,
    reduction: str = "mean",
    normalize: str = "mean",
) -> Scores:
    """The mean size of the loss's gradient by a filter's weights."""
    scores = [statistics.gradient(member) for member in group.makers]
    return _combine(scores, reduction, normalize)


def activation_rate(
    group: Group,
    statistics: ChannelStatistics,
    reduction: str = "mean",
    normalize: str = "none",
) -> Scores:
    """The share of a channel's activations that are not zero.

    Measured where the channel is used, after normalization and activation. It is
    1 - APoZ, the average percentage of zeros.

    Reference: Hu et al., 2016, https://arxiv.org/abs/1607.03250, section 3.
    """
    scores = [statistics.activation_rate(member) for member in group.inputs]
    return _combine(scores, reduction, normalize)


def activation_mean(
    group: Group,
    statistics: ChannelStatistics,
    reduction: str = "mean",
    normalize: str = "mean",
) -> Scores:
    """The mean size of a channel's activations, where they are used."""
    scores = [statistics.activation_mean(member) for member in group.inputs]
    return _combine(scores, reduction, normalize)


def random(
    group: Group, statistics: ChannelStatistics | None = None, seed: int = 0
) -> Scores:
    """Uniform random numbers, the same for a seed and a layer's name."""
    generator = np.random.default_rng([seed, zlib.crc32(group.name.encode())])
    return generator.uniform(size=len(group.roots))


IMPORTANCES: dict[str, Importance] = {
    "l1": l1,
    "l2": l2,
    "fpgm": fpgm,
    "bn_scale": bn_scale,
    "taylor": taylor,
    "gradient": gradient,
    "activation_rate": activation_rate,
    "apoz": activation_rate,
    "activation_mean": activation_mean,
    "random": random,
}


def register_importance(
    name: str, function: Importance | None = None, *, replace: bool = False
) -> Any:
    """Adds an importance that `plan_channels` and recipes know by its name.

    Args:
        name: Lower-case letters, digits and underscores.
        function: `function(group, statistics)` takes a `Group` of coupled channels and
            the `ChannelStatistics` of the model, and returns one number for each
            channel of the group, the least important smallest; infinite for those
            that must stay. A recipe's `options` are given by name. If it is left out, a
            decorator is returned.
        replace: Whether an importance of this name may be replaced.

    Returns:
        The function, or the decorator.

    Raises:
        ValueError: If the name is not fit or is taken, or the function not callable.

    Example:
        >>> @register_importance("largest_weight")
        ... def largest_weight(group, statistics):
        ...     rows = [m.rows(m.weight.variable.numpy()) for m in group.makers]
        ...     return np.max([np.abs(row).max(axis=1) for row in rows], axis=0)
        >>> prune_channels(model, 0.5, importance="largest_weight")
    """
    if function is None:
        return lambda given: register_importance(name, given, replace=replace)
    return add(IMPORTANCES, "importance", name, function, replace)


def find_importance(importance: str | Importance) -> Importance:
    """Returns the function of that name, or the function itself.

    Raises:
        ValueError: If there is none of that name.
    """
    if callable(importance):
        return importance
    if importance not in IMPORTANCES:
        raise ValueError(
            f"importance must be one of {', '.join(IMPORTANCES)}, or a function of a "
            f"group and statistics. Received: {importance!r}"
            f"{nearest(importance, IMPORTANCES)}"
        )
    return IMPORTANCES[importance]


# --- What data says about channels ---


class ChannelStatistics:
    """Measures a model on data for the importances that need it.

    Args:
        graph: The channels of the model, `graph.model`.
        data: Images, or `(images, labels)`, as `kdprune.prune.inference.batches`
            takes them; `None` serves importances that look at weights alone.
    """

    def __init__(self, graph: ChannelGraph, data: Any = None) -> None:
        self.graph = graph
        self.data = data

    def gradient(self, member: Member) -> Scores:
        """The mean size of the loss's gradient by each weight, `(channels,)`."""
        gradient, _ = self._gradients[_variable(member)]
        return gradient[member.index].mean(axis=1)

    def taylor(self, member: Member) -> Scores:
        """The squared first-order change of the loss by removal, `(channels,)`."""
        _, taylor = self._gradients[_variable(member)]
        return taylor[member.index].sum(axis=1)

    def activation_rate(self, member: InputMember) -> Scores:
        """The share of a layer's inputs that are not zero, `(channels,)`."""
        return self._activations[id(member.record.layer)][0][member.index].mean(axis=1)

    def activation_mean(self, member: InputMember) -> Scores:
        """The mean size of a layer's inputs, `(channels,)`."""
        return self._activations[id(member.record.layer)][1][member.index].mean(axis=1)

    @cached_property
    def _gradients(self):
        """`{id(variable): (mean |g|, mean squared sum of g * w)}` by filter."""
        weights = [w for w in self.graph.weights() if w.makes is not None]
        variables = [weight.variable for weight in weights]

        @tf.function(reduce_retracing=True)
        def step(images, labels):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                loss = tf.reduce_mean(label_loss(self.graph.model, images, labels))
            sums = []
            for weight, gradient in zip(
                weights, tape.gradient(loss, variables, None, "zero"), strict=True
            ):
                rest = [i for i in range(gradient.shape.rank) if i != weight.makes]
                change = tf.reduce_sum(gradient * weight.variable, rest)
                sums.append((tf.reduce_mean(tf.abs(gradient), rest), change**2))
            return sums

        means = self._averaged(lambda images, labels: step(images, labels), True)
        return {id(v): pair for v, pair in zip(variables, means, strict=True)}

    @cached_property
    def _activations(self):
        """`{id(layer): (share not zero, mean size)}` by input channel."""
        layers = [record.layer for record in self._users()]

        @tf.function(reduce_retracing=True)
        def step(images):
            seen: dict[int, list] = {}

            def call_layer(layer, args, kwargs):
                if any(layer is one for one in layers):
                    inputs = tf.nest.flatten((args, kwargs))[0]
                    seen.setdefault(id(layer), []).append(_rate_and_mean(inputs))
                return layer(*args, **kwargs)

            run_layers(self.graph.model, images, call_layer)
            # A shared layer counts by the mean of its calls.
            return [tf.reduce_mean(seen[id(layer)], axis=0) for layer in layers]

        means = self._averaged(lambda images, _: step(images), False)
        return {id(layer): pair for layer, pair in zip(layers, means, strict=True)}

    def _averaged(self, step, labelled):
        """Averages what `step` returns over the batches of the data."""
        if self.data is None:
            wanted = "data=(images, labels)" if labelled else "data=images"
            raise ValueError(
                f"this importance is measured on images: give {wanted}. Received: None"
            )
        totals: list[np.ndarray] | None = None
        count = 0
        for images, labels in batches(
            self.data, self.graph.model if labelled else None
        ):
            size = len(tf.nest.flatten(images)[0])
            new = [np.stack(pair) * size for pair in step(images, labels)]
            totals = new if totals is None else list(map(np.add, totals, new))
            count += size
        return [total / count for total in totals or ()]

    def _users(self):
        return [
            record
            for record in self.graph.records.values()
            if any(weight.uses is not None for weight in record.result.weights)
        ]


def _rate_and_mean(inputs):
    axes = list(range(inputs.shape.rank - 1))
    rate = tf.reduce_mean(tf.cast(inputs != 0, tf.float32), axes)
    return tf.stack([rate, tf.reduce_mean(tf.abs(tf.cast(inputs, tf.float32)), axes)])


def _variable(member):
    return id(member.weight.variable)


# --- Scores of weights ---


def _filters(group):
    return [member.rows(member.weight.variable.numpy()) for member in group.makers]


def _distances(filters):
    squares = np.square(filters).sum(axis=1)
    products = filters @ filters.T
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0.0))


def _combine(scores, reduction, normalize):
    """One score per channel of those that the layers give, shape `(channels,)`."""
    for name, value, known in (
        ("reduction", reduction, _REDUCTIONS),
        ("normalize", normalize, _SCALES),
    ):
        if value not in known:
            raise ValueError(
                f"{name} must be one of {', '.join(known)}. Received: {value!r}"
            )
    scaled = []
    for layer in scores:
        scale = _SCALES[normalize](layer)
        scaled.append(layer / scale if scale else layer)
    return _REDUCTIONS[reduction](scaled, axis=0)
