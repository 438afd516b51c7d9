"""Models saved by plain Keras 3, in a process of its own, and one that has learned."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras

from kdprune.intake.pixels import UNIT

SCRIPT = Path(__file__).parent / "keras3_models.py"
SMALL = (
    *("tutorial", "arithmetic", "nested", "shared", "activations", "half"),
    *("reversed_channels", "convnext"),
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


def levels(count, seed):
    """Images as red as their class, 0 to 3, says; the other colors are noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    images = rng.integers(0, 256, (count, 8, 8, 3))
    red = 40 + 55 * labels[:, None, None] + rng.integers(-30, 31, (count, 8, 8))
    images[..., 0] = np.clip(red, 0, 255)
    return images.astype(np.uint8), labels


@pytest.fixture(scope="session")
def learned():
    """A small model that tells levels apart, on pixels in [0, 1]; other images."""
    keras.utils.set_random_seed(0)
    images, labels = levels(800, seed=0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(32, activation="tanh"),
            keras.layers.Dense(4),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(UNIT.apply(images), labels, batch_size=32, epochs=40, verbose=0)
    return model, levels(400, seed=1)
