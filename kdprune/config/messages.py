"""A line for each thing that is wrong in a recipe, with the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pydantic

from kdprune._registry import nearest
from kdprune.config.schema import recipe_schema
from kdprune.stages import KINDS
from kdprune.stages.settings import Settings


def explain(error: pydantic.ValidationError, content: dict[str, Any]) -> Iterator[str]:
    """Yields a line for each of pydantic's errors, one for each key."""
    found: dict[tuple[str, ...], Any] = {}
    for item in error.errors(include_url=False):
        found.setdefault(tuple(_path(item["loc"])), item)
    # Where a key may hold several forms, the one that failed deepest was meant.
    above = {path[:depth] for path in found for depth in range(len(path))}
    for path, item in found.items():
        if path not in above:
            yield _line(item, list(path), content)


def _path(location: tuple[int | str, ...]) -> list[str]:
    parts = [str(part) for part in location]
    if len(parts) > 2 and parts[0] == "stages" and parts[2] in KINDS:
        del parts[2]  # The kind, which pydantic adds to the path.
    # Of a union, pydantic names the member it tried last, which is no key.
    unions = ("bool", "tuple", "float", "int", "str", "Importance")
    return [
        part
        for part in parts
        if "[" not in part and part.removeprefix("constrained-") not in unions
    ]


def _line(found: Any, location: list[str], content: dict[str, Any]) -> str:
    path = ".".join(location) or "the recipe"
    kind, received = found["type"], found["input"]
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_nearest_key(location, content)}"
    if kind == "missing":
        return f"{path}: expected a value, got nothing"
    if kind.startswith("union_tag"):
        got = received.get("kind") if isinstance(received, dict) else received
        near = nearest(got, KINDS)
        return (
            f"{path}.kind: expected one of {', '.join(KINDS)}, got {_short(got)}{near}"
        )
    message = found["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{path}: {message}"
    message = message.replace("Input should be ", "expected ")
    near = ""
    if kind == "literal_error" and isinstance(received, str):
        near = nearest(received, message.split("'")[1::2])
    if kind in ("too_long", "too_short"):
        expected = found["ctx"].get("max_length", found["ctx"].get("min_length"))
        bound = "at most" if kind == "too_long" else "at least"
        return f"{path}: expected {bound} {expected}, got {len(received)}"
    return f"{path}: {message}, got {_short(received)}{near}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest_key(location: list[str], content: dict[str, Any]) -> str:
    """The valid keys' nearest to the last part of a location."""
    model = model_at(location[:-1], content)
    if model is None:
        return ""
    fields = [field.alias or name for name, field in model.model_fields.items()]
    return nearest(location[-1], fields) or f"; expected one of {', '.join(fields)}"


def model_at(location: list[str], content: Any) -> type[Settings] | None:
    """The class of the settings at a place of a recipe, if it is one."""
    model: type[Settings] | None = recipe_schema()
    for depth, part in enumerate(location):
        content = content.get(part) if isinstance(content, dict) else None
        if depth == 0 and part == "stages":
            model = None
        elif depth == 1 and location[0] == "stages":
            kind = content.get("kind") if isinstance(content, dict) else None
            model = KINDS.get(kind) if isinstance(kind, str) else None
        elif model is not None:
            model = _field_model(model, part)
    return model


def _field_model(model: type[Settings], key: str) -> type[Settings] | None:
    """The settings that a key holds, or a list of which it holds."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    waiting = [fields[key].annotation] if key in fields else []
    while waiting:
        candidate = waiting.pop(0)
        if isinstance(candidate, type) and issubclass(candidate, Settings):
            return candidate
        waiting += get_args(candidate)
    return None
