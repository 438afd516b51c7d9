"""Draws a grid's accuracy against what its cells cost, as lines.

A heat map tells which cell is better; lines tell what a smaller model gives up, and
whether another way to the same size gives up less.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kdprune.report.grid import Axis, Grid
from kdprune.report.labels import place_labels
from kdprune.report.read import Model, Run
from kdprune.report.style import Plot, clip, new_figure

# What a cell costs, by its field: the axis's label, its unit.
COSTS = {
    "macs": ("multiply-adds (millions)", 1e6),
    "bytes_gzip": ("bytes in gzip (thousands)", 1e3),
}
# Below this the cells are of one size, and the heat map says all there is.
LEAST_SPREAD = 1.05
# Okabe & Ito's palette without its yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*"


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
    panels[0].set_ylabel("accuracy on the test images (%)")
    figure.suptitle(
        f"{clip(grid.name)}: accuracy by {axis.key}",
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
    return Plot(f"Accuracy of {grid.name} by {axis.key} against {costs}", figure)


def _make_lines(grid: Grid, field: str) -> tuple[Axis, list[list[Model]]]:
    """Joins the cells along the axis that costs more, and returns the other one."""
    found = []
    for place, axis in enumerate((grid.rows, grid.columns)):
        lines = [
            [c.model for key, c in grid.cells.items() if key[place] == value]
            for value in axis.values
        ]
        costs = [[model.mean(field) for model in line] for line in lines if line]
        spread = statistics.fmean(max(line) / min(line) for line in costs)
        found.append((spread, axis, lines))
    _, axis, lines = max(found, key=lambda found: found[0])
    return axis, lines


def _differ(cells: Sequence[Model], field: str) -> bool:
    costs = [model.mean(field) for model in cells]
    return None not in costs and max(costs) > LEAST_SPREAD * min(costs)


def _find_others(grid: Grid, run: Run, cells: Sequence[Model]) -> list[Model]:
    """Other models of the cells' format, no larger than the baseline."""
    how, baseline = _how(cells[0]), next(iter(grid.cells.values())).baseline
    most = baseline.mean("parameters")
    return [
        model
        for model in run.distinct
        if model not in cells
        and set(model.axes) <= set(baseline.axes)
        and _how(model) == how
        and model.values("accuracy")
        and (
            None in (most, model.mean("parameters")) or model.mean("parameters") <= most
        )
    ]


def _how(model: Model) -> tuple:
    return tuple(model.get(key) for key in ("format", "dtype", "resolver"))


def _draw_line(axes: Axes, line, field: str, number: int, text: str) -> None:
    line = sorted(line, key=lambda model: model.mean(field))
    colour, marker = (signs[number % len(COLOURS)] for signs in (COLOURS, MARKERS))
    axes.errorbar(
        [model.mean(field) for model in line],
        [100 * model.mean("accuracy") for model in line],
        [100 * (model.deviation("accuracy") or 0.0) for model in line],
        color=colour,
        marker=marker,
        ms=5,
        lw=1.3,
        elinewidth=0.9,
        capsize=2,
        # Seven signs, each plain and broken: fourteen rows can be told apart.
        ls="-" if number < len(COLOURS) else "--",
        label=text,
    )


def _draw_others(axes: Axes, others: Sequence[Model], field: str) -> None:
    for model in others:
        if model.mean(field) is not None:
            at = model.mean(field), 100 * model.mean("accuracy")
            spread = 100 * (model.deviation("accuracy") or 0.0)
            axes.errorbar(*at, spread, color="0.3", marker="x", ms=6, capsize=2, lw=0.9)
    axes.margins(x=0.12, y=0.1)


def _name_others(axes: Axes, others, field: str, cells) -> None:
    shown: dict[tuple, list[str]] = {}
    for model in others:
        if model.mean(field) is not None:
            at = model.mean(field), 100 * model.mean("accuracy")
            shown.setdefault(at, []).append(clip(model.label))
    obstacles = [(model.mean(field), 100 * model.mean("accuracy")) for model in cells]
    place_labels(
        axes,
        list(shown),
        ["\n".join(names) for names in shown.values()],
        obstacles=obstacles,
        styles=[{"fontsize": 8.5}] * len(shown),
    )
