"""What several tests share: hand-made records, and how well a plot can be read."""

import json

import numpy as np
import pytest
from matplotlib.text import Text

from kdprune.report.read import read_run


class Records:
    """Writes a run's records as the pipeline does, as far as a study needs them."""

    def __init__(self, folder):
        self.folder, self.entries = folder, []

    def add(self, name, accuracies, *, axes="", stage=None, entry=(), **record):
        """A model of one or several seeds; a single number for one without seed."""
        single = not isinstance(accuracies, tuple)
        for seed, accuracy in enumerate((accuracies,) if single else accuracies, 1):
            folder = f"{stage or name}{axes}" + ("" if single else f"--seed={seed}")
            self.entries.append(
                {
                    "name": name,
                    "stage": folder,
                    "format": "keras",
                    "dtype": "float32",
                    "accuracy": accuracy,
                    "parameters": 77_706,
                    **dict(entry),
                }
            )
            validation = None if accuracy is None else accuracy + 0.01
            content = {"kind": "distill", "results": {"val_accuracy": validation}}
            (self.folder / folder).mkdir(exist_ok=True)
            path = self.folder / folder / "record.json"
            path.write_text(json.dumps({**content, **record}))
        return self

    def add_stage(self, folder, **record):
        """A stage whose model, if it makes one, is not measured."""
        (self.folder / folder).mkdir()
        (self.folder / folder / "record.json").write_text(json.dumps(record))
        return self

    def run(self, baseline="alone"):
        content = {"schema": 1, "baseline": baseline, "models": self.entries}
        (self.folder / "metrics.json").write_text(json.dumps(content))
        return read_run(self.folder)


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path)


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


@pytest.fixture
def luminance():
    """A function of the relative luminance of sRGB colours (WCAG 2)."""

    def find(colours):
        channels = np.asarray(colours)[..., :3]
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    return find


@pytest.fixture
def contrast():
    """A function of the contrast of two luminances, at least 4.5 for small text."""
    return lambda one, other: (max(one, other) + 0.05) / (min(one, other) + 0.05)


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
