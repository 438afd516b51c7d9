"""Writes what the export gate found in each `.tflite` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdprune.report.cuts import results_of
from kdprune.report.read import Stage
from kdprune.report.text import MISSING, count, escape, list_some, percent, table

KERNELS = ("xnnpack", "builtin", "reference")
FILE_COLUMNS = (
    "file",
    "input",
    "output",
    "layers in float",
    "activations at once",
    "GPU delegate",
    "XNNPACK",
    "TFLite Micro",
    "other answers %",
    "largest deviation",
)
OPERATOR_COLUMNS = ("operator", "type", "number", "GPU delegate", "TFLite Micro")
FILES_NOTE = (
    "What the gate found in each file. Activations at once: bytes held in the worst "
    "operator, which no arena is smaller than. GPU delegate and TFLite Micro: all "
    "operators, or which are not taken, by the tables of their sources; the GPU "
    "delegate takes 8-bit types where quantized inference is enabled. XNNPACK: those "
    "it leaves to other kernels on the machine of the export. Other answers: share of "
    "validation images with another best class than the Keras model (for "
    "quantization-aware training the one that rounds as the file does). Largest "
    "deviation: of a probability, on the XNNPACK, builtin and reference kernels; on "
    "the latter two of fewer images."
)
FIRST_NOTE = "Of files of one name in several cells, those of the first cell."
OPERATORS_NOTE = "The operators of the files, and who takes them:"


def write_files(stage: Stage) -> list[str]:
    """Writes a table of an `export` stage's files and one of their operators.

    Args:
        stage: The stage; of another kind there is nothing to write.

    Returns:
        Parts of the stage's section.
    """
    cells = [results.get("files") or {} for results in results_of(stage, "export")]
    files: dict[str, Mapping[str, Any]] = {}
    for found in cells:
        files = {**found, **files}  # The first of a name stands for all.
    if not files:
        return []
    rows = [_file_row(name, figures) for name, figures in files.items()]
    note = FILES_NOTE + (f" {FIRST_NOTE}" if len(cells) > 1 else "")
    parts = [note, table(FILE_COLUMNS, rows)]
    return parts + _operator_tables(files)


def _file_row(name: str, figures: Mapping[str, Any]) -> list[str]:
    operators = figures.get("operators")
    kernels = figures.get("kernels") or {}
    deviations = [(kernels.get(k) or {}).get("largest_deviation") for k in KERNELS]
    shown = [MISSING if d is None else f"{d:.3f}" for d in deviations]
    return [
        escape(name),
        *(_end(figures.get(end) or {}) for end in ("input", "output")),
        _in_float(figures),
        count(figures.get("peak_activation_bytes")),
        _taken(_not_taken(operators, "gpu")),
        _taken(figures.get("xnnpack_leaves")),
        _taken(_not_taken(operators, "micro")),
        percent(figures.get("disagreement")),
        MISSING if set(shown) == {MISSING} else " / ".join(shown),
    ]


def _end(tensor: Mapping[str, Any]) -> str:
    """Writes the type of an input or output, and the step between two integers."""
    scale = tensor.get("scale")
    dtype = escape(tensor.get("dtype") or MISSING)
    return dtype if not scale else f"{dtype}, 1/{1 / scale:.4g}"


def _in_float(figures: Mapping[str, Any]) -> str:
    rows = [r for r in figures.get("float_ops") or () if "QUANTIZE" not in r["op"]]
    if not rows:
        return "none"
    if len(rows) == sum(row["count"] for row in figures.get("operators") or ()):
        return "all"
    layers = dict.fromkeys(str(row.get("layer") or row["op"]) for row in rows)
    return list_some(list(layers))


def _not_taken(
    operators: Sequence[Mapping[str, Any]] | None, by: str
) -> list[str] | None:
    return None if operators is None else [r["op"] for r in operators if not r[by]]


def _taken(left: Sequence[str] | None) -> str:
    if left is None:
        return MISSING
    return f"not {list_some(list(dict.fromkeys(left)))}" if left else "all"


def _operator_tables(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Writes a table for all the files that have the same operators."""
    names: dict[str, list[str]] = {}
    for name, figures in files.items():
        if rows := figures.get("operators"):
            shown = table(OPERATOR_COLUMNS, [_operator_row(row) for row in rows])
            names.setdefault(shown, []).append(name)
    parts = [OPERATORS_NOTE] if names else []
    for shown, alike in names.items():
        parts += [f"{', '.join(map(escape, alike))}:", shown]
    return parts


def _operator_row(row: Mapping[str, Any]) -> list[str]:
    taken = ("yes" if row[by] else "no" for by in ("gpu", "micro"))
    return [escape(row["op"]), escape(row["type"]), count(row["count"]), *taken]
