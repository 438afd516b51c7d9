"""Puts names beside a plot's points without covering a point or another name.

Boxes are tuples (left, bottom, right, top) and places are offsets (x, y) from a
point, all in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.text import Annotation

# How far from its point a label may be, in points (1/72 inch), nearest first.
DISTANCES = (8, 14, 20, 28, 38, 50, 64, 80, 100, 125, 155)
DIRECTIONS = 24
# A label farther away than this is joined to its point by a thin line.
LEADER_FROM = 10
# A thin line through a name, or a name over the edge, spoils the whole name.
SPOILS = 30
ATTEMPTS = 20

Box = tuple[float, float, float, float]


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

    Takes the labels in turn and tries the places around a point from near to
    far: inside the axes, and free of points, obstacles and earlier labels.
    Where a label finds none, it goes first in the next attempt; the attempt
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
    renderer = axes.figure.canvas.get_renderer()
    scale = axes.figure.dpi / 72
    labels = [
        axes.annotate(text, point, (0, 0), textcoords="offset points", **style)
        for point, text, style in zip(
            points, texts, styles or [{}] * len(texts), strict=True
        )
    ]
    sizes = [label.get_window_extent(renderer).size for label in labels]
    pixels = [tuple(axes.transData.transform(point)) for point in points]
    around = radius * scale
    markers = [
        (x - around, y - around, x + around, y + around)
        for x, y in [*pixels, *map(axes.transData.transform, obstacles)]
    ]
    places = _find_places(pixels, sizes, markers, axes.bbox.extents, scale)
    for label, (x, y) in zip(labels, places, strict=True):
        label.set_in_layout(False)
        label.set_position((x / scale, y / scale))
        label.set(**dict(zip(("ha", "va"), _alignment((x, y)), strict=True)))
        if math.hypot(x, y) > LEADER_FROM * scale:
            _draw_leader(label)
    return labels


def _find_places(pixels, sizes, markers, inside, scale):
    """Returns the offset of each label, of the attempt that covers least."""
    order = list(range(len(pixels)))
    best, least = [], math.inf
    for _ in range(ATTEMPTS):
        taken, places, costs = list(markers), {}, {}
        for i in order:
            place, costs[i] = _find_place(pixels[i], sizes[i], taken, inside, scale)
            places[i] = place
            taken.append(_text_box(pixels[i], place, sizes[i]))
            taken += _leader(pixels[i], place, scale)
        if sum(costs.values()) < least:
            best, least = [places[i] for i in range(len(pixels))], sum(costs.values())
        if least == 0:
            break
        worst = max(order, key=costs.__getitem__)
        if order[0] == worst:
            break
        order.remove(worst)
        order.insert(0, worst)
    return best


def _find_place(origin, size, taken, inside, scale):
    """Returns the first free offset and 0, or the one that covers least and how much.

    A line to the point starts at the point's own marker, and at those of other
    points that lie there too: these it may cross.
    """
    x, y = origin
    others = [b for b in taken if not (b[0] <= x <= b[2] and b[1] <= y <= b[3])]
    best, least = (0.0, 0.0), math.inf
    for distance in DISTANCES:
        for place in _ring(distance * scale):
            box = _text_box(origin, place, size, padding=1.5)
            area = (box[2] - box[0]) * (box[3] - box[1])
            cost = SPOILS * (area - _shared(box, inside))
            cost += sum(_shared(box, other) for other in taken)
            cost += SPOILS * sum(
                _shared(part, other)
                for part in _leader(origin, place, scale)
                for other in others
            )
            if cost < 0.01:
                return place, 0.0
            if cost < least:
                best, least = place, cost
    return best, least


def _ring(distance):
    """Offsets on a circle, the right one first, then from there both ways."""
    order = sorted(range(DIRECTIONS), key=lambda i: min(i, DIRECTIONS - i))
    angles = [2 * math.pi * i / DIRECTIONS for i in order]
    return [(distance * math.cos(a), distance * math.sin(a)) for a in angles]


def _alignment(place):
    """Which side of the text is at the offset: the one that faces the point."""
    x, y = place
    far = 0.5 * math.hypot(x, y)
    horizontal = "left" if x > far else "right" if x < -far else "center"
    vertical = "bottom" if y > far else "top" if y < -far else "center"
    return horizontal, vertical


def _text_box(origin, place, size, padding=0.0) -> Box:
    """Returns the box of a text of that size that is put at the offset."""
    horizontal, vertical = _alignment(place)
    left = origin[0] + place[0]
    left -= {"left": 0, "center": 0.5, "right": 1}[horizontal] * size[0]
    low = origin[1] + place[1]
    low -= {"bottom": 0, "center": 0.5, "top": 1}[vertical] * size[1]
    return (
        left - padding,
        low - padding,
        left + size[0] + padding,
        low + size[1] + padding,
    )


def _leader(origin, place, scale) -> list[Box]:
    """Returns small boxes along the line from a point to a label that has one."""
    length = math.hypot(*place)
    if length <= LEADER_FROM * scale:
        return []
    steps = int(length // (3 * scale))
    along = [
        (origin[0] + place[0] * step / steps, origin[1] + place[1] * step / steps)
        for step in range(1, steps)
    ]
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in along]


def _shared(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


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
