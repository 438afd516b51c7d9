"""The report's page: headline, tables, plots and a section for each stage.

A kind of stage with results worth more than a line has a `Section` here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdprune._registry import add
from kdprune.report import pruning, quantization
from kdprune.report.document import (
    MISSING,
    Block,
    Command,
    Facts,
    Heading,
    Inline,
    Paragraph,
    Picture,
    Span,
    Table,
    accuracy_text,
    brief,
    code,
    count,
    difference_text,
    duration,
    flatten,
    join,
    millions,
    milliseconds,
    percent,
    scalar,
    slug,
    strong,
    timing,
)
from kdprune.report.read import Cell, Model, Run, Stage, split_cell
from kdprune.report.study import write_study
from kdprune.report.style import Plot
from kdprune.report.tradeoffs import MLPERF_TINY
from kdprune.report.verdict import find_verdict

MODEL_COLUMNS = (
    "model",
    "form",
    "accuracy %",
    "difference",
    "bytes",
    "gzip",
    "peak memory",
    "parameters",
    "non-zero",
    "MACs",
    "p50 / p90 ms",
    "timed with",
    "agreement %",
)
# Results that differ among the cells of a stage and still fit into their table.
MOST_COLUMNS = 6
# Results that the row of a cell tells under other names.
TOLD = {"epochs", "best_epoch", "training_seconds"}
CELL_COLUMNS = ("folder", "seed", "time", "epochs", "best epoch", "validation %")
# Plots that stand elsewhere than below the main table.
OWN_PLACE = {"study", "training", "sensitivity", "channels", "layers"}
NOTES = (
    "Accuracy in brackets: the 95 % interval that comes from the draw of the test "
    "images. Difference: percentage points above the baseline. Peak memory: bytes of "
    "the tensor arena, or where it was not measured the peak activation memory, which "
    "no arena is smaller than. Agreement: share of test images on which the model "
    "answers as the named one does.",
    "Unstructured sparsity reduces the download size only: a pruned weight makes the "
    "gzip smaller, and leaves the file, the MACs, the memory and the latency as they "
    "were. Removed channels lower all five.",
)
# What is measured beside accuracy where it tells something: title and key.
MEASURES = (
    ("balanced accuracy %", "balanced_accuracy"),
    ("macro F1 %", "macro_f1"),
    ("mAP %", "mean_average_precision"),
    ("AUC %", "auc"),
)
BALANCED_NOTE = (
    "Balanced accuracy: the mean of the accuracies on each class. Classes are of "
    "uneven sizes here, so that a model may be right often by knowing the large ones."
)
TASK_NOTES = {
    "labels": "Several labels may apply to an image: label accuracy is the share of "
    "all labels of all images that are right (1 − Hamming loss), its interval that of "
    "as many images; macro F1 the mean of the labels' F1 scores at one half; mAP the "
    "mean of their average precisions.",
    "binary": "AUC: the area under the receiver operating characteristic of a single "
    "unit's score.",
}
SEEDS_NOTE = (
    "± is the sample deviation over n seeds, and for a difference that of the "
    "differences seed by seed; the other figures of such a row are means."
)
DEVICES_NOTE = (
    "Flash: the file and an allowance for the application with the runtime's code. "
    "RAM: the tensor arena, an upper bound of what the board's optimized kernels take "
    "beside it, and an allowance for the application; of a phone, the file mapped and "
    "its weights packed."
)
MLPERF_TINY_SOURCE: Inline = (
    "The image-classification models of MLPerf Tiny (",
    Span("github.com/mlcommons/tiny", "link", "https://github.com/mlcommons/tiny"),
    ", Apache-2.0), scored by kdprune on all 10,000 test images of CIFAR-10; "
    "constants, not part of this run. Their latency is left out: it was not measured "
    "beside this run's.",
)


def _draw_nothing(stage: Stage) -> dict[str, Plot]:
    return {}


@dataclass(frozen=True)
class Section:
    """What the report shows of a kind of stage, besides settings and figures.

    Attributes:
        write: Blocks for a stage, with those of the plots (caption by name) that
            exist embedded.
        draw: Plots by file name without its ending.
        shown: Results that these show, which would be unreadable in a line.
        summarizes: Whether `write` also takes all cells of a matrix at once.
    """

    write: Callable[[Stage, Mapping[str, str]], list[Block]]
    draw: Callable[[Stage], dict[str, Plot]] = _draw_nothing
    shown: frozenset[str] = frozenset()
    summarizes: bool = False

    def __call__(self, stage: Stage, plots: Mapping[str, str]) -> list[Block]:
        """Writes the section."""
        return self.write(stage, plots)


SECTIONS: dict[str, Section] = {
    "cluster": Section(
        quantization.write_weights,
        shown=frozenset({"sparsity_by_layer", "clusters_by_layer"}),
    ),
    "export": Section(
        quantization.write_files, shown=frozenset({"files"}), summarizes=True
    ),
    "prune": Section(
        quantization.write_weights,
        shown=frozenset({"sparsity", "sparsity_by_layer"}),
    ),
    "prune_blocks": Section(pruning.write_blocks, shown=frozenset({"blocks", "rank"})),
    "prune_channels": Section(
        pruning.write_channels,
        pruning.draw_channels,
        shown=frozenset({"channels_by_layer"}),
    ),
    "quantize": Section(
        quantization.write_quantized,
        quantization.draw_quantized,
        shown=frozenset({"layers", "attempts", "chosen", "met", "message"}),
    ),
    "sensitivity": Section(
        pruning.write_sensitivity,
        pruning.draw_sensitivity,
        shown=frozenset({"ratios", "groups", "layers", "channels", "left", "scores"}),
    ),
}


def register_section(kind: str, section: Section, *, replace: bool = False) -> Section:
    """Makes the report show what a kind of stage has recorded.

    Args:
        kind: The stage's kind, as in a recipe.
        section: What is written and drawn.
        replace: Whether a section that is there already may be replaced.
    """
    return add(SECTIONS, "report section", kind, section, replace)


def write_page(
    run: Run, plots: Mapping[str, str], *, references: bool = True
) -> list[Block]:
    """Writes the page.

    Args:
        run: What was read from the run folder.
        plots: Caption of each plot by its name.
        references: Whether a CIFAR-10 result is set beside published models.

    Returns:
        The page's blocks.
    """
    shown = references and run.data.get("name") == "cifar10"
    places = {name: name.partition("-")[0] for name in plots}
    study = {name: plots[name] for name in plots if places[name] == "study"}
    others = [name for name in plots if places[name] not in OWN_PLACE]
    parts: list[Block] = [
        Heading(1, str(run.metrics.get("recipe") or "kdprune report")),
        *map(Paragraph, find_verdict(run).sentences),
        *_write_facts(run),
        Heading(2, "Models"),
        models_table(run),
        *map(Paragraph, NOTES),
    ]
    if run.task in TASK_NOTES:
        parts.append(Paragraph(TASK_NOTES[run.task]))
    if _known(run, "balanced_accuracy"):
        parts.append(Paragraph(BALANCED_NOTE))
    if any(len(model.entries) > 1 for model in run.models):
        parts.append(Paragraph(SEEDS_NOTE))
    parts += _write_devices(run)
    if others:
        parts.append(Heading(2, "Plots"))
    parts += [Picture(name, plots[name]) for name in others]
    parts += write_study(run, study)
    if shown:
        parts += [Heading(2, "References"), references_table()]
        parts.append(Paragraph(MLPERF_TINY_SOURCE))
    if run.stages:
        parts.append(Heading(2, "Stages"))
    for stage in run.stages:
        parts += _write_stage(stage, run, plots)
    return parts


def models_table(run: Run) -> Table:
    """Writes the main table: a row for each model, means where it has seeds."""
    baseline = run.find("baseline")
    more = [(title, key) for title, key in MEASURES if _known(run, key)]
    at = MODEL_COLUMNS.index("difference")
    titles = [title for title, _ in more]
    rows = []
    for model in run.models:
        row = _model_row(model, run, baseline)
        figures = [percent(model.mean(key)) for _, key in more]
        rows.append([*row[:at], *figures, *row[at:]])
    columns = (*MODEL_COLUMNS[:at], *titles, *MODEL_COLUMNS[at:])
    named = {"accuracy %": f"{run.measure} %"}
    return Table(tuple(named.get(name, name) for name in columns), rows)


def _known(run: Run, key: str) -> bool:
    return any(model.values(key) for model in run.models)


def references_table() -> Table:
    """Writes the table of the MLPerf Tiny models."""
    return Table(
        ("model", "accuracy %", "bytes", "parameters", "MACs"),
        [
            (
                reference.name,
                percent(reference.accuracy),
                count(reference.bytes),
                count(reference.parameters),
                millions(reference.macs),
            )
            for reference in MLPERF_TINY
        ],
    )


def _write_facts(run: Run) -> list[Block]:
    metrics = run.metrics
    seeds = {
        seed
        for model in run.models
        for entry in model.entries
        if (seed := split_cell(str(entry.get("stage")))[1])
    }
    seed = ", ".join(sorted(seeds, key=lambda s: (len(s), s))) or metrics.get("seed")
    facts: dict[str, Inline] = {
        "data": brief({k: v for k, v in run.data.items() if k != "classes"}),
        "seed": MISSING if seed is None else str(seed),
        "machine": _fact(metrics.get("machine")),
        "versions": _fact(metrics.get("versions")),
    }
    parts: list[Block] = [Facts({k: text or MISSING for k, text in facts.items()})]
    if command := metrics.get("command") or _find_command(run):
        command = " ".join(command) if isinstance(command, list) else str(command)
        parts += [Paragraph("Made by"), Command(command)]
    return parts


def _fact(value: Any) -> Inline:
    if isinstance(value, Mapping):
        return brief(value)
    return "" if value is None else scalar(value)


def _find_command(run: Run) -> Any:
    """Returns the command of the stage that was started last."""
    cells = [c for s in run.stages for c in s.cells if c.record.get("command")]
    last = max(cells, key=lambda c: str(c.record.get("started") or ""), default=None)
    return last and last.record["command"]


def _model_row(model: Model, run: Run, baseline: Model | None) -> list[Inline]:
    flagship = model is run.find("flagship")
    form = " ".join(filter(None, [model.get("format"), model.get("dtype")]))
    agreement = percent(model.mean("agreement"))
    if agreement != MISSING and model.get("agreement_with"):
        agreement += f" with {model.get('agreement_with')}"
    times = [milliseconds(model.mean(f"latency_ms_{part}")) for part in ("p50", "p90")]
    return [
        (strong(model.label), " (flagship)") if flagship else model.label,
        form or MISSING,
        accuracy_text(model),
        difference_text(model, baseline),
        count(model.mean("bytes")),
        count(model.mean("bytes_gzip")),
        count(model.memory),
        count(model.mean("parameters")),
        count(model.mean("nonzero_parameters")),
        millions(model.mean("macs")),
        MISSING if times == [MISSING] * 2 else " / ".join(times),
        timing(model),
        agreement,
    ]


def _write_stage(stage: Stage, run: Run, plots: Mapping[str, str]) -> list[Block]:
    """Writes a stage's section: settings, a line for each cell, what it scored."""
    settings = [c.record.get("settings") or {} for c in stage.cells]
    common = {
        key: value
        for key, value in settings[0].items()
        if all(other.get(key) == value for other in settings)
    }
    kind = f" ({stage.kind})" if stage.kind else ""
    parts: list[Block] = [
        Heading(3, f"{stage.name}{kind}"),
        Paragraph(("Settings: ", brief(common) or MISSING, ".")),
        *_write_cells(stage),
    ]
    section = SECTIONS.get(stage.kind or "")
    if stage.aggregated:
        return parts + (section(stage, {}) if section and section.summarizes else [])
    folders = {cell.folder for cell in stage.cells}
    measured = [
        f"{model.label} {accuracy_text(model)} %"
        for model in run.models
        if folders & {entry.get("stage") for entry in model.entries}
    ]
    if measured:
        parts.append(Paragraph(f"Measured on the test images: {'; '.join(measured)}."))
    if section:
        parts += section(stage, plots)
    return parts + pruning.pictures(plots, f"training-{slug(stage.name)}")


def _plain_results(record: Mapping[str, Any], several: bool, whole: bool) -> Any:
    """A stage's results without those that are shown in a way of their own.

    A row for each of several cells tells its epochs and time; an aggregated stage
    shows nothing else, so that of its results only the long ones are left out.
    """
    section = SECTIONS.get(record.get("kind") or "")
    results = record.get("results") or {}
    if not isinstance(results, Mapping):
        return results
    return {
        key: value
        for key, value in results.items()
        if not (several and key in TOLD)
        and (
            isinstance(value, str | int | float)
            if whole
            else not (section and key in section.shown)
        )
    }


def _write_cells(stage: Stage) -> list[Block]:
    """Writes a row for each cell, with what is not the same in all of their results."""
    several = len(stage.cells) > 1
    results = [
        dict(flatten(_plain_results(cell.record, several, stage.aggregated)))
        for cell in stage.cells
    ]
    keys = list(dict.fromkeys(key for found in results for key in found))
    texts = {key: [_result(found, key) for found in results] for key in keys}
    common = [key for key in keys if len({*texts[key]}) == 1]
    differing = [key for key in keys if key not in common]
    fit = stage.aggregated or len(differing) <= MOST_COLUMNS
    columns = differing[:MOST_COLUMNS] if fit else []
    parts: list[Block] = [
        _cells_table(stage.cells, {key: texts[key] for key in columns})
    ]
    if common:
        pairs: list[Inline] = [(code(key), f" {texts[key][0]}") for key in common]
        where = " in all cells" if several else ""
        parts.append(Paragraph((f"Results{where}: ", join(", ", pairs), ".")))
    if columns == differing or stage.aggregated:
        return parts
    for cell, found in zip(stage.cells, results, strict=True):
        if line := brief({key: found[key] for key in differing if key in found}):
            parts.append(Paragraph((f"Results of {cell.folder}: ", line, ".")))
    return parts


def _result(results: Mapping[str, Any], key: str) -> str:
    return scalar(results[key]) if key in results else MISSING


def _cells_table(cells: Sequence[Cell], results: Mapping[str, Sequence[str]]) -> Table:
    """Writes a row for each cell; of training only where something was trained."""
    rows = [_cell_row(cell) for cell in cells]
    trained = any(set(row[3:]) != {MISSING} for row in rows)
    shown = len(CELL_COLUMNS) if trained else 3
    return Table(
        (*CELL_COLUMNS[:shown], *map(code, results)),
        [
            [*row[:shown], *texts]
            for row, *texts in zip(rows, *results.values(), strict=True)
        ],
    )


def _cell_row(cell: Cell) -> list[str]:
    seed = split_cell(cell.folder)[1] or cell.record.get("seed")
    epochs = len(next(iter(cell.history.values()), []))
    best, accuracy = MISSING, None
    if cell.best is not None:
        numbers = cell.history.get("epoch")
        best = count(numbers[cell.best] if numbers else cell.best)
        accuracy = cell.history["val_accuracy"][cell.best]
    return [
        cell.folder,
        MISSING if seed is None else str(seed),
        duration(cell.record.get("seconds")),
        str(epochs) if epochs else MISSING,
        best,
        percent(accuracy),
    ]


def _write_devices(run: Run) -> list[Block]:
    """A row for each board that the flagship's file was held against; none if none."""
    flagship = run.find("flagship")
    entries = flagship.entries if flagship else []
    fits: list[dict] = next(
        (entry["fits"] for entry in entries if entry.get("fits")), []
    )
    if not fits:
        return []
    measured = any(row.get("measured") for row in fits)
    rows = [
        [
            str(row.get("board")),
            "yes" if row.get("fits") else "no",
            _share_of(row, "flash"),
            _share_of(row, "ram"),
            "; ".join(row.get("reasons") or []) or MISSING,
        ]
        for row in fits
    ]
    how = "measured by TFLite Micro" if measured else "planned, not measured"
    titles = ["board or phone", "fits", "flash, KiB", "RAM, KiB", "why not"]
    if all(row[-1] == MISSING for row in rows):
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    return [
        Heading(2, "Devices"),
        Table(titles, rows),
        Paragraph(f"{DEVICES_NOTE} The arena is {how}."),
    ]


def _share_of(row: dict, key: str) -> str:
    needed, there = (row.get(k) for k in (key, f"{key}_of"))
    if not needed or not there:
        return MISSING
    return f"{count(needed / 1024)} of {count(there / 1024)}"
