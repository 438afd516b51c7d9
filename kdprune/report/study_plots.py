"""Draws a study: differences with their intervals, and grids of two axes.

What a row shows is told three times: by its place beside the zero line, by the
marker's shape and filling, and by its colour, so that grey print loses nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kdprune.report.document import percent, points, slug
from kdprune.report.read import Model, Run
from kdprune.report.study import (
    HELPS,
    HURTS,
    NOISE,
    UNTESTED,
    Axis,
    Comparison,
    Grid,
    compare,
    find_grids,
)
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
    place_labels,
    room_for,
    write_beside,
)

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
# What a cell costs, by its field: the axis's label, its unit.
COSTS = {
    "macs": ("multiply-adds (millions)", 1e6),
    "bytes_gzip": ("bytes in gzip (thousands)", 1e3),
}
# Below this the cells are of one size, and the heat map says all there is.
LEAST_SPREAD = 1.05
# Okabe & Ito's palette without its yellow, which is lost on white.
LINE_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)
LINE_MARKERS = "osD^vP*"


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
    drawn = {"study": plot_differences(study.rows, run.measure)} if study.rows else {}
    for grid in find_grids(study, run):
        drawn[f"study-{slug(grid.name)}"] = plot_grid(grid)
        if curves := plot_curves(grid, run):
            drawn[f"study-{slug(grid.name)}-curves"] = curves
    return drawn


def plot_differences(rows: Sequence[Comparison], measure: str) -> Plot:
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
    axes.set_xlabel(f"difference in {measure} on the test images (points)")
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


def plot_curves(grid: Grid, run: Run) -> Plot | None:
    """Draws a grid whose cells differ in what they cost, as lines of growing cost.

    Args:
        grid: The grid.
        run: What was read from the run folder. Its other models of the same format,
            no larger than the baseline, are drawn as points.

    Returns:
        A panel for multiply-adds and one for compressed bytes, as far as they are
        known and differ; None where neither does.
    """
    cells = [comparison.model for comparison in grid.cells.values()]
    fields = [field for field in COSTS if _differ(cells, field)]
    if not fields:
        return None
    axis, lines = _make_lines(grid, fields[0])
    others = _find_others(grid, run, cells)
    figure, _ = new_figure(0.8 + 3.9 * len(fields), 4.4, empty=True)
    panels = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    for axes, field in zip(panels, fields, strict=True):
        label, unit = COSTS[field]
        for number, (line, text) in enumerate(zip(lines, axis.texts, strict=True)):
            _draw_line(axes, line, field, number, text)
        _draw_others(axes, others, field)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _, unit=unit: f"{value / unit:g}")
        )
    panels[0].set_ylabel(f"{run.measure} on the test images (%)")
    figure.suptitle(
        f"{clip(grid.name)}: {run.measure} by {axis.key}",
        x=0.01,
        ha="left",
        fontsize=10,
        weight="bold",
    )
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        [clip(text, 24) for text in texts],
        loc="outside lower left",
        ncols=min(3 * len(fields), len(texts)),
        frameon=False,
        fontsize=8,
    )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, field in zip(panels, fields, strict=True):
        _name_others(axes, others, field, cells)
    costs = " and ".join(COSTS[field][0].partition(" (")[0] for field in fields)
    measure = run.measure.capitalize()
    return Plot(f"{measure} of {grid.name} by {axis.key} against {costs}", figure)


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


def _make_lines(grid: Grid, field: str) -> tuple[Axis, list[list[Model]]]:
    """Joins the cells along the axis that costs more, and returns the other one."""
    found = []
    for place, axis in enumerate((grid.rows, grid.columns)):
        lines = [
            [c.model for key, c in grid.cells.items() if key[place] == value]
            for value in axis.values
        ]
        costs = [[model.known(field) for model in line] for line in lines if line]
        spread = statistics.fmean(max(line) / min(line) for line in costs)
        found.append((spread, axis, lines))
    _, axis, lines = max(found, key=lambda found: found[0])
    return axis, lines


def _differ(cells: Sequence[Model], field: str) -> bool:
    costs = [model.known(field) for model in cells if model.values(field)]
    return len(costs) == len(cells) and max(costs) > LEAST_SPREAD * min(costs)


def _find_others(grid: Grid, run: Run, cells: Sequence[Model]) -> list[Model]:
    """Other models of the cells' format, no larger than the baseline."""
    how, baseline = _how(cells[0]), next(iter(grid.cells.values())).baseline
    most = baseline.mean("parameters")

    def small(model: Model) -> bool:
        size = model.mean("parameters")
        return most is None or size is None or size <= most

    return [
        model
        for model in run.distinct
        if model not in cells
        and set(model.axes) <= set(baseline.axes)
        and _how(model) == how
        and model.values("accuracy")
        and small(model)
    ]


def _how(model: Model) -> tuple:
    return tuple(model.get(key) for key in ("format", "dtype", "resolver"))


def _draw_line(axes: Axes, line, field: str, number: int, text: str) -> None:
    line = sorted(line, key=lambda model: model.known(field))
    colour, marker = (
        signs[number % len(LINE_COLOURS)] for signs in (LINE_COLOURS, LINE_MARKERS)
    )
    axes.errorbar(
        [model.known(field) for model in line],
        [100 * model.known("accuracy") for model in line],
        [100 * (model.deviation("accuracy") or 0.0) for model in line],
        color=colour,
        marker=marker,
        ms=5,
        lw=1.3,
        elinewidth=0.9,
        capsize=2,
        # Seven signs, each plain and broken: fourteen rows can be told apart.
        ls="-" if number < len(LINE_COLOURS) else "--",
        label=text,
    )


def _draw_others(axes: Axes, others: Sequence[Model], field: str) -> None:
    for model in others:
        if model.mean(field) is not None:
            at = model.known(field), 100 * model.known("accuracy")
            spread = 100 * (model.deviation("accuracy") or 0.0)
            style: dict[str, Any] = {"color": "0.3", "marker": "x", "lw": 0.9}
            axes.errorbar(*at, spread, ms=6, capsize=2, **style)
    axes.margins(x=0.12, y=0.1)


def _name_others(axes: Axes, others, field: str, cells) -> None:
    shown: dict[tuple, list[str]] = {}
    for model in others:
        if model.mean(field) is not None:
            at = model.known(field), 100 * model.known("accuracy")
            shown.setdefault(at, []).append(clip(model.label))
    obstacles = [(model.known(field), 100 * model.known("accuracy")) for model in cells]
    place_labels(
        axes,
        list(shown),
        ["\n".join(names) for names in shown.values()],
        obstacles=obstacles,
        styles=[{"fontsize": 8.5}] * len(shown),
    )
