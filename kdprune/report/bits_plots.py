"""Draws what 8 bits cost each layer, so that the one to blame is seen at once."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kdprune.report.bits import ENOUGH_DB, Layer, read_layers, worst_layers
from kdprune.report.read import Stage
from kdprune.report.style import (
    BLUE,
    GREY,
    VERMILLION,
    Plot,
    add_key,
    clip,
    clip_all,
    new_figure,
    room_for,
    write_beside,
)
from kdprune.report.text import decibels, slug

# Layers that are marked: at most these, and a third of all.
MARKED = 5
# Rounding to 8 bits gives 50 dB at best; what has more is as good as exact, and would
# press the others into a corner.
TOP_DB = 60
# Rows beyond these are narrower.
ROOMY = 40
DIAMOND = {"color": "black", "marker": "D", "mfc": "white", "mew": 1, "ms": 4, "ls": ""}


def draw_bits(stage: Stage) -> dict[str, Plot]:
    """Draws what 8 bits cost each layer, if the stage has measured it.

    Args:
        stage: A stage of any kind.

    Returns:
        Plots by file name without its ending.
    """
    layers = read_layers(stage)
    if not worst_layers(layers, 1):
        return {}
    seeds = len(stage.cells)
    return {f"layers-{slug(stage.name)}": plot_layers(layers, stage.name, seeds)}


def plot_layers(layers: Sequence[Layer], name: str, seeds: int = 1) -> Plot:
    """Draws a bar of SQNR for each layer as executed, the worst dark and in bold.

    The weights' SQNR is a diamond on the bar: where both are low, the weights are
    too coarse; where only the bar is, it is the range of the output.
    """
    names = clip_all([layer.name for layer in layers])
    pitch, size = (0.2, 8) if len(layers) <= ROOMY else (0.14, 7)
    height = 1.5 + pitch * max(len(layers), 4)
    figure, axes = new_figure(6.8 + room_for(names), height)
    marked = worst_layers(layers, max(1, min(MARKED, len(layers) // 3)))
    for row, layer in enumerate(layers):
        _draw_layer(axes, row, layer, layer in marked, size)
    axes.set_yticks(range(len(layers)), names, fontsize=size)
    for label, layer in zip(axes.get_yticklabels(), layers, strict=True):
        label.set_weight("bold" if layer in marked else "normal")
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(*_limits(layers))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.axvline(ENOUGH_DB, color="black", linestyle=(0, (5, 3)), linewidth=1)
    _write_above(
        axes,
        (ENOUGH_DB, 1),
        axes.get_xaxis_transform(),
        0,
        f"to blame below {ENOUGH_DB}",
    )
    _write_above(axes, (1, 1), "axes fraction", 10, "dB")
    axes.set_xlabel("signal over quantization error of the output (dB)")
    means = f", means over {seeds} seeds" if seeds > 1 else ""
    title = f"{clip(name, 30)}: what int8 costs each layer{means}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, weight="bold")
    add_key(figure, _key(layers))
    return Plot(
        f"SQNR of each layer in int8, in the order of execution: {name}", figure
    )


def _draw_layer(axes: Axes, row: int, layer: Layer, marked: bool, size: float) -> None:
    if layer.sqnr_db is not None:
        colour = VERMILLION if marked else BLUE
        axes.barh(row, layer.sqnr_db, height=0.7, **_bar(colour, marked))
    if layer.weight_sqnr_db is not None:
        axes.plot(min(layer.weight_sqnr_db, TOP_DB), row, zorder=4, **DIAMOND)
    exact = layer.sqnr_db is None and layer.steps == 0
    text = "exact" if exact else decibels(layer.sqnr_db)
    weight = "bold" if marked else "normal"
    write_beside(axes, row, (10,), (text,), fontsize=size, weight=weight)


def _bar(colour: str, marked: bool) -> dict:
    """Dark against light, so that the two are told apart in grey as well."""
    return {"facecolor": colour, "edgecolor": colour, "alpha": 1 if marked else 0.3}


def _limits(layers: Sequence[Layer]) -> tuple[float, float]:
    found = [
        value
        for layer in layers
        for value in (layer.sqnr_db, layer.weight_sqnr_db)
        if value is not None
    ]
    low = min(0.0, 1.05 * min(found))
    return low, min(max(1.05 * max(found), 1.25 * ENOUGH_DB), TOP_DB)


def _write_above(axes: Axes, place: tuple, system, shift: float, text: str) -> None:
    axes.annotate(
        text,
        place,
        (shift, 5),
        ha="left" if shift else "center",
        xycoords=system,
        textcoords="offset points",
        annotation_clip=False,
        color=GREY,
        fontsize=8.5,
    )


def _key(layers: Sequence[Layer]) -> list:
    handles = [
        Patch(**_bar(VERMILLION, True), label="worst layers"),
        Patch(**_bar(BLUE, False), label="other layers"),
        Line2D([], [], **DIAMOND, label="weights alone"),
    ]
    weighted = any(layer.weight_sqnr_db is not None for layer in layers)
    return handles if weighted else handles[:2]
