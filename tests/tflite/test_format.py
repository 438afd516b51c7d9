"""One module knows the format; what it reads and writes."""

import ast
import functools
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from kdprune.tflite import (
    convert_tflite,
    inspect_tflite,
    open_interpreter,
    read_tflite,
)
from kdprune.tflite import format as tflite_format

PACKAGE = Path(tflite_format.__file__).parents[1]
# The self-test is handed over with a kit, and stands alone.
STANDS_ALONE = PACKAGE / "kit" / "selftest.py"


@functools.cache
def imported():
    """`{file of the package: the names it imports}`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        names = found[path] = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def importers(name):
    """The files of the package that import a module, or from it."""
    return {
        path
        for path, names in imported().items()
        if any(f"{other}.".startswith(f"{name}.") for other in names)
    }


def test_one_module_knows_the_schema_and_one_the_runtime():
    assert importers("ai_edge_litert.schema_py_generated") == {
        PACKAGE / "tflite" / "format.py"
    }
    assert importers("ai_edge_litert") == {
        PACKAGE / "tflite" / "format.py",
        PACKAGE / "tflite" / "interpreter.py",
        PACKAGE / "tflite" / "trial.py",
        STANDS_ALONE,
    }
    assert importers("flatbuffers") == {
        PACKAGE / "tflite" / "format.py",
        PACKAGE / "kit" / "metadata.py",
    }


def test_a_file_is_read_from_its_path_and_from_its_content(tflites):
    path = tflites["int8"]
    for file in (path, str(path), path.read_bytes(), bytearray(path.read_bytes())):
        graph = read_tflite(file)
        assert [op.name for op in graph.ops][0] == "CONV_2D"
        assert graph.describe(graph.inputs[0])["dtype"] == "int8"


@pytest.mark.parametrize("read", [read_tflite, inspect_tflite, open_interpreter])
def test_a_keras_model_is_no_file(tiny, read):
    with pytest.raises(ValueError, match="by kdprune.convert_tflite. Received: Func"):
        read(tiny)


def test_a_model_is_named_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="no model file at student.keras"):
        convert_tflite("student.keras")


def test_constants_are_changed_where_they_are(tflites):
    whole = tflites["int8"].read_bytes()
    graph = read_tflite(whole)
    dense = next(op for op in graph.ops if op.name == "FULLY_CONNECTED")
    bias = graph.tensors[dense.inputs[2]]
    changed = tflite_format.set_constants(whole, {dense.inputs[2]: bias.data + 1})
    assert len(changed) == len(whole)
    differ = np.flatnonzero(np.frombuffer(changed, "u1") != np.frombuffer(whole, "u1"))
    assert len(differ) <= 4 * bias.data.size
    after = read_tflite(changed).tensors[dense.inputs[2]].data
    np.testing.assert_array_equal(after, bias.data + 1)


def test_metadata_is_added_once_and_then_replaced(tflites):
    whole = tflites["int8"].read_bytes()
    once = tflite_format.set_metadata(whole, "NOTE", b"first")
    twice = tflite_format.set_metadata(once, "NOTE", b"second, longer")
    model = schema.Model.GetRootAs(twice)
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    (entry,) = (entry for entry in entries if entry.Name() == b"NOTE")
    buffer = model.Buffers(entry.Buffer())
    assert buffer.DataAsNumpy().tobytes() == b"second, longer"
    assert b"first" not in twice
    before, after = read_tflite(whole), read_tflite(twice)
    assert before.ops == after.ops
    for old, new in zip(before.tensors, after.tensors, strict=True):
        np.testing.assert_array_equal(old.data, new.data)
