"""Plain values: texts, numbers, lists and mappings, as recipes and settings hold them.

YAML can name types, refer to itself and unfold to far more than it is long. What is
read here is of plain types, bounded in length, depth and number of values, and what is
wrong with it is one line. Imports nothing of kdprune.
"""

from __future__ import annotations

import collections
import inspect
import json
import math
import pathlib
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

MOST_CHARACTERS = 200_000
MOST_VALUES = 20_000
MOST_DEPTH = 20
# Larger whole numbers than 64 bits hold are of no setting.
_LARGEST = 2**63
_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))
_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {_PREFIX + name for name in ("null", "bool", "int", "float", "str", "merge")}
# What a node of each form may be said to be.
_TAGS = {
    yaml.ScalarNode: _SCALARS,
    yaml.SequenceNode: {f"{_PREFIX}seq"},
    yaml.MappingNode: {f"{_PREFIX}map"},
}


def read_yaml(text: str, source: str) -> Any:
    """Reads YAML as plain values.

    Args:
        text: The YAML.
        source: What it is, such as a file's path, for the messages.

    Returns:
        None, bool, int, float, str, lists and dicts with texts as keys. Dates are
        texts. What an alias names is a value of its own in each place.

    Raises:
        ValueError: In one line, with the place: if it is not YAML, is longer or deeper
            than any recipe, has a key twice, or a value of another type.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"{source}: expected at most {MOST_CHARACTERS:,} characters. Received: "
            f"{len(text):,}"
        )
    loader = None
    try:
        loader = _Loader(text)  # Looks at the first characters.
        return _unshared(loader.get_single_data())
    except _Refused as error:
        raise ValueError(_told(source, error.said, error.problem_mark)) from error
    except yaml.MarkedYAMLError as error:
        said = f"not valid YAML: {error.problem or error.context}"
        mark = error.problem_mark or error.context_mark
        raise ValueError(_told(source, said, mark)) from error
    except yaml.YAMLError as error:
        said = f"not valid YAML: {' '.join(str(error).split())}"
        raise ValueError(_told(source, said, None)) from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml_file(path: pathlib.Path) -> Any:
    """Reads a file of YAML; see `read_yaml`."""
    with open(path, "rb") as file:
        content = file.read(4 * MOST_CHARACTERS + 1)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(content) <= 4 * MOST_CHARACTERS:
            raise ValueError(f"{path}: expected text in UTF-8: {error}") from error
        text = content.decode("latin-1")  # Too long, whatever it says.
    return read_yaml(text, str(path))


def _told(source: str, said: str, mark: yaml.Mark | None) -> str:
    place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
    return f"{source}{place}: {said}"


def check_plain(content: Any) -> Iterator[str]:
    """Yields what in a dict is no plain value or beyond the bounds: path and reason."""
    waiting: collections.deque[tuple[str, int, Any]] = collections.deque()
    waiting.append(("", 0, content))
    count = 0
    while waiting:
        path, depth, value = waiting.popleft()
        count += 1
        if count > MOST_VALUES or depth > MOST_DEPTH:
            yield (
                f"{path or 'the recipe'}: expected at most {MOST_VALUES:,} values, in "
                f"at most {MOST_DEPTH} levels, got more; make the recipe smaller"
            )
            return
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(key, str):
                    waiting.append((f"{path}.{key}" if path else key, depth + 1, item))
                else:
                    yield (
                        f"{path or 'the recipe'}: expected keys that are text, got "
                        f"{key!r}; put it in quotes"
                    )
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                waiting.append((f"{path}.{index}", depth + 1, item))
        elif isinstance(value, bool | str) or value is None:
            continue
        elif not isinstance(value, int | float):
            yield (
                f"{path}: expected text, a number, true, false, a list or a mapping, "
                f"got {value!r:.60}"
            )
        elif isinstance(value, int):
            if abs(value) >= _LARGEST:
                bits = value.bit_length()
                yield f"{path}: expected a number of at most 64 bits, got {bits} bits"
        elif not math.isfinite(value):
            yield f"{path}: expected a finite number, got {value}"


def typed_arguments(
    function: Callable[..., Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of a function, of the types that its signature tells.

    What it is annotated with counts, else the type of its default; what has neither
    may be anything. Numbers such as 1e3, which YAML takes for text, are numbers.

    Args:
        function: What is to be called.
        given: Some of its arguments by name. Values that are not plain, such as
            arrays and functions, are left as they are.

    Returns:
        The arguments.

    Raises:
        ValueError: If one is of another type, or a number is not finite.
    """
    parameters = inspect.signature(function).parameters
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        hints = {}  # A plugin may name what it imports for a type checker only.
    found = {}
    for name, value in given.items():
        found[name] = value = _as_number(value)
        default = parameters[name].default if name in parameters else None
        expected = hints.get(name, _type_of(default))
        if not isinstance(value, _PLAIN):
            continue
        for problem in check_plain({name: value}):
            if "finite" in problem:
                raise ValueError(problem)
        wrong = _mismatch(value, expected)
        if wrong:
            raise ValueError(f"{name}: {wrong}, got {value!r:.80}")
    return found


def _type_of(default: Any) -> Any:
    """The type of an argument without annotation, by its default."""
    if isinstance(default, int | float) and not isinstance(default, bool):
        return float  # A default of 1 is no promise that halves are refused.
    return type(default) if isinstance(default, bool | str) else Any


def _as_number(value: Any) -> Any:
    """A value, numbers with exponents, which YAML takes for texts, made numbers."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        number = float(value)
        return int(number) if number.is_integer() else number
    if isinstance(value, list):
        return [_as_number(item) for item in value]
    return value


def _mismatch(value: Any, expected: Any) -> str | None:
    """Why a plain value is not of a type, strictly: True is no 1, and '8' no 8."""
    import pydantic
    import pydantic_core

    try:
        text = json.dumps(value)
        adapter = pydantic.TypeAdapter(expected)
    except (TypeError, ValueError, pydantic.errors.PydanticUserError):
        return None  # Not of JSON, or of a type that pydantic doesn't know.
    try:
        adapter.validate_json(text, strict=True)
    except pydantic_core.ValidationError as error:
        return error.errors()[0]["msg"].replace("Input should be", "expected")
    return None


def _unshared(content: Any) -> Any:
    """A copy in which a YAML alias is a value of its own: changed, it stays alone."""
    if isinstance(content, dict):
        return {key: _unshared(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_unshared(value) for value in content]
    return content


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML, but no plain value or beyond the bounds."""

    def __init__(self, problem: str, mark: yaml.Mark):
        super().__init__(problem=problem, problem_mark=mark)
        self.said = problem


class _Loader(yaml.SafeLoader):
    """Bounded before anything is built; a key given twice is refused, not dropped."""

    # Values by tag alone: a date stays the text it is.
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag in _SCALARS]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        # Values under each node, those of its aliases counted in each place.
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        is_alias = self.check_event(yaml.AliasEvent)
        if self._depth >= MOST_DEPTH:
            raise _Refused(f"expected at most {MOST_DEPTH} levels, got more", mark)
        self._depth += 1
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            # Not known yet, it is inside of itself.
            if id(node) not in self._sizes:
                raise _Refused("an alias stands inside of what it names", mark)
            return node
        if node.tag not in _TAGS[type(node)]:
            tag = node.tag.replace(_PREFIX, "!!")
            raise _Refused(
                f"expected text, a number, true, false, a list or a mapping, got {tag}",
                mark,
            )
        children: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            children = [item for pair in node.value for item in pair]
            _check_keys(node)
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        size = 1 + sum(self._sizes[id(child)] for child in children)
        if size > MOST_VALUES:
            raise _Refused(
                f"expected at most {MOST_VALUES:,} values, aliases written out, got "
                "more",
                mark,
            )
        self._sizes[id(node)] = size
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            # Of a tag that is given to what it does not fit.
            tag = node.tag.replace(_PREFIX, "")
            got = f"expected a value of type {tag}, got {node.value!r:.40}"
            raise _Refused(got, node.start_mark) from error


def _check_keys(node: yaml.MappingNode) -> None:
    keys = [key for key, _ in node.value if key.tag != f"{_PREFIX}merge"]
    for key in keys:
        if key.tag != f"{_PREFIX}str":
            got = f" {key.value!r:.40}" if isinstance(key.value, str) else " a list"
            raise _Refused(
                f"expected a key that is text, got{got}; put it in quotes",
                key.start_mark,
            )
    counts = collections.Counter(key.value for key in keys)
    for key in keys:
        if counts[key.value] > 1:
            raise _Refused(f"the key {key.value!r} is given twice", key.start_mark)
