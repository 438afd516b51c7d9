"""By the README's three commands a tutorial's network becomes a right file."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import numpy as np
import pytest
import tf_keras
from PIL import Image

import kdprune
from kdprune._io import read_json
from kdprune.data import load_dataset
from kdprune.evaluate import predict

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "tests" / "intake" / "keras3_train.py"
CONVERT = ROOT / "scripts" / "plain_keras_convert.py"
IMAGES = {"train": 3000, "test": 1000}
MACS = 1_627_776  # Of the network.


@pytest.fixture(scope="module")
def mine(tmp_path_factory, cifar10_dir):
    """A folder: `my_model.keras`, what Keras 3 says of the test images, photos/."""
    root = tmp_path_factory.mktemp("mine")
    data = load_dataset("cifar10", data_dir=cifar10_dir)
    parts = {"train": data.train, "test": data.test}
    parts = {name: parts[name].take(np.arange(n)) for name, n in IMAGES.items()}
    arrays = {"labels": parts["train"].labels, "test_labels": parts["test"].labels}
    for name, part in parts.items():
        arrays[name] = part.images
        for index, (pixels, label) in enumerate(
            zip(part.images, part.labels, strict=True)
        ):
            folder = root / "photos" / name / data.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index:05}.png")
    np.savez(root / "images.npz", **arrays)
    environment = dict(os.environ, KERAS_BACKEND="tensorflow")
    environment.pop("TF_USE_LEGACY_KERAS", None)
    command = [sys.executable, TRAIN, root / "images.npz", root / "my_model.keras"]
    subprocess.run(command, env=environment, check=True, timeout=600)
    return root


def readme_commands():
    """The three commands from nothing, as lists of words."""
    _, _, section = (ROOT / "README.md").read_text().partition("## Your own model")
    lines = section.split("```bash\n")[1].split("```")[0].splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    assert [words[0] for words in commands] == ["pip", "kdprune", "python"]
    return commands


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The variables of a new environment, in which the first command has been run.

    Requirements are those of the tests, so that nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "env", with_pip=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    pip = [folder / "env" / "bin" / "pip", "uninstall", "--quiet", "--yes"]
    subprocess.run([*pip, "setuptools"], check=True)  # Python 3.11 brings an old one.
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    source = folder / "source"  # Building leaves files.
    shutil.copytree(ROOT / "kdprune", source / "kdprune")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    outside = {key: os.environ[key] for key in os.environ if key != "PYTHONPATH"}
    path = f"{folder / 'env' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**outside, "PATH": path}
    offline = ["--no-index", "--no-build-isolation"]
    install = [*readme_commands()[0], *offline]
    subprocess.run(install, cwd=source, env=environment, check=True)
    return environment


def finish(*arguments):
    """Runs the command; returns its exit status and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "kdprune", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def compressed(mine, fresh):
    """The folder that the second command alone made, killed on the way and resumed."""
    out = mine / "my_model-compressed"
    called = {"cwd": mine, "env": fresh, "text": True, "stdout": subprocess.PIPE}
    called["stderr"] = subprocess.STDOUT
    words = readme_commands()[1]
    process = subprocess.Popen(words, **called)
    until = time.monotonic() + 600
    while not (out / "int8" / "begun.json").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "int8" / "record.json").exists()
    done = subprocess.run(words, **called, timeout=900)
    assert done.returncode == 0, done.stdout
    return out, done.stdout


def test_the_command_alone_gives_a_right_file(mine, compressed):
    out, said = compressed
    labels = np.load(mine / "images.npz")["test_labels"]
    images = np.load(mine / "images.npz")["test"]
    original = np.load(mine / "my_model.keras.npy")
    expected = (original.argmax(axis=1) == labels).mean()
    assert expected > 0.4  # It has learned.
    # In the folder classes are sorted, as CIFAR-10's are.
    for file in ("model_int8.tflite", "model_uint8.tflite"):
        scores = predict(out / file, images)
        assert (scores.argmax(axis=1) == labels).mean() > expected - 0.01, file
    metrics = read_json(out / "metrics.json")
    entries = {entry["name"]: entry for entry in metrics["models"]}
    assert entries["original"]["accuracy"] == pytest.approx(expected, abs=0.002)
    against = entries["int8_int8"]["against_baseline"]
    difference = entries["int8_int8"]["accuracy"] - entries["original"]["accuracy"]
    assert against["difference"] == pytest.approx(difference)
    # The table has the original and each file.
    assert re.search(r"^original +\d", said, re.MULTILINE)
    assert re.search(r"^int8 file +\d", said, re.MULTILINE)
    assert f"{out}/model_uint8.tflite" in said


def test_it_went_on_where_it_was_killed(compressed):
    _, said = compressed
    assert "original: done, skipped" in said
    assert "== int8 (quantize) ==" in said


def test_the_third_command_tests_the_kit(mine, fresh, compressed):
    subprocess.run(readme_commands()[2], cwd=mine, env=fresh, check=True, timeout=300)


@pytest.mark.soak
def test_the_plain_converter_needs_what_the_docs_show(mine, tmp_path):
    environment = dict(os.environ, KERAS_BACKEND="tensorflow")
    environment.pop("TF_USE_LEGACY_KERAS", None)
    done = subprocess.run(
        [sys.executable, CONVERT, "my_model.keras", "photos", tmp_path / "made.tflite"],
        cwd=mine,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    labels = np.load(mine / "images.npz")["test_labels"]
    original = np.load(mine / "my_model.keras.npy").argmax(axis=1)
    said = re.search(r"original ([\d.]+)%, int8 file ([\d.]+)%", done.stdout)
    assert float(said[1]) == pytest.approx(100 * (original == labels).mean(), abs=0.2)
    right = predict(tmp_path / "made.tflite", np.load(mine / "images.npz")["test"])
    right = (right.argmax(axis=1) == labels).mean()
    assert float(said[2]) == pytest.approx(100 * right, abs=1)


def test_the_recipe_has_nothing_left_to_do(compressed):
    out, _ = compressed
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    before = {path: at for path, at in before.items() if path.name != ".lock"}
    status, said = finish("run", out / "recipe.yaml", "--output", out)
    assert status == 0, said
    stages = "original int8 files measured kit report".split()
    assert all(f"{stage}: done, skipped" in said for stage in stages)
    assert "==" not in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_half_of_the_macs_recover_under_the_original(mine, tmp_path):
    arrays = np.load(mine / "images.npz")
    made = kdprune.compress(
        mine / "my_model.keras",
        (arrays["train"].astype("float32"), arrays["labels"]),
        test=(arrays["test"], arrays["test_labels"]),
        output=tmp_path / "half",
        target_macs=MACS // 2,
        # A thousand images tell no less; bench_your_own.py has ten thousand.
        max_drop=0.04,
        epochs=12,
    )
    entries = {entry["name"]: entry for entry in made.metrics["models"]}
    macs = {name: entry["macs"] for name, entry in entries.items()}
    assert macs["original"] == MACS
    assert macs["int8_int8"] <= 0.5 * MACS
    assert entries["int8_int8"]["against_baseline"]["difference"] >= -0.04
    assert made.met, made.reasons
    assert kdprune.count_macs(made.models["smaller"]) == macs["int8_int8"]
    assert made.files["int8"].stat().st_size < entries["original_float32"]["bytes"] / 4
    assert "channels removed" in str(made)


@pytest.mark.soak
def test_a_keras_3_model_in_memory_is_compressed(tmp_path):
    environment = dict(os.environ, KERAS_BACKEND="tensorflow")
    environment.pop("TF_USE_LEGACY_KERAS", None)
    script = Path(__file__).with_name("keras3_memory.py")
    run = subprocess.run(
        [sys.executable, script, tmp_path / "out"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    classes = read_json(tmp_path / "out" / "metrics.json")["dataset"]["classes"]
    assert classes == ["dark", "bright"]


def small_net(units):
    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(0)
    net = tf_keras.Sequential(
        [
            tf_keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(units, activation="sigmoid"),
        ]
    )
    net.compile(tf_keras.optimizers.Adam(0.02), "binary_crossentropy")
    return net


def bright_images(labels):
    """Images of which each label makes a column, or all of them, brighter."""
    images = np.random.default_rng(0).uniform(0, 150, (len(labels), 8, 8, 3))
    if labels.ndim == 1:
        images += 100 * labels[:, None, None, None]
    else:
        images[:, :, : labels.shape[1]] += 100 * labels[:, None, :, None]
    return images.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("labels", "units", "said"),
    [
        (np.arange(1500) % 2, 1, "accuracy %"),
        (np.arange(1500)[:, None] // [1, 2, 4, 8, 16] % 2, 5, "macro F1 %"),
    ],
)
def test_a_single_unit_and_five_labels_are_compressed(tmp_path, labels, units, said):
    images, net = bright_images(labels), small_net(units)
    net.fit(images.astype("float32"), labels, batch_size=50, epochs=6, verbose=0)
    made = kdprune.compress(
        net, (images, labels), output=tmp_path / "out", max_drop=0.02
    )
    assert made.met, made.reasons
    assert said in made.table
    entries = {entry["name"]: entry for entry in made.metrics["models"]}
    figure = "accuracy" if units == 1 else "macro_f1"
    assert entries["original"][figure] > 0.9
    assert entries["int8_int8"][figure] > entries["original"][figure] - 0.02
