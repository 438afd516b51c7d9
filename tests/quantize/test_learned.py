"""Int8 files do what their quantization-aware models do, of networks that learned.

The larger networks of `keras.applications` take an hour of training: the script
`bench_qat_networks.py` goes through them.
"""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAINED_HERE = ("tutorial", "bottlenecks", "squeeze_excite")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with networks as plain Keras 3 saves them."""
    folder = tmp_path_factory.mktemp("networks")
    bench.make_networks(folder, TRAINED_HERE)
    return folder


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


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED_HERE)
def test_a_network_that_learned_and_its_file_agree(name, files, record_property):
    network = bench.NETWORKS[name]
    figures = bench.compare(network, network.file_in(files), *bench.images_for(network))
    for key in ("float", "aware", "file", "steps", "agreement", "spread"):
        record_property(key, figures[key])
    check(figures)
