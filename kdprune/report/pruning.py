"""What pruning did to channels and blocks: per-group sensitivity, widths, ranks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm
from matplotlib.patches import Patch

from kdprune.report.document import (
    MISSING,
    Block,
    Inline,
    Paragraph,
    Picture,
    Table,
    count,
    list_some,
    over_seeds,
    percent,
    points,
    scalar,
    share_label,
    slug,
)
from kdprune.report.read import Cell, Stage
from kdprune.report.schema import (
    BlockResults,
    ChannelResults,
    Results,
    SensitivityResults,
)
from kdprune.report.style import (
    BLUE,
    GREY,
    Plot,
    add_key,
    clip,
    clip_all,
    new_figure,
    room_for,
)

T = TypeVar("T", bound=Results)
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
CELL = (0.72, 0.27)  # of a heat map, in inches
# Where white is read better than black: on what is darker than this share of the scale.
DARK = 0.715
OUTLINE = "0.35"


@dataclass(frozen=True)
class Reduction:
    """One group at one pruning ratio.

    Attributes:
        left: Channels left of the group.
        change: What the accuracy became above that of the whole model, a share;
            None where it was not measured.
        unchanged: Whether rounding left the group as it was.
    """

    left: float
    change: float | None
    unchanged: bool


@dataclass(frozen=True)
class Group:
    """A coupled group of channels: one row of a table of sensitivities.

    Attributes:
        name: The first layer whose filters make the channels.
        layers: All layers whose filters make them.
        channels: How many there are.
        reductions: One for each ratio, None where there is none.
    """

    name: str
    layers: tuple[str, ...]
    channels: float
    reductions: tuple[Reduction | None, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What a model lost with one group of channels pruned at a time.

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
    found = [r for r in results_of(stage, SensitivityResults) if r.scores]
    if not found:
        return None
    ratios = sorted({ratio for results in found for ratio in results.ratios})
    rows: dict[str, list[tuple[SensitivityResults, int]]] = {}
    for results in found:
        for place, name in enumerate(results.groups):
            rows.setdefault(name, []).append((results, place))
    return Sensitivity(
        tuple(ratios),
        mean(results.whole for results in found),
        found[0].importance,
        tuple(_make_group(name, seeds, ratios) for name, seeds in rows.items()),
        len(found),
    )


def read_widths(stage: Stage) -> dict[str, tuple[float, float]]:
    """Returns the channels before and after, by layer, of a `prune_channels` stage.

    A layer that was pruned with some seeds only counts as whole with the others.
    """
    found = [r.channels_by_layer for r in results_of(stage, ChannelResults)]
    layers = dict.fromkeys(layer for widths in found for layer in widths)
    means = {}
    for layer in layers:
        before = statistics.fmean(w[layer][0] for w in found if layer in w)
        after = statistics.fmean(w[layer][1] if layer in w else before for w in found)
        means[layer] = before, after
    return means


def results_of(stage: Stage, schema: type[T]) -> list[T]:
    """Returns the results of the stage's cells, none if they are of another kind."""
    return [c.results for c in stage.cells if isinstance(c.results, schema)]


def mean(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that are known and finite, None without any."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(found) if found else None


def pictures(plots: Mapping[str, str], *names: str) -> list[Picture]:
    """Shows those of the plots that were drawn."""
    return [Picture(name, plots[name]) for name in names if name in plots]


def write_sensitivity(stage: Stage, plots: Mapping[str, str]) -> list[Block]:
    """Writes what a `sensitivity` stage measured of each group of channels."""
    found = read_sensitivity(stage)
    if found is None:
        return []
    return [
        _explain(found),
        _sensitivity_table(found),
        *pictures(plots, f"sensitivity-{slug(stage.name)}"),
    ]


def write_channels(stage: Stage, plots: Mapping[str, str]) -> list[Block]:
    """Writes how many channels a `prune_channels` stage left."""
    widths = read_widths(stage)
    if not widths:
        return []
    before, after = (sum(ends) for ends in zip(*widths.values(), strict=True))
    text = (
        f"Of {count(before)} channels in the {len(widths)} layers that were pruned, "
        f"{count(after)} are left{over_seeds(len(stage.cells))}."
    )
    return [Paragraph(text), *pictures(plots, f"channels-{slug(stage.name)}")]


def write_blocks(stage: Stage, plots: Mapping[str, str]) -> list[Block]:
    """Writes the residual blocks that a `prune_blocks` stage ranked, cell by cell."""
    alone = len(stage.cells) == 1
    return [part for cell in stage.cells for part in _write_ranks(cell, alone)]


def draw_sensitivity(stage: Stage) -> dict[str, Plot]:
    """Draws the heat map of a `sensitivity` stage."""
    found = read_sensitivity(stage)
    name = f"sensitivity-{slug(stage.name)}"
    return {name: plot_sensitivity(found, stage.name)} if found else {}


def draw_channels(stage: Stage) -> dict[str, Plot]:
    """Draws the widths of a `prune_channels` stage."""
    widths = read_widths(stage)
    name = f"channels-{slug(stage.name)}"
    return {name: plot_channels(widths, stage.name)} if widths else {}


def plot_sensitivity(found: Sensitivity, name: str) -> Plot:
    """Draws the change in accuracy with each group pruned alone, a row for a group.

    The scale is sequential, light where nothing is lost, and goes by the square
    root: beside a group that loses 60 points the first few would not be seen.
    """
    rows, columns = len(found.groups), len(found.ratios)
    names = clip_all([group.name for group in found.groups])
    names = [
        f"{text} ({count(group.channels)})"
        for text, group in zip(names, found.groups, strict=True)
    ]
    width = 3.2 + max(CELL[0] * columns, 2.4) + room_for(names, 20)
    height = CELL[1] * max(rows, 5)
    figure, axes = new_figure(width, 1.3 + height)
    changes = np.array([[_shade(one) for one in g.reductions] for g in found.groups])
    top = max(0.1, float(-np.nanmin(changes, initial=0.0)))
    norm = FuncNorm((_to_shade, _from_shade), -top, 0.0)
    shown = np.ma.masked_invalid(changes)
    image = axes.imshow(shown, cmap="Blues_r", norm=norm, aspect="auto")
    for row, group in enumerate(found.groups):
        for column, one in enumerate(group.reductions):
            _draw_reduction(axes, (column, row), one, top)
    axes.patch.set(
        hatch="////", edgecolor="0.88", linewidth=0
    )  # where nothing was pruned
    axes.set_yticks(range(rows), names)
    axes.set_xticks(range(columns), [share_label(ratio) for ratio in found.ratios])
    axes.set_xlabel("channels removed")
    axes.grid(False)
    axes.tick_params(length=0)
    title = f"{clip(name, 24)}: accuracy with one group pruned"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, weight="bold")
    axes.set_title(_describe(found), weight="normal", fontsize=8.5, color=GREY)
    bar = figure.colorbar(
        image, ax=axes, aspect=9 * height, pad=0.03, ticks=_ticks(top)
    )
    bar.set_label("accuracy change (points)")
    bar.outline.set_visible(False)
    return Plot(f"Accuracy change with one channel group pruned alone: {name}", figure)


def plot_channels(widths: dict[str, tuple[float, float]], name: str) -> Plot:
    """Draws each layer's channels: an outline before, filled what is left."""
    layers = clip_all(list(widths))
    figure, axes = new_figure(6.4 + room_for(layers), 1.2 + 0.24 * len(layers))
    before, after = zip(*widths.values(), strict=True)
    places = range(len(layers))
    axes.barh(places, after, color=BLUE, height=0.68)
    outline: dict[str, Any] = {
        "facecolor": "none",
        "edgecolor": OUTLINE,
        "linewidth": 0.9,
    }
    axes.barh(places, before, height=0.68, **outline)
    for row, (was, left) in enumerate(widths.values()):
        axes.annotate(
            f"{count(was)} → {count(left)}",
            (max(was, left), row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(places, layers)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max(*before, *after))
    axes.set_xlabel("channels")
    title = f"{clip(name, 40)}: channels by layer"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, weight="bold")
    add_key(
        figure, [Patch(**outline, label="before"), Patch(color=BLUE, label="after")]
    )
    return Plot(f"Channels by layer before and after {name}", figure)


def _describe(found: Sensitivity) -> str:
    whole = "" if found.whole is None else f", {percent(found.whole)} %"
    seeds = f"; means over {found.seeds} seeds" if found.seeds > 1 else ""
    return f"points above the whole model{whole}{seeds}"


def _shade(one: Reduction | None) -> float:
    """The change in points, NaN where nothing was pruned; a gain is no loss."""
    if one is None or one.unchanged or one.change is None:
        return np.nan
    return min(100 * one.change, 0.0)


def _to_shade(change):
    return -np.sqrt(np.abs(change))


def _from_shade(shade):
    return -np.square(shade)


def _ticks(top: float) -> list[float]:
    """Some round changes from zero down to the greatest loss, far enough apart."""
    ticks = [0.0]
    for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100):
        if step <= top and np.sqrt(step) - np.sqrt(-ticks[-1]) > 0.12 * np.sqrt(top):
            ticks.append(-step)
    return ticks


def _draw_reduction(
    axes: Axes, place: tuple, one: Reduction | None, top: float
) -> None:
    dark = not np.isnan(_shade(one)) and np.sqrt(-_shade(one) / top) > DARK
    colour = "white" if dark else "black"
    if one is None or one.change is None:
        text = MISSING
    elif one.unchanged:
        text, colour = "unchanged", GREY
    else:
        text = points(one.change)
    style: dict[str, Any] = {
        "ha": "center",
        "va": "center",
        "fontsize": 8,
        "color": colour,
    }
    axes.text(place[0], place[1], text, **style)


def _make_group(
    name: str, seeds: list[tuple[SensitivityResults, int]], ratios: list[float]
) -> Group:
    first, place = seeds[0]
    found: dict[float, list[Reduction]] = {}
    for results, row in seeds:
        for ratio, one in zip(results.ratios, _read_row(results, row), strict=True):
            found.setdefault(ratio, []).append(one)
    return Group(
        name,
        tuple(first.layers[place]),
        statistics.fmean(results.channels[row] for results, row in seeds),
        tuple(_average(found[ratio]) if ratio in found else None for ratio in ratios),
    )


def _read_row(results: SensitivityResults, row: int) -> list[Reduction]:
    """What one group lost with one seed, against that seed's whole model."""
    whole, channels = results.whole, results.channels[row]
    pairs = zip(results.left[row], results.scores[row], strict=True)
    return [
        Reduction(
            left,
            None if whole is None or score is None else score - whole,
            left == channels,
        )
        for left, score in pairs
    ]


def _average(found: list[Reduction]) -> Reduction:
    return Reduction(
        statistics.fmean(one.left for one in found),
        mean(one.change for one in found),
        all(one.unchanged for one in found),
    )


def _explain(found: Sensitivity) -> Paragraph:
    """Says in a sentence what the figures of the table and of the heat map are."""
    how = f" by importance {found.importance}" if found.importance else ""
    whole = "" if found.whole is None else f" the {percent(found.whole)} % of"
    reductions = [one for group in found.groups for one in group.reductions if one]
    note = (
        ', and "unchanged" where rounding leaves no channel to remove'
        if any(one.unchanged for one in reductions)
        else ""
    )
    return Paragraph(
        f"Per-group sensitivity: each coupled group of channels is pruned alone{how}, "
        "batch normalization recalibrated and nothing trained; a figure is the change "
        f"in accuracy on the validation images, in points against{whole} the whole "
        f"model{over_seeds(found.seeds)}, with the channels left in brackets{note}."
    )


def _sensitivity_table(found: Sensitivity) -> Table:
    ratios = [f"{share_label(ratio)} removed" for ratio in found.ratios]
    return Table(
        ("group", "coupled with", "channels", *ratios),
        [
            (
                group.name,
                list_some([layer for layer in group.layers if layer != group.name]),
                count(group.channels),
                *map(_write_reduction, group.reductions),
            )
            for group in found.groups
        ],
    )


def _write_reduction(one: Reduction | None) -> str:
    if one is None:
        return MISSING
    if one.unchanged:
        return "unchanged"
    change = MISSING if one.change is None else points(one.change)
    return f"{change} ({count(one.left)})"


def _write_ranks(cell: Cell, alone: bool) -> list[Block]:
    """Writes the residual blocks in the order in which they were to go."""
    results = cell.results
    if not isinstance(results, BlockResults) or not results.blocks:
        return []
    heading, meaning = RANKS.get(results.rank or "", ("score", "its score"))
    where = "" if alone else f" of {cell.folder}"
    rows: list[list[Inline]] = [
        [
            block.name,
            count(block.layers),
            MISSING if block.score is None else scalar(float(block.score)),
            "removed" if block.removed else "kept",
        ]
        for block in results.blocks
    ]
    return [
        Paragraph(
            f"Residual blocks{where}, the least important first; each is ranked by "
            f"{meaning}."
        ),
        Table(("block", "layers", heading, "outcome"), rows),
    ]
