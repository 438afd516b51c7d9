"""What a recipe's stages say of each other: names, kinds, order."""

from __future__ import annotations

import graphlib
import math
from collections.abc import Iterator

from kdprune._registry import nearest
from kdprune.config.schema import Recipe
from kdprune.stages import (
    FILES,
    FLOAT_MODEL,
    KINDS,
    MEASUREMENTS,
    QUANTIZED_MODEL,
    InvalidRecipe,
)

# Stages times combinations of values of the matrix.
MOST_NODES = 20_000

# Folders that a run makes beside those of its stages.
TAKEN = ("plots", "checkpoints")


def check_references(recipe: Recipe) -> None:
    """Raises `InvalidRecipe` unless what stages and keys name is there and fits."""
    problems = list(_oversized(recipe)) or list(_unknown(recipe))
    if problems:
        raise InvalidRecipe(problems)
    stage_order(recipe)
    problems += [*_unfit(recipe), *_unmeasured(recipe)]
    if problems:
        raise InvalidRecipe(problems)


def _oversized(recipe: Recipe) -> Iterator[str]:
    """A matrix of more stages than anyone waits for, before they are counted out."""
    cells = math.prod(map(len, recipe.matrix.values()))
    if cells * len(recipe.stages) > MOST_NODES:
        yield (
            f"matrix: expected at most {MOST_NODES:,} stages in all, got "
            f"{len(recipe.stages)} in {cells:,} combinations of values; leave out "
            "values, or run several recipes"
        )


def _unknown(recipe: Recipe) -> Iterator[str]:
    """Names that are no stages, or stages of a kind that is invalid there."""
    for name, stage in recipe.stages.items():
        for key, gives in stage.accepts.items():
            for other in stage.references(key):
                yield from _reference(recipe, f"stages.{name}.{key}", other, gives)
        if name in TAKEN:
            yield (
                f"stages.{name}: expected a name that is none of the run's own folders "
                f"({', '.join(TAKEN)}); choose another"
            )
    if recipe.baseline:
        yield from _reference(recipe, "baseline", recipe.baseline, (FLOAT_MODEL,))
    if recipe.flagship:
        yield from _reference(recipe, "flagship", recipe.flagship, (QUANTIZED_MODEL,))
    for name in recipe.save_models:
        yield from _reference(recipe, "save_models", name, (FLOAT_MODEL,))
    for key in recipe.matrix:
        yield from _axis(recipe, key)
    for name in recipe.seeds:
        unknown = list(_in_cells(recipe, f"seeds.{name}", name))
        yield from unknown
        if not unknown and "seed" not in recipe.matrix:
            yield f"seeds.{name}: expected a matrix of seeds, got none"


def _unfit(recipe: Recipe) -> Iterator[str]:
    """Settings that other parts of the recipe rule out."""
    for name, stage in recipe.stages.items():
        try:
            stage.check_recipe(name, recipe)
        except ValueError as error:
            yield str(error)
    if recipe.flagship and not recipe.stages[recipe.flagship].writes_int8():
        yield (
            "flagship: expected a stage that is exported in int8, got "
            f"{recipe.flagship!r}; choose one of method ptq, qat or auto"
        )
    for kind, cls in KINDS.items():
        found = [name for name, s in recipe.stages.items() if isinstance(s, cls)]
        if cls.gathers and len(found) > 1:
            yield (
                f"stages.{found[1]}: expected one stage of kind {kind}, got "
                f"{', '.join(found)}"
            )


def _unmeasured(recipe: Recipe) -> Iterator[str]:
    """What is named for the end of the run must be measured there."""
    measured = {
        other
        for stage in recipe.stages.values()
        if stage.gives == MEASUREMENTS
        for other in stage.parents()
    }
    exported = {
        source
        for name in measured
        if recipe.stages[name].gives == FILES
        for source in recipe.stages[name].parents()
    }
    named = [("baseline", recipe.baseline, measured)]
    named += [("flagship", recipe.flagship, exported)]
    named += [("save_models", name, measured) for name in recipe.save_models]
    for key, name, reached in named:
        if name and name not in reached:
            yield (
                f"{key}: expected a stage that the evaluate stage measures, got "
                f"{name!r}; add it to the `from` of evaluate, or of its export stage"
            )


def _axis(recipe: Recipe, key: str) -> Iterator[str]:
    """A matrix axis must be a key that tells stages apart."""
    root, *rest = key.split(".")
    if root == "data":
        yield (
            f"matrix.{key}: expected no key of `data`, since all cells are measured on "
            "the same test images; run a recipe for each"
        )
    elif root == "stages" and rest:
        yield from _in_cells(recipe, f"matrix.{key}", rest[0])
    elif key != "seed":
        yield (
            f"matrix.{key}: expected `seed` or a key of a stage, such as "
            "stages.student.temperature"
        )


def _in_cells(recipe: Recipe, key: str, name: str) -> Iterator[str]:
    """A stage that is run in each cell of the matrix."""
    kinds = [kind for kind, cls in KINDS.items() if not cls.gathers]
    yield from _of_kind(recipe, key, name, kinds)


def _reference(
    recipe: Recipe, key: str, name: str, gives: tuple[str, ...]
) -> Iterator[str]:
    kinds = [kind for kind, cls in KINDS.items() if cls.gives in gives]
    yield from _of_kind(recipe, key, name, kinds)


def _of_kind(recipe: Recipe, key: str, name: str, kinds: list[str]) -> Iterator[str]:
    accepted = [n for n, stage in recipe.stages.items() if _kind(stage) in kinds]
    if name not in accepted:
        there = name in recipe.stages
        got = f"{name!r}, of kind {_kind(recipe.stages[name])}" if there else repr(name)
        yield (
            f"{key}: expected a stage of kind {' or '.join(kinds)}, got {got}"
            f"{nearest(name, accepted)}"
        )


def _kind(stage: object) -> str:
    return getattr(stage, "kind")  # noqa: B009  # A field of each kind's own.


def stage_order(*recipes: Recipe) -> list[str]:
    """Stage names, each after the stages it needs in any of the recipes.

    Raises:
        InvalidRecipe: If stages need each other in a cycle.
    """
    graph: dict[str, list[str]] = {name: [] for name in recipes[0].stages}
    for recipe in recipes:
        for name, stage in recipe.stages.items():
            graph[name] += stage.parents()
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise InvalidRecipe(
            [f"stages: dependency cycle: {cycle}; change one of their `from`"]
        ) from None
