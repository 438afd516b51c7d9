"""Reading a recipe: YAML, plugins, overrides, checks."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

import pydantic

from kdprune._plain import MOST_DEPTH, check_plain, read_yaml, read_yaml_file
from kdprune.config.messages import explain
from kdprune.config.plugins import load_plugins
from kdprune.config.references import check_references
from kdprune.config.renaming import present_path, rename_keys
from kdprune.config.schema import Recipe, recipe_schema
from kdprune.stages import InvalidRecipe


def load_recipe(path: str | pathlib.Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Modules that it names under `plugins` are imported first; they are looked for
    beside the recipe as well.

    Args:
        path: A YAML file.
        overrides: Strings `key.path=value`, values in YAML, e.g.
            "stages.student.training.epochs=5"; "stages.student=null" leaves a stage
            out.

    Returns:
        A `Recipe`.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidRecipe: If keys, types, values or references are wrong: one line for
            each, with the key's full path, what was expected, and the nearest valid
            name.
        ValueError: If it is not YAML, or an override can't be read.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"recipe not found: {path}")
    content = read_yaml_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys such as name, data and stages")
    load_plugins(_plugins(content), path.absolute().parent)
    content = rename_keys(content)
    for override in overrides:
        _override(content, override)
    return parse_recipe(content)


def parse_recipe(content: dict[str, Any]) -> Recipe:
    """Checks a recipe given as a dict; see `load_recipe`."""
    problems = list(check_plain(content))
    if problems:
        raise InvalidRecipe(problems)
    load_plugins(_plugins(content))
    content = rename_keys(content)
    try:
        recipe = recipe_schema().model_validate(content)
    except pydantic.ValidationError as error:
        raise InvalidRecipe(explain(error, content)) from None
    check_references(recipe)
    return recipe


def _plugins(content: dict[str, Any]) -> list[str]:
    """The modules named; what is no list of names is told by the schema."""
    named = content.get("plugins")
    if not isinstance(named, list | tuple):
        return []
    return [name for name in named if isinstance(name, str)]


def set_key(content: dict[str, Any], path: str, value: Any) -> None:
    """Sets `content["a"]["b"]` for the path "a.b", making dicts on the way."""
    *parents, last = path.split(".")
    for index, key in enumerate(parents):
        if content.get(key) is None:
            content[key] = {}
        content = content[key]
        if not isinstance(content, dict):
            where = ".".join(parents[: index + 1])
            raise ValueError(f"{path}: {where} is a value and has no keys inside")
    content[last] = value


def _override(content: dict[str, Any], text: str) -> None:
    path, separator, value = text.partition("=")
    if not separator or not path.strip("."):
        raise ValueError(f"--set expects key.path=value. Received: {text!r}")
    if path.count(".") >= MOST_DEPTH:
        raise ValueError(
            f"--set expects a path of at most {MOST_DEPTH} keys. Received: "
            f"{path[:40]!r}..."
        )
    parsed = read_yaml(value, f"--set {path}")
    root, _, stage = path.partition(".")
    stages = content.get("stages")
    if (
        parsed is None
        and root == "stages"
        and isinstance(stages, dict)
        and stage in stages
    ):
        del stages[stage]
        return
    set_key(content, present_path(path, content), parsed)
