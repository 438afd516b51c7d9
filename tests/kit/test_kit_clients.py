"""A kit's models, loaded by the clients that they are made for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
import yaml
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.compiled_model import CompiledModel

from kdprune.config import parse_recipe
from kdprune.data.shapes import CLASSES
from kdprune.kit import selftest, write_kit
from kdprune.kit.micro import measure_arena
from kdprune.models import build_model, take_model
from kdprune.runner import run as runner
from kdprune.tflite import convert_tflite
from kdprune.tflite.format import _pack_tree, _read_tree

ROOT = Path(__file__).resolve().parents[2]
HAS_MEDIAPIPE = "import importlib.util as u; assert u.find_spec('mediapipe')"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def micro():
    return pytest.importorskip(
        "tflite_micro", reason="needs tflite-micro: pip install -e '.[micro]'"
    ).runtime


@pytest.fixture(scope="module")
def client_python():
    """A Python that has MediaPipe, which does not install beside TFMOT."""
    places = (
        os.environ.get("KDPRUNE_CLIENTS_PYTHON"),
        ROOT / ".venv-clients" / "bin" / "python",
        sys.executable,
    )
    for python in filter(None, places):
        if Path(python).exists():
            done = subprocess.run([python, "-c", HAS_MEDIAPIPE], capture_output=True)
            if done.returncode == 0:
                return python
    pytest.skip(
        "needs MediaPipe: python -m venv .venv-clients && .venv-clients/bin/pip "
        "install -r tests/kit/clients.txt, or set KDPRUNE_CLIENTS_PYTHON"
    )


RECIPE = """
name: shapes
data: {dataset: shapes, train_images: 300, test_images: 100}
flagship: int8
stages:
  student:
    kind: train
    model: {name: article_student}
    training: {epochs: 2, batch_size: 60, optimizer: adam, learning_rate: 0.002}
  int8: {kind: quantize, from: student}
  files: {kind: export, from: [int8], max_drop: 0.99, max_disagreement: 0.99}
  measured: {kind: evaluate, from: [files], latency: false}
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What a run without a kit leaves."""
    folder = tmp_path_factory.mktemp("run")
    runner.run(parse_recipe(yaml.safe_load(RECIPE)), folder)
    return folder


@pytest.fixture(scope="module")
def kits_of_ranges(shape_images, tmp_path_factory):
    """Kits of networks that take [-1, 1] and 0 to 255, and of one of a single unit."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("ranges")
    cases = (
        ("signed", (-1, 1), CLASSES),
        ("bytes", (0, 255), CLASSES),
        ("one_unit", (-1, 1), ("round", "square")),
    )
    for name, given, classes in cases:
        units = 1 if len(classes) == 2 else len(classes)
        model = build_model("resnet", classes=units, filters=(8, 8, 8))
        # Kernels for wider pixels are smaller; else the scores are all 0 or 1, and
        # a rounding between two kernels' answers turns one into the other.
        first = next(layer for layer in model.layers if layer.weights)
        first.kernel.assign(first.kernel / (given[1] - given[0]))
        model = take_model(model, input_range=given).model
        files = {
            dtype: convert_tflite(model, dtype, shape_images[:50])
            for dtype in ("int8", "uint8")
        }
        write_kit(folder / name, **files, classes=classes, name="ranged")
    return folder


@pytest.fixture
def signed(kits_of_ranges):
    return kits_of_ranges / "signed"


@pytest.fixture
def raw(kits_of_ranges):
    return kits_of_ranges / "bytes"


@pytest.fixture
def one_unit(kits_of_ranges):
    return kits_of_ranges / "one_unit"


@pytest.mark.parametrize("place", ["kit", "run_folder", "signed", "raw", "one_unit"])
def test_mediapipe_gives_the_class_names_and_the_interpreters_scores(
    request, place, client_python, shape_images, tmp_path
):
    np.save(tmp_path / "images.npy", shape_images)
    client = Path(__file__).with_name("mediapipe_client.py")
    model = request.getfixturevalue(place) / "model_uint8.tflite"
    done = subprocess.run(
        [client_python, client, model, tmp_path / "images.npy"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    # Of a single unit the second of the two classes, which the card's code knows.
    assert said["names"] == (["square"] if place == "one_unit" else list(CLASSES))
    expected = selftest.score(model.read_bytes(), shape_images)
    np.testing.assert_array_equal(np.array(said["scores"]) * 256, expected)


def run_micro(runtime, data, images, arena):
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena)
    scores = []
    for image in images.astype(np.int16) - 128:
        interpreter.set_input(image[None].astype(np.int8), 0)
        interpreter.invoke()
        scores.append(interpreter.get_output(0)[0])
    return np.array(scores)


def test_tflite_micro_agrees_with_the_reference_kernels(kit, micro, shape_images):
    data, images = (kit / "model_int8.tflite").read_bytes(), shape_images[:500]
    found = run_micro(micro, data, images, arena=measure_arena(data))
    expected = selftest.score(data, images, "reference").astype(int) - 128
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) >= 0.99
    assert np.abs(found - expected).max() <= 26


def test_the_arena_on_the_card_is_enough_and_no_larger(kit, pair, micro):
    arena = measure_arena(pair["int8"])
    assert f"takes {arena:,} bytes" in (kit / "MODEL_CARD.md").read_text()
    black = np.zeros((1, 32, 32, 3), np.uint8)
    run_micro(micro, pair["int8"], black, arena=arena)
    with pytest.raises(RuntimeError):
        run_micro(micro, pair["int8"], black, arena=arena - 16)


@pytest.mark.parametrize("place", ["signed", "raw", "one_unit"])
def test_tflite_micro_takes_every_range_and_a_single_unit(
    request, place, micro, shape_images
):
    data = (request.getfixturevalue(place) / "model_int8.tflite").read_bytes()
    found = run_micro(micro, data, shape_images[:20], arena=measure_arena(data))
    expected = selftest.score(data, shape_images[:20], "reference").astype(int) - 128
    assert np.ptp(found) > 10
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize(
    ("place", "said"), [("signed", "-1.0039 to 0.9961"), ("raw", "0 to 255")]
)
def test_the_metadata_says_what_bytes_stand_for(request, place, said):
    content = (request.getfixturevalue(place) / "model_uint8.tflite").read_bytes()
    assert f"stand for values from {said}.".encode() in content


def test_what_tflite_micro_refuses_is_said_in_a_line(micro, pair):
    model = _read_tree(pair["int8"])
    for code in model.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.SOFTMAX:
            code.builtinCode = schema.BuiltinOperator.UNIQUE
            code.deprecatedBuiltinCode = schema.BuiltinOperator.UNIQUE
    with pytest.raises(ValueError, match="does not run this model: .*UNIQUE") as caught:
        measure_arena(_pack_tree(model))
    assert "\n" not in str(caught.value)


def test_the_self_test_passes_with_numpy_and_ai_edge_litert_alone(kit, tmp_path):
    python = tmp_path / "empty" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    install = [python, "-m", "pip", "install", "-q", "numpy", "ai-edge-litert"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs a package registry: {done.stderr.strip()[-200:]}")
    listed = [python, "-m", "pip", "list", "--format=json"]
    done = subprocess.run(listed, capture_output=True, text=True, check=True)
    packages = {row["name"].lower() for row in json.loads(done.stdout)}
    assert not packages & {"kdprune", "tensorflow", "tf-keras", "tf_keras"}
    done = subprocess.run(
        [python, "-I", kit / "selftest.py"],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok      model_") == 4
    assert "kit is whole" in done.stdout


def test_litert_runs_the_model_as_the_cards_kotlin_code_does(kit, shape_images):
    # The Kotlin classes wrap the same engine: bytes are written and read as int8.
    path = kit / "model_uint8.tflite"
    model = CompiledModel.from_file(str(path))
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    scores = []
    for image in shape_images[:20]:
        inputs[0].write(image.view(np.int8).ravel())
        model.run_by_index(0, inputs, outputs)
        scores.append(outputs[0].read(len(CLASSES), np.int8).astype(int) & 0xFF)
    expected = selftest.score(path.read_bytes(), shape_images[:20])
    np.testing.assert_array_equal(scores, expected)
