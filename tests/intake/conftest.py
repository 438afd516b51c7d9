"""Models saved by plain Keras 3, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "keras3_models.py"
SMALL = (
    *("tutorial", "arithmetic", "nested", "shared", "activations", "half"),
    "reversed_channels",
)
APPLICATIONS = (
    *("MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "ResNet50"),
    *("VGG16", "DenseNet121", "Xception", "InceptionV3"),
)


def run_keras3(folder, names):
    environment = dict(os.environ, KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
    environment.pop("TF_USE_LEGACY_KERAS", None)
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return folder


@pytest.fixture(scope="session")
def keras3_files(tmp_path_factory):
    """A folder with each small model as .keras and .h5, and its outputs."""
    return run_keras3(tmp_path_factory.mktemp("keras3"), SMALL)


@pytest.fixture(scope="session")
def keras3_applications(tmp_path_factory):
    """The same of networks that Keras ships."""
    return run_keras3(tmp_path_factory.mktemp("applications"), APPLICATIONS)
