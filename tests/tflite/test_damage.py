"""Damaged .tflite files end in one line, whatever is wrong with them."""

import math
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from kdprune.benchmark import measure_latency
from kdprune.tflite import describe_file, format, open_interpreter

INT8 = Path(__file__).parents[2] / "results/cifar10/model_int8.tflite"

# Every mutation runs whole: read, described, opened, invoked. Only a ValueError
# may come out; a crash of the C++ side would end the process by a signal.
ATTACK = """
import random, sys
import numpy as np
from kdprune.tflite import describe_file, open_interpreter

source, target, seed, rounds = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
whole, random = open(source, "rb").read(), random.Random(seed)
refused = 0
for _ in range(rounds):
    damaged = bytearray(whole)
    for _ in range(random.choice([1, 3, 20])):
        damaged[random.randrange(len(damaged))] = random.randrange(256)
    open(target, "wb").write(damaged)
    try:
        describe_file(target)
        interpreter = open_interpreter(target)
        detail = interpreter.get_input_details()[0]
        try:
            zeros = np.zeros(detail["shape"], detail["dtype"])
            interpreter.set_tensor(detail["index"], zeros)
            interpreter.invoke()
        except (ValueError, RuntimeError):
            refused += 1
    except ValueError as error:
        assert "\\n" not in str(error), error
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_file_cut_short_anywhere_is_refused(tflites, tmp_path, kind):
    whole = tflites[kind].read_bytes()
    path = tmp_path / "cut.tflite"
    places = random.Random(0).sample(range(len(whole)), 60)
    for size in (0, 3, 7, 8, 9, 16, 100, len(whole) - 1, *places):
        path.write_bytes(whole[:size])
        message = r"cut\.tflite: (the \.tflite model is damaged|not a \.tflite model)"
        with pytest.raises(ValueError, match=message) as caught:
            open_interpreter(path)
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match=message):
            describe_file(path)


def test_the_message_says_how_long_the_file_is(tflites, tmp_path):
    path = tmp_path / "half.tflite"
    path.write_bytes(tflites["int8"].read_bytes()[:2000])
    with pytest.raises(ValueError, match="damaged or cut short at 2,000 bytes"):
        measure_latency(path)


def test_other_files_are_not_models(tmp_path):
    for content in (b"", b"hello, this is text", b"PK\x03\x04" + bytes(99)):
        path = tmp_path / "other.tflite"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not a \.tflite model \(\d+ bytes\)"):
            describe_file(path)
    with pytest.raises(FileNotFoundError):
        describe_file(tmp_path / "absent.tflite")


@pytest.mark.parametrize("axis", [9, -1, 1])
def test_scales_of_channels_that_are_not_there_are_refused(tflites, axis):
    model = format._read_tree(tflites["int8"])
    tensors = model.subgraphs[0].tensors
    scales = [getattr(t.quantization, "scale", None) for t in tensors]
    sizes = [0 if scale is None else len(scale) for scale in scales]
    by_channel = tensors[sizes.index(max(sizes))]
    by_channel.quantization.quantizedDimension = axis
    with pytest.raises(ValueError, match=r"scales do not fit a tensor of shape"):
        format.read_tflite(format._pack_tree(model))


@pytest.mark.parametrize("given", [None, [], [0, 0]])
@pytest.mark.parametrize("end", ["inputs", "outputs"])
def test_a_scale_without_its_zero_point_is_refused(tflites, end, given):
    model = format._read_tree(tflites["int8"])
    graph = model.subgraphs[0]
    graph.tensors[getattr(graph, end)[0]].quantization.zeroPoint = given
    content = format._pack_tree(model)
    for read in (format.read_tflite, open_interpreter):
        with pytest.raises(ValueError, match=f"1 scales have {len(given or ())} zero"):
            read(content)


def test_weights_that_grow_when_they_are_widened_are_refused(tflites):
    model = format._read_tree(tflites["float16"])
    graph = model.subgraphs[0]
    names = {code.builtinCode: i for i, code in enumerate(model.operatorCodes)}
    widened = next(
        op
        for op in graph.operators
        if op.opcodeIndex == names[format._OP_CODES["DEQUANTIZE"]]
    )
    graph.tensors[widened.outputs[0]].shape = [4, 51_459, 3, 3]
    with pytest.raises(ValueError, match=r"become \(4, 51459, 3, 3\)"):
        open_interpreter(format._pack_tree(model))


def test_a_shape_of_more_bytes_than_any_model_has_is_refused(tflites):
    model = format._read_tree(tflites["float32"])
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shape = [1, 50_000, 50_000, 3]
    with pytest.raises(ValueError, match="a tensor claims 30,000,000,000 bytes"):
        open_interpreter(format._pack_tree(model))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "float32"])
def test_random_damage_never_crashes_the_process(tflites, tmp_path, kind):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", ATTACK]
    command += [str(tflites[kind]), str(tmp_path / "damaged.tflite"), "0", "80"]
    result = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert 15 < int(result.stdout) <= 80


def change(kind):
    """`change("scale")(model)` makes a valid file of wrong meaning."""

    def without_scales(graph):
        tensor = graph.tensors[graph.operators[0].outputs[0]]
        tensor.quantization = None

    def absurd_scale(graph):
        tensor = graph.tensors[graph.operators[0].outputs[0]]
        tensor.quantization.scale = [1e-38]

    def kept(graph):
        graph.tensors[graph.operators[0].outputs[0]].isVariable = True

    def no_outputs(graph):
        graph.operators[0].outputs = []

    def one_input(graph):
        graph.operators[0].inputs = graph.operators[0].inputs[:1]

    def inputs_of_another(graph):
        graph.operators[1].inputs = graph.operators[0].inputs

    def no_data(graph):
        kernel = graph.operators[0].inputs[1]
        graph.tensors[kernel].buffer = 0

    return locals()[kind]


@pytest.mark.parametrize(
    "kind",
    ["without_scales", "absurd_scale", "kept", "no_outputs", "one_input",
     "inputs_of_another", "no_data"],
)  # fmt: skip
def test_a_valid_file_of_wrong_meaning_is_one_line_or_runs(tmp_path, kind):
    model = format._read_tree(INT8)
    change(kind)(model.subgraphs[0])
    path = tmp_path / "wrong.tflite"
    path.write_bytes(format._pack_tree(model))
    try:
        open_interpreter(path).invoke()
        describe_file(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert kind in ("absurd_scale", "kept", "inputs_of_another")


def test_a_file_that_ends_its_process_is_told_and_the_next_one_runs(tmp_path):
    model = format._read_tree(INT8)
    added = next(op for op in format.read_tflite(INT8).ops if op.name == "ADD")
    model.subgraphs[0].tensors[added.outputs[0]].quantization = None
    path = tmp_path / "abort.tflite"
    path.write_bytes(format._pack_tree(model))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"ends the process \(SIG(ABRT|SEGV)"):
            open_interpreter(path)
        open_interpreter(INT8).invoke()


def fuzz(source, path, seeds):
    """Opens and describes files of wrong meaning; counts what became of them."""
    found = {"ran": 0, "refused": 0, "ended": 0}
    for seed in seeds:
        rng = random.Random(seed)
        model = format._read_tree(source)
        for _ in range(rng.choice([1, 1, 2, 3])):
            wrong_meaning(model, rng)
        try:
            path.write_bytes(format._pack_tree(model))
        except (TypeError, ValueError, struct.error):
            continue  # No flatbuffer at all.
        try:
            describe_file(path)
            open_interpreter(path).invoke()
            found["ran"] += 1
        except ValueError as error:
            assert "\n" not in str(error), seed
            ended = "ends the process" in str(error)
            found["ended" if ended else "refused"] += 1
    return found


def wrong_meaning(model, rng):
    """Changes one thing in a file that its readers and the runtime rely on."""
    graph = model.subgraphs[0]
    tensor, op = rng.choice(graph.tensors), rng.choice(graph.operators)
    noted, size = tensor.quantization, len(graph.tensors)
    kind = rng.choice(
        "scale zero none kept ends type shape buffer code options".split()
    )
    if kind == "none":
        tensor.quantization = None
    elif kind == "scale" and noted is not None:
        count = 1 if noted.scale is None else len(noted.scale)
        value = rng.choice([0.0, -1.0, 1e-38, 1e-9, 1e9, 3e38, math.nan, math.inf])
        noted.scale = rng.choice([None, [], [0.1] * 3, [value] * count])
    elif kind == "zero" and noted is not None:
        noted.zeroPoint = rng.choice([None, [], [1], [-129], [127], [2**40], [0, 0]])
    elif kind == "kept":
        tensor.isVariable = True
    elif kind == "ends":
        place = rng.choice([op, op, graph])
        end = rng.choice(["inputs", "outputs"])
        given = list(getattr(place, end))
        other = [*given[:-1], rng.randrange(-1, size)]
        setattr(place, end, rng.choice([[], given[:-1], given[::-1], other]))
    elif kind == "type":
        tensor.type = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 17])
    elif kind == "shape":
        shape = list(tensor.shape)
        tensor.shape = rng.choice([[], None, shape[:-1], shape[::-1], [*shape, 7]])
    elif kind == "buffer":
        tensor.buffer = rng.randrange(len(model.buffers))
    elif kind == "code":
        op.opcodeIndex = rng.randrange(len(model.operatorCodes))
    elif kind == "options" and op.builtinOptions is not None:
        names = sorted(vars(op.builtinOptions))
        if names:
            setattr(op.builtinOptions, rng.choice(names), rng.choice([0, 1, 3, 100]))


def test_fifty_files_of_wrong_meaning_end_in_a_line_or_run(tmp_path):
    found = fuzz(INT8, tmp_path / "wrong.tflite", range(50))
    assert found["refused"] > 15 and found["ran"] > 5 and sum(found.values()) > 40


@pytest.mark.soak
def test_more_files_of_wrong_meaning_end_in_a_line_or_run(tmp_path, soak):
    """In a line, also where the file ends the other process that tries it."""
    soak.counts |= {"accepted": 0, "a_line": 0, "ended_a_trial": 0, "anything_else": 1}
    for number in range(soak.rounds):
        start = 1000 * (soak.seed + number) + 50
        for first in range(start, start + 1000, 100):
            path = tmp_path / "wrong.tflite"
            found = fuzz(INT8, path, range(first, first + 100))
            soak.counts["accepted"] += found["ran"]
            soak.counts["a_line"] += found["refused"] + found["ended"]
            soak.counts["ended_a_trial"] += found["ended"]
    soak.counts["anything_else"] = 0


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "uint8"])
def test_more_random_damage_never_crashes_the_process(tflites, tmp_path, kind, soak):
    root = Path(__file__).resolve().parents[2]
    soak.counts |= {"accepted": 0, "a_line": 0, "anything_else": 1}
    for seed in range(soak.seed + 1, soak.seed + 1 + soak.rounds):
        command = [sys.executable, "-c", ATTACK, str(tflites[kind])]
        command += [str(tmp_path / "damaged.tflite"), str(seed), "500"]
        result = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=3600
        )
        assert result.returncode == 0, f"seed {seed}: {result.stderr[-2000:]}"
        soak.counts["a_line"] += int(result.stdout)
        soak.counts["accepted"] += 500 - int(result.stdout)
    soak.counts["anything_else"] = 0
