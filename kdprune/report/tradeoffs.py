"""Draws what accuracy costs, in bytes and milliseconds, beside published models."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from kdprune.report.document import timing
from kdprune.report.read import MOST_CELLS, Run
from kdprune.report.style import (
    GREY,
    REFERENCE_MARKER,
    Plot,
    add_key,
    clip_all,
    format_key,
    look,
    new_figure,
    place_labels,
)


@dataclass(frozen=True)
class Reference:
    """One published model, as scored for this project.

    Attributes:
        name: What the plots and tables call it.
        accuracy: Top-1 share of the 10,000 CIFAR-10 test images, in [0, 1].
        bytes: Size of the published `.tflite` file.
        macs: Multiplications of one forward pass, batch 1.
        parameters: Number of weights and biases.
    """

    name: str
    accuracy: float
    bytes: int
    macs: int
    parameters: int


MLPERF_TINY = (
    Reference("MLPerf ResNet-8", 0.8719, 318_144, 12_500_000, 77_706),
    Reference("MLPerf ResNet-8 int8", 0.8697, 98_496, 12_500_000, 77_706),
    Reference("MLPerf large", 0.9128, 1_929_208, 76_470_000, 480_330),
    Reference("MLPerf large int8", 0.9131, 512_024, 76_470_000, 480_330),
)

MLPERF_TINY_SOURCE = (
    "The image-classification models of MLPerf Tiny "
    "([github.com/mlcommons/tiny](https://github.com/mlcommons/tiny), Apache-2.0), "
    "scored by kdprune on all 10,000 test images of CIFAR-10; constants, not part of "
    "this run. Milliseconds come from `kdprune bench` alone, with interleaved runs on "
    "one machine."
)


def plot_size(run: Run, *, references: bool) -> Plot | None:
    """Draws accuracy against bytes: the file filled, its gzip hollow."""
    models = _both(run, "bytes")
    if not models:
        return None
    figure, axes = new_figure(7.6, 5)
    obstacles = []
    for model in models:
        y, raw = 100 * model.known("accuracy"), model.known("bytes")
        colour, marker = look(model)
        packed = model.mean("bytes_gzip")
        if packed:
            axes.plot([packed, raw], [y, y], color=colour, linewidth=1, zorder=2)
            axes.plot(packed, y, marker, color=colour, mfc="white", ms=6, zorder=3)
            obstacles += [(x, y) for x in np.geomspace(packed, raw, 12)]
        axes.plot(raw, y, marker, color=colour, ms=6.5, zorder=4)
    _finish_scatter(axes, models, "bytes", references, obstacles, run.measure)
    axes.set_xlabel("size of the file (log scale)")
    axes.set_title(f"{run.measure.capitalize()} against size")
    key: list[Artist] = [
        Line2D([], [], ls="", marker="o", color="0.3", label="file"),
        Line2D([], [], ls="", marker="o", color="0.3", mfc="white", label="gzip"),
    ]
    key = key if obstacles else []
    add_key(figure, format_key(models, references) + key)
    _name_points(axes, models, "bytes", references, obstacles, run.find("flagship"))
    return Plot(
        f"{run.measure.capitalize()} against the size of the file and of its gzip",
        figure,
    )


def plot_latency(run: Run) -> Plot | None:
    """Draws accuracy against the median latency, with a line up to the p90."""
    field = "latency_ms_p50"
    models = _both(run, field)
    if not models:
        return None
    figure, axes = new_figure(7.6, 5)
    obstacles = []
    for model in models:
        y, x = 100 * model.known("accuracy"), model.known(field)
        colour, marker = look(model)
        slow = model.mean("latency_ms_p90")
        if slow:
            axes.plot([x, slow], [y, y], color=colour, linewidth=1.2, zorder=2)
            axes.plot(slow, y, "|", color=colour, ms=6, zorder=2)
            obstacles += [(value, y) for value in np.linspace(x, slow, 6)]
        axes.plot(x, y, marker, color=colour, ms=6.5, zorder=4)
    _finish_scatter(axes, models, field, False, obstacles, run.measure)
    how = sorted({timing(model) for model in models})
    axes.set_xlabel(f"milliseconds per image (log scale; {'; '.join(how)})")
    axes.set_title(f"{run.measure.capitalize()} against latency")
    key: list[Artist] = [
        Line2D([], [], color="0.3", marker="|", markevery=[1], label="p50 to p90")
    ]
    add_key(figure, format_key(models) + (key if obstacles else []))
    _name_points(axes, models, field, False, obstacles, run.find("flagship"))
    return Plot(f"{run.measure.capitalize()} against latency", figure)


def _both(run, field):
    """Returns the models that have an accuracy and a place on a log scale."""
    return [m for m in run.shipped if m.values("accuracy") and m.mean(field)]


def _scatter_points(models, field, references):
    """Returns (x, y, name) of each model, then of each reference."""
    names = clip_all([model.label for model in models])
    points = [
        (model.known(field), 100 * model.known("accuracy"), name)
        for model, name in zip(models, names, strict=True)
    ]
    if references:
        points += [(getattr(r, field), 100 * r.accuracy, r.name) for r in MLPERF_TINY]
    return points


def _finish_scatter(axes, models, field, references, obstacles, measure):
    """Draws the references, and sets the scales with room for the names."""
    points = _scatter_points(models, field, references)
    for x, y, _ in points[len(models) :]:
        axes.plot(x, y, REFERENCE_MARKER, color=GREY, ms=6, zorder=3)
    x = [point[0] for point in points] + [x for x, _ in obstacles]
    y = [point[1] for point in points]
    room = max(0.16 * math.log(max(x) / min(x)), 0.3)
    axes.set_xscale("log")
    axes.set_xlim(min(x) / math.exp(room), max(x) * math.exp(room))
    margin = max(0.12 * (max(y) - min(y)), 0.3)
    axes.set_ylim(min(y) - margin, max(y) + margin)
    axes.set_ylabel(f"{measure} (%)")
    _set_log_ticks(axes, _write_bytes if field == "bytes" else "{:g}".format)


def _set_log_ticks(axes, write):
    """Labels some of each decade: the fewer decades there are, the more."""
    low, high = axes.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    span = math.log10(high / low)
    steps = (1, 1.5, 2, 3, 4, 5, 7) if span < 1 else (1, 2, 5) if span < 4 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _write_bytes(value):
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def _name_points(axes, models, field, references, obstacles, flagship):
    """Writes the names once the layout is final: they depend on its pixels."""
    figure = axes.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    points = _scatter_points(models, field, references)
    names = [name for _, _, name in points]
    crowds = _find_crowds(models)
    for best, cells in crowds.items():
        names[best] = f"{models[best].name}, best of {len(cells)} cells"
    silent = {i for best, cells in crowds.items() for i in cells if i != best}
    if flagship in models:
        names[models.index(flagship)] += " (flagship)"
        silent -= {models.index(flagship)}
    named = [i for i in range(len(points)) if i not in silent]
    places = axes.transData.transform([points[i][:2] for i in named])
    near = _group_near(places, 5 * figure.dpi / 72)
    groups = [[named[i] for i in group] for group in near]
    place_labels(
        axes,
        [points[group[0]][:2] for group in groups],
        [_join_names(group, names, models, crowds) for group in groups],
        obstacles=[*obstacles, *(point[:2] for point in points)],
        styles=[
            {"fontsize": 8.5}
            | ({"color": GREY, "style": "italic"} if group[0] >= len(models) else {})
            for group in groups
        ],
    )


def _find_crowds(models):
    """The cells of each model that has too many to name, by the best of them."""
    cells: dict[tuple, list[int]] = {}
    for i, model in enumerate(models):
        cells.setdefault((model.name, model.get("format"), look(model)), []).append(i)
    return {
        max(found, key=lambda i: models[i].known("accuracy")): found
        for found in cells.values()
        if len(found) > MOST_CELLS
    }


def _join_names(group, names, models, crowds):
    """Writes a group's names; the cells of a study's model are counted instead."""
    cells = Counter(
        models[i].name for i in group if i < len(models) and i not in crowds
    )
    lines = [
        f"{models[i].name}, {cells[models[i].name]} cells"
        if i < len(models) and cells[models[i].name] > 2
        else names[i]
        for i in group
    ]
    return "\n".join(dict.fromkeys(lines))


def _group_near(places, distance):
    """Groups points that cover each other: they share a label, a line for each."""
    groups: list[list[int]] = []
    for i, place in enumerate(places):
        for group in groups:
            if math.dist(place, places[group[0]]) < distance:
                group.append(i)
                break
        else:
            groups.append([i])
    return groups
