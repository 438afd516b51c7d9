"""Int8 files do what their quantization-aware models do, of networks that learned."""

import os
import subprocess
import sys
from pathlib import Path

import learning
import pytest

from kdprune.data import shapes

SCRIPT = Path(__file__).parent / "keras3_networks.py"
# Name and arguments, pixel range, epochs, images, learning rate.
NETWORKS = {
    "a tutorial's network": ("tutorial:32", [0, 255], 12, 3000, 0.003),
    "bottlenecks of ResNet50's form": ("bottlenecks:32:8", [0, 1], 8, 2000, 0.004),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with all networks, as plain Keras 3 saves them."""
    folder = tmp_path_factory.mktemp("networks")
    environment = dict(os.environ, KERAS_BACKEND="tensorflow")
    environment.pop("TF_USE_LEGACY_KERAS", None)
    names = [network[0] for network in NETWORKS.values()]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_that_learned_and_its_file_agree(case, files, record_property):
    name, input_range, epochs, count, rate = NETWORKS[case]
    model = learning.prepared(files / f"{name.replace(':', '_')}.keras", input_range)
    train = shapes.generate(count, 32, 0, shapes.TRAIN)
    validation = shapes.generate(500, 32, 0, shapes.TEST)
    figures = learning.prove(
        model,
        (train.images, train.labels),
        (validation.images, validation.labels),
        epochs,
        rate,
    )
    for key in ("float", "aware", "file", "steps", "agreement", "spread"):
        record_property(key, figures[key])
    assert figures["float"] >= 0.3  # Three times chance.
    assert figures["steps"] <= 2.001
    assert figures["agreement"] >= 0.98
    assert figures["spread"] > 10
    assert (figures["float_ops"], figures["float_layers"]) == ([], ())
