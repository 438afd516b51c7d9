"""What came of a compression: the original against each file, and what to do now."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdprune import _io
from kdprune.compression.request import (
    FILES,
    INT8,
    ORIGINAL,
    RECIPE,
    SMALLER,
    Request,
)

if TYPE_CHECKING:
    import tf_keras as keras

    from kdprune.kit import Needs
    from kdprune.runner.folder import Run

_MISSING = "–"
_SHIPPED = ("int8", "uint8")
# What the rows of the table are called, by the names of `metrics.json`.
_ROWS = {
    ORIGINAL: "original",
    f"{ORIGINAL}_float32": "original as float32 file",
    SMALLER: "channels removed",
    f"{INT8}_int8": "int8 file",
    f"{INT8}_uint8": "uint8 file (Android)",
}
_ROWS |= {f"{name}_rejected": f"{called}, REFUSED" for name, called in _ROWS.items()}


@dataclasses.dataclass(frozen=True, repr=False)
class Compressed:
    """What `compress` made, and whether it is good enough.

    `print` shows the table, the verdict, and what to do with the files.

    Attributes:
        met: Whether the int8 file is within the drop: proven on validation images,
            and measured on the test images.
        reasons: Why not, a line each; empty if it is.
        verdict: The same in words, and what was proven.
        files: Paths by what they are: "int8" and "uint8" files with labels inside,
            "kit" (a folder), "report", "recipe"; those that are there. What the gate
            refused is "rejected_int8" and so on.
        metrics: The content of `metrics.json`: each model and file measured on the
            test images.
        records: The record of each stage, by its name.
        table: The original against each file, as text.
        advice: What to do with the files, a line each.
        comparison: Whether the model that was taken says what the original does.
    """

    met: bool
    reasons: tuple[str, ...]
    verdict: str
    files: Mapping[str, pathlib.Path]
    metrics: Mapping[str, Any]
    records: Mapping[str, Mapping[str, Any]]
    table: str
    advice: tuple[str, ...]
    comparison: str = ""

    @functools.cached_property
    def models(self) -> dict[str, keras.Model]:
        """The Keras models: "original" as it was taken, and "smaller" if there is one.

        They take images in [0, 1] and give logits.
        """
        from kdprune.models import load_model

        folder = self.files["recipe"].parent
        names = [name for name in (ORIGINAL, SMALLER) if name in self.records]
        return {name: load_model(folder / name / "model.keras") for name in names}

    def __str__(self) -> str:
        compared = [self.comparison, ""] if self.comparison else []
        return "\n".join([self.table, "", *compared, self.verdict, "", *self.advice])


def read_verdict(
    run: Run, request: Request, failures: Sequence[str] = ()
) -> Compressed:
    """Reads what a finished run has found.

    Args:
        run: The run.
        request: What was asked.
        failures: What went wrong on the way, a line each.
    """
    from kdprune import kit

    folder = run.folder
    metrics = _io.read_json(folder / "metrics.json")
    records = {
        node.stage: record
        for node in run.nodes
        if (record := run.record(node)) is not None
    }
    entries = {entry["name"]: entry for entry in metrics["models"]}
    several = entries[ORIGINAL].get("task") == "labels"
    measure = "macro F1" if several else "accuracy"
    files = {"report": folder / "report.html", "recipe": folder / RECIPE}
    refused = records.get(FILES, {}).get("results", {}).get("refused", {})
    files |= {
        f"rejected_{name.split('.')[1]}": folder / FILES / one["file"]
        for name, one in refused.items()
        if "file" in one
    }
    needs = None
    if "kit" in records:
        files |= {dtype: folder / f"model_{dtype}.tflite" for dtype in _SHIPPED}
        files["kit"] = folder / "kit" / request.name
        needs = kit.find_needs(folder / entries[f"{INT8}_int8"]["path"])
    reasons = [*failures, *(one["message"] for one in refused.values())]
    quantized = records.get(INT8, {}).get("results", {})
    if quantized:
        reasons += _reasons(request, quantized, entries, measure)
    if request.devices == "micro" and needs and (unfit := _unfit(needs)):
        reasons.append(f"the int8 file does not run on TFLite Micro: {unfit}")
    advice = (
        _advice(request, files, needs)
        if needs
        else _advice_without(request, files, quantized)
    )
    return Compressed(
        met=not reasons,
        reasons=tuple(reasons),
        verdict=_verdict(request, reasons, quantized, measure),
        files=files,
        metrics=metrics,
        records=records,
        table=_table(folder, entries),
        advice=tuple(advice),
        comparison=_comparison(records[ORIGINAL]["results"]),
    )


def _comparison(loaded: Mapping[str, Any]) -> str:
    """A line on whether the model as it was taken says what the original does."""
    from kdprune.intake.comparison import Comparison

    found = loaded.get("comparison")
    return "" if found is None else f"The model as it was taken: {Comparison(**found)}."


def _verdict(
    request: Request,
    reasons: Sequence[str],
    quantized: Mapping[str, Any],
    measure: str,
) -> str:
    limit = f"{100 * request.max_drop:g} point{'s' * (request.max_drop != 0.01)}"
    if reasons:
        return "\n".join([f"Not within {limit}:", *(f"- {why}" for why in reasons)])
    chosen = next(a for a in quantized["attempts"] if a["name"] == quantized["chosen"])
    start = "the smaller network" if request.target else "the original"
    bound = max(100 * chosen["drop_bound"], 0)
    return (
        f"Within {limit}: by {quantized['chosen']!r} the int8 file loses at most "
        f"{bound:.2f} points of {start}'s {measure} with 95 % confidence, on "
        f"{chosen['images']:,} validation images, and no more than "
        "allowed on the test images."
    )


def _reasons(
    request: Request,
    quantized: Mapping[str, Any],
    entries: Mapping[str, Any],
    measure: str,
) -> list[str]:
    """Why the int8 file is not within the drop; none if it is."""
    limit = 100 * request.max_drop
    found = []
    if not quantized["met"]:
        found.append(quantized["message"])
    entry = entries.get(f"{INT8}_int8") or entries.get(f"{INT8}_int8_rejected")
    if entry is None:
        return found
    against = entry["against_baseline"]
    if -against["difference"] > request.max_drop:
        low, high = (-100 * bound for bound in reversed(against["difference_ci"]))
        # Where the interval reaches below the limit, it may be chance.
        chance = "; more test images would tell" if low <= limit else ""
        found.append(
            f"the int8 file loses {-100 * against['difference']:.2f} points "
            f"({low:.2f} to {high:.2f}) of the original's {measure} on the test "
            f"images, more than the {limit:g} allowed{chance}"
        )
    return found


def _unfit(needs: Needs) -> str | None:
    """Why TFLite Micro does not run the file, if it does not."""
    if needs.missing:
        return f"it has no {', '.join(needs.missing)}"
    return needs.refusal


def _table(folder: pathlib.Path, entries: Mapping[str, Any]) -> str:
    from kdprune.tflite.memory import peak_activations

    of_labels = entries[ORIGINAL].get("task") == "labels"
    key, title = ("macro_f1", "macro F1") if of_labels else ("accuracy", "accuracy")
    rows = [
        (
            "",
            f"{title} %",
            "95 % interval",
            "points",
            "bytes",
            "MACs",
            "ms",
            "activations",
        )
    ]
    for name, called in _ROWS.items():
        if name not in entries:
            continue
        entry = entries[name]
        low, high = entry[f"{key}_ci"]
        against = entry["against_baseline"]["difference"]
        held = None
        if entry["format"] == "tflite":
            held = peak_activations(folder / entry["path"])
        rows.append(
            (
                called,
                f"{100 * entry[key]:.2f}",
                f"{100 * low:.2f} to {100 * high:.2f}",
                _MISSING if name == ORIGINAL else f"{100 * against:+.2f}",
                _count(entry["bytes"]),
                f"{(entry['macs'] or 0) / 1e6:.2f} M",
                _MISSING
                if entry["latency_ms_p50"] is None
                else f"{entry['latency_ms_p50']:.3g}",
                _count(held),
            )
        )
    images = entries[ORIGINAL]["test_images"]
    head = (
        f"On {images:,} test images; points are the change against the original, ms "
        "one image on one thread of this machine, activations the RAM in bytes that "
        "they take at once:"
    )
    return "\n".join([head, "", *_aligned(rows)])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _advice(
    request: Request,
    files: Mapping[str, pathlib.Path],
    needs: Needs,
) -> list[str]:
    card = files["kit"] / "MODEL_CARD.md"
    lines = []
    if request.devices in ("android", "both"):
        lines.append(
            f"Android: {files['uint8']}, which takes the bytes of an image; Kotlin in "
            f"{card}"
        )
    if request.devices in ("micro", "both"):
        if unfit := _unfit(needs):
            lines.append(f"microcontroller: TFLite Micro does not run it, {unfit}")
        else:
            found = "measured" if needs.measured else "planned"
            lines.append(
                f"microcontroller: {files['kit'] / 'model.cc'} and model.h, with an "
                f"arena of {needs.arena:,} bytes ({found}); C++ in {card}; boards that "
                f"it fits: kdprune fits {files['int8']}"
            )
    lines += [
        f"self-test on the device: {files['kit'] / 'selftest.py'}",
        *_in_any_case(files),
    ]
    return lines


def _in_any_case(files: Mapping[str, pathlib.Path]) -> list[str]:
    return [
        f"report: {files['report']}",
        f"to change something: edit {files['recipe']}, then kdprune run "
        f"{files['recipe']} --output {files['recipe'].parent}",
    ]


def _advice_without(
    request: Request,
    files: Mapping[str, pathlib.Path],
    quantized: Mapping[str, Any],
) -> list[str]:
    """What to do where there is no file to ship."""
    lines = [
        f"do not ship {path}; its reasons and figures: {path.with_suffix('.json')}"
        for what, path in files.items()
        if what.startswith("rejected_")
    ]
    lines.append(
        f"what stands in the way, layer by layer: kdprune doctor {request.model}"
    )
    if quantized and any(what.startswith("rejected_") for what in files):
        lines.append(
            "if you know better, allow it by the keys that the reasons name, in the "
            f"stage `{FILES}` of the recipe"
        )
    return lines + _in_any_case(files)


def _count(value: int | None) -> str:
    return _MISSING if value is None else f"{value:,}"
