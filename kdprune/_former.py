"""Former names and arguments that still work, each use with a DeprecationWarning."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def former_names(
    module: str,
    renamed: Mapping[str, str],
    load: Callable[[str], Any] | None = None,
) -> Callable[[str], Any]:
    """Makes a module's `__getattr__`, which finds what was renamed.

    Args:
        module: The module's `__name__`.
        renamed: Each former name with the present one, both of this module.
        load: Gives a present name that is loaded on first use; None if none are.

    Returns:
        A function of a name; raises `AttributeError` for a name it does not know.

    Example:
        >>> __getattr__ = former_names(__name__, {"old_function": "new_function"})
    """

    def find(name: str) -> Any:
        if name not in renamed:
            if load is not None:
                return load(name)
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is now {module}.{renamed[name]}",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(module), renamed[name])

    return find


def former_arguments(**renamed: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a decorator of a function some of whose arguments were renamed.

    Args:
        **renamed: Each former name with the present one.

    Returns:
        The decorator. The function takes either name, and raises `TypeError` where it
        is given both.

    Example:
        >>> @former_arguments(beta="relative_threshold")
        ... def weight_masks(model, *, relative_threshold=None): ...
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            name = getattr(function, "__name__", "function")
            for former in renamed.keys() & kwargs.keys():
                present = renamed[former]
                if present in kwargs:
                    raise TypeError(
                        f"{name} expects one of {present!r} and {former!r}, its former "
                        "name. Received: both"
                    )
                warnings.warn(
                    f"{name}: the argument {former!r} is now {present!r}",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[present] = kwargs.pop(former)
            return function(*args, **kwargs)

        return call

    return decorate
