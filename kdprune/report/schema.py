"""Checks what comes out of a record: a wrong figure stops the report by its name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUMBERS = (
    "accuracy",
    "test_images",
    "bytes",
    "bytes_gzip",
    "parameters",
    "nonzero_parameters",
    "macs",
    "latency_ms_p50",
    "latency_ms_p90",
    "agreement",
)
SHARES = ("accuracy", "agreement")
LAYER_NUMBERS = (
    "sqnr_db",
    "weight_sqnr_db",
    "rmse_over_scale",
    "saturation",
    "low",
    "high",
    "seen_low",
    "seen_high",
    "weight_low",
    "weight_high",
)
ATTEMPT_NUMBERS = (
    "drop",
    "drop_bound",
    "disagreement",
    "bytes",
    "float_bytes",
    "seconds",
)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a ValueError names the file that holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: expected JSON; received something else ({error}). "
            "Run the stage that writes it again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected a JSON object; received {shorten(content)}. "
            "Run the stage that writes it again."
        )
    return content


def check_entry(entry: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns a model's entry of `metrics.json`, with None for what is not finite.

    Raises:
        ValueError: If a figure is of the wrong type or range; what is missing
            is no error.
    """
    if not isinstance(entry.get("name"), str):
        raise ValueError(
            f"{path}: expected a name for each model; received "
            f"{shorten(entry.get('name'))}. Measure again."
        )
    where = f"{path}: model {entry['name']!r}:"
    checked = dict(entry)
    for field in NUMBERS:
        checked[field] = _check_number(entry.get(field), f"{where} {field}")
    for field in SHARES:
        _check_share(checked[field], f"{where} expected {field}")
    checked["accuracy_ci"] = _check_interval(entry.get("accuracy_ci"), where)
    checked["confusion"] = _check_confusion(entry.get("confusion"), where)
    layers = entry.get("sparsity_by_layer") or {}
    if not isinstance(layers, dict):
        raise ValueError(
            f"{where} expected sparsity_by_layer as an object of shares; received "
            f"{shorten(layers)}. Measure again."
        )
    shares = {
        layer: _check_number(share, f"{where} sparsity of {layer}")
        for layer, share in layers.items()
    }
    checked["sparsity_by_layer"] = {k: v for k, v in shares.items() if v is not None}
    return checked


def check_validation(record: dict[str, Any], path: Path) -> float | None:
    """Returns the accuracy on the validation images that a stage's record holds.

    Raises:
        ValueError: If it is not a share; None where there is none, or it is NaN.
    """
    results = record.get("results")
    value = results.get("val_accuracy") if isinstance(results, dict) else None
    accuracy = _check_number(value, f"{path}: val_accuracy")
    _check_share(accuracy, f"{path}: expected val_accuracy")
    return accuracy


def check_cuts(record: dict[str, Any], path: Path) -> None:
    """Checks what a stage's record holds of channels and blocks that were cut.

    Raises:
        ValueError: If it is not of the right shape or range; what is missing is no
            error.
    """
    results, kind = record.get("results"), record.get("kind")
    if not isinstance(results, dict):
        return
    if kind == "sensitivity" and results.get("scores"):
        _check_sensitivity(results, path)
    if kind == "prune_channels" and results.get("channels_by_layer"):
        _check_widths(results["channels_by_layer"], path)
    if kind == "prune_blocks" and results.get("blocks"):
        _check_blocks(results["blocks"], path)


def check_bits(record: dict[str, Any], path: Path) -> None:
    """Checks what a stage's record holds of zeros, clusters and 8-bit layers.

    Raises:
        ValueError: If it is not of the right shape or range; what is missing is no
            error.
    """
    results, kind = record.get("results"), record.get("kind")
    if not isinstance(results, dict):
        return
    if kind == "quantize":
        _check_layers(results.get("layers") or [], path)
        _check_attempts(results.get("attempts") or [], path)
    if kind == "export":
        _check_files(results.get("files") or {}, path)
    if kind == "cluster":
        _check_by_layer(results, "clusters_by_layer", path)
    if kind in ("prune", "cluster"):
        for share in _check_by_layer(results, "sparsity_by_layer", path):
            _check_share(share, f"{path}: expected sparsity_by_layer")


def shorten(value: Any) -> str:
    """Writes a value for an error's one line."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"{where}: expected a number; received {shorten(value)}. Measure again."
        )
    return value if math.isfinite(value) else None


def _check_share(value: float | None, expected: str) -> None:
    if not 0 <= (value or 0) <= 1:
        raise ValueError(
            f"{expected} as a share in [0, 1]; received {value}. Divide percentages "
            "by 100."
        )


def _check_interval(interval: Any, where: str) -> list[float] | None:
    if interval is None:
        return None
    if not isinstance(interval, list) or len(interval) != 2:
        raise ValueError(
            f"{where} expected accuracy_ci as [low, high]; received "
            f"{shorten(interval)}. Measure again."
        )
    ends = [_check_number(end, f"{where} accuracy_ci") for end in interval]
    return None if None in ends else ends


def _check_confusion(rows: Any, where: str) -> list[list[float]] | None:
    if not rows:
        return None
    square = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == len(rows) for row in rows
    )
    if not square:
        raise ValueError(
            f"{where} expected confusion as a square table of counts; received "
            f"{shorten(rows)}. Measure again."
        )
    return [[_check_number(n, f"{where} confusion") or 0 for n in row] for row in rows]


def _check_sensitivity(results: dict[str, Any], path: Path) -> None:
    rows, columns = (_length(results.get(key)) for key in ("groups", "ratios"))
    for key in ("layers", "channels", "left", "scores"):
        table = results.get(key)
        right = _length(table) == rows
        if key in ("left", "scores"):
            right = right and all(_length(row) == columns for row in table)
        if not right:
            raise ValueError(
                f"{path}: expected {key} of {rows} groups at {columns} ratios; "
                f"received {shorten(table)}. Run the stage again."
            )
    numbers = [*results["channels"], *(n for row in results["left"] for n in row)]
    for number in [*numbers, *results["ratios"]]:
        if _check_number(number, f"{path}: ratios, channels and left") is None:
            raise ValueError(
                f"{path}: expected a number for each ratio and count of channels; "
                f"received {shorten(number)}. Run the stage again."
            )
    scores = [score for row in results["scores"] for score in row]
    for score in [results.get("whole"), *scores]:
        _check_share(
            _check_number(score, f"{path}: scores"), f"{path}: expected scores"
        )


def _length(value: Any) -> int:
    """How many items a list has; -1 for what is no list."""
    return len(value) if isinstance(value, list) else -1


def _check_widths(widths: Any, path: Path) -> None:
    pairs = list(widths.values()) if isinstance(widths, dict) else [None]
    for pair in pairs:
        numbers = pair if _length(pair) == 2 else [None]
        if None in [_check_number(n, f"{path}: channels_by_layer") for n in numbers]:
            raise ValueError(
                f"{path}: expected channels_by_layer as [before, after] of each layer; "
                f"received {shorten(pair)}. Run the stage again."
            )


def _check_blocks(blocks: Any, path: Path) -> None:
    for block in blocks if isinstance(blocks, list) else [blocks]:
        if not isinstance(block, dict) or not isinstance(block.get("name"), str):
            raise ValueError(
                f"{path}: expected blocks as a list of objects with a name; received "
                f"{shorten(block)}. Run the stage again."
            )
        for field in ("score", "layers"):
            _check_number(block.get(field), f"{path}: {field} of {block['name']}")


def _check_layers(layers: Any, path: Path) -> None:
    def right(row):
        return all(isinstance(row.get(key), str | None) for key in ("layer", "op"))

    _check_objects(layers, right, f"{path}: expected layers, each with layer and op")
    for row in layers:
        numbers = {
            field: _check_number(
                row.get(field), f"{path}: {field} of {row.get('layer')}"
            )
            for field in LAYER_NUMBERS
        }
        _check_share(numbers["saturation"], f"{path}: expected saturation")


def _check_attempts(attempts: Any, path: Path) -> None:
    def right(row):
        return isinstance(row.get("name"), str)

    _check_objects(attempts, right, f"{path}: expected attempts, each with a name")
    for row in attempts:
        for field in ATTEMPT_NUMBERS:
            _check_number(row.get(field), f"{path}: {field} of {row['name']!r}")


def _check_files(files: Any, path: Path) -> None:
    _check_objects(
        list(files.values()) if isinstance(files, dict) else [files],
        lambda row: True,
        f"{path}: expected figures for each of files",
    )
    for name, figures in files.items():
        for row in figures.get("operators") or []:
            _check_objects([row], _is_operator, f"{path}: expected operators of {name}")
            _check_number(row.get("count"), f"{path}: count of {row['op']} of {name}")
        for field in ("peak_activation_bytes", "disagreement"):
            _check_number(figures.get(field), f"{path}: {field} of {name}")
        for kernels, found in (figures.get("kernels") or {}).items():
            where = f"{path}: {kernels} of {name}"
            _check_objects([found], lambda row: True, f"{where}: expected figures")
            _check_number(found.get("largest_deviation"), where)


def _is_operator(row: Any) -> bool:
    fields = {"op": str, "type": str, "gpu": bool, "micro": bool}
    return all(isinstance(row.get(key), kind) for key, kind in fields.items())


def _check_objects(rows: Any, right: Callable, expected: str) -> None:
    """Checks for a list of objects that are all as they should be."""
    listed = isinstance(rows, list)
    for row in rows if listed else [rows]:
        if not listed or not isinstance(row, dict) or not right(row):
            raise ValueError(
                f"{expected}, as a list of objects; received {shorten(row)}. "
                "Run the stage again."
            )


def _check_by_layer(results: dict[str, Any], field: str, path: Path) -> list[float]:
    """Returns the numbers of all layers."""
    found = results.get(field) or {}
    if not isinstance(found, dict):
        raise ValueError(
            f"{path}: expected {field} as an object of numbers; received "
            f"{shorten(found)}. Run the stage again."
        )
    numbers = [_check_number(n, f"{path}: {field} of {k}") for k, n in found.items()]
    if None in numbers:
        raise ValueError(
            f"{path}: expected a number for each layer of {field}; received "
            f"{shorten(found)}. Run the stage again."
        )
    return numbers
