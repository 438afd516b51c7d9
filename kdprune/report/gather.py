"""Gathers what is kept of a run: one file of all records, and the models to keep.

A run leaves a folder for each of its stages. What is worth committing is what the
report is drawn from (`metrics.json`, `records.json`) and the files that people take
from it, each with the SHA-256 that the record of the stage that made it names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdprune._io import sha256, write_file
from kdprune.report.read import METRICS, RECORDS, Cell, read_cells, read_run

SCHEMA = 1
# Too long for what it tells, and nothing shows it: the errors channel by channel.
_OMITTED = {"channel_errors"}
# Written again each time, by the report itself.
MARKDOWN, HTML = "report.md", "report.html"


def gather_results(
    run_folder: str | Path, target: str | Path, *, files: Sequence[str] | None = None
) -> Path:
    """Writes what is kept of a run into another folder.

    Writes `metrics.json` as it is and copies the files; writes `records.json`: the
    records and histories of all stages but the report's (without `channel_errors`),
    and an index of the files.

    Args:
        run_folder: A run's folder, or one that was gathered before.
        target: Where to write; made if missing, and may be `run_folder`.
        files: Paths in the run folder of the files to keep. The default is all that
            a record names and that stand at the top of the run or in a kit.

    Returns:
        The path of `records.json`.

    Raises:
        ValueError: If no record names a file with the content that it has, or
            `metrics.json` is not the one that was measured.

    Example:
        >>> gather_results("runs/cifar10", "results/cifar10")  # doctest: +SKIP
        PosixPath('results/cifar10/records.json')
    """
    source, target = Path(run_folder), Path(target)
    read_run(source)  # Nothing is written of a run that cannot be read again.
    cells = [cell for cell in read_cells(source) if cell.kind != "report"]
    if files is None:
        files = sorted({*_find_files(source, cells)})
    index = {name: _identify(source, name, cells) for name in [METRICS, *files]}
    for name in index:
        if target.resolve() != source.resolve():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(target / name, (source / name).read_bytes())
    write_file(target / RECORDS, _write_records(cells, index))
    return target / RECORDS


def _find_files(source: Path, cells: Sequence[Cell]) -> Iterator[str]:
    """Finds the files of the run that records name, at its top or in a kit.

    What a stage shows at the top of the run it lists under `published`; older records
    have it among their outputs, as `../model_int8.tflite`.
    """
    drawn = {METRICS, MARKDOWN, HTML}
    for cell in cells:
        outputs = list(cell.record.get("outputs") or {})
        top = [name.removeprefix("../") for name in outputs if name.startswith("../")]
        names = [*top, *(cell.record.get("published") or ())]
        if cell.kind == "kit":
            names += [f"{cell.folder}/{name}" for name in outputs]
        for name in names:
            if name not in drawn and (source / name).is_file():
                yield name


def _identify(source: Path, name: str, cells: Sequence[Cell]) -> dict[str, Any]:
    """Finds the record that names a file's content; the last one, if several do."""
    digest = sha256(source / name)
    for cell in reversed(cells):
        for output, found in (cell.record.get("outputs") or {}).items():
            if found.get("sha256") == digest:
                return {
                    "sha256": digest,
                    "bytes": (source / name).stat().st_size,
                    "stage": cell.folder,
                    "name": output,
                }
    raise ValueError(
        f"{source / name}: no record of the run names a file of this content (SHA-256 "
        f"{digest}). Run the stage that writes it again, or leave the file out."
    )


def _write_records(cells: Sequence[Cell], index: dict[str, Any]) -> str:
    """Writes JSON with a line for each stage: small, and changes show in a diff."""
    stages = {cell.folder: _write_stage(cell) for cell in cells}
    lines = [f"  {json.dumps(name)}: {text}" for name, text in stages.items()]
    files = [f"  {json.dumps(name)}: {_dump(entry)}" for name, entry in index.items()]
    return (
        f'{{"schema": {SCHEMA},\n"files": {{\n'
        + ",\n".join(files)
        + '\n},\n"stages": {\n'
        + ",\n".join(lines)
        + "\n}}\n"
    )


def _write_stage(cell: Cell) -> str:
    history = {
        column: [None if math.isnan(value) else value for value in values]
        for column, values in cell.history.items()
    }
    record = _omit(cell.original)
    return _dump({**record, "history": history} if history else record)


def _omit(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _omit(v) for k, v in content.items() if k not in _OMITTED}
    return [_omit(v) for v in content] if isinstance(content, list) else content


def _dump(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)
