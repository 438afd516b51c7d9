"""Draws the README's picture from the flagship's record.

    python docs/tools/overview.py

Accuracy against size: the teacher, the student as a float32 and as an int8 file, and
the published MLPerf Tiny models. The figures are stored in the PNG, where
`tests/test_docs.py` compares them with results/cifar10/metrics.json.
"""

import json
import pathlib

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdprune.report.tradeoffs import MLPERF_TINY

ROOT = pathlib.Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "accuracy-and-size.png"
METRICS = ROOT / "results" / "cifar10" / "metrics.json"
OURS, TEACHER, PUBLISHED = "#D55E00", "#0072B2", "#777777"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "figure.facecolor": "white",
}
# What is drawn: the record's name, its label, and where the label stands.
POINTS = {
    "teacher": ("teacher, float32", (-10, -4), "right"),
    "student_float32": ("student, float32", (10, -13), "left"),
    "quantized_int8": ("student, int8", (0, 11), "center"),
}
LABELS = {
    "MLPerf ResNet-8": ("ResNet-8, float32", (10, -4), "left"),
    "MLPerf ResNet-8 int8": ("ResNet-8, int8", (0, -17), "center"),
    "MLPerf large": ("ResNet-8 large, float32", (10, -8), "left"),
    "MLPerf large int8": ("ResNet-8 large, int8", (-2, 10), "center"),
}


def figures():
    """Bytes and accuracy of what is drawn, by label."""
    models = {m["name"]: m for m in json.loads(METRICS.read_text())["models"]}
    ours = {name: models[name] for name in POINTS}
    # The teacher has no file for a device: its float32 weights count.
    size = {name: ours[name]["bytes"] for name in POINTS}
    size["teacher"] = 4 * ours["teacher"]["parameters"]
    found = {name: (size[name], ours[name]["accuracy"]) for name in POINTS}
    return found | {m.name: (m.bytes, m.accuracy) for m in MLPERF_TINY}


def draw(points):
    figure = Figure(figsize=(8.2, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    path = [points[name] for name in POINTS]
    axes.plot(
        [size for size, _ in path],
        [100 * a for _, a in path],
        color="0.7",
        lw=1.2,
        ls=(0, (4, 3)),
    )
    for name, (label, offset, side) in {**POINTS, **LABELS}.items():
        size, accuracy = points[name]
        published = name in LABELS
        color = PUBLISHED if published else TEACHER if name == "teacher" else OURS
        marker = "^" if published else "o" if name == "teacher" else "s"
        axes.plot(size, 100 * accuracy, marker, color=color, ms=8)
        axes.annotate(
            f"{label}: {100 * accuracy:.2f} %",
            (size, 100 * accuracy),
            offset,
            textcoords="offset points",
            ha=side,
            color="0.35" if published else color,
            weight="normal" if published else "bold",
            fontsize=9.5,
        )
    axes.set_xlim(5e4, 1.4e7)
    axes.set_ylim(85.8, 95.2)
    ticks = {1e5: "100 kB", 3e5: "300 kB", 1e6: "1 MB", 3e6: "3 MB", 1e7: "10 MB"}
    axes.set_xticks(list(ticks), ticks.values())
    axes.minorticks_off()
    axes.set_xlabel("size (logarithmic)")
    axes.set_ylabel("CIFAR-10 test accuracy (%)")
    key = [
        Line2D([], [], ls="", marker="o", color=TEACHER, label="kdprune, teacher"),
        Line2D([], [], ls="", marker="s", color=OURS, label="kdprune, .tflite files"),
        Line2D([], [], ls="", marker="^", color=PUBLISHED, label="MLPerf Tiny"),
    ]
    axes.legend(handles=key, loc="lower right", frameon=False, fontsize=9.5)
    return figure


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        found = figures()
        draw(found).savefig(PICTURE, dpi=160, metadata={"Comment": json.dumps(found)})
