"""The plan of a recipe: a node for each stage and cell of the matrix, in order."""

import dataclasses
import itertools
import json
import re

from kdprune import records
from kdprune.config import parse_recipe, set_key, stage_order

# Stages that look at all cells of a matrix at once.
GATHERING = ("evaluate", "kit", "report")


@dataclasses.dataclass(frozen=True)
class Node:
    """A stage with all its settings, in one cell of the matrix or in several.

    Attributes:
        name: Its folder's name: the stage's, with the axes it depends on.
        stage: The stage's name in the recipe.
        settings: The stage's settings, its seed resolved.
        parents: Nodes it needs, by the stage's name; several for a stage that
            gathers all cells.
    """

    name: str
    stage: str
    settings: object
    parents: dict

    @property
    def kind(self):
        return self.settings.kind

    @property
    def taught(self):
        """Whether a teacher is asked, so that images without labels are of use."""
        return any(getattr(self.settings, k, None) for k in ("teacher", "soft_labels"))


def plan(recipe):
    """Turns a recipe into nodes, each after the ones it needs.

    Cells of the matrix share a stage whose settings and parents are the same in
    all of them, such as the teacher that every seed of a student learns from.

    Returns:
        A list of `Node`.
    """
    cells = [(cell, _with(recipe, cell)) for cell in _cells(recipe.matrix)]
    found, nodes = {}, {}
    for stage in stage_order(*(resolved for _, resolved in cells)):
        if recipe.stages[stage].kind in GATHERING:
            nodes[stage] = [_gather(recipe, stage, nodes)]
            for index in range(len(cells)):
                found[stage, index] = stage
            continue
        same = {}
        for index, (cell, resolved) in enumerate(cells):
            if not _exists(recipe, stage, index, cell, found):
                continue
            key = _identity(resolved, stage, found, index)
            found[stage, index] = key
            same.setdefault(key, []).append((index, cell, resolved))
        varying = _varying(same.values(), recipe.matrix)
        nodes[stage] = []
        for members in same.values():
            index, cell, resolved = members[0]
            node = Node(
                name=_folder_name(stage, cell, varying),
                stage=stage,
                settings=_seeded(resolved, stage),
                parents={
                    parent: [_member(nodes[parent], index)]
                    for parent in resolved.stages[stage].parents()
                },
            )
            nodes[stage].append((node, {index for index, *_ in members}))
    return [node for stage in nodes for node, _ in nodes[stage]]


def _exists(recipe, stage, index, cell, found):
    """Whether a cell has this stage: not if it is beyond the seeds of what it needs."""
    if stage in recipe.seeds:
        if recipe.matrix["seed"].index(cell["seed"]) >= recipe.seeds[stage]:
            return False
    return all((parent, index) in found for parent in recipe.stages[stage].parents())


def _cells(matrix):
    axes = [[(key, value) for value in values] for key, values in matrix.items()]
    return [dict(cell) for cell in itertools.product(*axes)]


def _with(recipe, cell):
    """The recipe of one cell, checked like any other."""
    content = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    content["matrix"], content["seeds"] = {}, {}
    for key, value in cell.items():
        set_key(content, key, value)
    return parse_recipe(content)


def _seeded(recipe, stage):
    settings = recipe.stages[stage]
    if settings.seed is not None:
        return settings
    return settings.model_copy(update={"seed": recipe.seed})


def _identity(recipe, stage, found, index):
    settings = _seeded(recipe, stage)
    unused = () if _draws(settings) else {"seed"}
    settings = settings.model_dump(mode="json", by_alias=True, exclude=unused)
    parents = [found[name, index] for name in recipe.stages[stage].parents()]
    return json.dumps([settings, parents], sort_keys=True)


def _draws(settings):
    """Whether a stage's result depends on its seed: else all seeds share it."""
    if settings.kind == "quantize":
        return bool({"training", "calibration"} & settings.model_fields_set)
    return settings.kind not in ("load", "export")


def _varying(groups, matrix):
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


def _folder_name(stage, cell, varying):
    parts = [stage]
    for key in varying:
        value = str(cell[key])
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,40}", value):
            # Not fit for a folder's name, and not to be mixed up with another.
            readable = re.sub(r"[^A-Za-z0-9._-]+", "_", value)[:30]
            value = f"{readable}-{records.fingerprint(cell[key])[:6]}"
        parts.append(f"{key.rsplit('.', 1)[-1]}={value}")
    return "--".join(parts)


def _member(members, index):
    return next(node for node, indices in members if index in indices)


def _gather(recipe, stage, nodes):
    settings = _seeded(recipe, stage)
    parents = {name: [node for node, _ in nodes[name]] for name in settings.parents()}
    return Node(stage, stage, settings, parents), {0}
