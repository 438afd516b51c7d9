"""What is read from a file: operators, their types, who runs them, memory."""

import json

import numpy as np
import pytest
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema

from kdprune.kit.micro import measure_arena
from kdprune.tflite import convert_tflite, inspect_tflite, xnnpack_leaves
from kdprune.tflite.coverage import GPU, MICRO, gpu_runs, micro_runs

layers = keras.layers
TYPES = ("float32", "float16", "dynamic", "int16x8", "int8", "uint8")


@pytest.fixture(scope="module")
def model():
    """A convolution that is read twice, and a dense layer of some size."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1")(x)
    y = layers.Conv2D(8, 3, padding="same", name="conv2")(x)
    x = layers.MaxPooling2D()(layers.Add()([x, y]))
    # Its dense layer's 2,048 weights are enough for "dynamic", from 1,024 on.
    return keras.Model(inputs, layers.Dense(4, name="logits")(layers.Flatten()(x)))


@pytest.fixture(scope="module")
def files(model):
    images = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), np.uint8)
    calibrated = ("int16x8", "int8", "uint8")
    return {
        dtype: convert_tflite(model, dtype, images if dtype in calibrated else None)
        for dtype in TYPES
    }


@pytest.fixture(scope="module")
def found(files):
    return {dtype: inspect_tflite(content) for dtype, content in files.items()}


def kinds(figures):
    return {(row["op"], row["type"]): row["count"] for row in figures["operators"]}


def test_operators_of_one_name_and_type_are_counted_together(found):
    assert kinds(found["uint8"]) == {
        ("QUANTIZE", "uint8 to int8"): 1,
        ("CONV_2D", "int8"): 2,
        ("ADD", "int8"): 1,
        ("MAX_POOL_2D", "int8"): 1,
        ("RESHAPE", "int8"): 1,
        ("FULLY_CONNECTED", "int8"): 1,
        ("SOFTMAX", "int8"): 1,
        ("QUANTIZE", "int8 to uint8"): 1,
    }
    assert kinds(found["float32"])["CONV_2D", "float32"] == 2
    assert ("CONV_2D", "int16, int8 weights") in kinds(found["int16x8"])
    assert ("DEQUANTIZE", "float16 to float32") in kinds(found["float16"])
    assert ("FULLY_CONNECTED", "float32, int8 weights") in kinds(found["dynamic"])
    for figures in found.values():
        assert json.loads(json.dumps(figures)) == figures


def test_a_constant_that_comes_first_is_not_what_an_operator_takes():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(layers.Conv2DTranspose(2, 3)(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    images = np.zeros((10, 8, 8, 3), np.uint8)
    rows = inspect_tflite(convert_tflite(model, "int8", images))["operators"]
    (row,) = (row for row in rows if row["op"] == "TRANSPOSE_CONV")
    assert (row["type"], row["gpu"], row["micro"]) == ("int8", True, True)


def test_float_operators_carry_the_layer_they_came_from(found):
    named = [row["layer"] for row in found["float32"]["float_ops"]]
    assert named[:2] == ["conv1", "conv2"] and "logits" in named
    assert found["int8"]["float_ops"] == []


@pytest.mark.parametrize(
    ("dtype", "size"), [("int8", 1), ("int16x8", 2), ("float32", 4)]
)
def test_the_most_activations_are_held_while_two_branches_are_added(found, dtype, size):
    # conv1's output, conv2's and their sum: 16 x 16 x 8 each.
    assert found[dtype]["peak_activation_bytes"] == 3 * 2048 * size


@pytest.mark.parametrize("dtype", ["int8", "int16x8", "float32"])
def test_the_arena_of_tflite_micro_is_not_smaller(files, found, dtype):
    arena = measure_arena(files[dtype])
    if arena is None:
        pytest.skip("needs tflite-micro: pip install -e '.[micro]'")
    peak = found[dtype]["peak_activation_bytes"]
    assert peak < arena < 2 * peak + 10_000


def test_xnnpack_takes_what_it_can(files):
    assert xnnpack_leaves(files["float32"]) == []
    assert "SOFTMAX" in xnnpack_leaves(files["int8"])
    assert "CONV_2D" not in xnnpack_leaves(files["int8"])
    assert xnnpack_leaves(files["int16x8"]).count("CONV_2D") == 2


def refused(found, by):
    return {d: [r["op"] for r in f["operators"] if not r[by]] for d, f in found.items()}


def test_the_gpu_delegate_takes_floats_and_bytes_and_no_other_integers(found):
    left = refused(found, "gpu")
    assert {dtype for dtype, ops in left.items() if ops} == {"int16x8"}
    assert not gpu_runs("UNIQUE", "float32")


def test_tflite_micro_takes_neither_halves_nor_mixed_types(files, found):
    left = refused(found, "micro")
    assert left["float16"] == ["DEQUANTIZE"] and left["dynamic"] == ["FULLY_CONNECTED"]
    assert left["int8"] == left["int16x8"] == left["float32"] == []
    assert not micro_runs("UNIQUE", "int8")
    pytest.importorskip("tflite_micro")
    for dtype in ("float16", "dynamic"):
        with pytest.raises(ValueError, match="TFLite Micro does not run"):
            measure_arena(files[dtype])


def test_tables_hold_names_of_the_schema():
    assert not (GPU | MICRO) - set(vars(schema.BuiltinOperator))
