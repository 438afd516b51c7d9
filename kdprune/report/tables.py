"""Writes the report's page: headline, tables, plots and a section for each stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdprune.report import bits_page, cuts_page
from kdprune.report.files_page import write_files
from kdprune.report.read import Cell, Model, Run, Stage, split_cell
from kdprune.report.references import MLPERF_TINY, MLPERF_TINY_SOURCE
from kdprune.report.study_page import write_study
from kdprune.report.text import (
    MISSING,
    accuracy_text,
    brief,
    code,
    count,
    difference_text,
    duration,
    embed,
    escape,
    flatten,
    millions,
    milliseconds,
    percent,
    scalar,
    slug,
    table,
    timing,
)

MODEL_COLUMNS = (
    "model",
    "form",
    "accuracy %",
    "difference",
    "bytes",
    "gzip",
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
CELL_COLUMNS = ("folder", "seed", "time", "epochs", "best epoch", "its validation %")
# Plots that stand elsewhere than below the main table.
OWN_PLACE = {"study", "training", "sensitivity", "channels", "layers"}
# Results that a part of the page shows, which would be unreadable in a line.
SHOWN = {**cuts_page.SHOWN, **bits_page.SHOWN}
NOTES = (
    "Accuracy in brackets: the 95 % interval that comes from the draw of the test "
    "images. Difference: percentage points above the baseline. Agreement: share of "
    "test images on which the model answers as the named one does.",
    "Zeros save download size only: a pruned weight makes the gzip smaller, and "
    "leaves the file, the MACs, the memory and the latency as they were. Removed "
    "channels lower all five.",
)
SEEDS_NOTE = (
    "± is the sample deviation over n seeds, and for a difference that of the "
    "differences seed by seed; the other figures of such a row are means."
)


def write_page(run: Run, plots: Mapping[str, str], *, references: bool = True) -> str:
    """Writes the page `report.md`.

    Args:
        run: What was read from the run folder.
        plots: Caption of each plot by its name; `plots/<name>.png` is embedded.
        references: Whether a CIFAR-10 result is set beside published models.

    Returns:
        The page, in GitHub's Markdown.
    """
    shown = references and run.data.get("name") == "cifar10"
    places = {name: name.partition("-")[0] for name in plots}
    study = {name: plots[name] for name in plots if places[name] == "study"}
    others = [name for name in plots if places[name] not in OWN_PLACE]
    parts = [
        f"# {escape(run.metrics.get('recipe') or 'kdprune report')}",
        *_write_headline(run),
        _write_facts(run),
        "## Models",
        models_table(run),
        *NOTES,
        *([SEEDS_NOTE] if any(len(m.entries) > 1 for m in run.models) else []),
        *(embed(name, plots[name]) for name in others),
        *write_study(run, study),
        *(["## References", references_table(), MLPERF_TINY_SOURCE] if shown else []),
        *(["## Stages"] if run.stages else []),
        *(part for stage in run.stages for part in _write_stage(stage, run, plots)),
    ]
    return "\n\n".join(parts) + "\n"


def models_table(run: Run) -> str:
    """Writes the main table: a row for each model, means where it has seeds."""
    baseline = run.find("baseline")
    return table(MODEL_COLUMNS, [_model_row(m, run, baseline) for m in run.models])


def references_table() -> str:
    """Writes the table of the MLPerf Tiny models."""
    return table(
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


def _write_headline(run: Run) -> list[str]:
    """Says in a sentence what the flagship is, if there is one."""
    lines = []
    flagship, baseline = run.find("flagship"), run.find("baseline")
    if flagship:
        text = f"**{escape(flagship.label)}**: {accuracy_text(flagship)} % in "
        text += f"{count(flagship.mean('bytes'))} bytes"
        change = difference_text(flagship, baseline)
        if baseline and baseline is not flagship and change != MISSING:
            text += f", {change} points against {escape(baseline.label)}"
        lines.append(text + ".")
    for role in ("flagship", "baseline"):
        named = run.metrics.get(role)
        if named is not None and run.find(role) is None:
            lines.append(f"The {role}, {escape(named)}, has not been measured.")
    return lines


def _write_facts(run: Run) -> str:
    metrics = run.metrics
    seeds = {
        seed
        for cells in [*(m.entries for m in run.models)]
        for entry in cells
        if (seed := split_cell(str(entry.get("stage")))[1])
    }
    seed = ", ".join(sorted(seeds, key=lambda s: (len(s), s))) or metrics.get("seed")
    facts = {
        "data": brief({k: v for k, v in run.data.items() if k != "classes"}),
        "seed": MISSING if seed is None else escape(seed),
        "machine": _fact(metrics.get("machine")),
        "versions": _fact(metrics.get("versions")),
    }
    lines = [f"- {name}: {text or MISSING}" for name, text in facts.items()]
    if command := metrics.get("command") or _find_command(run):
        command = " ".join(command) if isinstance(command, list) else command
        lines.append(f"\nMade by\n\n{code(command)}")
    return "\n".join(lines)


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return brief(value)
    return "" if value is None else scalar(value)


def _find_command(run: Run) -> Any:
    """Returns the command of the stage that was started last."""
    cells = [c for s in run.stages for c in s.cells if c.record.get("command")]
    last = max(cells, key=lambda c: str(c.record.get("started") or ""), default=None)
    return last and last.record["command"]


def _model_row(model: Model, run: Run, baseline: Model | None) -> list[str]:
    label = escape(model.label)
    if model is run.find("flagship"):
        label = f"**{label}** (flagship)"
    form = " ".join(filter(None, [model.get("format"), model.get("dtype")]))
    agreement = percent(model.mean("agreement"))
    if agreement != MISSING and model.get("agreement_with"):
        agreement += f" with {escape(model.get('agreement_with'))}"
    times = [milliseconds(model.mean(f"latency_ms_{part}")) for part in ("p50", "p90")]
    return [
        label,
        escape(form) or MISSING,
        accuracy_text(model),
        difference_text(model, baseline),
        count(model.mean("bytes")),
        count(model.mean("bytes_gzip")),
        count(model.mean("parameters")),
        count(model.mean("nonzero_parameters")),
        millions(model.mean("macs")),
        MISSING if times == [MISSING] * 2 else " / ".join(times),
        escape(timing(model)),
        agreement,
    ]


def _write_stage(stage: Stage, run: Run, plots: Mapping[str, str]) -> list[str]:
    """Writes a stage's section: settings, a line for each cell, what it scored."""
    settings = [c.record.get("settings") or {} for c in stage.cells]
    common = {
        key: value
        for key, value in settings[0].items()
        if all(other.get(key) == value for other in settings)
    }
    kind = stage.cells[0].record.get("kind")
    parts = [
        f"### {escape(stage.name)}" + (f" ({escape(kind)})" if kind else ""),
        f"Settings: {brief(common) or MISSING}.",
        *_write_cells(stage),
    ]
    if stage.crowded:
        return parts + write_files(stage)
    folders = {cell.folder for cell in stage.cells}
    measured = [
        f"{escape(model.label)} {accuracy_text(model)} %"
        for model in run.models
        if folders & {entry.get("stage") for entry in model.entries}
    ]
    if measured:
        parts.append(f"Measured on the test images: {'; '.join(measured)}.")
    parts += cuts_page.write_cuts(stage, plots)
    parts += bits_page.write_bits(stage, plots)
    name = f"training-{slug(stage.name)}"
    return [*parts, embed(name, plots[name])] if name in plots else parts


def _plain_results(record: Mapping[str, Any], several: bool, crowded: bool) -> Any:
    """A stage's results without those that are shown in a way of their own.

    A row for each of several cells tells its epochs and time; a crowded stage shows
    nothing else, so that of its results only the long ones are left out.
    """
    shown = SHOWN.get(record.get("kind"), ())
    results = record.get("results") or {}
    if not isinstance(results, Mapping):
        return results
    return {
        key: value
        for key, value in results.items()
        if not (several and key in TOLD)
        and (isinstance(value, str | int | float) if crowded else key not in shown)
    }


def _write_cells(stage: Stage) -> list[str]:
    """Writes a row for each cell, with what is not the same in all of their results."""
    several = len(stage.cells) > 1
    results = [
        dict(flatten(_plain_results(cell.record, several, stage.crowded)))
        for cell in stage.cells
    ]
    keys = list(dict.fromkeys(key for found in results for key in found))
    texts = {key: [_result(found, key) for found in results] for key in keys}
    common = [key for key in keys if len({*texts[key]}) == 1]
    differing = [key for key in keys if key not in common]
    fit = stage.crowded or len(differing) <= MOST_COLUMNS
    columns = differing[:MOST_COLUMNS] if fit else []
    parts = [_cells_table(stage.cells, {key: texts[key] for key in columns})]
    if common:
        pairs = (f"`{key}` {texts[key][0]}" for key in common)
        where = " in all cells" if several else ""
        parts.append(f"Results{where}: {', '.join(pairs)}.")
    if columns == differing or stage.crowded:
        return parts
    for cell, found in zip(stage.cells, results, strict=True):
        if line := brief({key: found[key] for key in differing if key in found}):
            parts.append(f"Results of {escape(cell.folder)}: {line}.")
    return parts


def _result(results: Mapping[str, Any], key: str) -> str:
    return scalar(results[key]) if key in results else MISSING


def _cells_table(
    cells: Sequence[Cell], results: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Writes a row for each cell; of training only where something was trained."""
    rows = [_cell_row(cell) for cell in cells]
    trained = any(set(row[3:]) != {MISSING} for row in rows)
    shown = len(CELL_COLUMNS) if trained else 3
    results = results or {}
    return table(
        (*CELL_COLUMNS[:shown], *(f"`{key}`" for key in results)),
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
        escape(cell.folder),
        MISSING if seed is None else escape(seed),
        duration(cell.record.get("seconds")),
        str(epochs) if epochs and not math.isnan(epochs) else MISSING,
        best,
        percent(accuracy),
    ]
