"""Draws a study: differences with their intervals, and grids of two axes.

What a row shows is told three times: by its place beside the zero line, by the
marker's shape and filling, and by its colour, so that grey print loses nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D

from kdprune.report.curves import plot_curves
from kdprune.report.grid import Grid, find_grids
from kdprune.report.read import Model, Run
from kdprune.report.study import HELPS, HURTS, NOISE, UNTESTED, Comparison, compare
from kdprune.report.style import (
    BLUE,
    GREY,
    VERMILLION,
    Plot,
    add_key,
    clip,
    clip_all,
    head_columns,
    new_figure,
    room_for,
    write_beside,
)
from kdprune.report.text import percent, points, slug

# Marker, colour and filling of each verdict.
VERDICTS = {
    HELPS: ("^", BLUE, BLUE),
    NOISE: ("o", GREY, "white"),
    HURTS: ("v", VERMILLION, VERMILLION),
    UNTESTED: ("x", "black", "black"),
}
DIVERGING = LinearSegmentedColormap.from_list("study", [VERMILLION, "white", BLUE])
# Where white is read better than black: beyond this share of the scale's end.
DARK = 0.85
# An interval of two seeds can be a hundred times as wide as the others.
WIDEST = 3.0
COLUMNS = (10, 42)  # of figures right of the plot, in points
CELL = (0.86, 0.5)  # of a grid, in inches
LABEL_LENGTH = 18


def draw_study(run: Run) -> dict[str, Plot]:
    """Draws what there is of a study; nothing without a baseline, seeds or a grid.

    Args:
        run: What was read from the run folder.

    Returns:
        Plots by file name without its ending, all of them starting with "study".
    """
    study = compare(run)
    if study is None:
        return {}
    drawn = {"study": plot_differences(study.rows)} if study.rows else {}
    for grid in find_grids(study, run):
        drawn[f"study-{slug(grid.name)}"] = plot_grid(grid)
        if curves := plot_curves(grid, run):
            drawn[f"study-{slug(grid.name)}-curves"] = curves
    return drawn


def plot_differences(rows: Sequence[Comparison]) -> Plot:
    """Draws each row's difference to its baseline with the interval of its test."""
    lines = _with_headings(rows)
    names = _name_lines(lines)
    figure, axes = new_figure(8.6 + room_for(names), 1.3 + 0.3 * len(lines))
    limits = _limits(rows)
    for place, line in enumerate(lines):
        if isinstance(line, Comparison):
            _draw_row(axes, place, line, limits)
    axes.axvline(0, color="black", linewidth=1, zorder=1)
    axes.set_xlim(*limits)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_yticks(range(len(lines)), names)
    for label, line in zip(axes.get_yticklabels(), lines, strict=True):
        if isinstance(line, Model):
            label.set(style="italic", color=GREY)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel("difference in accuracy on the test images (points)")
    head_columns(axes, COLUMNS, ("seeds", "difference (interval)"))
    axes.set_title("Difference to the baseline", pad=10)
    _add_verdicts(figure, rows)
    return Plot("Difference of each model to the baseline, with its interval", figure)


def plot_grid(grid: Grid) -> Plot:
    """Draws the difference to the baseline in each cell of two axes."""
    shape = len(grid.rows.values), len(grid.columns.values)
    differences, texts = np.full(shape, np.nan), {}
    for row, first in enumerate(grid.rows.values):
        for column, second in enumerate(grid.columns.values):
            if found := grid.cells.get((first, second)):
                differences[row, column] = 100 * found.difference
                texts[row, column] = _cell_text(found)
    figure, axes = new_figure(2.4 + CELL[0] * shape[1], 1.5 + CELL[1] * shape[0])
    top = max(0.1, float(np.nanmax(np.abs(differences))))
    shown = np.ma.masked_invalid(differences)
    image = axes.imshow(shown, cmap=DIVERGING, vmin=-top, vmax=top, aspect="auto")
    for (row, column), (text, strong) in texts.items():
        dark = differences[row, column] > DARK * top
        style = {"weight": "bold" if strong else "normal"}
        style["color"] = "white" if dark else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, **style)
    for axis, ticks in ((axes.yaxis, grid.rows), (axes.xaxis, grid.columns)):
        labels = [clip(text, LABEL_LENGTH) for text in ticks.texts]
        axis.set_ticks(range(len(labels)), labels)
        axis.set_label_text(ticks.key)
    if max(map(len, grid.columns.texts)) > 10:
        axes.tick_params(axis="x", rotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.grid(False)
    axes.tick_params(length=0)
    baseline, note = _describe(grid)
    title = f"{clip(grid.name)}: points above {clip(baseline)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, weight="bold")
    axes.set_title(note, weight="normal", fontsize=8.5, color=GREY)
    bar = figure.colorbar(image, ax=axes, aspect=25, pad=0.03)
    bar.set_label("points")
    bar.outline.set_visible(False)
    caption = f"Points of {grid.name} above {baseline} by {grid.rows.key} and "
    return Plot(f"{caption}{grid.columns.key}", figure)


def _with_headings(rows: Sequence[Comparison]) -> list[Comparison | Model]:
    """Puts each baseline before the rows that are held against it."""
    lines: list[Comparison | Model] = []
    last = None
    for row in rows:
        if row.baseline is not last:
            last = row.baseline
            lines.append(last)
        lines.append(row)
    return lines


def _name_lines(lines: Sequence[Comparison | Model]) -> list[str]:
    models = [line if isinstance(line, Model) else line.model for line in lines]
    names = clip_all([model.label for model in models])
    return [
        f"against {name}, {len(line.values('accuracy'))} seeds"
        if isinstance(line, Model)
        else name
        for name, line in zip(names, lines, strict=True)
    ]


def _limits(rows: Sequence[Comparison]) -> tuple[float, float]:
    """Room for all differences and all but unusually wide intervals, in points."""
    differences = [100 * row.difference for row in rows]
    intervals = [row.outcome.interval for row in rows if row.outcome]
    far = [100 * max(map(abs, interval)) for interval in intervals]
    reach = WIDEST * statistics.median(far) if far else 0.0
    ends = [100 * end for interval in intervals for end in interval]
    shown = [min(max(end, -reach), reach) for end in ends]
    low, high = min(0.0, *differences, *shown), max(0.0, *differences, *shown)
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room


def _draw_row(axes: Axes, place: int, row: Comparison, limits: tuple) -> None:
    marker, colour, filling = VERDICTS[row.verdict]
    at, text = 100 * row.difference, points(row.difference)
    if row.outcome:
        ends = [100 * end for end in row.outcome.interval]
        axes.plot(np.clip(ends, *limits), [place] * 2, color=colour, lw=1.2)
        text += " ({} to {})".format(*map(points, row.outcome.interval))
        for end, limit, arrow in zip(ends, limits, "<>", strict=True):
            outside = not limits[0] <= end <= limits[1]
            sign = arrow if outside else "|"
            axes.plot(limit if outside else end, place, sign, color=colour, ms=5)
    axes.plot(at, place, marker, color=colour, mfc=filling, ms=7, zorder=4)
    seeds = str(len(row.model.values("accuracy")))
    weight = "normal" if row.verdict in (NOISE, UNTESTED) else "bold"
    write_beside(axes, place, COLUMNS, (seeds, text), weight=weight)


def _add_verdicts(figure, rows: Sequence[Comparison]) -> None:
    found = {row.verdict for row in rows}
    add_key(
        figure,
        [
            Line2D([], [], ls="", marker=marker, color=colour, mfc=filling, label=name)
            for name, (marker, colour, filling) in VERDICTS.items()
            if name in found
        ],
    )


def _cell_text(cell: Comparison) -> tuple[str, bool]:
    """A cell's text, and whether its difference is more than noise."""
    deviation = cell.model.deviation("accuracy")
    spread = "" if deviation is None else f"\n± {percent(deviation)}"
    return points(cell.difference) + spread, cell.verdict in (HELPS, HURTS)


def _describe(grid: Grid) -> tuple[str, str]:
    """What a grid is held against, and how its cells are to be read."""
    cells = list(grid.cells.values())
    notes = []
    if any(cell.model.deviation("accuracy") is not None for cell in cells):
        notes.append("± deviation over the seeds")
    if any(cell.outcome for cell in cells):
        notes.append("bold: more than noise")
    return cells[0].baseline.label, "; ".join(notes)
