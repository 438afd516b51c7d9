"""Which kernels weight pruning and clustering change, and what is left out of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import tf_keras as keras

from kdprune._graph import (
    check_graph_model,
    check_repeatable,
    frozen_layers,
    is_graph_model,
    named_layers,
)
from kdprune._log import logger
from kdprune.models.counts import NO_KERNELS, kernels

layers = keras.layers

# The kernel of a layer that is changed. The first match counts, so that subclasses
# stand before their bases. Of a separable convolution the other kernel is depthwise.
_CHANGED = (
    (layers.DepthwiseConv2D, "depthwise_kernel"),
    (layers.SeparableConv2D, "pointwise_kernel"),
    ((layers.Conv2D, layers.Conv2DTranspose, layers.Dense), "kernel"),
)
_NAMED = 3  # Layers of a kind that a message names.


def kernel_name(layer: Any) -> str | None:
    """The name of the weight that pruning and clustering change; None of other layers.

    That is "kernel" (Conv2D, Conv2DTranspose, Dense), "pointwise_kernel"
    (SeparableConv2D) or "depthwise_kernel" (DepthwiseConv2D).
    """
    return next((name for kind, name in _CHANGED if isinstance(layer, kind)), None)


def kernel_of(layer: Any) -> Any:
    """The variable that `kernel_name` names, of a layer that has one."""
    return getattr(layer, kernel_name(layer) or "kernel")


def choose_layers(
    model: keras.Model,
    verb: str,
    names: Iterable[str] | None = None,
    exclude: Collection[str] = (),
) -> dict[str, keras.layers.Layer]:
    """The layers of a model whose kernels are to be changed.

    Depthwise kernels are left out unless they are named, as TFMOT leaves them: they are
    a few per cent of a mobile network's weights, and each of their channels has a few
    weights alone, whose loss costs more accuracy than that of any others. Frozen layers
    are left out unless they are named as well: their weights are not to change.

    Args:
        model: A built Functional or Sequential `keras.Model`.
        verb: What is to be done to them in one word, "prune" or "cluster", for errors.
        names: Names to choose from; all but depthwise convolutions and frozen layers
            if None.
        exclude: Names to leave out.

    Returns:
        Dict from name to layer.

    Raises:
        ValueError: If a name is of no such layer, if layers inside a nested model are
            neither excluded nor frozen, or if nothing is left.
    """
    check_graph_model(model)
    check_repeatable(model)
    found = {layer.name: layer for layer in model.layers if kernel_name(layer)}
    frozen = frozen_layers(model)
    kernels_inside = {
        layer.name: [
            path
            for path, inner in named_layers(layer, f"{layer.name}/")
            if kernel_name(inner)
        ]
        for layer in model.layers
        if is_graph_model(layer)
    }
    nested = [name for name, paths in kernels_inside.items() if paths]
    known = [*found, *nested]
    given = names is not None
    names = known if names is None else list(names)
    unknown = [name for name in [*names, *exclude] if name not in known]
    if unknown:
        raise ValueError(
            f"layers to {verb} must be among {', '.join(known) or 'none'}. "
            f"Received: {', '.join(unknown)}"
        )
    inside = [
        name
        for name in names
        if name in nested
        and name not in exclude
        and (given or not set(kernels_inside[name]) <= set(frozen))
    ]
    if inside:
        done = {"prune": "pruned", "cluster": "clustered"}[verb]
        raise ValueError(
            f"layers inside a nested model can't be {done}. "
            f"Received: {', '.join(inside)}; exclude it, or add its layers one by one."
        )
    chosen = {
        name: found[name]
        for name in names
        if name in found
        and name not in exclude
        and (given or not (_is_depthwise(found[name]) or name in frozen))
    }
    if not chosen and not given:
        kinds = sorted({type(layer).__name__ for _, layer in named_layers(model)})
        held = [path for path, layer in frozen.items() if kernel_name(layer)]
        told = f"; frozen: {_shortened(held)}, set trainable = True" if held else ""
        raise ValueError(
            f"nothing of model {model.name!r} is left to {verb}: expected kernels of "
            "Conv2D, Conv2DTranspose, Dense or SeparableConv2D that are neither "
            f"excluded nor frozen. Received: exclude={list(exclude)} and layers of "
            f"{', '.join(kinds)}{told}"
        )
    return chosen


def left_out(
    model: keras.Model, chosen: Collection[str], exclude: Collection[str] = ()
) -> dict[str, float]:
    """The kernels that are not changed without having been excluded, with their shares.

    All weights of two or more axes count as kernels, whatever the layer does with
    them; biases and the numbers of normalizations do not.

    Args:
        model: `keras.Model`.
        chosen: The layers whose kernels (`kernel_name`) are changed.
        exclude: Names of layers that were left alone on purpose.

    Returns:
        Dict from `"layer/weight"` to the share, in (0, 1], of all kernels' weights.
    """
    sizes: dict[str, int] = {}
    others: dict[str, int] = {}
    seen: set[int] = set()
    for path, layer in named_layers(model):
        if isinstance(layer, NO_KERNELS):
            continue
        changed = kernel_of(layer) if path in chosen else None
        spared = any(path == name or path.startswith(f"{name}/") for name in exclude)
        for weight in layer.weights:
            if weight.shape.rank < 2 or id(weight) in seen:
                continue
            seen.add(id(weight))
            name = f"{path}/{weight.name.split('/')[-1].split(':')[0]}"
            sizes[name] = math.prod(weight.shape)
            if weight is not changed and not spared:
                others[name] = sizes[name]
    total = sum(sizes.values())
    return {name: size / total for name, size in others.items()}


def say_left_out(
    model: keras.Model,
    chosen: Collection[str],
    exclude: Collection[str] = (),
    doing: str = "pruning",
) -> None:
    """Warns of what `left_out` finds, the weights of a kind together."""
    found = left_out(model, chosen, exclude)
    if not found:
        return
    kinds = {path: type(layer).__name__ for path, layer in named_layers(model)}
    kinds |= {path: f"frozen {kinds[path]}" for path in frozen_layers(model)}
    groups: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for name, share in found.items():
        path, _, weight = name.rpartition("/")
        groups[f"{kinds[path]} {weight}"].append((path, share))
    parts = []
    for group, rows in groups.items():
        share = sum(part for _, part in rows)
        parts.append(f"{group} {share:.1%} ({_shortened([path for path, _ in rows])})")
    logger.warning(
        "%s leaves out %.1f %% of the weights in kernels: %s",
        doing,
        100 * sum(found.values()),
        "; ".join(parts),
    )


def layer_sparsity(model: keras.Model) -> dict[str, float]:
    """The share of zeros in the kernels of each layer, depthwise ones too, by name.

    Layers of nested models are `"nested/layer"`.
    """
    found = {}
    for path, layer in named_layers(model):
        values = [np.asarray(kernel) for kernel in kernels(layer)]
        if values:
            found[path] = share_of_zeros(values)
    return found


def share_of_zeros(arrays: Collection[np.ndarray]) -> float:
    """The share of zeros in all of some arrays, in [0, 1]."""
    return sum(int((a == 0).sum()) for a in arrays) / sum(a.size for a in arrays)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _is_depthwise(layer: Any) -> bool:
    return kernel_name(layer) == "depthwise_kernel"
