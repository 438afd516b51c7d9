"""Names: adding to the tables of losses, importances, data sets and the rest.

A registry is a module-level dict from names to functions or classes; each has a
public `register_*` that calls `add` here. A name that is not known is answered with
the nearest one that is.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


def add(table: dict[str, T], what: str, name: str, value: T, replace: bool) -> T:
    """Adds an entry to a registry.

    Args:
        table: The registry.
        what: What it holds, for messages: "loss".
        name: Lower-case letters, digits and underscores, a letter first.
        value: The entry, something callable.
        replace: Whether an entry of this name may be replaced.

    Returns:
        `value`, so that `register_*` can be used as a decorator.

    Raises:
        ValueError: If the name is not fit or is taken, or the value not callable.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"the name of a {what} consists of lower-case letters, digits and "
            f"underscores. Received: {name!r}"
        )
    if not callable(value):
        raise ValueError(f"{what} {name!r} must be callable. Received: {value!r}")
    if table.get(name, value) is not value and not replace:
        raise ValueError(
            f"there is a {what} {name!r} already; choose another name, or replace it "
            "with replace=True"
        )
    table[name] = value
    return value


def nearest(name: object, candidates: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of the candidates, or nothing."""
    found = difflib.get_close_matches(str(name), list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def suggesting(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function: an argument that it does not have names the nearest.

    From Python 3.13 on, Python does that by itself.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [one.name for one in parameters if one.kind is not one.POSITIONAL_ONLY]
    if sys.version_info >= (3, 13):
        return function

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{getattr(function, '__name__', 'function')}() got an unexpected "
                    f"keyword argument {name!r}{nearest(name, known)}"
                )
        return function(*args, **kwargs)

    return call
