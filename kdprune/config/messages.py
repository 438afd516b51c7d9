"""One line for what is wrong in a recipe, with the key and the nearest valid name."""

import difflib
from typing import get_args

import pydantic

from kdprune.config.schema import Recipe
from kdprune.config.stages import KINDS


def explain(error, content):
    """One line for the first of pydantic's errors."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    if len(location) > 2 and location[0] == "stages" and location[2] in KINDS:
        del location[2]  # The kind, which pydantic adds to the path.
    # Of a union, pydantic names the member it tried last, which is no key.
    unions = ("bool", "constrained-int", "tuple", "float", "int", "str")
    location = [p for p in location if "[" not in p and p not in unions]
    path = ".".join(location) or "the recipe"
    kind, received = first["type"], first["input"]
    more = len(error.errors()) - 1
    tail = f" (and {more} more)" if more else ""
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_nearest_key(location, content)}{tail}"
    if kind == "missing":
        return f"{path}: expected a value, got nothing{tail}"
    if kind.startswith("union_tag"):
        got = received.get("kind") if isinstance(received, dict) else received
        near = nearest(str(got), KINDS)
        return f"{path}.kind: expected one of {', '.join(KINDS)}, got {got!r}{near}"
    message = first["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{path}: {message}{tail}"
    message = message.replace("Input should be ", "expected ")
    near = ""
    if kind == "literal_error" and isinstance(received, str):
        near = nearest(received, [part for part in message.split("'")[1::2]])
    return f"{path}: {message}, got {received!r}{near}{tail}"


def _nearest_key(location, content):
    """The valid keys' nearest to the last part of a location."""
    model, fields = Recipe, None
    node = content
    for part in location[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
        if model is Recipe and part == "stages":
            model = None
        elif model is None:
            kind = node.get("kind") if isinstance(node, dict) else None
            model = KINDS.get(kind)
        else:
            model = _field_model(model, part)
    fields = [f.alias or n for n, f in model.model_fields.items()] if model else []
    near = nearest(location[-1], fields)
    return near or (f"; expected one of {', '.join(fields)}" if fields else "")


def _field_model(model, key):
    annotation = model.model_fields[key].annotation
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, pydantic.BaseModel):
            return candidate
    return None


def nearest(name, candidates):
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
