"""Reads a run folder's records into the rows that tables and plots show.

Cells of a matrix that differ in nothing but their seed (`student--seed=1`,
`student--seed=2`) become one row; its figures are means over the seeds.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdprune.report.schema import (
    RESULTS,
    ExportResults,
    Gathered,
    Metrics,
    Results,
    check,
    read_json,
    rename_settings,
)

METRICS, RECORDS = "metrics.json", "records.json"
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

    def known(self, field: str) -> float:
        """Returns the mean of a figure that is known to be there."""
        return statistics.fmean(self.values(field))

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
    def memory(self) -> float | None:
        """Bytes of the arena, or without it of the peak activation memory."""
        arena = self.mean("arena_bytes")
        return self.mean("peak_activation_bytes") if arena is None else arena

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
    """One stage folder.

    Attributes:
        folder: Its name.
        record: Its record, the settings under today's names.
        history: Its training history by column.
        results: What the record's results were read as; None where it has none.
        original: The record as it is in the file.
    """

    folder: str
    record: dict[str, Any]
    history: dict[str, list[float]]
    results: Results | None = None
    original: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str | None:
        """The kind of the stage: "train", "quantize"."""
        return self.record.get("kind")

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
        aggregated: Whether it stands for all cells of a matrix, which are too many to
            be told one by one; the name is then without their values.
    """

    name: str
    cells: tuple[Cell, ...]
    aggregated: bool = False

    @property
    def kind(self) -> str | None:
        """The kind of its cells."""
        return self.cells[0].kind


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

        An int8 file's uint8 duplicate holds the same weights, as the float32 file of a
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
        return max(scored, key=lambda model: model.known("accuracy"), default=None)

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
    def measure(self) -> str:
        """What `accuracy` is: of several labels, the share of them that are right."""
        return "label accuracy" if self.task == "labels" else "accuracy"

    @property
    def task(self) -> str:
        """What the labels mean: "classes", "labels" (several may apply), "binary"."""
        told = {str(m.get("task")) for m in self.models if m.get("task")}
        return next((t for t in ("labels", "binary") if t in told), "classes")

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
    """Reads `metrics.json` and the records and histories of all stages.

    Records are in the stages' folders (`record.json`, `history.csv`), or gathered
    in one `records.json` (see `kdprune.report.gather_results`); where a stage has
    both, its folder counts.

    Args:
        run_folder: A run's folder. Stage folders without a record are not
            complete, and are passed over.

    Raises:
        ValueError: If `metrics.json` is missing, or a file is not what its
            schema says.
    """
    folder = Path(run_folder)
    path = folder / METRICS
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
    checked = check(Metrics, metrics, str(path), "Measure again.")
    cells = read_cells(folder)
    named = metrics.get("stages")
    shown = [
        cell
        for cell in cells
        # A report is drawn from the other records, and does not tell of itself.
        if cell.kind != "report" and (named is None or cell.folder in named)
    ]
    results = {cell.folder: cell.results for cell in shown}
    entries = [_complete(entry.model_dump(), results) for entry in checked.models]
    return Run(metrics, _group_models(entries, path), _group_stages(shown))


def read_cells(folder: Path) -> list[Cell]:
    """Reads every stage folder's record and history, by when it was started.

    Args:
        folder: The run's folder.

    Raises:
        ValueError: If a file is not what its schema says; names the file.
    """
    found = {}
    gathered = folder / RECORDS
    if gathered.is_file():
        for name, stage in read_gathered(gathered).stages.items():
            record = dict(stage.model_extra or {})
            found[name] = _make_cell(
                name, record, stage.history, f"{gathered}: stages {name}"
            )
    for path in sorted(folder.glob("*/record.json")):
        name, history = path.parent.name, _read_history(path.parent)
        found[name] = _make_cell(name, read_json(path), history, str(path))
    # ISO times sort as text; stages without one come last.
    return sorted(
        found.values(), key=lambda c: (str(c.record.get("started") or "~"), c.folder)
    )


def read_gathered(path: Path) -> Gathered:
    """Reads a `records.json`."""
    return check(Gathered, read_json(path), str(path), "Gather the results again.")


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
    for key in ("format", "dtype", "resolver", "threads"):
        models = _tell_apart(models, key)
    return tuple(models)


def _tell_apart(models: list[Model], key: str) -> list[Model]:
    """Adds `key` to the labels that several models share, where it helps."""
    shared = Counter(model.label for model in models)
    values = {(model.label, model.get(key)) for model in models}
    useful = Counter(label for label, _ in values)
    return [
        replace(model, label=f"{model.label} ({key} {model.get(key)})")
        if shared[model.label] > 1 and useful[model.label] > 1
        else model
        for model in models
    ]


def _make_cell(
    name: str,
    record: dict[str, Any],
    history: Mapping[str, Sequence[float | None]],
    where: str,
) -> Cell:
    original = record
    if "settings" in record:
        record = {**record, "settings": rename_settings(record["settings"])}
    found, kind = record.get("results"), record.get("kind")
    schema = RESULTS.get(kind, Results) if isinstance(kind, str) else Results
    results = (
        check(schema, found, f"{where}: results", "Run the stage again.")
        if isinstance(found, dict)
        else None
    )
    columns = {
        column: [math.nan if value is None else value for value in values]
        for column, values in history.items()
    }
    return Cell(name, record, columns, results, original)


def _complete(
    entry: dict[str, Any], results: dict[str, Results | None]
) -> dict[str, Any]:
    """Adds to a model's figures those that other stages have recorded of it."""
    made = results.get(str(entry.get("stage")))
    entry["val_accuracy"] = made.val_accuracy if made else None
    folder, _, name = str(entry.get("path")).rpartition("/")
    exported = results.get(folder)
    file = exported.files.get(name) if isinstance(exported, ExportResults) else None
    for key in ("arena_bytes", "peak_activation_bytes"):
        if file and entry.get(key) is None:
            entry[key] = getattr(file, key)
    return entry


def _group_stages(cells: list[Cell]) -> tuple[Stage, ...]:
    """Joins the cells of a stage that differ in their seed alone."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(split_cell(cell.folder)[0], []).append(cell)
    rows = {name: sorted(group, key=_seed_order) for name, group in groups.items()}
    stages: dict[str, list[str]] = {}
    for name in rows:
        stages.setdefault(name.partition("--")[0], []).append(name)
    found = []
    for stage, names in stages.items():
        kinds = {cell.kind for name in names for cell in rows[name]}
        # A sensitivity is told by its own table and plot or not at all.
        if len(names) > MOST_CELLS and kinds != {"sensitivity"}:
            members = tuple(cell for name in names for cell in rows[name])
            found.append(Stage(stage, members, aggregated=True))
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
