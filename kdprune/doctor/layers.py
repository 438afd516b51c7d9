"""A row for each layer: what it costs, and what each stage makes of it."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import tf_keras as keras

from kdprune.doctor.findings import LayerRow, Obstacle
from kdprune.models.counts import layer_macs
from kdprune.models.kernels import kernel_of
from kdprune.prune.channels.groups import find_channels, kept_layers
from kdprune.prune.magnitude import layers_to_prune
from kdprune.tflite.coverage import gpu_runs, micro_runs, xnnpack_left
from kdprune.tflite.format import Graph, Op, read_tflite
from kdprune.tflite.inspection import CONVERSIONS, computes_on_floats, type_of
from kdprune.tflite.names import layers_of

_PRUNING = "channel pruning"
_NAMED = 3  # Layers in one line.


def describe_layers(
    model: keras.Model, content: bytes | None, refused_by_qat: Mapping[str, str]
) -> tuple[list[LayerRow], list[Obstacle]]:
    """The rows of a flat model.

    Args:
        model: A flat graph model.
        content: The int8 file made of it, None if there is none.
        refused_by_qat: `{layer: reason}`.

    Returns:
        `(rows, obstacles)` in the order of execution; the obstacles are those of
        channel pruning.
    """
    obstacles: list[Obstacle] = []
    try:
        macs = layer_macs(model)
    except ValueError as error:
        macs = {}
        obstacles.append(Obstacle(_PRUNING, "", str(error), fatal=False))
    try:
        channels, kept = _channels(model)
    except ValueError as error:
        channels, kept = {}, {}
        obstacles.append(Obstacle(_PRUNING, "", str(error), fatal=False))
    for reason, names in kept.items():
        listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        obstacles.append(
            Obstacle(
                _PRUNING,
                listed,
                f"channels stay (layers: {len(names)}): {reason}",
                "write that with another layer, or register a layer rule; or leave it",
                fatal=False,
            )
        )
    prunable = _prunable_weights(model)
    runs = {} if content is None else _runs(content)
    rows = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        ops = runs.get(layer.name, [])
        rows.append(
            LayerRow(
                name=layer.name,
                kind=_kind(layer),
                macs=macs.get(layer.name, 0),
                parameters=sum(math.prod(weight.shape) for weight in layer.weights),
                channels=channels.get(layer.name),
                weights=prunable.get(layer.name, 0),
                int8="" if content is None else _form(ops),
                qat=layer.name not in refused_by_qat,
                xnnpack=_all(op["xnnpack"] for op in ops),
                gpu=all(op["gpu"] for op in ops) if ops else None,
                micro=all(op["micro"] for op in ops) if ops else None,
            )
        )
    return rows, obstacles


def _all(known: Iterable[bool | None]) -> bool | None:
    found = list(known)
    return None if not found or None in found else all(found)


def _kind(layer: Any) -> str:
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", type(activation).__name__)
    kind = type(layer).__name__
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        return f"function {getattr(layer, 'symbol', layer.name)}"
    plain = activation is None or name == "linear"
    return kind if plain else f"{kind}, {name}"


def _channels(
    model: keras.Model,
) -> tuple[dict[str, tuple[int, int]], dict[str, list[str]]]:
    """`{layer: (removable, all)}`, and `{why: layers that keep all channels}`."""
    graph = find_channels(model)
    found: dict[str, tuple[int, int]] = {}
    for record in graph.records.values():
        for weight in record.result.weights:
            if weight.makes is not None:
                roots = graph.roots[weight.axes[weight.makes]].tolist()
                free = sum(root not in graph.pinned for root in roots)
                found[record.path] = (free, len(roots))
    kept: dict[str, list[str]] = defaultdict(list)
    for name, why in kept_layers(graph).items():
        whole = name not in found or found[name][0] == 0
        # A model's own inputs and outputs stay what they are.
        if whole and not why.endswith(("output of the model", "input of the model")):
            kept[why.removeprefix("coupled with ")].append(name)
    return found, kept


def _prunable_weights(model: keras.Model) -> dict[str, int]:
    """How many weights magnitude pruning may set to zero, by layer."""
    try:
        found = layers_to_prune(model)
    except ValueError:
        return {}
    return {name: math.prod(kernel_of(layer).shape) for name, layer in found.items()}


def _runs(content: bytes) -> dict[str, list[dict[str, Any]]]:
    """The operators of each layer, and who runs them; conversions left out."""
    graph = read_tflite(content)
    left: set[int] | None = None
    with contextlib.suppress(ValueError):  # XNNPACK does not run it at all.
        left = {number for number, _ in xnnpack_left(content)}
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, op in enumerate(graph.ops):
        if not op.outputs or op.name in CONVERSIONS:
            continue
        kind = type_of(graph, op)
        row = {
            "float": computes_on_floats(graph, op),
            "xnnpack": None if left is None else number not in left,
            "gpu": gpu_runs(op.name, kind),
            "micro": micro_runs(op.name, kind),
        }
        for layer in _layers(graph, op):
            found[layer].append(row)
    return found


def _layers(graph: Graph, op: Op) -> list[str]:
    return list(dict.fromkeys(layers_of(graph.tensors[op.outputs[0]].name)))


def _form(ops: list[dict[str, Any]]) -> str:
    if not ops:
        return "folded"
    return "float" if any(op["float"] for op in ops) else "int8"
