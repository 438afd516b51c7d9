"""Writes the report's page as Markdown; a missing figure is shown as a dash."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdprune.report.read import Cell, Model, Run, Stage, difference, split_cell
from kdprune.report.references import MLPERF_TINY, MLPERF_TINY_SOURCE

MISSING = "–"
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
NOTES = (
    "Accuracy in brackets: the 95 % interval that comes from the draw of the test "
    "images. Difference: percentage points above the baseline. Agreement: share of "
    "test images on which the model answers as the named one does.",
    "Zeros save download size only: a pruned weight makes the gzip smaller, and "
    "leaves the file, the MACs and the latency as they were. Removed channels "
    "lower all four.",
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
    training = {f"training-{slug(stage.name)}" for stage in run.stages}
    parts = [
        f"# {escape(run.metrics.get('recipe') or 'kdprune report')}",
        *_write_headline(run),
        _write_facts(run),
        "## Models",
        models_table(run),
        *NOTES,
        *([SEEDS_NOTE] if any(len(m.entries) > 1 for m in run.models) else []),
        *(_embed(name, plots[name]) for name in plots if name not in training),
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
        ("model", "accuracy %", "bytes", "parameters", "MACs", "p50 ms"),
        [
            (
                reference.name,
                percent(reference.accuracy),
                count(reference.bytes),
                count(reference.parameters),
                millions(reference.macs),
                milliseconds(reference.latency_ms_p50),
            )
            for reference in MLPERF_TINY
        ],
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes a Markdown table; the first column is aligned left, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracy_text(model: Model) -> str:
    """Writes "88.30 (87.65 to 88.92)", or "88.30 ± 0.21 (n = 3)" for seeds."""
    text = percent(model.mean("accuracy"))
    spread = model.deviation("accuracy")
    if spread is not None:
        return f"{text} ± {percent(spread)} (n = {len(model.values('accuracy'))})"
    if model.interval and text != MISSING:
        return f"{text} ({percent(model.interval[0])} to {percent(model.interval[1])})"
    return text


def difference_text(model: Model, baseline: Model | None) -> str:
    """Writes "+1.80", in percentage points, or "baseline" for the baseline itself."""
    if model is baseline:
        return "baseline"
    found = difference(model, baseline) if baseline else None
    if found is None:
        return MISSING
    points, spread = found
    text = f"{100 * points:+.2f}"
    return text if spread is None else f"{text} ± {percent(spread)}"


def percent(share: float | None) -> str:
    """Writes a share in [0, 1] as a percentage with two decimals."""
    return MISSING if share is None else f"{100 * share:.2f}"


def count(value: float | None) -> str:
    """Writes a whole number with thousands separated."""
    return MISSING if value is None else f"{round(value):,}"


def millions(value: float | None) -> str:
    """Writes a count of operations in millions."""
    return MISSING if value is None else f"{value / 1e6:.2f} M"


def milliseconds(value: float | None) -> str:
    """Writes a latency with three significant digits, so that 0.012 is not 0.01."""
    if value is None:
        return MISSING
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def timing(model: Model) -> str:
    """Writes how a latency was measured: "1 thread, xnnpack"."""
    threads, resolver = model.get("threads"), model.get("resolver")
    parts = [] if threads is None else [f"{threads} thread" + "s" * (threads != 1)]
    parts += [] if resolver is None else [str(resolver)]
    return ", ".join(parts) or MISSING


def duration(seconds: Any) -> str:
    """Writes a time in the two units that fit it."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def escape(text: Any) -> str:
    """Keeps a name from being read as Markdown, HTML or a table's border."""
    text = " ".join(str(text).split())
    for sign in "\\`*_|[]":
        text = text.replace(sign, "\\" + sign)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def slug(name: str) -> str:
    """Makes a file name of a stage's or a model's name."""
    return "".join(c if c.isalnum() or c in "-_=." else "_" for c in name)


def brief(value: Any) -> str:
    """Writes settings or results in one line: `epochs` 30, `optimizer.name` sgd."""
    return ", ".join(f"`{key}` {_scalar(item)}" for key, item in _flatten(value))


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(prefix or "value", value)]
    return [
        pair
        for key, item in value.items()
        if item not in ({}, [], None)
        for pair in _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    ]


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        value = "[" + ", ".join(_scalar(item) for item in value) + "]"
    text = str(value)
    return escape(text if len(text) <= 60 else text[:57] + "...")


def _code(text: Any) -> str:
    """Writes a block of code, fenced by more backquotes than the text holds."""
    fence = "```"
    while fence in str(text):
        fence += "`"
    return f"{fence}sh\n{text}\n{fence}"


def _embed(name: str, caption: str) -> str:
    return f"![{escape(caption)}](plots/{name}.png)"


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
        lines.append(f"\nMade by\n\n{_code(command)}")
    return "\n".join(lines)


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return brief(value)
    return "" if value is None else _scalar(value)


def _find_command(run: Run) -> Any:
    """Returns the command of the stage that was started last."""
    found = [c.record.get("command") for s in run.stages for c in s.cells]
    return next((command for command in reversed(found) if command), None)


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
        table(
            ("folder", "seed", "time", "epochs", "best epoch", "validation %"),
            [_cell_row(cell) for cell in stage.cells],
        ),
    ]
    for cell in stage.cells:
        if results := brief(cell.record.get("results") or {}):
            where = f" of {escape(cell.folder)}" if len(stage.cells) > 1 else ""
            parts.append(f"Results{where}: {results}.")
    folders = {cell.folder for cell in stage.cells}
    measured = [
        f"{escape(model.label)} {accuracy_text(model)} %"
        for model in run.models
        if folders & {entry.get("stage") for entry in model.entries}
    ]
    if measured:
        parts.append(f"Measured on the test images: {'; '.join(measured)}.")
    name = f"training-{slug(stage.name)}"
    return [*parts, _embed(name, plots[name])] if name in plots else parts


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
