"""A model that plain Keras 3 trained goes through a recipe to a right int8 file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdprune._io import read_json
from kdprune.config import parse_recipe
from kdprune.data import load_dataset
from kdprune.evaluate import predict
from kdprune.runner import run as runner

SCRIPT = Path(__file__).parent / "keras3_train.py"
SHAPES = {"train_images": 2000, "test_images": 500, "calibration": 100}


@pytest.mark.slow
def test_a_tutorials_network_becomes_a_right_file(tmp_path, caplog):
    dataset = load_dataset("shapes", **SHAPES)
    train, test = dataset.train, dataset.test
    images = tmp_path / "images.npz"
    np.savez(images, train=train.images, labels=train.labels, test=test.images)
    environment = dict(os.environ, KERAS_BACKEND="tensorflow")
    environment.pop("TF_USE_LEGACY_KERAS", None)
    path = tmp_path / "tutorial.keras"
    command = [sys.executable, str(SCRIPT), str(images), str(path)]
    subprocess.run(command, env=environment, check=True, timeout=600)
    expected = np.load(f"{path}.npy")
    accuracy = (expected.argmax(axis=1) == test.labels).mean()
    assert accuracy > 0.6

    recipe = {
        "name": "mine",
        "data": {"dataset": "shapes", **SHAPES},
        "flagship": "int8",
        "stages": {
            "net": {"kind": "load", "file": str(path)},
            "int8": {"kind": "quantize", "from": "net", "method": "ptq"},
            "trained": {
                "kind": "quantize",
                "from": "net",
                "method": "qat",
                "training": {"epochs": 1, "optimizer": "adam", "learning_rate": 1e-4},
            },
            "files": {"kind": "export", "from": ["net", "int8", "trained"]},
            "measured": {
                "kind": "evaluate",
                "from": ["net", "files"],
                "latency": False,
            },
        },
    }
    with caplog.at_level("INFO", logger="kdprune"):
        runner.run(parse_recipe(recipe), tmp_path / "run")
    assert "takes pixels in [0, 255]" in caplog.text
    assert "(RandomFlip)" in caplog.text and "(Dropout)" in caplog.text

    # The file takes the bytes as they are and says what the original says.
    float_file = tmp_path / "run" / "files" / "net.float32.tflite"
    np.testing.assert_allclose(predict(float_file, test.images), expected, atol=1e-4)
    scored = {
        entry["name"]: entry["accuracy"]
        for entry in read_json(tmp_path / "run" / "metrics.json")["models"]
    }
    assert scored["net"] == pytest.approx(accuracy, abs=0.002)
    for name in ("int8_int8", "int8_uint8", "trained_int8"):
        assert scored[name] > accuracy - 0.02, name
