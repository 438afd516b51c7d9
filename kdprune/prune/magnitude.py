"""Magnitude pruning: the smallest weights of each layer are set to zero."""

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras

_PRUNABLE = (keras.layers.Conv2D, keras.layers.Dense)
_NOT_PRUNABLE = (keras.layers.DepthwiseConv2D, keras.layers.Conv2DTranspose)


def prune_magnitude(
    model, sparsity, *, schedule="polynomial", begin=0, end, frequency=100, exclude=()
):
    """Wraps a model so that training zeroes its smallest weights.

    Reference: Zhu & Gupta, 2017, https://arxiv.org/abs/1710.01878, section 3.

    Kernels of Conv2D and Dense layers are pruned, each to its own sparsity. The
    masks hold during training; fit with `pruning_callbacks()`, then call
    `strip_pruning`.

    Args:
        model: A float32 Functional or Sequential `keras.Model`.
        sparsity: Share of zero weights to reach, in [0, 1), for all layers or as
            a dict from layer name to share (layers not named are left alone).
        schedule: "polynomial" (cubic, from none) or "constant" (all at `begin`).
        begin: First step that prunes, counted from 1.
        end: Step that reaches the sparsity of "polynomial"; masks stay as they are
            after it.
        frequency: Steps between two updates of the masks.
        exclude: Names of layers to leave alone.

    Returns:
        A new, wrapped `keras.Model` with the same weights.

    Raises:
        ValueError: If a sparsity, schedule, step or layer name is not valid, or if
            there are layers to prune inside a nested model.
    """
    shares = _shares(model, sparsity, exclude)

    def wrap(layer):
        share = shares.get(layer.name, 0.0)
        if not share:
            return layer.__class__.from_config(layer.get_config())
        return tfmot.sparsity.keras.prune_low_magnitude(
            layer.__class__.from_config(layer.get_config()),
            pruning_schedule=_schedule(schedule, share, begin, end, frequency),
        )

    wrapped = keras.models.clone_model(model, clone_function=wrap)
    _copy_weights(model, wrapped)
    return wrapped


def pruning_callbacks():
    """The callbacks that `fit` needs for a model of `prune_magnitude`."""
    return [tfmot.sparsity.keras.UpdatePruningStep()]


def strip_pruning(model):
    """Removes the pruning wrappers; the zeros stay where they are.

    Returns:
        A plain `keras.Model` of the same layers, weights and names.
    """
    for layer in model.layers:
        # Averaged weights are not zero where a mask came late.
        for weight, mask, _ in getattr(layer, "pruning_vars", ()):
            weight.assign(weight.numpy() * mask.numpy())
    stripped = tfmot.sparsity.keras.strip_pruning(model)
    # Rebuilt, since its layers and their variables still bear the wrappers' names.
    plain = keras.models.clone_model(stripped)
    plain.set_weights(stripped.get_weights())
    return plain


def sparsity_below(model, beta):
    """The share of each layer's weights under a threshold relative to its largest.

    With these shares, pruning to a constant sparsity zeroes exactly the weights
    with |w| < beta * max|w|, the articles' rule.

    Args:
        model: `keras.Model`.
        beta: Threshold as a fraction of the layer's largest |w|, in (0, 1).

    Returns:
        Dict from the name of each prunable layer to a share in [0, 1).
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta must be in (0, 1). Received: {beta}")
    shares = {}
    for layer in _prunable(model):
        weights = np.abs(layer.kernel.numpy())
        shares[layer.name] = float(np.mean(weights < beta * weights.max()))
    return shares


def layer_sparsity(model):
    """The share of zeros in the kernel of every Conv2D and Dense layer, by name."""
    return {
        layer.name: float(np.mean(layer.kernel.numpy() == 0))
        for layer in _prunable(model)
    }


def _prunable(model):
    return [
        layer
        for layer in model.layers
        if isinstance(layer, _PRUNABLE) and not isinstance(layer, _NOT_PRUNABLE)
    ]


def _nested(model):
    """Names of the models among the layers that have kernels of their own."""
    return [
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.Model)
        and any(isinstance(inner, _PRUNABLE) for inner in layer.submodules)
    ]


def _shares(model, sparsity, exclude):
    nested = _nested(model)
    names = [layer.name for layer in _prunable(model)] + nested
    shares = sparsity if isinstance(sparsity, dict) else dict.fromkeys(names, sparsity)
    unknown = [name for name in [*shares, *exclude] if name not in names]
    if unknown:
        raise ValueError(
            f"layers to prune must be among {', '.join(names)}. "
            f"Received: {', '.join(unknown)}"
        )
    inside = [name for name in shares if name in nested and name not in exclude]
    if inside:
        raise ValueError(
            "layers inside a nested model can't be pruned. "
            f"Received: {', '.join(inside)}; exclude it, or add its layers one by one."
        )
    wrong = {name: share for name, share in shares.items() if not 0 <= share < 1}
    if wrong:
        raise ValueError(f"sparsity must be in [0, 1). Received: {wrong}")
    return {name: share for name, share in shares.items() if name not in exclude}


def _schedule(name, sparsity, begin, end, frequency):
    """TFMOT's schedule: it prunes at `begin` and every `frequency` steps up to `end`.

    It counts steps from 1, so that a `begin` of 0 would wait for `frequency`.
    """
    if not 0 <= begin <= end or not end or frequency < 1:
        raise ValueError(
            "expected 0 <= begin <= end, an end and a frequency of at least 1. "
            f"Received: begin={begin}, end={end}, frequency={frequency}"
        )
    if name == "polynomial":
        begin = min(begin, end - 1)
        frequency = min(frequency, end - begin)
        # Starts later by what doesn't divide, so that the last update is at `end`.
        begin += (end - begin) % frequency
        return tfmot.sparsity.keras.PolynomialDecay(
            0.0, sparsity, begin, end, frequency=frequency
        )
    if name == "constant":
        return tfmot.sparsity.keras.ConstantSparsity(
            sparsity, max(begin, 1), end, frequency=frequency
        )
    raise ValueError(f"schedule must be 'polynomial' or 'constant'. Received: {name!r}")


def _copy_weights(model, wrapped):
    """Copies by layer; a wrapper's own weights (masks, thresholds) come after."""
    for source, target in zip(model.layers, wrapped.layers, strict=True):
        inner = getattr(target, "layer", target)
        inner.set_weights(source.get_weights())
