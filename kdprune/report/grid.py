"""Finds the models of a study that were run on a grid: two axes of the matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdprune.report.read import Run
from kdprune.report.study import Comparison, Study

# A number as a folder's name has it: 4, 0.5, 1e-05.
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Axis:
    """One axis of a grid: its key, its values in order, and how to write them."""

    key: str
    values: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A model whose cells differ in two axes of the matrix.

    Attributes:
        name: The model's name.
        rows: The first axis.
        columns: The second axis.
        cells: Comparisons by (row's value, column's value); some may be missing.
    """

    name: str
    rows: Axis
    columns: Axis
    cells: Mapping[tuple[str, str], Comparison]


def find_grids(study: Study, run: Run) -> list[Grid]:
    """Finds the models whose cells differ in exactly two axes besides the seed.

    Args:
        study: The comparisons with the baseline, with or without seeds.
        run: What was read from the run folder.

    Returns:
        A grid for each such model; none for a model with fewer or more axes.
    """
    groups: dict[tuple, list[Comparison]] = {}
    for comparison in study.comparisons:
        model = comparison.model
        how = (model.get(key) for key in ("format", "dtype", "resolver", "threads"))
        groups.setdefault((model.name, *how), []).append(comparison)
    found = []
    for (name, *_), members in groups.items():
        keys = {tuple(key for key, _ in member.model.axes) for member in members}
        if len(keys) == 1 and len(*keys) == 2:
            rows, columns = (_make_axis(members, place, run) for place in (0, 1))
            cells = {tuple(v for _, v in m.model.axes): m for m in members}
            found.append(Grid(name, rows, columns, cells))
    return found


def _make_axis(members: Sequence[Comparison], place: int, run: Run) -> Axis:
    """One of the two axes; numbers in their order, others in the recipe's."""
    key = members[0].model.axes[place][0]
    texts: dict[str, set[str]] = {}
    for member in members:
        settings = run.record(member.model.folder).get("settings") or {}
        found = {_write(value) for value in _look_up(settings, key)}
        texts.setdefault(member.model.axes[place][1], set()).update(found)
    values = list(texts)
    if all(NUMBER.fullmatch(value) for value in values):
        values.sort(key=float)
    written = [next(iter(texts[value]), value) for value in values]
    # What is the same in several cells is a stage's own setting of that name, not
    # the one that was varied before it: the folder's name has that.
    clear = all(len(found) == 1 for found in texts.values())
    clear = clear and len(set(written)) == len(values)
    return Axis(key, tuple(values), tuple(written if clear else values))


def _look_up(settings: Any, key: str) -> list[Any]:
    """Returns the values of a key at any depth of a stage's settings."""
    if not isinstance(settings, Mapping):
        return []
    found = [settings[key]] if key in settings else []
    for nested in settings.values():
        found += _look_up(nested, key)
    return found


def _write(value: Any) -> str:
    if isinstance(value, Mapping):
        items = ((k, v) for k, v in value.items() if v not in (None, [], {}))
        return ", ".join(f"{k} {_write(v)}" for k, v in items)
    if isinstance(value, list):
        return "[" + ", ".join(map(_write, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
