"""The subpackages, and which of them may import which."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import kdprune

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kdprune"

# What everything may stand on; these import nothing above them.
FOUNDATIONS = {
    "_answers",
    "_io",
    "_log",
    "_plain",
    "_registry",
    "_former",
    "_graph",
    "images",
    "records",
}
# The subpackages that stages are made of do not import each other, but as told here:
# what one needs of another is handed to it as a function. A new one is a decision,
# and gets its own line.
SUBPACKAGES = {
    "data": set(),
    "intake": set(),
    "models": {"intake"},
    "training": {"models"},
    "distill": {"intake", "models", "training"},
    # A plan tells the memory that the file will need.
    # The activations that the intake has of its own are followed, too.
    "prune": {"models", "tflite", "intake"},
    # Channels are equalized along the groups that pruning finds, and graphs rewritten
    # as the intake does. Ranges have the least size that files can have.
    "quantize": {"models", "prune", "intake", "tflite"},
    # What pixels a model takes is found out in one place, and asked before a file is
    # made or scored.
    "tflite": {"models", "intake"},
    "kit": {"tflite"},
    "benchmark": {"tflite"},
    "evaluate": {"models", "tflite", "benchmark", "intake"},
    "report": set(),
}
ALLOWED = {
    "__init__": {"_former"},
    "_answers": set(),
    "_io": set(),
    "_log": set(),
    "_plain": set(),
    "_registry": set(),
    "_former": set(),
    "_graph": {"_io", "_log", "_registry"},
    "images": {"_io", "_log", "_registry"},
    "records": {"_io", "_log", "_registry"},
    **SUBPACKAGES,
    # What each kind of stage is and does, put together from the subpackages. A recipe's
    # schema is made of the kinds, so that `config` stands above `stages`: a kind's
    # file is all that a new kind needs. Both are light: what needs TensorFlow is
    # imported in the functions that do the work.
    "stages": {*SUBPACKAGES},
    "config": {"data", "stages"},
    # Asks every subpackage about a model, and the stages how long they take.
    "doctor": {*SUBPACKAGES, "stages"},
    "runner": {*SUBPACKAGES, "config", "stages"},
    # Writes a recipe, runs it and reads what came of it. What is refused of a model is
    # found by the doctor, all at once.
    "compression": {*SUBPACKAGES, "config", "doctor", "runner", "stages"},
    "cli": {*SUBPACKAGES, "compression", "config", "doctor", "runner", "stages"},
    "__main__": {"cli"},
}
MAY_IMPORT = {
    subpackage: allowed if subpackage in FOUNDATIONS else {*allowed, *FOUNDATIONS}
    for subpackage, allowed in ALLOWED.items()
}

# Those that a machine without TensorFlow, or a quick `--help`, relies on.
LIGHT = (
    "report",
    "config",
    "stages",
    "compression",
    "cli",
    "records",
    "images",
    "_io",
    "_log",
    "_plain",
    "_registry",
    "_former",
)
HEAVY = {
    "ai_edge_litert",
    "keras",
    "tensorflow",
    "tensorflow_model_optimization",
    "tf_keras",
}


def package_files():
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    """Returns the dotted name, with `__init__` kept: `kdprune.data.__init__`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def subpackage_of(module):
    """Returns `data` for `kdprune.data.splits`, `__init__` for `kdprune`."""
    return (module.split(".") + ["__init__"])[1]


def imports(nodes, module):
    """Yields `(line, dotted name)` of what these nodes of a module import.

    A `from a import b` yields `a.b`, since `b` may be a module. Relative imports
    are resolved; `importlib.import_module` counts where its argument is a literal.
    """
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base] if base else parents)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0]
            if called in ("import_module", "__import__") and isinstance(
                name, ast.Constant
            ):
                yield node.lineno, str(name.value)


def subpackages_imported(tree, module):
    """Yields `(line, subpackage)` of the subpackages of kdprune that a module imports.

    A public name, such as `kdprune.build_model`, counts as the subpackage that it is
    loaded from.
    """
    for line, name in imports(ast.walk(tree), module):
        parts = name.split(".")
        if parts[0] != "kdprune":
            continue
        if len(parts) == 1 or parts[1] in ("__version__", "__init__"):
            continue
        public = kdprune._PUBLIC.get(parts[1])
        yield line, subpackage_of(public) if public else parts[1]


def executed(tree, functions=True):
    """Yields the nodes that run at some time; without functions, at the import."""
    for node in ast.iter_child_nodes(tree):
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if function and not functions:
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from executed(node, functions)


def violations(source, module):
    """Lists `line: subpackage` of the imports that the table does not allow."""
    subpackage = subpackage_of(module)
    return [
        f"{line}: {subpackage} imports {imported}"
        for line, imported in subpackages_imported(ast.parse(source), module)
        if imported not in {subpackage, *MAY_IMPORT[subpackage]}
    ]


def heavy_at_module_level(source, module):
    """Lists `line: name` of the heavy libraries imported when the module is."""
    return [
        f"{line}: {name}"
        for line, name in imports(executed(ast.parse(source), functions=False), module)
        if name.split(".")[0] in HEAVY
    ]


def keras_of_tensorflow(source):
    """Lists `line: code` of the uses of `tf.keras`, by whichever name."""
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in ("tensorflow", "tensorflow.compat.v1", "tensorflow.compat.v2")
    }
    imported = [
        f"{line}: {name}"
        for line, name in imports(ast.walk(tree), "")
        if name.startswith(("tensorflow.keras", "tensorflow.python.keras"))
    ]
    used = [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "keras"
        and ast.unparse(node.value) in names
    ]
    return imported + used


def found_in(paths, check):
    """Returns `{path: what the check lists}` of the files with anything to list."""
    found = {str(path.relative_to(ROOT)): check(path) for path in paths}
    return {path: listed for path, listed in found.items() if listed}


def test_a_subpackage_imports_only_those_it_may():
    subpackages = {subpackage_of(module_name(path)) for path in package_files()}
    assert subpackages <= set(MAY_IMPORT), "a new subpackage needs a line in ALLOWED"
    assert not found_in(
        package_files(), lambda path: violations(path.read_text(), module_name(path))
    )


def imports_by_module(sources):
    """Returns `{module: modules it imports}` of `{module: its source}`, late ones too.

    Imports for types alone do not count. What is not a module is a name in one.
    """

    def module_of(name):
        while name and name not in sources:
            if f"{name}.__init__" in sources:
                return f"{name}.__init__"
            name = name.rpartition(".")[0]
        return name

    return {
        module: {
            module_of(name) for _, name in imports(executed(ast.parse(source)), module)
        }
        - {"", "kdprune.__init__"}
        for module, source in sources.items()
    }


def test_no_module_imports_itself_by_way_of_others():
    sources = {module_name(path): path.read_text() for path in package_files()}
    # Names the cycle.
    graphlib.TopologicalSorter(imports_by_module(sources)).prepare()


def test_the_check_sees_a_cycle_through_a_late_import():
    sources = {
        "kdprune.a.one": "def f():\n    from kdprune.a import two",
        "kdprune.a.two": "from kdprune.a.one import f",
    }
    with pytest.raises(graphlib.CycleError, match="kdprune.a.one"):
        graphlib.TopologicalSorter(imports_by_module(sources)).prepare()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import kdprune", []),
        ("from kdprune import __version__", []),
        ("import kdprune.models.io", []),
        ("from ..models import io", []),
        ("from .losses import hint", []),
        ("from . import losses", []),
        ("import kdprune.prune", ["1: distill imports prune"]),
        ("from kdprune import prune", ["1: distill imports prune"]),
        ("from kdprune import prune_magnitude", ["1: distill imports prune"]),
        ("from ..prune import magnitude", ["1: distill imports prune"]),
        ("from .. import prune", ["1: distill imports prune"]),
        ("def f():\n    import kdprune.export", ["2: distill imports export"]),
        (
            "import importlib\nimportlib.import_module('kdprune.data')",
            ["2: distill imports data"],
        ),
    ],
)
def test_the_check_sees_every_way_to_import_a_subpackage(source, found):
    assert violations(source, "kdprune.distill.distiller") == found


def test_a_light_subpackage_loads_no_tensorflow_of_its_own():
    light = [
        path for path in package_files() if subpackage_of(module_name(path)) in LIGHT
    ]
    assert light
    assert not found_in(
        light, lambda path: heavy_at_module_level(path.read_text(), module_name(path))
    )


def test_the_check_tells_module_level_from_function_level():
    late = "class A:\n    def f(self):\n        import tensorflow"
    typed = "if TYPE_CHECKING:\n    import tf_keras"
    early = "try:\n    from tf_keras import layers\nexcept ImportError:\n    pass"
    assert heavy_at_module_level(late, "kdprune.config") == []
    assert heavy_at_module_level(typed, "kdprune.config") == []
    assert heavy_at_module_level(early, "kdprune.config") == ["2: tf_keras.layers"]


def test_importing_the_light_subpackages_leaves_tensorflow_unloaded():
    subpackages = [
        f"kdprune.{subpackage}"
        for subpackage in LIGHT
        if (PACKAGE / f"{subpackage}.py").exists() or (PACKAGE / subpackage).is_dir()
    ]
    code = (
        f"import sys, {', '.join(subpackages)}; print(*({HEAVY!r} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_nobody_uses_the_keras_of_tensorflow():
    # Which Keras it is depends on an environment variable at the first import.
    folders = [ROOT / folder for folder in ("kdprune", "scripts", "tests")]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    assert not found_in(paths, lambda path: keras_of_tensorflow(path.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "import tensorflow as tf\nx = tf.keras.layers",
        "import tensorflow\nx = tensorflow.keras",
        "from tensorflow import keras",
        "from tensorflow.keras import layers",
        "import tensorflow.keras as keras",
    ],
)
def test_the_check_sees_every_way_to_use_the_keras_of_tensorflow(source):
    assert len(keras_of_tensorflow(source)) == 1
