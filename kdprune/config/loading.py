"""Reading a recipe: YAML, overrides, checks."""

import pathlib

import pydantic
import yaml

from kdprune.config.messages import explain
from kdprune.config.references import check_references
from kdprune.config.schema import Recipe


def load_recipe(path, overrides=()):
    """Reads and checks a recipe.

    Args:
        path: A YAML file.
        overrides: Strings `key.path=value`, values in YAML, e.g.
            "stages.student.training.epochs=5"; "stages.student=null" leaves a stage
            out.

    Returns:
        A `Recipe`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key, type, value or reference is wrong: one line with the
            key's full path, what was expected, and the nearest valid name.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a recipe (YAML) at {path}: none there")
    try:
        content = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ValueError(f"{path} is not valid YAML: {where}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys such as name, data and stages")
    content = _unshared(content)
    for override in overrides:
        _override(content, override)
    return parse_recipe(content)


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would drop one in silence."""

    def construct_mapping(self, node, deep=False):
        keys = [
            key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"
        ]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(
                f"the key {twice[0]!r} is given twice{node.start_mark}"
            )
        return super().construct_mapping(node, deep)


def _unshared(content):
    """A copy in which a YAML alias is a value of its own: changed, it stays alone."""
    if isinstance(content, dict):
        return {key: _unshared(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_unshared(value) for value in content]
    return content


def parse_recipe(content):
    """Checks a recipe given as a dict; see `load_recipe`."""
    try:
        recipe = Recipe.model_validate(content)
    except pydantic.ValidationError as error:
        raise ValueError(explain(error, content)) from None
    check_references(recipe)
    return recipe


def set_key(content, path, value):
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


def _override(content, text):
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
    set_key(content, path, parsed)
