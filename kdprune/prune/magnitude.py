"""Magnitude pruning: the smallest weights of each layer are set to zero."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras

from kdprune._graph import frozen_layers, named_layers, rebuild, remake
from kdprune._log import logger
from kdprune._registry import suggesting
from kdprune.models.counts import kernels
from kdprune.models.kernels import (
    choose_layers,
    kernel_name,
    kernel_of,
    left_out,
    say_left_out,
    share_of_zeros,
)

# Sparsity that rounding and ties may cost a layer before it counts as missed.
_TOLERANCE = 0.005


@suggesting
def prune_magnitude(
    model: keras.Model,
    sparsity: float | Mapping[str, float],
    *,
    schedule: str = "polynomial",
    begin: int = 0,
    end: int,
    frequency: int = 100,
    exclude: Collection[str] = (),
    pattern: str | None = None,
) -> keras.Model:
    """Wraps a model so that training zeroes its smallest weights.

    Reference: Zhu & Gupta, 2017, https://arxiv.org/abs/1710.01878, section 3.

    Kernels of Conv2D, Conv2DTranspose and Dense layers and the pointwise ones of
    SeparableConv2D are pruned, each to its own sparsity, which is that of these kernels
    alone. Depthwise kernels stay dense: they are a few per cent of a mobile network's
    weights, and each of their channels has a few weights alone. So do the kernels of
    frozen layers. Both are pruned where `sparsity` names the layer; what else a frozen
    layer has stays as it is. What is left out unasked is logged with its share of the
    weights.

    The masks hold during training; fit with `pruning_callbacks()`, then call
    `strip_pruning`, which logs where the sparsity was not reached.

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
        pattern: None, where any weight may go alone. `"RxC"`, such as "4x1", zeroes
            whole blocks of R inputs by C outputs with the smallest mean |w|; for
            Dense layers only. `"M:N"`, such as "2:4", leaves the M largest of every N
            weights that are neighbours along the input channels (no transposed or
            depthwise kernels), all at the first step: the sparsity is 1 - M/N and the
            schedule "constant". (TFMOT's own `sparsity_m_by_n` names the zeros: N - M
            of N.) Neither makes TFLite faster.

    Returns:
        A new, wrapped `keras.Model` with the same weights.

    Raises:
        ValueError: If a sparsity, schedule, step, layer name or pattern is not
            valid, if there are layers to prune inside a nested model, or none at all.
    """
    shares = _shares(model, sparsity, exclude)
    if not isinstance(sparsity, Mapping):
        say_left_out(model, shares, exclude)
    elif held := [name for name in frozen_layers(model) if shares.get(name)]:
        logger.warning(
            "frozen layers lose weights, since they are named: %s; those that are left "
            "stay as they are",
            ", ".join(held),
        )
    layout = _layout(pattern, model, shares)
    if "sparsity_m_by_n" in layout and (schedule != "constant" or begin > 1):
        raise ValueError(
            f"pattern {pattern!r} is set at the first step: expected "
            f"schedule='constant' and begin=0. Received: {schedule!r}, begin={begin}"
        )

    def wrap(layer):
        share = shares.get(layer.name, 0.0)
        # The layers to prune are those of the model itself, not of one nested in it.
        if not share or not any(layer is own for own in model.layers):
            return None
        made = remake(layer)
        # Which TFMOT would look up by the layer's class.
        made.get_prunable_weights = lambda: [kernel_of(made)]
        return tfmot.sparsity.keras.prune_low_magnitude(
            made,
            pruning_schedule=_schedule(schedule, share, begin, end, frequency),
            **layout,
        )

    return rebuild(model, replace=wrap)


def pruning_callbacks() -> list:
    """The callbacks that `fit` needs for a model of `prune_magnitude`."""
    return [tfmot.sparsity.keras.UpdatePruningStep()]


def strip_pruning(model: keras.Model) -> keras.Model:
    """Removes the pruning wrappers; the zeros stay where they are.

    Args:
        model: What `prune_magnitude` returned, trained; left as it is.

    Returns:
        A plain `keras.Model` of the same layers, weights and names. Layers that miss
        the sparsity they were to reach are logged.
    """
    missed: list[str] = []

    def without_wrapper(layer):
        if not hasattr(layer, "pruning_vars"):
            return None
        return remake(layer.layer)

    def masked(old, new):
        if not hasattr(old, "pruning_vars"):
            return None
        # Averaged weights are not zero where a mask came late.
        masks = {id(weight): mask.numpy() for weight, mask, _ in old.pruning_vars}
        values = [w.numpy() * masks.get(id(w), 1) for w in old.layer.weights]
        missed.extend(_missed(old, values))
        return values

    plain = rebuild(model, replace=without_wrapper, weights=masked)
    if missed:
        logger.warning(
            "sparsity that was asked for and not reached: %s; it is reached at the "
            "schedule's end, but for ties and patterns that do not divide a kernel",
            "; ".join(missed),
        )
    return plain


def _missed(wrapper, values):
    """Lines for the kernels of a wrapped layer that have fewer zeros than asked."""
    schedule = wrapper.pruning_schedule
    asked = getattr(schedule, "final_sparsity", None)
    asked = getattr(schedule, "target_sparsity", 0.0) if asked is None else asked
    pruned = {id(weight) for weight, *_ in wrapper.pruning_vars}
    for weight, value in zip(wrapper.layer.weights, values, strict=True):
        found = float(np.mean(value == 0))
        granted = _TOLERANCE + math.prod(wrapper.block_size) / value.size
        if id(weight) in pruned and found < asked - granted:
            yield f"{wrapper.layer.name} {asked:.1%} asked, {found:.1%} found"


def sparsity_figures(
    model: keras.Model, asked: float, exclude: Collection[str] = ()
) -> dict[str, Any]:
    """What came of a sparsity that was asked of all layers to prune.

    Args:
        model: The pruned `keras.Model`, without wrappers.
        asked: The sparsity asked for.
        exclude: Names of layers that were left alone.

    Returns:
        `asked`; `found`, the share of zeros in the kernels that are pruned, and
        `of_all_kernels`, that in all; `left_out`, as
        `kdprune.models.kernels.left_out` gives it.
    """
    chosen = layers_to_prune(model, exclude=exclude)
    pruned = [kernel_of(layer).numpy() for layer in chosen.values()]
    everything = [
        np.asarray(kernel)
        for _, layer in named_layers(model)
        for kernel in kernels(layer)
    ]
    return {
        "asked": asked,
        "found": share_of_zeros(pruned),
        "of_all_kernels": share_of_zeros(everything),
        "left_out": left_out(model, chosen, exclude),
    }


def sparsity_below(
    model: keras.Model, relative_threshold: float, exclude: Collection[str] = ()
) -> dict[str, float]:
    """The share of each layer's weights under a threshold relative to its largest.

    With these shares, pruning to a constant sparsity zeroes exactly the weights
    with |w| < relative_threshold * max|w|, the articles' rule.

    Args:
        model: `keras.Model`.
        relative_threshold: Threshold as a fraction, in (0, 1), of the layer's largest
            |w|.
        exclude: Names of layers to leave alone.

    Returns:
        Dict from the name of each layer to prune to a share in [0, 1).

    Raises:
        ValueError: If the threshold or a name is not valid, if there are layers to
            prune inside a nested model, or none at all.
    """
    if not 0.0 < relative_threshold < 1.0:
        raise ValueError(
            f"relative_threshold must be in (0, 1). Received: {relative_threshold}"
        )
    layers = layers_to_prune(model, exclude=exclude)
    say_left_out(model, layers, exclude)
    shares = {}
    for name, layer in layers.items():
        weights = np.abs(kernel_of(layer).numpy())
        shares[name] = float(np.mean(weights < relative_threshold * weights.max()))
    return shares


def lamp_sparsity(
    model: keras.Model, sparsity: float, exclude: Collection[str] = ()
) -> dict[str, float]:
    """The share of each layer's weights to zero for an overall sparsity.

    Layers that would lose more of what they compute keep more of their weights: a
    weight's score is its square over the sum of the squares of those in its layer
    that are no smaller, and the smallest scores of the whole model go.

    Reference: Lee et al., 2021, https://arxiv.org/abs/2010.07611, section 3.1.

    Args:
        model: `keras.Model`.
        sparsity: Share of zeros to reach over all layers to prune, in (0, 1).
        exclude: Names of layers to leave alone, which do not count.

    Returns:
        Dict from the name of each layer to prune to a share in [0, 1).

    Raises:
        ValueError: If the sparsity or a name is not valid, if there are layers to
            prune inside a nested model, or none at all.
    """
    if not 0.0 < sparsity < 1.0:
        raise ValueError(f"sparsity must be in (0, 1). Received: {sparsity}")
    scores = {}
    layers = layers_to_prune(model, exclude=exclude)
    say_left_out(model, layers, exclude)
    for name, layer in layers.items():
        kernel = kernel_of(layer).numpy()
        squares = np.sort(np.square(kernel, dtype=np.float64), axis=None)
        rest = np.cumsum(squares[::-1])[::-1]
        # The largest of a layer scores 1, so that no layer is emptied; one that is
        # zero already has nothing to lose.
        scores[name] = np.divide(
            squares, rest, out=np.ones_like(squares), where=rest > 0
        )
    threshold = np.quantile(np.concatenate([*scores.values()]), sparsity)
    return {name: float(np.mean(found < threshold)) for name, found in scores.items()}


def layers_to_prune(
    model: keras.Model,
    names: Iterable[str] | None = None,
    exclude: Collection[str] = (),
) -> dict[str, keras.layers.Layer]:
    """The layers of a model whose kernels may be pruned; see `choose_layers`."""
    return choose_layers(model, "prune", names, exclude)


def _shares(model, sparsity, exclude):
    """`{layer: share of zeros}` of the layers to prune."""
    named = sparsity if isinstance(sparsity, Mapping) else None
    layers = layers_to_prune(model, named, exclude)
    shares = dict.fromkeys(layers, sparsity) if named is None else named
    wrong = {name: share for name, share in shares.items() if not 0 <= share < 1}
    if wrong:
        raise ValueError(f"sparsity must be in [0, 1). Received: {wrong}")
    return {name: share for name, share in shares.items() if name in layers}


def _layout(pattern, model, shares):
    """The arguments of TFMOT's wrapper that say where the zeros are."""
    if pattern is None:
        return {}
    found = re.fullmatch(r"([1-9]\d*)([x:])([1-9]\d*)", str(pattern))
    if not found:
        raise ValueError(
            "pattern must be blocks such as '4x1' or a choice such as '2:4' (in "
            f"quotes, in YAML). Received: {pattern!r}"
        )
    first, kind, second = int(found[1]), found[2], int(found[3])
    pruned = {name: share for name, share in shares.items() if share}
    across = [name for name in pruned if not _has_inputs_last_but_one(model, name)]
    if kind == ":" and across:
        raise ValueError(
            f"pattern {pattern!r} is along the input channels of Conv2D, Dense and "
            f"pointwise kernels. Received: {', '.join(across)}; exclude them"
        )
    if kind == "x":
        _check_blocks((first, second), model, pruned)
        return {"block_size": (first, second)}
    implied = 1 - first / second
    wrong = {
        name: share
        for name, share in pruned.items()
        if not math.isclose(share, implied, abs_tol=1e-3)
    }
    if wrong or implied <= 0:
        raise ValueError(
            f"pattern {pattern!r} leaves {first} of every {second} weights: expected "
            f"fewer than all, and a sparsity of {implied:g}. Received: {wrong}"
        )
    return {"sparsity_m_by_n": (second - first, second)}


def _has_inputs_last_but_one(model, name):
    layer = model.get_layer(name)
    transposed = isinstance(layer, keras.layers.Conv2DTranspose)
    return not transposed and kernel_name(layer) != "depthwise_kernel"


def _check_blocks(block, model, names):
    """TFMOT knows blocks of matrices only, and loses track of a single row of them."""
    shapes = {name: tuple(kernel_of(model.get_layer(name)).shape) for name in names}
    unfit = [
        f"{name} {shape}"
        for name, shape in shapes.items()
        if len(shape) != 2
        or any(size <= side for size, side in zip(shape, block, strict=True))
    ]
    if unfit:
        raise ValueError(
            "blocks are for Dense layers, with room for two or more each way. "
            f"Received: {', '.join(unfit)}; exclude them or name the others in sparsity"
        )


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
