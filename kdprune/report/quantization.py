"""What quantization, clustering and zeros did to the layers, and the exported files."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kdprune.report.document import (
    MISSING,
    Block,
    Inline,
    Paragraph,
    Table,
    count,
    decibels,
    duration,
    list_some,
    over_seeds,
    percent,
    slug,
    strong,
)
from kdprune.report.pruning import mean, pictures, results_of
from kdprune.report.read import Cell, Stage
from kdprune.report.schema import (
    Attempt,
    ExportResults,
    File,
    LayerError,
    Operator,
    QuantizeResults,
    Sparsity,
    Tensor,
    WeightResults,
)
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

# A layer whose output has less is the likely cause of a loss (`tflite.layers`).
ENOUGH_DB = 20
# Layers that the table holds.
WORST = 5
LAYER_COLUMNS = (
    "layer",
    "operator",
    "SQNR dB",
    "weights' SQNR dB",
    "error in steps",
    "saturated %",
    "quantized range",
    "observed range",
    "weights",
)
ATTEMPT_COLUMNS = (
    "attempt",
    "drop (points)",
    "at most, 95 %",
    "disagreement %",
    "bytes",
    "time to make",
    "outcome",
)
# Characters of an attempt's error that are shown.
ERROR = 200
KERNELS = ("xnnpack", "builtin", "reference")
FILE_COLUMNS = (
    "file",
    "input",
    "output",
    "layers in float",
    "peak activation memory",
    "GPU delegate",
    "XNNPACK",
    "TFLite Micro",
    "disagreement %",
    "largest deviation",
)
OPERATOR_COLUMNS = ("operator", "type", "number", "GPU delegate", "TFLite Micro")
FILES_NOTE = (
    "What the export checks found in each file. Peak activation memory: bytes of the "
    "tensors that the largest operator holds at once; no arena is smaller. GPU "
    "delegate and TFLite Micro: all operators, or those that are not supported, by "
    "the tables of their sources; the GPU delegate takes 8-bit types where quantized "
    "inference is enabled. XNNPACK: those it leaves to other kernels on the machine "
    "of the export. Disagreement: share of validation images with another best class "
    "than the Keras model (for quantization-aware training the one that rounds as "
    "the file does). Largest deviation: of a probability, on the XNNPACK, builtin and "
    "reference kernels; on the latter two of fewer images."
)
FIRST_NOTE = "Of files of one name in several cells, those of the first cell."
OPERATORS_NOTE = "The operators of the files, and what supports them:"
# Layers that are marked in the plot: at most these, and a third of all.
MARKED = 5
# Rounding to 8 bits gives 50 dB at best; what has more is as good as exact, and would
# press the others into a corner.
TOP_DB = 60
# Rows beyond these are narrower.
ROOMY = 40
DIAMOND: dict[str, Any] = {
    "color": "black",
    "marker": "D",
    "mfc": "white",
    "mew": 1,
    "ms": 4,
    "ls": "",
}


@dataclass(frozen=True)
class Layer:
    """An operator of the integer file against its float form, mean over the seeds.

    Figures that are not known, or not finite, are None.

    Attributes:
        name: The layer; with its operator, where it has made several.
        op: The operator.
        sqnr_db: Signal over error of the output in decibels; None without an error.
        weight_sqnr_db: The same of the weights; None without weights.
        steps: Root mean square of the output's error, in integer steps.
        saturation: Share of values that the integers cannot express.
        quantized: The range that the integers can express, low and high.
        observed: The extremes of the float output.
        weights: The extremes of the weights.
    """

    name: str
    op: str
    sqnr_db: float | None
    weight_sqnr_db: float | None
    steps: float | None
    saturation: float | None
    quantized: tuple[float | None, float | None]
    observed: tuple[float | None, float | None]
    weights: tuple[float | None, float | None]


def read_layers(stage: Stage) -> tuple[Layer, ...]:
    """Returns what 8 bits cost each layer of a `quantize` stage, as it is executed."""
    rows: dict[tuple[str | None, str | None, int], list[LayerError]] = {}
    for results in results_of(stage, QuantizeResults):
        met: Counter = Counter()
        for row in results.layers:
            met[row.layer, row.op] += 1
            rows.setdefault((row.layer, row.op, met[row.layer, row.op]), []).append(row)
    shared = Counter(layer for layer, _, _ in rows)
    return tuple(
        _make_layer(_name(layer, op, shared[layer] > 1), op, seeds)
        for (layer, op, _), seeds in rows.items()
    )


def worst_layers(layers: Sequence[Layer], number: int) -> list[Layer]:
    """Returns the layers of the lowest SQNR, the worst first."""
    known = [(layer.sqnr_db, i) for i, layer in enumerate(layers)]
    order = sorted((db, i) for db, i in known if db is not None)
    return [layers[i] for _, i in order[:number]]


def write_weights(stage: Stage, plots: Mapping[str, str]) -> list[Block]:
    """Writes the zeros and clusters that a `prune` or `cluster` stage left."""
    found, seeds = results_of(stage, WeightResults), len(stage.cells)
    shares = _average_by_layer([results.sparsity_by_layer for results in found])
    clusters = _average_by_layer([results.clusters_by_layer for results in found])
    asked = [results.sparsity for results in found if results.sparsity]
    return [
        *_write_sparsity(shares, seeds),
        *_write_asked(asked),
        *_write_clusters(clusters, seeds),
    ]


def write_quantized(stage: Stage, plots: Mapping[str, str]) -> list[Block]:
    """Writes a `quantize` stage's attempts, and what 8 bits cost each layer."""
    seeds = len(stage.cells)
    parts: list[Block] = []
    for cell in stage.cells:
        parts += _write_attempts(cell, alone=seeds == 1)
    layers = read_layers(stage)
    if worst := worst_layers(layers, WORST):
        parts += [
            _explain(layers, seeds),
            Table(LAYER_COLUMNS, [_layer_row(layer) for layer in worst]),
        ]
    return [*parts, *pictures(plots, f"layers-{slug(stage.name)}")]


def write_files(stage: Stage, plots: Mapping[str, str]) -> list[Block]:
    """Writes a table of an `export` stage's files, and those of their operators."""
    cells = [results.files for results in results_of(stage, ExportResults)]
    files: dict[str, File] = {}
    for found in cells:
        files = {**found, **files}  # The first of a name stands for all.
    if not files:
        return []
    note = FILES_NOTE + (f" {FIRST_NOTE}" if len(cells) > 1 else "")
    return [
        Paragraph(note),
        Table(FILE_COLUMNS, [_file_row(name, file) for name, file in files.items()]),
        *_operator_tables(files),
    ]


def draw_quantized(stage: Stage) -> dict[str, Plot]:
    """Draws what 8 bits cost each layer, if a `quantize` stage has measured it."""
    layers = read_layers(stage)
    if not worst_layers(layers, 1):
        return {}
    seeds = len(stage.cells)
    return {f"layers-{slug(stage.name)}": plot_layers(layers, stage.name, seeds)}


def plot_layers(layers: Sequence[Layer], name: str, seeds: int = 1) -> Plot:
    """Draws a bar of SQNR for each layer as executed, the most sensitive in bold.

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
        f"sensitive below {ENOUGH_DB}",
    )
    _write_above(axes, (1, 1), "axes fraction", 10, "dB")
    axes.set_xlabel("signal over quantization error of the output (dB)")
    means = f", means over {seeds} seeds" if seeds > 1 else ""
    title = f"{clip(name, 30)}: quantization error by layer{means}"
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


def _bar(colour: str, marked: bool) -> dict[str, Any]:
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


def _key(layers: Sequence[Layer]) -> list[Artist]:
    handles: list[Artist] = [
        Patch(**_bar(VERMILLION, True), label="most sensitive layers"),
        Patch(**_bar(BLUE, False), label="other layers"),
        Line2D([], [], **DIAMOND, label="weights alone"),
    ]
    weighted = any(layer.weight_sqnr_db is not None for layer in layers)
    return handles if weighted else handles[:2]


def _name(layer: str | None, op: str | None, several: bool) -> str:
    if layer is None or op is None:
        return layer or op or "unnamed"
    return f"{layer} ({op})" if several else layer


def _make_layer(name: str, op: str | None, seeds: Sequence[LayerError]) -> Layer:
    def figure(key: str) -> float | None:
        return mean(getattr(row, key) for row in seeds)

    return Layer(
        name=name,
        op=op or "",
        sqnr_db=figure("sqnr_db"),
        weight_sqnr_db=figure("weight_sqnr_db"),
        steps=figure("rmse_over_scale"),
        saturation=figure("saturation"),
        quantized=(figure("low"), figure("high")),
        observed=(figure("seen_low"), figure("seen_high")),
        weights=(figure("weight_low"), figure("weight_high")),
    )


def _average_by_layer(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for by_layer in found:
        for layer, value in by_layer.items():
            values.setdefault(layer, []).append(value)
    return {layer: statistics.fmean(seeds) for layer, seeds in values.items()}


def _write_sparsity(shares: Mapping[str, float], seeds: int) -> list[Block]:
    if not shares:
        return []
    low, high = (percent(end(shares.values())) for end in (min, max))
    text = f"{low} %" if low == high else f"{low} to {high} %"
    return [
        Paragraph(
            f"Sparsity of the {len(shares)} layers that can be pruned: {text}"
            f"{over_seeds(seeds)}."
        )
    ]


def _write_asked(found: Sequence[Sparsity]) -> list[Block]:
    """Writes what came of a sparsity that was asked for, of the first seed."""
    if not found:
        return []
    one = found[0]
    asked, reached, whole = map(percent, (one.asked, one.found, one.of_all_kernels))
    text = (
        f"Asked for: {asked} %; found: {reached} % of the weights in the kernels that "
        f"are pruned, {whole} % of those in all kernels."
    )
    if one.left_out:
        share = percent(sum(one.left_out.values()))
        text += f" Left out, {share} %: {list_some([*one.left_out])}."
    return [Paragraph(text)]


def _write_clusters(counts: Mapping[str, float], seeds: int) -> list[Block]:
    """Writes how many distinct weights there are, a row for layers that are alike."""
    layers: dict[str, list[str]] = {}
    for layer, distinct in counts.items():
        layers.setdefault(count(distinct), []).append(layer)
    if not layers:
        return []
    if len(layers) == 1:
        (number,) = layers
        return [
            Paragraph(
                f"Each of the {len(counts)} layers has {number} distinct weights"
                f"{over_seeds(seeds)}."
            )
        ]
    return [
        Paragraph(f"Distinct weights by layer{over_seeds(seeds)}:"),
        Table(
            ("distinct weights", "layers", "which"),
            [
                (number, count(len(names)), list_some(names))
                for number, names in layers.items()
            ],
        ),
    ]


def _write_attempts(cell: Cell, alone: bool) -> list[Block]:
    """Writes what was tried to stay within a budget, and what came of it."""
    results = cell.results
    if not isinstance(results, QuantizeResults):
        return []
    parts: list[Block] = []
    where = "" if alone else f" of {cell.folder}"
    if results.attempts:
        parts += [
            Paragraph(
                f"Attempts{where} to stay within the accuracy budget, in their order: "
                "the drop is the accuracy lost on the validation images (of several "
                "labels, macro F1), and counts by its upper 95 % bound."
            ),
            Table(
                ATTEMPT_COLUMNS,
                [_attempt_row(row, results.chosen) for row in results.attempts],
            ),
        ]
    if results.message:
        parts.append(Paragraph(f"Outcome{where}: {results.message}."))
    for row in results.attempts:
        if row.name == results.chosen and row.float_layers:
            text = (
                f"Left in float{where}: {', '.join(row.float_layers)}, which takes "
                f"{count(row.float_bytes)} bytes more than none."
            )
            parts.append(Paragraph(text))
    return parts


def _attempt_row(row: Attempt, chosen: str | None) -> list[Inline]:
    if row.error is not None:
        error = " ".join(row.error.split())
        error = error if len(error) <= ERROR else error[: ERROR - 3] + "..."
        outcome = f"failed: {error}"
    else:
        outcome = "within" if row.met else "not within"
    return [
        (strong(row.name), " (chosen)") if row.name == chosen else row.name,
        percent(row.drop),
        percent(row.drop_bound),
        percent(row.disagreement),
        count(row.bytes),
        duration(row.seconds),
        outcome,
    ]


def _explain(layers: Sequence[Layer], seeds: int) -> Paragraph:
    """Says in a sentence what the figures of the table and of the bars are."""
    below = [x for x in layers if x.sqnr_db is not None and x.sqnr_db < ENOUGH_DB]
    return Paragraph(
        "What post-training int8 costs each layer by itself, the integer output "
        "against the float output from the same input: SQNR is the signal over the "
        f"error in decibels (below about {ENOUGH_DB} a layer is likely to cost "
        f"accuracy; {len(below) or 'none'} of {len(layers)} here), the error is in "
        "integer steps (0.29 for plain rounding), and saturated values are outside "
        f"the quantized range{over_seeds(seeds)}."
    )


def _layer_row(layer: Layer) -> list[Inline]:
    return [
        layer.name,
        layer.op or MISSING,
        decibels(layer.sqnr_db),
        decibels(layer.weight_sqnr_db),
        MISSING if layer.steps is None else f"{layer.steps:.2f}",
        percent(layer.saturation),
        *map(_write_range, (layer.quantized, layer.observed, layer.weights)),
    ]


def _write_range(ends: tuple[float | None, float | None]) -> str:
    if None in ends:
        return MISSING
    return " to ".join(f"{end:.3g}" for end in ends)


def _file_row(name: str, file: File) -> list[Inline]:
    found = [file.kernels.get(kernels) for kernels in KERNELS]
    deviations = [kernel.largest_deviation if kernel else None for kernel in found]
    shown = [MISSING if d is None else f"{d:.3f}" for d in deviations]
    return [
        name,
        _tensor(file.input),
        _tensor(file.output),
        _in_float(file),
        count(file.peak_activation_bytes),
        _support(_unsupported(file.operators, "gpu")),
        _support(file.xnnpack_leaves),
        _support(_unsupported(file.operators, "micro")),
        percent(file.disagreement),
        MISSING if set(shown) == {MISSING} else " / ".join(shown),
    ]


def _tensor(tensor: Tensor) -> str:
    """Writes the type of an input or output, and the step between two integers."""
    dtype = tensor.dtype or MISSING
    return f"{dtype}, 1/{1 / tensor.scale:.4g}" if tensor.scale else dtype


def _in_float(file: File) -> str:
    rows = [row for row in file.float_ops if "QUANTIZE" not in row.op]
    if not rows:
        return "none"
    if len(rows) == sum(row.count or 0 for row in file.operators or ()):
        return "all"
    return list_some(list(dict.fromkeys(row.layer or row.op for row in rows)))


def _unsupported(operators: Sequence[Operator] | None, by: str) -> list[str] | None:
    if operators is None:
        return None
    return [row.op for row in operators if not getattr(row, by)]


def _support(left: Sequence[str] | None) -> str:
    if left is None:
        return MISSING
    return f"not {list_some(list(dict.fromkeys(left)))}" if left else "all"


def _operator_tables(files: Mapping[str, File]) -> list[Block]:
    """Writes a table for all the files that have the same operators."""
    names: dict[tuple, list[str]] = {}
    for name, file in files.items():
        if file.operators:
            rows = tuple(tuple(_operator_row(row)) for row in file.operators)
            names.setdefault(rows, []).append(name)
    parts: list[Block] = [Paragraph(OPERATORS_NOTE)] if names else []
    for rows, alike in names.items():
        parts += [Paragraph(f"{', '.join(alike)}:"), Table(OPERATOR_COLUMNS, rows)]
    return parts


def _operator_row(row: Operator) -> list[str]:
    support = ("yes" if taken else "no" for taken in (row.gpu, row.micro))
    return [row.op, row.type, count(row.count), *support]
