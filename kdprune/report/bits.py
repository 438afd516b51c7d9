"""What the stages that quantize, cluster or zero weights have recorded.

Shapes and types have been checked where the records were read.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdprune.report.cuts import mean, results_of
from kdprune.report.read import Cell, Stage

# A layer whose output has less is to blame (`export.layers.compare_layers`).
ENOUGH_DB = 20


@dataclass(frozen=True)
class Layer:
    """An operator of the integer file against its float form, mean over the seeds.

    Figures that are not known, or not finite, are None.

    Attributes:
        name: The layer; with its operator, where it has made several.
        op: The operator.
        sqnr_db: Signal over error of the output in decibels; None without an error.
        weight_sqnr_db: The same of the weights; None without weights.
        steps: Root mean square of the output's error, in integer steps.
        saturation: Share of values that the integers cannot express.
        span: What the integers can express, low and high.
        seen: The extremes of the float output.
        weights: The extremes of the weights.
    """

    name: str
    op: str
    sqnr_db: float | None
    weight_sqnr_db: float | None
    steps: float | None
    saturation: float | None
    span: tuple[float | None, float | None]
    seen: tuple[float | None, float | None]
    weights: tuple[float | None, float | None]


def read_layers(stage: Stage) -> tuple[Layer, ...]:
    """Returns what 8 bits cost each layer of a `quantize` stage, as it is executed."""
    rows: dict[tuple, list[dict[str, Any]]] = {}
    for results in results_of(stage, "quantize"):
        seen: Counter = Counter()
        for row in results.get("layers") or ():
            layer, op = row.get("layer"), row.get("op")
            seen[layer, op] += 1
            rows.setdefault((layer, op, seen[layer, op]), []).append(row)
    shared = Counter(layer for layer, _, _ in rows)
    return tuple(
        _make_layer(_name(layer, op, shared[layer] > 1), op, seeds)
        for (layer, op, _), seeds in rows.items()
    )


def worst_layers(layers: Sequence[Layer], number: int) -> list[Layer]:
    """Returns the layers of the lowest SQNR, the worst first."""
    known = [layer for layer in layers if layer.sqnr_db is not None]
    return sorted(known, key=lambda layer: layer.sqnr_db)[:number]


def read_attempts(cell: Cell) -> dict[str, Any]:
    """Returns the results of a `quantize` cell that went by a budget, else none."""
    (results,) = results_of(Stage(cell.folder, (cell,)), "quantize") or [{}]
    return results if results.get("attempts") or results.get("message") else {}


def read_clusters(stage: Stage) -> dict[str, float]:
    """Returns the distinct weights by layer of a `cluster` stage."""
    return _average_by_layer(stage, ("cluster",), "clusters_by_layer")


def read_sparsity(stage: Stage) -> dict[str, float]:
    """Returns the share of zeros by layer of a `prune` or `cluster` stage."""
    return _average_by_layer(stage, ("prune", "cluster"), "sparsity_by_layer")


def _name(layer: str | None, op: str | None, several: bool) -> str:
    if layer is None or op is None:
        return layer or op or "unnamed"
    return f"{layer} ({op})" if several else layer


def _make_layer(name: str, op: str | None, seeds: list[dict[str, Any]]) -> Layer:
    def figure(key):
        return mean(row.get(key) for row in seeds)

    return Layer(
        name=name,
        op=op or "",
        sqnr_db=figure("sqnr_db"),
        weight_sqnr_db=figure("weight_sqnr_db"),
        steps=figure("rmse_over_scale"),
        saturation=figure("saturation"),
        span=(figure("low"), figure("high")),
        seen=(figure("seen_low"), figure("seen_high")),
        weights=(figure("weight_low"), figure("weight_high")),
    )


def _average_by_layer(
    stage: Stage, kinds: Sequence[str], field: str
) -> dict[str, float]:
    found = list(itertools.chain(*(results_of(stage, kind) for kind in kinds)))
    values: dict[str, list[float]] = {}
    for results in found:
        for layer, value in (results.get(field) or {}).items():
            values.setdefault(layer, []).append(value)
    return {layer: statistics.fmean(seeds) for layer, seeds in values.items()}
