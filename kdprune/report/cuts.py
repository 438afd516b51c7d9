"""What the stages that cut a model have recorded, as means over their seeds.

Shapes and types have been checked where the records were read.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kdprune.report.read import Cell, Stage


@dataclass(frozen=True)
class Cut:
    """One group at one ratio.

    Attributes:
        left: Channels left of the group.
        change: What the accuracy became above that of the whole model, a share;
            None where it was not measured.
        uncut: Whether rounding left the group as it was.
    """

    left: float
    change: float | None
    uncut: bool


@dataclass(frozen=True)
class Group:
    """A coupled group of channels: one row of a table of sensitivities.

    Attributes:
        name: The first layer whose filters make the channels.
        layers: All layers whose filters make them.
        channels: How many there are.
        cuts: One for each ratio, None where there is none.
    """

    name: str
    layers: tuple[str, ...]
    channels: float
    cuts: tuple[Cut | None, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What a model lost with one group of channels cut at a time.

    Attributes:
        ratios: Shares of channels to remove, ascending: the columns.
        whole: Accuracy of the whole model on the validation images, or None.
        importance: How the channels to go were chosen, or None.
        groups: The rows, in the order of the layers.
        seeds: Over how many models the figures are means.
    """

    ratios: tuple[float, ...]
    whole: float | None
    importance: str | None
    groups: tuple[Group, ...]
    seeds: int


def read_sensitivity(stage: Stage) -> Sensitivity | None:
    """Returns what a stage of kind `sensitivity` measured, None for any other."""
    found = [r for r in results_of(stage, "sensitivity") if r.get("scores")]
    if not found:
        return None
    ratios = sorted({ratio for results in found for ratio in results["ratios"]})
    rows: dict[str, list[tuple[dict[str, Any], int]]] = {}
    for results in found:
        for place, name in enumerate(results["groups"]):
            rows.setdefault(name, []).append((results, place))
    return Sensitivity(
        tuple(ratios),
        mean(results.get("whole") for results in found),
        found[0].get("importance"),
        tuple(_make_group(name, seeds, ratios) for name, seeds in rows.items()),
        len(found),
    )


def read_widths(stage: Stage) -> dict[str, tuple[float, float]]:
    """Returns the channels before and after, by layer, of a `prune_channels` stage.

    A layer that was cut with some seeds only counts as whole with the others.
    """
    found = [
        r.get("channels_by_layer") or {} for r in results_of(stage, "prune_channels")
    ]
    layers = dict.fromkeys(layer for widths in found for layer in widths)
    means = {}
    for layer in layers:
        before = statistics.fmean(w[layer][0] for w in found if layer in w)
        after = statistics.fmean(w[layer][1] if layer in w else before for w in found)
        means[layer] = before, after
    return means


def read_blocks(cell: Cell) -> list[dict[str, Any]]:
    """Returns the residual blocks that a `prune_blocks` stage ranked, if it did."""
    (results,) = results_of(Stage(cell.folder, (cell,)), "prune_blocks") or [{}]
    return results.get("blocks") or []


def results_of(stage: Stage, kind: str) -> list[dict[str, Any]]:
    """Returns the results of the stage's cells, none if it is of another kind."""
    found = (
        c.record.get("results") for c in stage.cells if c.record.get("kind") == kind
    )
    return [results for results in found if isinstance(results, dict)]


def mean(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that are known and finite, None without any."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(found) if found else None


def _make_group(name: str, seeds: list, ratios: list[float]) -> Group:
    first, place = seeds[0]
    cuts: dict[float, list[Cut]] = {}
    for results, row in seeds:
        for ratio, cut in zip(results["ratios"], _read_cuts(results, row), strict=True):
            cuts.setdefault(ratio, []).append(cut)
    return Group(
        name,
        tuple(first["layers"][place]),
        statistics.fmean(results["channels"][row] for results, row in seeds),
        tuple(_average(cuts[ratio]) if ratio in cuts else None for ratio in ratios),
    )


def _read_cuts(results: dict[str, Any], row: int) -> list[Cut]:
    """The cuts of one group with one seed, against that seed's whole model."""
    whole, channels = results.get("whole"), results["channels"][row]
    pairs = zip(results["left"][row], results["scores"][row], strict=True)
    return [
        Cut(left, None if None in (whole, score) else score - whole, left == channels)
        for left, score in pairs
    ]


def _average(cuts: list[Cut]) -> Cut:
    return Cut(
        statistics.fmean(cut.left for cut in cuts),
        mean(cut.change for cut in cuts),
        all(cut.uncut for cut in cuts),
    )
