"""Reading a recipe: YAML, plugins, overrides, checks."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

import pydantic
import yaml

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
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ValueError(f"{path} is not valid YAML: {where}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys such as name, data and stages")
    load_plugins(_plugins(content), path.absolute().parent)
    content = rename_keys(_unshared(content))
    for override in overrides:
        _override(content, override)
    return parse_recipe(content)


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would drop one in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [
            key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"
        ]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(
                f"the key {twice[0]!r} is given twice{node.start_mark}"
            )
        return super().construct_mapping(node, deep)


def _unshared(content: Any) -> Any:
    """A copy in which a YAML alias is a value of its own: changed, it stays alone."""
    if isinstance(content, dict):
        return {key: _unshared(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_unshared(value) for value in content]
    return content


def parse_recipe(content: dict[str, Any]) -> Recipe:
    """Checks a recipe given as a dict; see `load_recipe`."""
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
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {path}: {value!r} is not a YAML value") from error
    root, _, stage = path.partition(".")
    if parsed is None and root == "stages" and stage in (content.get(root) or {}):
        del content[root][stage]
        return
    set_key(content, present_path(path, content), parsed)
