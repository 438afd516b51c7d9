"""How the plots look, for colour-blind readers and for grey print.

Number formats are told apart by marker and colour (Okabe & Ito's palette,
https://jfly.uni-koeln.de/color/), models by their names beside the points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdprune.report.read import Model

BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
LOOKS = {"float32": (BLUE, "o"), "int8": (VERMILLION, "s"), "uint8": (GREEN, "D")}
OTHER_LOOK = ("black", "v")
REFERENCE_MARKER = "^"
STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "text.parse_math": False,  # a class or a stage may have a dollar in its name
    "svg.fonttype": "none",  # names stay text, which can be searched and read out
    "svg.hashsalt": "kdprune",
}


@dataclass(frozen=True)
class Plot:
    """A figure and the sentence that stands for it where it cannot be seen."""

    caption: str
    figure: Figure


def new_figure(width: float, height: float, empty: bool = False):
    """Makes a figure, in inches, and its axes (None if `empty`)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, None if empty else figure.add_subplot()


def look(model: Model) -> tuple[str, str]:
    """Returns the colour and the marker of a model's number format."""
    return LOOKS.get(model.get("dtype"), OTHER_LOOK)


def clip(name: str, length: int = 30) -> str:
    """Shortens a name in its middle: both ends of a layer's name tell it apart."""
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[-(length - length // 2 - 1) :]}"


def clip_all(names: Sequence[str], length: int = 30) -> list[str]:
    """Shortens names alike, no further than leaves them distinct."""
    longest = max(map(len, names), default=0)
    while length < longest and len({clip(n, length) for n in names}) < len({*names}):
        length += 5
    return [clip(name, length) for name in names]


def room_for(names: Sequence[str], length: int = 30) -> float:
    """Returns the inches that names need beyond those of the usual length."""
    return 0.075 * max(0, max(map(len, names), default=0) - length)


def write_beside(
    axes: Axes, row: float, columns: Sequence[float], texts: Sequence[str], **style
) -> None:
    """Writes texts beside a row, so many points right of the axes."""
    for column, text in zip(columns, texts, strict=True):
        axes.annotate(
            text,
            (1, row),
            (column, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            annotation_clip=False,
            va="center",
            **{"fontsize": 8.5, **style},
        )


def head_columns(axes: Axes, columns: Sequence[float], texts: Sequence[str]) -> None:
    """Writes above the columns of `write_beside` what they hold."""
    for column, text in zip(columns, texts, strict=True):
        axes.annotate(
            text,
            (1, 1),
            (column, 5),
            xycoords="axes fraction",
            textcoords="offset points",
            color=GREY,
            fontsize=8.5,
        )


def add_key(figure: Figure, handles: Sequence[Artist]) -> None:
    """Explains the marks in a line under the axes."""
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=len(handles),
            frameon=False,
            fontsize=8,
            handletextpad=0.3,
            columnspacing=1.4,
        )


def format_key(models: Sequence[Model], references: bool = False) -> list[Artist]:
    """Returns the key's entries for the number formats that occur."""
    found = {m.get("dtype") if m.get("dtype") in LOOKS else "other" for m in models}
    looks = {**LOOKS, "other": OTHER_LOOK}
    handles: list[Artist] = [
        Line2D([], [], ls="", color=looks[name][0], marker=looks[name][1], label=name)
        for name in looks
        if name in found
    ]
    if references:
        handles.append(
            Line2D(
                [],
                [],
                ls="",
                color=GREY,
                marker=REFERENCE_MARKER,
                label="published reference",
            )
        )
    return handles
