"""The modules that a recipe names: imported before it is checked."""

from __future__ import annotations

import hashlib
import importlib
import pathlib
import sys
from collections.abc import Iterable

from kdprune import _io
from kdprune.stages import InvalidRecipe


def load_plugins(modules: Iterable[str], folder: pathlib.Path | None = None) -> None:
    """Imports modules, which register losses, data sets, kinds of stages and the like.

    Args:
        modules: Their dotted names.
        folder: Where they are looked for last, e.g. beside the recipe.

    Raises:
        InvalidRecipe: With a line for each module that is not found or fails.
    """
    modules = list(modules)
    if modules and folder is not None and str(folder) not in sys.path:
        # Last, so that no file there stands before a module of the same name.
        sys.path.append(str(folder))
    problems = []
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                problems.append(
                    f"plugins: module not found: {name}; put it beside the recipe, "
                    "install it, or add its folder to PYTHONPATH"
                )
            else:
                problems.append(f"plugins: {name} needs a module: {error}")
        except Exception as error:
            kind, said = type(error).__name__, _io.first_line(error)
            problems.append(f"plugins: importing {name} raised {kind}: {said}")
    if problems:
        raise InvalidRecipe(problems)


def sources_sha256(modules: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the source of each module; of a package, of all files in it."""
    return {name: _sha256(importlib.import_module(name)) for name in modules}


def _sha256(module: object) -> str:
    file = getattr(module, "__file__", None)
    if not hasattr(module, "__path__"):
        return _io.sha256(pathlib.Path(file)) if file else ""
    digest = hashlib.sha256()
    for folder in sorted(map(str, module.__path__)):
        for path in sorted(pathlib.Path(folder).rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(_io.sha256(path).encode())
    return digest.hexdigest()
