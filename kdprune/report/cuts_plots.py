"""Draws what cutting does: a heat map of sensitivities, bars of channels left."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm
from matplotlib.patches import Patch

from kdprune.report.cuts import Cut, Sensitivity, read_sensitivity, read_widths
from kdprune.report.read import Stage
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
from kdprune.report.text import MISSING, count, percent, points, share_label, slug

CELL = (0.72, 0.27)  # of a heat map, in inches
# Where white is read better than black: on what is darker than this share of the scale.
DARK = 0.715
OUTLINE = "0.35"


def draw_cuts(stage: Stage) -> dict[str, Plot]:
    """Draws what a stage measured of channel groups or of channels, if it did.

    Args:
        stage: A stage of any kind.

    Returns:
        Plots by file name without its ending.
    """
    drawn = {}
    if sensitivity := read_sensitivity(stage):
        drawn[f"sensitivity-{slug(stage.name)}"] = plot_sensitivity(
            sensitivity, stage.name
        )
    if widths := read_widths(stage):
        drawn[f"channels-{slug(stage.name)}"] = plot_channels(widths, stage.name)
    return drawn


def plot_sensitivity(found: Sensitivity, name: str) -> Plot:
    """Draws the change in accuracy with each group cut alone, a row for a group.

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
    changes = np.array([[_shade(cut) for cut in g.cuts] for g in found.groups])
    top = max(0.1, float(-np.nanmin(changes, initial=0.0)))
    norm = FuncNorm((_to_shade, _from_shade), -top, 0.0)
    shown = np.ma.masked_invalid(changes)
    image = axes.imshow(shown, cmap="Blues_r", norm=norm, aspect="auto")
    for row, group in enumerate(found.groups):
        for column, cut in enumerate(group.cuts):
            _write_cell(axes, (column, row), cut, top)
    axes.patch.set(hatch="////", edgecolor="0.88", linewidth=0)  # where nothing was cut
    axes.set_yticks(range(rows), names)
    axes.set_xticks(range(columns), [share_label(ratio) for ratio in found.ratios])
    axes.set_xlabel("channels removed")
    axes.grid(False)
    axes.tick_params(length=0)
    title = f"{clip(name, 24)}: accuracy with one group cut"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, weight="bold")
    axes.set_title(_describe(found), weight="normal", fontsize=8.5, color=GREY)
    bar = figure.colorbar(
        image, ax=axes, aspect=9 * height, pad=0.03, ticks=_ticks(top)
    )
    bar.set_label("accuracy change (points)")
    bar.outline.set_visible(False)
    return Plot(f"Accuracy change with one channel group cut alone: {name}", figure)


def plot_channels(widths: dict[str, tuple[float, float]], name: str) -> Plot:
    """Draws each layer's channels: an outline before, filled what is left."""
    layers = clip_all(list(widths))
    figure, axes = new_figure(6.4 + room_for(layers), 1.2 + 0.24 * len(layers))
    before, after = zip(*widths.values(), strict=True)
    places = range(len(layers))
    axes.barh(places, after, color=BLUE, height=0.68)
    outline = {"facecolor": "none", "edgecolor": OUTLINE, "linewidth": 0.9}
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
    axes.set_title(f"{clip(name, 40)}: channels of the layers that were cut")
    add_key(
        figure, [Patch(**outline, label="before"), Patch(color=BLUE, label="after")]
    )
    return Plot(f"Channels by layer before and after {name}", figure)


def _describe(found: Sensitivity) -> str:
    whole = "" if found.whole is None else f", {percent(found.whole)} %"
    seeds = f"; means over {found.seeds} seeds" if found.seeds > 1 else ""
    return f"points above the whole model{whole}{seeds}"


def _shade(cut: Cut | None) -> float:
    """The change in points, NaN where nothing was cut; a gain is no loss."""
    if cut is None or cut.uncut or cut.change is None:
        return np.nan
    return min(100 * cut.change, 0.0)


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


def _write_cell(axes: Axes, place: tuple, cut: Cut | None, top: float) -> None:
    dark = not np.isnan(_shade(cut)) and np.sqrt(-_shade(cut) / top) > DARK
    colour = "white" if dark else "black"
    if cut is None or cut.change is None:
        text = MISSING
    elif cut.uncut:
        text, colour = "uncut", GREY
    else:
        text = points(cut.change)
    axes.text(*place, text, ha="center", va="center", fontsize=8, color=colour)
