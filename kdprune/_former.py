"""Former names that still work, each use with a DeprecationWarning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


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
