"""Keys that were renamed: the former ones are accepted, with a line that says so."""

from __future__ import annotations

from typing import Any

from kdprune._log import logger
from kdprune.config.messages import model_at
from kdprune.stages import InvalidRecipe
from kdprune.stages.settings import Settings


def rename_keys(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a recipe by the present names of its keys.

    Raises:
        InvalidRecipe: If a key is given by both its names.
    """
    renamed = _rename(content, [], content)
    matrix = renamed.get("matrix")
    if isinstance(matrix, dict):
        renamed["matrix"] = {
            present_path(str(key), renamed): values for key, values in matrix.items()
        }
    return renamed


def present_path(path: str, content: dict[str, Any]) -> str:
    """A key's path, such as "stages.pruned.by", by the present names of its keys."""
    parts: list[str] = []
    for part in path.split("."):
        parts.append(_renamed(model_at(parts, content)).get(part, part))
    present = ".".join(parts)
    if present != path:
        logger.warning("%s is now %s", path, parts[-1])
    return present


def first_name(path: str, content: dict[str, Any]) -> str:
    """The name that the last key of a path first had."""
    *parents, last = path.split(".")
    renamed = _renamed(model_at(parents, content))
    return next((first for first, now in renamed.items() if now == last), last)


def _renamed(model: type[Settings] | None) -> dict[str, str]:
    return dict(model.renamed) if model else {}


def _rename(value: Any, path: list[str], content: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_rename(item, path, content) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = _renamed(model_at(path, content))
    found: dict[str, Any] = {}
    for key, item in value.items():
        present = renamed[key] if key in renamed else key
        place = ".".join([*path, str(key)])
        if present != key:
            if present in value:
                raise InvalidRecipe([f"{place} is now {present}: got both, keep one"])
            logger.warning("%s is now %s", place, present)
        found[present] = _rename(item, [*path, str(key)], content)
    return found
