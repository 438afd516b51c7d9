"""Draws the report's plots.

Figures are made by matplotlib's object interface: nothing here touches pyplot
or leaves a global setting changed.
"""

from __future__ import annotations

import io
import math
from collections import Counter

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from kdprune.report.document import accuracy_text, difference_text, slug
from kdprune.report.page import SECTIONS
from kdprune.report.read import MOST_CELLS, Model, Run, Stage
from kdprune.report.study_plots import draw_study
from kdprune.report.style import (
    BLUE,
    STYLE,
    VERMILLION,
    Plot,
    add_key,
    clip,
    clip_all,
    format_key,
    head_columns,
    look,
    new_figure,
    room_for,
    write_beside,
)
from kdprune.report.tradeoffs import plot_latency, plot_size

COLUMNS = (10, 150)  # of figures right of the accuracies, in points


def draw_plots(run: Run, *, references: bool = True) -> dict[str, Plot]:
    """Draws every plot that the run has figures for.

    Args:
        run: What was read from the run folder.
        references: Whether published models are shown when the data is CIFAR-10.

    Returns:
        Plots by file name without its ending, in the order of the page.
    """
    references = references and run.data.get("name") == "cifar10"
    subjects = [run.find("flagship"), run.best]
    if subjects[0] is subjects[1]:
        subjects.pop()
    with matplotlib.rc_context(STYLE):
        drawn = {
            "accuracy": plot_accuracy(run),
            "size": plot_size(run, references=references),
            "latency": plot_latency(run),
            "sparsity": plot_sparsity(run),
        }
        for model in filter(None, subjects):
            name = f"confusion-{slug(model.label)}"
            drawn[name] = plot_confusion(model, run.classes)
        drawn |= draw_study(run)
        for stage in run.stages:
            if stage.aggregated:
                continue
            if section := SECTIONS.get(stage.kind or ""):
                drawn |= section.draw(stage)
            drawn[f"training-{slug(stage.name)}"] = plot_training(stage, run.measure)
    return {name: plot for name, plot in drawn.items() if plot is not None}


def render(figure: Figure, form: str) -> bytes:
    """Renders a figure as "png" or "svg", the same bytes each time.

    A PNG has a palette, which makes it a third as large: of 64 colours for lines and
    bars, of 256 that cover the whole range for a scale of colours.
    """
    drawn = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    with matplotlib.rc_context(STYLE):
        figure.savefig(drawn, format=form, metadata=metadata)
    if form == "svg":
        return drawn.getvalue()
    scaled = any(axes.images for axes in figure.axes)
    colours, method = (
        (256, Image.Quantize.MAXCOVERAGE) if scaled else (64, Image.Quantize.MEDIANCUT)
    )
    picture = io.BytesIO()
    with Image.open(drawn) as image:
        small = image.convert("RGB").quantize(colours, method, dither=Image.Dither.NONE)
    small.save(picture, "PNG", optimize=True)
    return picture.getvalue()


def plot_accuracy(run: Run) -> Plot | None:
    """Draws a dot for each model, its interval, and the baseline as a line."""
    models = [model for model in run.distinct if model.values("accuracy")]
    if not models:
        return None
    names = clip_all([model.label for model in models])
    figure, axes = new_figure(8.6 + room_for(names), 1.3 + 0.36 * len(models))
    baseline, flagship = run.find("baseline"), run.find("flagship")
    for row, model in enumerate(models):
        _draw_accuracy(axes, row, model)
        strong = {"weight": "bold"} if model is flagship else {}
        texts = (accuracy_text(model), difference_text(model, baseline))
        write_beside(axes, row, COLUMNS, texts, **strong)
    axes.set_yticks(range(len(models)), names)
    if flagship in models:
        axes.get_yticklabels()[models.index(flagship)].set_weight("bold")
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"{run.measure} on the test images (%)")
    head_columns(axes, COLUMNS, (f"{run.measure} %", "difference"))
    if baseline in models:
        at = 100 * baseline.known("accuracy")
        axes.axvline(at, color="black", linestyle=(0, (5, 3)), linewidth=1, zorder=1)
        axes.annotate(
            f"baseline {clip(baseline.label)}",
            (at, 1),
            (0, 5),
            ha="center",
            xycoords=axes.get_xaxis_transform(),
            fontsize=8.5,
            textcoords="offset points",
            annotation_clip=False,
        )
    axes.set_title(f"{run.measure.capitalize()} by model", pad=22)
    add_key(figure, format_key(models) + _spread_key(models))
    return Plot(f"{run.measure.capitalize()} of each model with its interval", figure)


def plot_sparsity(run: Run) -> Plot | None:
    """Draws the sparsity of each layer, for models that have zeros.

    A model that was made in many cells of a matrix would fill pages, and is left out.
    """
    models = [
        m for m in run.distinct if max(m.sparsity_by_layer.values(), default=0) >= 0.01
    ]
    cells = Counter(model.name for model in models)
    models = [model for model in models if cells[model.name] <= MOST_CELLS]
    if not models:
        return None
    columns = min(3, len(models))
    rows = math.ceil(len(models) / columns)
    deepest = max(len(model.sparsity_by_layer) for model in models)
    figure, _ = new_figure(
        2.2 + 2.6 * columns, rows * (1.1 + 0.2 * deepest), empty=True
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(models) :]:
        panel.set_visible(False)
    shown = None
    for number, (axes, model) in enumerate(zip(panels, models, strict=False)):
        shares = model.sparsity_by_layer
        repeated = list(shares) == shown and number % columns
        shown = list(shares)
        colour = look(model)[0]
        axes.barh(
            range(len(shares)),
            [100 * share for share in shares.values()],
            color=colour,
            alpha=0.35,
            edgecolor=colour,
            height=0.7,
        )
        for row, share in enumerate(shares.values()):
            axes.text(
                100 * share + 2, row, f"{100 * share:.0f}", va="center", fontsize=7.5
            )
        names = [""] * len(shares) if repeated else _layer_names(shown)
        axes.set_yticks(range(len(shares)), names, fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_ylim(len(shares) - 0.4, -0.6)
        axes.set_xlim(0, 115)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_xlabel("zero weights (%)")
        axes.set_title(clip(model.label, 26))
    return Plot("Sparsity by layer", figure)


def plot_confusion(model: Model, classes: list[str] | None) -> Plot | None:
    """Draws what each class is taken for, in percent of its images.

    The shade shows the errors alone: beside a diagonal of 90 % their
    differences would not be seen.
    """
    if not model.confusion:
        return None
    counts = np.asarray(model.confusion, float)
    total = counts.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    size = len(shares)
    names = classes if classes and len(classes) == size else list(map(str, range(size)))
    side = 6.4 if size <= 20 else 7.5
    figure, axes = new_figure(side + 0.9, side)
    errors = np.ma.array(shares, mask=np.eye(size, dtype=bool))
    top = max(1.0, float(errors.max() or 0)) if size > 1 else 1.0
    image = axes.imshow(errors, cmap="Blues", vmin=0, vmax=top)
    if size <= 20:
        _write_shares(axes, shares, top)
    step = 1 if size <= 20 else math.ceil(size / 20)
    ticks = range(0, size, step)
    labels = [clip(names[tick], 14) for tick in ticks]
    axes.set_xticks(ticks, labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, labels)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"Confusion matrix of {clip(model.label, 40)} (% of a class)")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("errors (%)")
    bar.outline.set_visible(False)
    return Plot(f"Confusion matrix of {model.label}", figure)


def plot_training(stage: Stage, measure: str) -> Plot | None:
    """Draws a stage's accuracy, loss and learning rate by epoch."""
    columns = {name for cell in stage.cells for name in cell.history}
    # A student's whole loss is not what validation measures, its hard part is.
    loss, title = "loss", "loss (nats)"
    if "hard_loss" in columns:
        loss, title = "hard_loss", "loss on the labels (nats)"
    panels = [
        (f"{measure} (%)", "val_accuracy", ("accuracy",), 100),
        (title, "val_loss", (loss,), 1),
        ("learning rate", None, ("lr", "learning_rate"), 1),
    ]
    panels = [panel for panel in panels if columns & {panel[1], *panel[2]}]
    if not panels:
        return None
    widths = [1.0 if panel[1] else 0.55 for panel in panels]
    figure, _ = new_figure(1.0 + 3.7 * sum(widths), 3.1, empty=True)
    # The names of the lines stand between the panels.
    figure.set_layout_engine("constrained", wspace=0.04)
    drawn = figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
    for axes, (title, validation, training, scale) in zip(drawn, panels, strict=True):
        ends = []
        for column in training:
            ends += _draw_history(axes, stage, column, scale, "training")
        if validation:
            ends += _draw_history(axes, stage, validation, scale, "validation")
            _label_ends(axes, ends)
        else:
            axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        low, high = axes.dataLim.intervalx
        if math.isfinite(high - low):  # not so where every value is missing
            axes.set_xlim(low - 0.4, high + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    seeds = f", {len(stage.cells)} seeds" if len(stage.cells) > 1 else ""
    figure.suptitle(f"{clip(stage.name, 60)}{seeds}", x=0.01, ha="left", fontsize=10)
    return Plot(f"Training of {stage.name}: {measure}, loss, learning rate", figure)


def _layer_names(layers):
    """Drops the parts of the names (`net/conv/Conv2D`) that all layers share."""
    parts = [layer.split("/") for layer in layers]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            for part in parts:
                part.pop(end)
    short = [clip("/".join(part)) for part in parts]
    return short if len(set(short)) == len(layers) else layers


def _spread_key(models):
    handles = []
    if any(model.interval for model in models):
        handles.append(Line2D([], [], color="0.3", lw=1.2, label="95 % interval"))
    if any(model.deviation("accuracy") is not None for model in models):
        handles += [
            Line2D([], [], color="0.3", lw=5, alpha=0.35, label="± deviation"),
            Line2D([], [], ls="", color="0.3", marker="|", label="each seed"),
        ]
    return handles


def _draw_accuracy(axes, row, model):
    at, (colour, marker) = 100 * model.known("accuracy"), look(model)
    spread = model.deviation("accuracy")
    if spread is not None:
        axes.plot(
            [at - 100 * spread, at + 100 * spread],
            [row, row],
            color=colour,
            lw=6,
            alpha=0.35,
            solid_capstyle="butt",
        )
        seeds = [100 * value for value in model.values("accuracy")]
        axes.plot(seeds, [row] * len(seeds), "|", color=colour, ms=10)
    elif model.interval:
        ends = [100 * end for end in model.interval]
        axes.plot(ends, [row, row], color=colour, lw=1.2)
        axes.plot(ends, [row, row], "|", color=colour, ms=5)
    axes.plot(at, row, marker, color=colour, ms=6, mec="white", mew=0.8, zorder=4)


def _write_shares(axes, shares, top):
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            if share == 0:
                continue
            dark = row != column and share > 0.6 * top
            axes.text(
                column,
                row,
                f"{share:.1f}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if dark else "black",
                weight="bold" if row == column else "normal",
            )


def _draw_history(axes, stage, column, scale, role):
    """Draws a column of every seed; returns the label for the end of the lines."""
    colour, line = (BLUE, "-") if role == "validation" else (VERMILLION, (0, (4, 2)))
    if column in ("lr", "learning_rate"):
        colour, line = "black", "-"
    ends = []
    for cell in stage.cells:
        if column not in cell.history:
            continue
        values = [scale * value for value in cell.history[column]]
        epochs = cell.history.get("epoch") or list(range(len(values)))
        axes.plot(
            epochs,
            values,
            color=colour,
            linestyle=line,
            linewidth=1.6 if len(stage.cells) == 1 else 0.9,
            marker="o" if len(values) < 3 else None,
            ms=3,
        )
        if role == "validation" and scale == 100 and cell.best is not None:
            best = epochs[cell.best], values[cell.best]
            axes.plot(*best, "o", color=colour, ms=5, mfc="white", zorder=4)
            if len(stage.cells) == 1:
                note = f"best {best[1]:.2f}, epoch {best[0]:.0f}"
                axes.text(
                    0.98, 0.04, note, transform=axes.transAxes, ha="right", fontsize=8
                )
        ends += [value for value in values[-1:] if math.isfinite(value)]
    return [(float(np.mean(ends)), role, colour)] if ends else []


def _label_ends(axes, ends):
    """Names the lines at their right ends, kept apart where they end together."""
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    ends = sorted(ends)
    heights = [end[0] for end in ends]
    if len(ends) == 2 and heights[1] - heights[0] < gap:
        middle = sum(heights) / 2
        heights = [middle - gap / 2, middle + gap / 2]
    for height, (_, text, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            text,
            (1, height),
            (4, 0),
            color=colour,
            va="center",
            xycoords=axes.get_yaxis_transform(),
            fontsize=8.5,
            textcoords="offset points",
            annotation_clip=False,
        )
