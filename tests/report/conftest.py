"""What the tests of several plots share: how well their texts can be read."""

import pytest
from matplotlib.text import Text


@pytest.fixture
def text_faults():
    """A function that lists the texts of a figure that touch another or its edge."""

    def find(figure):
        width, height = figure.bbox.size
        outside = [
            text
            for text, box in _visible_labels(figure)
            if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
        ]
        return outside + _overlapping(figure)

    return find


def _visible_labels(figure):
    """Boxes of all texts that are drawn, by text; the layout must be final."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    hidden = {
        label
        for axes in figure.axes
        for axis, limits in (
            (axes.xaxis, axes.get_xlim()),
            (axes.yaxis, axes.get_ylim()),
        )
        for tick in (*axis.majorTicks, *axis.minorTicks)
        for label in (tick.label1, tick.label2)
        if not min(limits) <= tick.get_loc() <= max(limits)
    }  # matplotlib keeps tick labels outside the limits, and does not draw them
    return [
        (text.get_text(), Text.get_window_extent(text, renderer))
        for text in figure.findobj(Text)
        if text.get_text().strip()
        and text.get_visible()
        and text not in hidden
        and text.get_rotation() != 45  # oblique: their upright boxes say nothing
    ]


def _overlapping(figure):
    boxes = _visible_labels(figure)
    return [
        (one, other)
        for i, (one, a) in enumerate(boxes)
        for other, b in boxes[i + 1 :]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5
        and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]
