"""Reads a run folder's records into the rows that tables and plots show.

Cells of a matrix that differ in nothing but their seed (`student--seed=1`,
`student--seed=2`) become one row; its figures are means over the seeds.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdprune.report.schema import (
    check_bits,
    check_cuts,
    check_entry,
    check_validation,
    read_json,
    shorten,
)

SCHEMA = 1
# A stage that was run in more cells than this, seeds aside, is told in one table.
MOST_CELLS = 6
_KERAS, _FLOAT32 = ("keras", "float32"), ("tflite", "float32")
_INT8, _UINT8 = ("tflite", "int8"), ("tflite", "uint8")
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@dataclass(frozen=True)
class Model:
    """One row of the main table: a measured model, over one or more seeds.

    Attributes:
        name: The model's name without its seed, e.g. `"student_int8"`.
        label: The name, with whatever tells it from others of that name.
        entries: The `metrics.json` entry of each seed, with the `val_accuracy` of
            the stage that made the model.
    """

    name: str
    label: str
    entries: tuple[dict[str, Any], ...]

    def get(self, field: str) -> Any:
        """Returns the first seed's value of `field`, or None."""
        return self.entries[0].get(field)

    def values(self, field: str) -> list[float]:
        """Returns the seeds' values of a number, without the missing ones."""
        found = (entry.get(field) for entry in self.entries)
        return [value for value in found if value is not None]

    def mean(self, field: str) -> float | None:
        """Returns the mean over the seeds, None where no seed has a value."""
        values = self.values(field)
        return statistics.fmean(values) if values else None

    def deviation(self, field: str) -> float | None:
        """Returns the sample deviation (n - 1), None for fewer than two seeds."""
        values = self.values(field)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def folder(self) -> str:
        """The folder of the stage that made the first seed's model."""
        return str(self.get("stage"))

    @property
    def axes(self) -> tuple[tuple[str, str], ...]:
        """The matrix values it was made with, as in the folder's name; not the seed."""
        axes = split_cell(self.folder)[0].split("--")[1:]
        return tuple((axis.partition("=")[0], axis.partition("=")[2]) for axis in axes)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the accuracy of a single run, else None.

        It covers the draw of the test images. Several seeds have none: their
        spread is the `deviation`.
        """
        interval = self.get("accuracy_ci")
        return tuple(interval) if interval and len(self.entries) == 1 else None

    @property
    def sparsity_by_layer(self) -> dict[str, float]:
        """Share of zero weights per layer, in [0, 1], mean over the seeds."""
        found = [entry.get("sparsity_by_layer") or {} for entry in self.entries]
        layers = dict.fromkeys(layer for shares in found for layer in shares)
        return {
            layer: statistics.fmean(s[layer] for s in found if layer in s)
            for layer in layers
        }

    @property
    def confusion(self) -> list[list[float]] | None:
        """Test images by (true class, predicted class), summed over the seeds."""
        found = [e["confusion"] for e in self.entries if e.get("confusion")]
        if not found:
            return None
        return [
            [sum(cells) for cells in zip(*rows, strict=True)]
            for rows in zip(*found, strict=True)
        ]


@dataclass(frozen=True)
class Cell:
    """One stage folder: its record, and its history by column."""

    folder: str
    record: dict[str, Any]
    history: dict[str, list[float]]

    @property
    def best(self) -> int | None:
        """Row of the best validation accuracy, the earliest if several."""
        accuracy = self.history.get("val_accuracy", [])
        rows = [row for row, value in enumerate(accuracy) if not math.isnan(value)]
        return max(rows, key=accuracy.__getitem__) if rows else None


@dataclass(frozen=True)
class Stage:
    """A recipe's stage: one cell, or one for each seed.

    Attributes:
        name: The stage's name, with the matrix values of its cells.
        cells: Its cells, by their seeds.
        crowded: Whether it stands for all cells of a matrix, which are too many to
            be told one by one; the name is then without their values.
    """

    name: str
    cells: tuple[Cell, ...]
    crowded: bool = False


@dataclass(frozen=True)
class Run:
    """Everything the report is made of.

    Attributes:
        metrics: The content of `metrics.json`.
        models: Rows of the main table, in the order of `metrics.json`.
        stages: The stages that are complete, by when their first cell was started.
    """

    metrics: dict[str, Any]
    models: tuple[Model, ...]
    stages: tuple[Stage, ...]

    @property
    def distinct(self) -> tuple[Model, ...]:
        """The models whose scores are their own.

        An int8 file's uint8 twin holds the same weights, as the float32 file of a
        Keras model does: beside its sibling it would be drawn over it, and counted
        as one more test.
        """
        return self._without({_UINT8: _INT8, _FLOAT32: _KERAS})

    @property
    def shipped(self) -> tuple[Model, ...]:
        """The models by what is shipped: a float32 file stands for its Keras model."""
        return self._without({_UINT8: _INT8, _KERAS: _FLOAT32})

    def _without(self, siblings: dict[tuple, tuple]) -> tuple[Model, ...]:
        found = {(_form(model), _stages(model)) for model in self.models}
        return tuple(
            model
            for model in self.models
            if (siblings.get(_form(model)), _stages(model)) not in found
        )

    def find(self, role: str) -> Model | None:
        """Returns the model that `metrics.json` names as "baseline" or "flagship"."""
        named = self.metrics.get(role)
        return next((model for model in self.models if model.name == named), None)

    def record(self, folder: str) -> dict[str, Any]:
        """Returns the record of a stage's folder, empty if it has none."""
        cells = (cell for stage in self.stages for cell in stage.cells)
        return next((cell.record for cell in cells if cell.folder == folder), {})

    @property
    def best(self) -> Model | None:
        """The model of the highest mean accuracy."""
        scored = [model for model in self.models if model.values("accuracy")]
        return max(scored, key=lambda model: model.mean("accuracy"), default=None)

    @property
    def data(self) -> dict[str, Any]:
        """The description of the data, from the metrics or from a stage's record."""
        given = self.metrics.get("dataset")
        found = [cell.record.get("data") for s in self.stages for cell in s.cells]
        merged = next((data for data in found if isinstance(data, dict)), {})
        if isinstance(given, dict):
            return {**merged, **given}
        return {**merged, "name": given} if given else merged

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, where they are known."""
        named = self.metrics.get("classes") or self.data.get("classes")
        if named is None and self.data.get("name") == "cifar10":
            return list(CIFAR10_CLASSES)
        return (
            [str(name) for name in named] if isinstance(named, list | tuple) else None
        )


def read_run(run_folder: str | Path) -> Run:
    """Reads `metrics.json` and each stage's `record.json` and `history.csv`.

    Args:
        run_folder: A run's folder. Stage folders without a record are not
            complete, and are passed over.

    Raises:
        ValueError: If `metrics.json` is missing, or a file is not what its
            schema says.
    """
    folder = Path(run_folder)
    path = folder / "metrics.json"
    if not path.is_file():
        raise ValueError(
            f"expected {path}, which the evaluate stage writes; received no such "
            "file. Run that stage first."
        )
    metrics = read_json(path)
    if metrics.get("schema") != SCHEMA:
        raise ValueError(
            f"{path}: expected schema {SCHEMA}; received {metrics.get('schema')!r}. "
            "Measure again with this version of kdprune."
        )
    entries = metrics.get("models")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise ValueError(
            f"{path}: expected a list of objects under 'models'; received "
            f"{shorten(entries)}. Measure again."
        )
    stages = _read_stages(folder, metrics.get("stages"))
    validation = {}
    for cell in (cell for stage in stages for cell in stage.cells):
        where = folder / cell.folder / "record.json"
        check_cuts(cell.record, where)
        check_bits(cell.record, where)
        validation[cell.folder] = check_validation(cell.record, where)
    entries = [
        {
            **check_entry(entry, path),
            "val_accuracy": validation.get(str(entry.get("stage"))),
        }
        for entry in entries
    ]
    return Run(metrics, _group_models(entries, path), stages)


def split_cell(folder: str) -> tuple[str, str | None]:
    """Splits a matrix cell's folder name into the row it belongs to and its seed.

    Example:
        >>> split_cell("student--loss=dkd--seed=1")
        ('student--loss=dkd', '1')
        >>> split_cell("teacher")
        ('teacher', None)
    """
    stage, *axes = folder.replace(",", "--").split("--")
    seeds = [axis.partition("=")[2] for axis in axes if axis.startswith("seed=")]
    others = [axis for axis in axes if not axis.startswith("seed=")]
    return "--".join([stage, *others]), seeds[0] if seeds else None


def difference(model: Model, baseline: Model) -> tuple[float, float | None] | None:
    """Measures how far a model's accuracy is above the baseline's.

    Where both were run with the same seeds, the deviation is that of the
    differences seed by seed.

    Returns:
        The difference of the (mean) accuracies, and its sample deviation over
        the seeds or None; None where either has no accuracy.
    """
    ours, theirs = (
        {
            split_cell(str(e.get("stage")))[1]: e["accuracy"]
            for e in row.entries
            if e.get("accuracy") is not None
        }
        for row in (model, baseline)
    )
    if not ours or not theirs:
        return None
    mean = statistics.fmean(ours.values()) - statistics.fmean(theirs.values())
    if len(ours) < 2 or ours.keys() != theirs.keys() or model is baseline:
        return mean, None
    return mean, statistics.stdev(ours[seed] - theirs[seed] for seed in ours)


def _form(model: Model) -> tuple:
    kind, dtype = model.get("format"), model.get("dtype")
    # What a float16 or dynamic-range file takes is float32, and its weights are not.
    own = kind == "tflite" and not model.name.endswith(f"_{dtype}")
    return (kind, model.name if own else dtype)


def _stages(model: Model) -> tuple[str, ...]:
    """What the models and files of one stage have in common, seed by seed."""
    return tuple(str(entry.get("stage")) for entry in model.entries)


def _group_models(entries: list[dict[str, Any]], path: Path) -> tuple[Model, ...]:
    """Joins the seeds of a model, and gives each row a label of its own."""
    groups: dict[tuple, dict[str, dict[str, Any]]] = {}
    for entry in entries:
        name = split_cell(entry["name"])[0]
        folder = str(entry.get("stage"))
        axes = split_cell(folder)[0].split("--")[1:]
        missing = [axis for axis in axes if axis not in name.split("--")]
        label = "--".join([name, *missing])
        how = tuple(entry.get(k) for k in ("format", "dtype", "resolver", "threads"))
        cells = groups.setdefault((name, label, *how), {})
        if folder in cells:
            raise ValueError(
                f"{path}: expected one entry for model {name!r} of stage {folder!r}; "
                "received two. Remove one of them, or give it another name."
            )
        cells[folder] = entry
    models = [
        Model(key[0], key[1], tuple(group.values())) for key, group in groups.items()
    ]
    for field in ("format", "dtype", "resolver", "threads"):
        models = _tell_apart(models, field)
    return tuple(models)


def _tell_apart(models: list[Model], field: str) -> list[Model]:
    """Adds `field` to the labels that several models share, where it helps."""
    shared = Counter(model.label for model in models)
    values = {(model.label, model.get(field)) for model in models}
    useful = Counter(label for label, _ in values)
    return [
        replace(model, label=f"{model.label} ({field} {model.get(field)})")
        if shared[model.label] > 1 and useful[model.label] > 1
        else model
        for model in models
    ]


def _read_stages(folder: Path, named: list[str] | None) -> tuple[Stage, ...]:
    """Reads the stages that belong to the run; all there are if it names none."""
    cells = [
        Cell(path.parent.name, read_json(path), _read_history(path.parent))
        for path in sorted(folder.glob("*/record.json"))
        if named is None or path.parent.name in named
    ]
    # ISO times sort as text; stages without one come last.
    cells.sort(key=lambda cell: str(cell.record.get("started") or "~"))
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(split_cell(cell.folder)[0], []).append(cell)
    rows = {name: sorted(group, key=_seed_order) for name, group in groups.items()}
    stages: dict[str, list[str]] = {}
    for name in rows:
        stages.setdefault(name.partition("--")[0], []).append(name)
    found = []
    for stage, names in stages.items():
        kinds = {cell.record.get("kind") for name in names for cell in rows[name]}
        # What can be spared is told by its own table and plot or not at all.
        if len(names) > MOST_CELLS and kinds != {"sensitivity"}:
            cells = tuple(cell for name in names for cell in rows[name])
            found.append(Stage(stage, cells, crowded=True))
        else:
            found += [Stage(name, tuple(rows[name])) for name in names]
    return tuple(found)


def _seed_order(cell: Cell) -> tuple[int, str]:
    seed = split_cell(cell.folder)[1] or ""
    return (int(seed) if seed.isdigit() else 0, seed)


def _read_history(folder: Path) -> dict[str, list[float]]:
    """Returns the columns of `history.csv`; an empty cell becomes NaN."""
    path = folder / "history.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return {
            column: [float(row[column] or "nan") for row in rows]
            for column in (rows[0] if rows else {})
        }
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a number in every column; received something else "
            f"({error}). Run the stage again."
        ) from error
