"""How the plots look, and where names stand in them, for every reader.

Number formats are told apart by marker and colour (Okabe & Ito's palette,
https://jfly.uni-koeln.de/color/), models by their names beside the points, which cover
neither a point nor another name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

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


def new_figure(width: float, height: float, empty: bool = False) -> tuple[Figure, Any]:
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
    axes: Axes, row: float, columns: Sequence[float], texts: Sequence[str], **style: Any
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


# --- Names beside points. Boxes are rows (left, bottom, right, top), lines are rows
# (x, y, x, y), and places are offsets (x, y) from a point, all in pixels. ---

# How far from its point a label may be, in points (1/72 inch), nearest first.
DISTANCES = (8, 14, 20, 28, 38, 50, 64, 80, 100, 125, 155)
DIRECTIONS = 24
# A label farther away than this is joined to its point by a thin line.
LEADER_FROM = 10
# A thin line through a name, or a name over the edge, spoils the whole name.
SPOILS = 30
PADDING = 2
ATTEMPTS = 12


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    *,
    obstacles: Sequence[tuple[float, float]] = (),
    styles: Sequence[Mapping[str, Any]] | None = None,
    radius: float = 4.5,
) -> list[Annotation]:
    """Writes each text beside its point, in the nearest free place.

    Takes the labels in turn and weighs the places around their points: a place
    should be near, inside the axes, and free of points, obstacles and earlier
    labels. Labels that find none choose first in the next attempt; the attempt
    that covers least is drawn. Call it when the figure's layout is final.

    Args:
        axes: Where the points are; its limits and scale must be set.
        points: Data coordinates (x, y) of each point.
        texts: A label for each point.
        obstacles: Further data coordinates that no label may cover.
        styles: For each label, arguments of `matplotlib.text.Text`.
        radius: Half the size of a point's marker, in points.

    Returns:
        The annotations, in the order of `texts`.
    """
    styles = styles or [{}] * len(texts)
    labels = [
        axes.annotate(text, point, (0, 0), textcoords="offset points", **style)
        for point, text, style in zip(points, texts, styles, strict=True)
    ]
    renderer = cast(FigureCanvasAgg, axes.figure.canvas).get_renderer()
    scale = axes.figure.dpi / 72
    sizes = [label.get_window_extent(renderer).size for label in labels]
    centres = axes.transData.transform([*points, *obstacles])
    markers = np.concatenate([centres - radius * scale, centres + radius * scale], 1)
    pixels = centres[: len(points)]
    places = _find_places(pixels, sizes, markers, axes.bbox.extents, scale)
    for label, place in zip(labels, places, strict=True):
        label.set_in_layout(False)
        label.set_position(place / scale)
        horizontal, vertical = _facing(place)
        label.set(ha={1: "left", 0: "center", -1: "right"}[horizontal])
        label.set(va={1: "bottom", 0: "center", -1: "top"}[vertical])
        if np.linalg.norm(place) > LEADER_FROM * scale:
            _draw_leader(label)
    return labels


def _find_places(pixels, sizes, markers, inside, scale):
    """Returns the offset of each label, of the attempt that costs least."""
    random = np.random.default_rng(0)
    order = list(range(len(pixels)))
    best, least = [], math.inf
    for _ in range(ATTEMPTS):
        names: list[np.ndarray] = []
        lines: list[list[float]] = []
        places, costs = {}, {}
        for i in order:
            candidates = _candidates(pixels[i], sizes[i], scale)
            cost = _price(candidates, pixels[i], (markers, names, lines), inside)
            chosen = int(np.argmin(cost + candidates.nearness))
            costs[i], places[i] = cost[chosen], candidates.places[chosen]
            names.append(candidates.boxes[chosen])
            if candidates.joined[chosen]:
                lines.append([*pixels[i], *(pixels[i] + places[i])])
        total = sum(costs.values())
        if total < least:
            best, least = [places[i] for i in range(len(pixels))], total
        if total == 0:
            break
        # Those in trouble choose first next time, in an order not yet tried.
        random.shuffle(order)
        order.sort(key=lambda i: costs[i] == 0)
    return best


class _Candidates(NamedTuple):
    """Where a label may be: all arrays have a row for each place."""

    places: np.ndarray
    boxes: np.ndarray
    joined: np.ndarray
    nearness: np.ndarray


def _candidates(origin, size, scale):
    """Returns the places around a point; the best is near, and to its right."""
    turn = np.arange(DIRECTIONS)
    angle = 2 * np.pi * turn / DIRECTIONS
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    distance = np.repeat(DISTANCES, DIRECTIONS)
    places = distance[:, None] * np.tile(ring, (len(DISTANCES), 1)) * scale
    aside = np.tile(np.minimum(turn, DIRECTIONS - turn), len(DISTANCES))
    corner = origin + places - (0.5 - 0.5 * _facing(places)) * size
    boxes = np.concatenate([corner, corner + size], axis=1)
    return _Candidates(places, boxes, distance > LEADER_FROM, distance + 0.1 * aside)


def _facing(places):
    """Returns per axis which end of a text faces its point: 1 start, 0 middle, -1 end.

    A text to the right of its point starts there, one above it is centred on it.
    """
    far = 0.5 * np.linalg.norm(places, axis=-1, keepdims=True)
    return np.where(places > far, 1, np.where(places < -far, -1, 0))


def _price(candidates, origin, taken, inside):
    """Returns what each place covers, in pixels, zero for a free one.

    A line to the point starts at the point's own marker, and at those of other
    points that lie there too: these it may cross.
    """
    markers, names, lines = (np.reshape(boxes, (-1, 4)) for boxes in taken)
    boxes = candidates.boxes + [-PADDING, -PADDING, PADDING, PADDING]
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    cost = SPOILS * (area - _shared(boxes, np.asarray([inside]))[:, 0])
    cost[cost < 1] = 0  # rounding
    cost += _shared(boxes, markers).sum(axis=1)
    cost += SPOILS * _shared(boxes, names).sum(axis=1)
    cost += SPOILS * area * _crosses(lines, boxes).sum(axis=0)
    under = ((markers[:, :2] <= origin) & (origin <= markers[:, 2:])).all(axis=1)
    own = np.concatenate(
        [np.broadcast_to(origin, candidates.places.shape), origin + candidates.places],
        axis=1,
    )
    crossed = 20 * _crosses(own, markers[~under]).sum(axis=1)
    crossed = crossed + SPOILS * area * _crosses(own, names).sum(axis=1)
    return cost + candidates.joined * crossed


def _shared(ones, others):
    """Returns the area that each of `ones` shares with each of `others`."""
    ones, others = ones[:, None], others[None]
    low = np.maximum(ones[..., :2], others[..., :2])
    high = np.minimum(ones[..., 2:], others[..., 2:])
    return np.prod(np.clip(high - low, 0, None), axis=-1)


def _crosses(lines, boxes):
    """Whether each line (from x, y to x, y) goes through each box."""
    start, way = lines[:, None, :2], (lines[:, 2:] - lines[:, :2])[:, None]
    way = np.where(way == 0, 1e-9, way)
    ends = (boxes[None, :, :2] - start) / way, (boxes[None, :, 2:] - start) / way
    enter = np.minimum(*ends).max(axis=-1)
    leave = np.maximum(*ends).min(axis=-1)
    return (enter < leave) & (leave > 0) & (enter < 1)


def _draw_leader(label):
    """Draws the thin line from a point to its label."""
    arrow = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0}
    line = label.axes.annotate(
        "",
        label.xy,
        label.get_position(),
        textcoords="offset points",
        arrowprops={**arrow, "shrinkB": 4},
    )
    line.set_in_layout(False)
