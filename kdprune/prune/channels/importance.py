"""How much each channel of a coupled group matters.

An importance is a function of a `Group` and an `Evidence` that returns one number
per channel; the channels with the smallest go first. Its settings are given with
`functools.partial(l2, reduction="max", normalize="none")`, and any function of two
arguments will do in its place. Those in `IMPORTANCES` judge a channel by every
layer that makes (or uses) it: the layers' scores are brought to one scale by
`normalize` and become one by `reduction`.
"""

import zlib

import numpy as np

_REDUCTIONS = {"mean": np.mean, "max": np.max, "sum": np.sum}
_SCALES = {"mean": np.mean, "max": np.max, "none": lambda scores: 1.0}


def l1(group, evidence=None, reduction="mean", normalize="mean"):
    """The sum of a filter's absolute weights.

    Reference: Li et al., 2017, https://arxiv.org/abs/1608.08710, section 3.1.
    """
    scores = [np.abs(filters).sum(axis=1) for filters in _filters(group)]
    return _combine(scores, reduction, normalize)


def l2(group, evidence=None, reduction="mean", normalize="mean"):
    """The Euclidean norm of a filter."""
    scores = [np.linalg.norm(filters, axis=1) for filters in _filters(group)]
    return _combine(scores, reduction, normalize)


def fpgm(group, evidence=None, reduction="mean", normalize="mean"):
    """The sum of a filter's distances to the others, small near their median.

    Reference: He et al., 2019, https://arxiv.org/abs/1811.00250, section 3.3.
    """
    scores = [_distances(filters).sum(axis=1) for filters in _filters(group)]
    return _combine(scores, reduction, normalize)


def bn_scale(group, evidence=None, reduction="mean", normalize="none"):
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


def taylor(group, evidence, reduction="sum", normalize="none"):
    """The squared change of the loss when a filter is removed, to first order.

    The square of the sum of gradient times weight over the filter, averaged over
    batches, comparable across layers as it is.

    Reference: Molchanov et al., 2019, https://arxiv.org/abs/1906.10771, eq. 8.
    """
    scores = [evidence.taylor(member) for member in group.makers]
    return _combine(scores, reduction, normalize)


def gradient(group, evidence, reduction="mean", normalize="mean"):
    """The mean size of the loss's gradient by a filter's weights."""
    scores = [evidence.gradient(member) for member in group.makers]
    return _combine(scores, reduction, normalize)


def activation_rate(group, evidence, reduction="mean", normalize="none"):
    """The share of a channel's activations that are not zero.

    Measured where the channel is used, after normalization and activation. It is
    1 - APoZ, the average percentage of zeros.

    Reference: Hu et al., 2016, https://arxiv.org/abs/1607.03250, section 3.
    """
    scores = [evidence.activation_rate(member) for member in group.inputs]
    return _combine(scores, reduction, normalize)


def activation_mean(group, evidence, reduction="mean", normalize="mean"):
    """The mean size of a channel's activations, where they are used."""
    scores = [evidence.activation_mean(member) for member in group.inputs]
    return _combine(scores, reduction, normalize)


def random(group, evidence=None, seed=0):
    """Uniform random numbers, the same for a seed and a layer's name."""
    generator = np.random.default_rng([seed, zlib.crc32(group.name.encode())])
    return generator.uniform(size=len(group.roots))


IMPORTANCES = {
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


def find_importance(importance):
    """Returns the function of that name, or the function itself.

    Raises:
        ValueError: If there is none of that name.
    """
    if callable(importance):
        return importance
    if importance not in IMPORTANCES:
        raise ValueError(
            f"importance must be one of {', '.join(IMPORTANCES)}, or a function of a "
            f"group and evidence. Received: {importance!r}"
        )
    return IMPORTANCES[importance]


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
