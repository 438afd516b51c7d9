"""The plan of a recipe: a node for each stage and cell of the matrix, in order."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

from kdprune import records
from kdprune.config import Recipe, parse_recipe, set_key, stage_order
from kdprune.config.renaming import first_name
from kdprune.stages import Node, Stage

# A stage in one cell of the matrix: the cell's index and axes, and its recipe.
Member = tuple[int, dict[str, Any], Recipe]


def plan(recipe: Recipe) -> list[Node]:
    """Turns a recipe into nodes, each after the ones it needs.

    Cells of the matrix share a stage whose settings and parents are the same in
    all of them, such as the teacher that every seed of a student learns from.

    Returns:
        A list of `Node`.
    """
    cells = [(cell, _with(recipe, cell)) for cell in _cells(recipe.matrix)]
    found: dict[tuple[str, int], str] = {}
    # Each stage's nodes by the number of the cell, a shared one in several.
    nodes: dict[str, dict[int, Node]] = {}
    for stage in stage_order(*(resolved for _, resolved in cells)):
        if recipe.stages[stage].gathers:
            gathering = _gather(recipe, stage, nodes)
            nodes[stage] = dict.fromkeys(range(len(cells)), gathering)
            for index in range(len(cells)):
                found[stage, index] = stage
            continue
        same: dict[str, list[Member]] = {}
        for index, (cell, resolved) in enumerate(cells):
            if not _exists(recipe, stage, index, cell, found):
                continue
            key = _identity(resolved, stage, found, index)
            found[stage, index] = key
            same.setdefault(key, []).append((index, cell, resolved))
        varying = _varying(same.values(), recipe.matrix)
        nodes[stage] = {}
        for members in same.values():
            index, cell, resolved = members[0]
            node = Node(
                name=_folder_name(stage, cell, varying, recipe),
                stage=stage,
                settings=_seeded(resolved, stage),
                parents={
                    parent: [nodes[parent][index]]
                    for parent in resolved.stages[stage].parents()
                },
            )
            nodes[stage].update((index, node) for index, *_ in members)
    return [node for stage in nodes for node in _distinct(nodes[stage])]


def _exists(
    recipe: Recipe,
    stage: str,
    index: int,
    cell: dict[str, Any],
    found: dict[tuple[str, int], str],
) -> bool:
    """Whether a cell has this stage: not if it is beyond the seeds of what it needs."""
    if stage in recipe.seeds:
        if recipe.matrix["seed"].index(cell["seed"]) >= recipe.seeds[stage]:
            return False
    return all((parent, index) in found for parent in recipe.stages[stage].parents())


def _cells(matrix: dict[str, list[Any]]) -> list[dict[str, Any]]:
    axes = [[(key, value) for value in values] for key, values in matrix.items()]
    return [dict(cell) for cell in itertools.product(*axes)]


def _with(recipe: Recipe, cell: dict[str, Any]) -> Recipe:
    """The recipe of one cell, checked like any other."""
    content = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    content["matrix"], content["seeds"] = {}, {}
    for key, value in cell.items():
        set_key(content, key, value)
    return parse_recipe(content)


def _seeded(recipe: Recipe, stage: str) -> Stage:
    settings = recipe.stages[stage]
    if settings.seed is not None:
        return settings
    return settings.model_copy(update={"seed": recipe.seed})


def _identity(
    recipe: Recipe, stage: str, found: dict[tuple[str, int], str], index: int
) -> str:
    settings = _seeded(recipe, stage)
    content = settings.hashed(exclude=() if settings.draws() else ("seed",))
    parents = [found[name, index] for name in settings.parents()]
    # Of a fixed length, however many stages are behind it.
    return records.fingerprint([content, parents])


def _varying(groups: Iterable[list[Member]], matrix: dict[str, list[Any]]) -> list[str]:
    """The axes that tell the groups of cells apart."""
    groups = list(groups)
    if len(groups) == 1:
        return []

    def values(group, key):
        return {json.dumps(cell[key]) for _, cell, _ in group}

    return [
        key
        for key in matrix
        if any(len(values(group, key)) < len(matrix[key]) for group in groups)
    ]


def _folder_name(
    stage: str, cell: dict[str, Any], varying: list[str], recipe: Recipe
) -> str:
    content = recipe.model_dump(by_alias=True)
    parts = [stage]
    for key in varying:
        value = str(cell[key])
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,40}", value):
            # Not fit for a folder's name, and not to be mixed up with another.
            readable = re.sub(r"[^A-Za-z0-9._-]+", "_", value)[:30]
            value = f"{readable}-{records.fingerprint(cell[key])[:6]}"
        # By the name that a key first had, the folders of earlier runs stay theirs.
        parts.append(f"{first_name(key, content)}={value}")
    return "--".join(parts)


def _distinct(nodes: dict[int, Node]) -> list[Node]:
    return list({id(node): node for node in nodes.values()}.values())


def _gather(recipe: Recipe, stage: str, nodes: dict[str, dict[int, Node]]) -> Node:
    settings = _seeded(recipe, stage)
    parents = {name: _distinct(nodes[name]) for name in settings.parents()}
    return Node(stage, stage, settings, parents)
