"""Writes what a stage's section says of channels and blocks that were cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdprune.report.cuts import (
    Cut,
    Group,
    Sensitivity,
    read_blocks,
    read_sensitivity,
    read_widths,
)
from kdprune.report.read import Cell, Stage
from kdprune.report.text import (
    MISSING,
    count,
    embed,
    escape,
    list_some,
    over_seeds,
    percent,
    points,
    scalar,
    share_label,
    slug,
    table,
)

# Results that a table, a sentence or a plot shows.
SHOWN = {
    "sensitivity": {"ratios", "groups", "layers", "channels", "left", "scores"},
    "prune_channels": {"channels_by_layer"},
    "prune_blocks": {"blocks", "rank"},
}
RANKS = {
    "loss": (
        "loss without it",
        "the validation loss of the model without it, batch normalization recalibrated",
    ),
    "angle": (
        "angle",
        "the angle by which it turns its input, as a share of a half turn",
    ),
}


def write_cuts(stage: Stage, plots: Mapping[str, str]) -> list[str]:
    """Writes what a stage measured of channel groups, channels or blocks.

    Args:
        stage: The stage; of most kinds there is nothing to write.
        plots: Caption of each plot by its name; those of the stage are embedded.

    Returns:
        Parts of the stage's section.
    """
    parts = []
    if sensitivity := read_sensitivity(stage):
        parts += [_explain(sensitivity), _sensitivity_table(sensitivity)]
    if widths := read_widths(stage):
        before, after = (sum(ends) for ends in zip(*widths.values(), strict=True))
        parts.append(
            f"Of {count(before)} channels in the {len(widths)} layers that were cut, "
            f"{count(after)} are left{over_seeds(len(stage.cells))}."
        )
    for cell in stage.cells:
        parts += _write_blocks(cell, alone=len(stage.cells) == 1)
    names = (f"{kind}-{slug(stage.name)}" for kind in ("sensitivity", "channels"))
    return parts + [embed(name, plots[name]) for name in names if name in plots]


def _explain(found: Sensitivity) -> str:
    """Says in a sentence what the figures of the table and of the heat map are."""
    how = f" by importance {escape(found.importance)}" if found.importance else ""
    whole = "" if found.whole is None else f" the {percent(found.whole)} % of"
    cuts = [cut for group in found.groups for cut in group.cuts if cut]
    uncut = any(cut.uncut for cut in cuts)
    note = ', and "uncut" where rounding leaves no channel to remove' if uncut else ""
    return (
        f"Each coupled group of channels is cut alone{how}, batch normalization "
        "recalibrated and nothing trained: a figure is the change in accuracy on the "
        f"validation images, in points against{whole} the whole model"
        f"{over_seeds(found.seeds)}, with the channels left in brackets{note}."
    )


def _sensitivity_table(found: Sensitivity) -> str:
    ratios = [f"{share_label(ratio)} removed" for ratio in found.ratios]
    return table(
        ("group", "coupled with", "channels", *ratios),
        [
            (
                escape(group.name),
                _coupled(group),
                count(group.channels),
                *map(_write_cut, group.cuts),
            )
            for group in found.groups
        ],
    )


def _coupled(group: Group) -> str:
    return list_some([layer for layer in group.layers if layer != group.name])


def _write_cut(cut: Cut | None) -> str:
    if cut is None:
        return MISSING
    if cut.uncut:
        return "uncut"
    change = MISSING if cut.change is None else points(cut.change)
    return f"{change} ({count(cut.left)})"


def _write_blocks(cell: Cell, alone: bool) -> list[str]:
    """Writes the residual blocks in the order in which they were to go."""
    blocks = read_blocks(cell)
    if not blocks:
        return []
    rank = cell.record["results"].get("rank")
    heading, meaning = RANKS.get(rank, ("score", "its score"))
    where = "" if alone else f" of {escape(cell.folder)}"
    return [
        f"Residual blocks{where}, the one that matters least first; each is ranked by "
        f"{meaning}.",
        table(("block", "layers", heading, "outcome"), _block_rows(blocks)),
    ]


def _block_rows(blocks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            escape(block["name"]),
            count(block.get("layers")),
            _write_score(block.get("score")),
            "removed" if block.get("removed") else "kept",
        ]
        for block in blocks
    ]


def _write_score(score: float | None) -> str:
    known = score is not None and math.isfinite(score)
    return scalar(float(score)) if known else MISSING
