"""Writes what a stage's section says of quantized, clustered and zero weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdprune.report.bits import (
    ENOUGH_DB,
    Layer,
    read_attempts,
    read_clusters,
    read_layers,
    read_sparsity,
    worst_layers,
)
from kdprune.report.files_page import write_files
from kdprune.report.read import Cell, Stage
from kdprune.report.text import (
    MISSING,
    count,
    decibels,
    duration,
    embed,
    escape,
    list_some,
    over_seeds,
    percent,
    slug,
    table,
)

# Results that a table, a sentence or a plot shows.
SHOWN = {
    "prune": {"sparsity_by_layer"},
    "cluster": {"sparsity_by_layer", "clusters_by_layer"},
    "quantize": {"layers", "attempts", "chosen", "met", "message"},
    "export": {"files"},
}
# Layers that the table holds.
WORST = 5
LAYER_COLUMNS = (
    "layer",
    "operator",
    "SQNR dB",
    "weights' SQNR dB",
    "error in steps",
    "saturated %",
    "integers span",
    "values seen",
    "weights",
)
ATTEMPT_COLUMNS = (
    "attempt",
    "drop (points)",
    "at most, 95 %",
    "other answers %",
    "bytes",
    "time to make",
    "outcome",
)
# Characters of an attempt's error that are shown.
ERROR = 200


def write_bits(stage: Stage, plots: Mapping[str, str]) -> list[str]:
    """Writes what a stage recorded of zeros, of clusters or of 8-bit layers.

    Args:
        stage: The stage; of most kinds there is nothing to write.
        plots: Caption of each plot by its name; that of the stage is embedded.

    Returns:
        Parts of the stage's section.
    """
    seeds = len(stage.cells)
    parts = [*_write_sparsity(read_sparsity(stage), seeds)]
    parts += _write_clusters(read_clusters(stage), seeds)
    for cell in stage.cells:
        parts += _write_attempts(cell, alone=seeds == 1)
    layers = read_layers(stage)
    if worst_layers(layers, 1):
        parts += [_explain(layers, seeds), _layers_table(layers)]
    name = f"layers-{slug(stage.name)}"
    parts += write_files(stage)
    return [*parts, embed(name, plots[name])] if name in plots else parts


def _write_sparsity(shares: Mapping[str, float], seeds: int) -> list[str]:
    if not shares:
        return []
    low, high = (percent(end(shares.values())) for end in (min, max))
    text = f"{low} %" if low == high else f"{low} to {high} %"
    return [
        f"Zeros among the weights of the {len(shares)} layers that can be pruned: "
        f"{text}{over_seeds(seeds)}."
    ]


def _write_clusters(counts: Mapping[str, float], seeds: int) -> list[str]:
    """Writes how many distinct weights there are, a row for layers that are alike."""
    layers: dict[str, list[str]] = {}
    for layer, number in counts.items():
        layers.setdefault(count(number), []).append(layer)
    if not layers:
        return []
    if len(layers) == 1:
        (number,) = layers
        return [
            f"Each of the {len(counts)} layers has {number} distinct weights"
            f"{over_seeds(seeds)}."
        ]
    return [
        f"Distinct weights by layer{over_seeds(seeds)}:",
        table(
            ("distinct weights", "layers", "which"),
            [
                (number, count(len(names)), list_some(names))
                for number, names in layers.items()
            ],
        ),
    ]


def _write_attempts(cell: Cell, alone: bool) -> list[str]:
    """Writes what was tried to stay within a budget, and what came of it."""
    results = read_attempts(cell)
    parts = []
    where = "" if alone else f" of {escape(cell.folder)}"
    if attempts := results.get("attempts"):
        parts += [
            f"Attempts{where} to stay within the accuracy budget, in their order: the "
            "drop is the accuracy lost on the validation images, and counts by its "
            "upper 95 % bound.",
            table(
                ATTEMPT_COLUMNS,
                [_attempt_row(row, results.get("chosen")) for row in attempts],
            ),
        ]
    if message := str(results.get("message") or ""):
        parts.append(f"Outcome{where}: {escape(message)}.")
    chosen = [row for row in attempts or () if row["name"] == results.get("chosen")]
    if chosen and (names := chosen[0].get("float_layers")):
        parts.append(
            f"Left in float{where}: {', '.join(map(escape, names))}, which takes "
            f"{count(chosen[0].get('float_bytes'))} bytes more than none."
        )
    return parts


def _attempt_row(row: Mapping[str, Any], chosen: str | None) -> list[str]:
    if "error" in row:
        error = " ".join(str(row["error"]).split())
        error = error if len(error) <= ERROR else error[: ERROR - 3] + "..."
        outcome = f"failed: {escape(error)}"
    else:
        outcome = "within" if row.get("met") else "not within"
    name = escape(row["name"])
    return [
        f"**{name}** (chosen)" if row["name"] == chosen else name,
        percent(row.get("drop")),
        percent(row.get("drop_bound")),
        percent(row.get("disagreement")),
        count(row.get("bytes")),
        duration(row.get("seconds")),
        outcome,
    ]


def _explain(layers: Sequence[Layer], seeds: int) -> str:
    """Says in a sentence what the figures of the table and of the bars are."""
    below = [x for x in layers if x.sqnr_db is not None and x.sqnr_db < ENOUGH_DB]
    return (
        "What post-training int8 costs each layer by itself, the integer output "
        "against the float output from the same input: SQNR is the signal over the "
        f"error in decibels (below about {ENOUGH_DB} a layer is to blame; "
        f"{len(below) or 'none'} of {len(layers)} here), the error is in integer "
        "steps (0.29 for plain rounding), and saturated values are beyond what the "
        f"integers span{over_seeds(seeds)}."
    )


def _layers_table(layers: Sequence[Layer]) -> str:
    return table(LAYER_COLUMNS, [_layer_row(x) for x in worst_layers(layers, WORST)])


def _layer_row(layer: Layer) -> list[str]:
    return [
        escape(layer.name),
        escape(layer.op) or MISSING,
        decibels(layer.sqnr_db),
        decibels(layer.weight_sqnr_db),
        MISSING if layer.steps is None else f"{layer.steps:.2f}",
        percent(layer.saturation),
        *map(_write_range, (layer.span, layer.seen, layer.weights)),
    ]


def _write_range(ends: tuple[float | None, float | None]) -> str:
    if None in ends:
        return MISSING
    return " to ".join(f"{end:.3g}" for end in ends)
