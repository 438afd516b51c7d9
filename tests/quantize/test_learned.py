"""Int8 files do what their quantization-aware models do, of networks that learned.

The larger networks of `keras.applications` take an hour of training: the script
`bench_qat_networks.py` goes through them.
"""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAINED_HERE = ("tutorial", "squeeze_excite", "bottlenecks")


@pytest.fixture
def file_of(tmp_path):
    """Gives the file of a network as plain Keras 3 saves it."""

    def make(name):
        bench.make_networks(tmp_path, [name])
        return bench.NETWORKS[name].file_in(tmp_path)

    return make


def load_script():
    path = ROOT / "scripts" / "bench_qat_networks.py"
    spec = importlib.util.spec_from_file_location("bench_qat_networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = load_script()


def check(figures):
    assert figures["float"] >= 0.3  # Three times chance.
    assert figures["steps"] <= 2.001
    assert figures["agreement"] >= 0.98
    assert figures["spread"] > 10
    assert (figures["float_ops"], figures["float_layers"]) == ([], [])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name == "tutorial" else pytest.mark.soak
        )
        for name in TRAINED_HERE
    ],
)
def test_a_network_that_learned_and_its_file_agree(name, file_of, record_property):
    network = bench.NETWORKS[name]
    figures = bench.compare(network, file_of(name), *bench.images_for(network))
    for key in ("float", "aware", "file", "steps", "agreement", "spread"):
        record_property(key, figures[key])
    check(figures)
