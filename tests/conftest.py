"""Data and small files that tests share, and the tally of soak tests."""

import contextlib
import dataclasses
import fcntl
import gc
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import kdprune
from kdprune import _io, records
from kdprune.data import load_dataset

_TALLY = pytest.StashKey[dict]()
# What soak tests count of inputs; each test may count more.
_TOTALS = ("kills", "runs_compared", "a_line", "accepted", "anything_else")


def pytest_addoption(parser):
    group = parser.getgroup("soak", "tests marked soak (`make test-soak`)")
    group.addoption("--soak-seed", type=int, default=0, help="of all they draw (0)")
    group.addoption("--soak-rounds", type=int, default=1, help="of each test (1)")
    group.addoption(
        "--soak-rest",
        action="store_true",
        help="only the tests that the tally has not as passed",
    )
    group.addoption("--soak-tally", metavar="FILE", help="where the counts are written")


def pytest_configure(config):
    config.stash[_TALLY] = {}


def pytest_collection_finish(session):
    # TensorFlow and four thousand tests are half a million objects, which would be
    # looked through again and again for what may be freed.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # A traced step makes as many, and keeps most.


@pytest.hookimpl(tryfirst=True)  # Before tests are chosen by their marks.
def pytest_collection_modifyitems(config, items):
    for item in items:
        quick = item.get_closest_marker("quick")
        if quick and item.callspec.id not in quick.args:
            item.add_marker(pytest.mark.slow)
    if config.option.soak_rest and config.option.soak_tally:
        earlier = _io.read_object(config.option.soak_tally).get("tests", {})
        passed = {name for name, one in earlier.items() if one["outcome"] == "passed"}
        items[:] = [item for item in items if item.nodeid not in passed]
    if config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="runs in `make test-soak` alone"))


@dataclasses.dataclass
class Soak:
    """How often a soak test repeats, from which seed, and what it counted."""

    seed: int
    rounds: int
    counts: dict


@pytest.fixture
def soak(request):
    """A `Soak`; its counts stand in the tally, also those of a test that failed."""
    option = request.config.option
    counts = request.config.stash[_TALLY].setdefault(request.node.nodeid, {})
    return Soak(option.soak_seed, option.soak_rounds, counts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if item.get_closest_marker("soak") and (call.when == "call" or not report.passed):
        option = item.config.option
        tally = item.config.stash[_TALLY].setdefault(item.nodeid, {})
        tally |= {"outcome": report.outcome, "seconds": round(report.duration)}
        if report.skipped and isinstance(report.longrepr, tuple):
            tally["reason"] = report.longrepr[2]
        tally |= {"seed": option.soak_seed, "rounds": option.soak_rounds}
        tally["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
        versions = records.versions()
        names = ("python", "tensorflow", "tf_keras", "numpy")
        told = [f"{name} {versions[name]}" for name in names if name in versions]
        tally["versions"] = ", ".join([f"kdprune {kdprune.__version__}", *told])
        if option.soak_tally:
            _write_tally(Path(option.soak_tally), item.config.stash[_TALLY])
    return report


def _write_tally(path: Path, tests: dict) -> None:
    """Adds what was counted to what earlier parts of the soak have written."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        earlier = _io.read_object(path).get("tests", {})
        done = {name: told for name, told in tests.items() if "outcome" in told}
        tests = dict(sorted({**earlier, **done}.items()))
        passed = all(told["outcome"] != "failed" for told in tests.values())
        command = 'make test-soak ARGS="--soak-seed SEED --soak-rounds ROUNDS TEST"'
        totals = {
            key: sum(told.get(key, 0) for told in tests.values()) for key in _TOTALS
        }
        content = {"command": command, "passed": passed, "totals": totals}
        _io.write_json(path, {**content, "tests": tests})
    finally:
        os.close(folder)


@pytest.fixture(scope="session", autouse=True)
def _without_waiting_for_the_disk():
    """What a loss of power leaves, no test here can tell; the disk may take seconds.

    Commands that tests start as processes do wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@contextlib.contextmanager
def eager_functions():
    """Nothing is traced meanwhile: that takes far longer than a few small steps.

    For tests of what is computed or kept. What a graph may break, such as shapes that
    are not known, needs a test that traces.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture
def eagerly():
    """A test in which nothing is traced: see `eager_functions`."""
    with eager_functions():
        yield


@contextlib.contextmanager
def disk_of(size, place):
    """A disk of its own at a new folder, of a size such as "32m"."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)  # Files may be mapped.


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """The folder of the real CIFAR-10; tests that need it skip without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    place = Path(os.environ.get("KDPRUNE_DATA_DIR") or beside)
    if not place.exists():
        pytest.skip("needs CIFAR-10: set KDPRUNE_DATA_DIR")
    return place


@pytest.fixture(scope="session")
def tiny_shapes():
    """270 training, 30 validation and 100 test images of ten shapes."""
    return load_dataset("shapes", train_images=300, test_images=100, calibration=50)


def tiny_model(softmax=True):
    import tf_keras as keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    activation = "softmax" if softmax else None
    return keras.Model(image, layers.Dense(5, activation=activation, name="out")(x))


def convert(model, kind):
    """Converts to "float32", "float16", "int8" or "uint8"."""
    import tensorflow as tf

    function = tf.function(lambda x: model(x, training=False), autograph=False)
    spec = tf.TensorSpec((1, 8, 8, 3), tf.float32, name="image")
    concrete = function.get_concrete_function(spec)
    holder = tf.Module()  # In place of the model, whose layers would all be traced.
    holder.kept = concrete.graph.variables
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], holder)
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind.endswith("int8"):
        samples = np.random.default_rng(0).random((20, 1, 8, 8, 3), np.float32)
        samples[0], samples[1] = 0, 1
        converter.representative_dataset = lambda: ([s] for s in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = getattr(tf, kind)
        converter.inference_output_type = getattr(tf, kind)
    return converter.convert()


@pytest.fixture(scope="session")
def tiny():
    """The Keras model behind the `tflites`: 12 of its 108 stem weights are zero."""
    model = tiny_model()
    kernel, *rest = model.get_layer("stem").get_weights()
    kernel[:, :, 0, :1] = 0
    kernel[0, 0, :, 1] = 0
    model.get_layer("stem").set_weights([kernel, *rest])
    bias = np.linspace(-1, 1, 5)
    out = model.get_layer("out")
    out.set_weights([out.get_weights()[0] * 9, bias])
    return model


@pytest.fixture(scope="session")
def tflites(tiny, tmp_path_factory):
    """Paths by kind: float32, float16, int8, uint8, and "logits" without softmax."""
    folder = tmp_path_factory.mktemp("tflites")
    paths = {}
    for kind in ("float32", "float16", "int8", "uint8"):
        paths[kind] = folder / f"{kind}.tflite"
        paths[kind].write_bytes(convert(tiny, kind))
    logits = tiny_model(softmax=False)
    logits.set_weights(tiny.get_weights())
    for kind in ("float32", "int8"):
        paths[f"logits_{kind}"] = folder / f"logits_{kind}.tflite"
        paths[f"logits_{kind}"].write_bytes(convert(logits, kind))
    paths["logits_keras"] = logits
    return paths


@pytest.fixture(scope="session")
def pixels():
    return np.random.default_rng(1).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="session")
def mlperf_dir():
    """The folder of the MLPerf Tiny reference models."""
    place = Path(__file__).resolve().parents[2] / "shared/peers/mlperf-tiny"
    if not place.exists():
        pytest.skip("needs the MLPerf Tiny reference models")
    return place
