"""A run killed with SIGKILL in any stage goes on and ends as if it had not been."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from kdprune.config import parse_recipe, stage_order

RECIPE = """
name: killed
seed: 1
data: {dataset: shapes, train_images: 600, test_images: 100}
flagship: int8
stages:
  teacher:
    kind: train
    model: {name: resnet9, width: 8}
    training: &training
      {epochs: 3, batch_size: 50, optimizer: adam, learning_rate: 0.003, ema: 0.9,
       select: best, augment: {crop: 2, flip: false, cutout: 6}}
  soft: {kind: soft_labels, teacher: teacher, views: 3, augment: {crop: 2}}
  student:
    kind: distill
    model: {name: article_student}
    soft_labels: soft
    training: {<<: *training, augment: null}
  pruned:
    kind: prune
    from: student
    teacher: teacher
    sparsity: 0.6
    frequency: 3
    training: {<<: *training, select: last}
  slim:
    kind: prune_channels
    from: student
    ratio: 0.4
    round_to: 4
    steps: 2
    soft_labels: soft
    training: {<<: *training, augment: null}
  short:
    kind: prune_blocks
    from: teacher
    count: 1
    training: *training
  spare: {kind: sensitivity, from: student, ratios: [0.5], round_to: 4}
  grouped:
    kind: cluster
    from: student
    clusters: 8
    soft_labels: soft
    training: {<<: *training, augment: null, ema: null}
  int8: {kind: quantize, from: student}
  sparse: {kind: quantize, from: pruned, method: qat, teacher: teacher,
    training: {<<: *training, ema: null}}
  files: {kind: export, from: [int8, sparse], max_disagreement: 0.5, max_drop: 0.5}
  measured:
    kind: evaluate
    from: [teacher, student, pruned, slim, short, grouped, files]
    latency: false
  kit: {kind: kit, from: measured, name: killed}
  page: {kind: report, from: [measured, spare]}
"""
STAGES = stage_order(parse_recipe(yaml.safe_load(RECIPE)))
# One of each way to go on is killed: these train as another does, or do all again. They
# are killed at random moments below, since each process takes its time to begin.
ALIKE = (
    "teacher",
    "short",
    "spare",
    "grouped",
    "int8",
    "files",
    "measured",
    "kit",
    "page",
)
ARTIFACTS = ("model.keras", "weights.h5", "base.keras")


def start(recipe, output):
    # The parent of a TensorFlow process dies with it: no wrapper in between.
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "kdprune",
            "run",
            str(recipe),
            "--output",
            str(output),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A suite in a shell's background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(recipe, output):
    process = start(recipe, output)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


def kill_in(stage, recipe, output):
    """Kills the run once the stage has begun, past its first checkpoint if any."""
    process = start(recipe, output)
    folder = output / stage
    trains = "training" in yaml.safe_load(RECIPE)["stages"][stage]
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        begun = folder.exists() and any(folder.iterdir())
        if trains:
            begun = any(folder.rglob("checkpoints/epoch-*"))
        if stage == "soft":
            begun = (folder / "view-000.npy").exists()
        if begun:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "killed.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    finish(recipe, output)
    return output


def accuracies(output):
    metrics = json.loads((output / "metrics.json").read_text())
    return {m["path"]: (m["accuracy"], m["ece"]) for m in metrics["models"]}


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_bit_equal(recipe, uninterrupted, tmp_path):
    """One run, killed once in each of its stages, against one that was left alone."""
    for stage in STAGES:
        if stage not in ALIKE:
            kill_in(stage, recipe, tmp_path)
    finish(recipe, tmp_path)
    compared = assert_same_run(uninterrupted, tmp_path)
    # Models, stored logits, files for the runtime, the two at the top and the kit's.
    assert compared >= 6 + 3 + 3 + 4 + 2 + 2


@pytest.mark.soak
def test_killed_at_random_moments_it_ends_bit_equal(
    recipe, uninterrupted, tmp_path, soak
):
    """Up to five kills a round, anywhere in the time that a whole run takes."""
    soak.counts |= {"rounds": 0, "kills": 0, "compared": 0}
    begun = time.monotonic()
    finish(recipe, tmp_path / "timed")
    whole = time.monotonic() - begun
    for number in range(soak.rounds):
        draw = random.Random(soak.seed + number)
        output = tmp_path / f"round-{number}"
        for _ in range(draw.randint(1, 5)):
            process = start(recipe, output)
            try:
                process.communicate(timeout=draw.uniform(0, whole))
                break  # It ended before it was to be killed.
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                soak.counts["kills"] += 1
        finish(recipe, output)
        soak.counts["compared"] += assert_same_run(uninterrupted, output)
        soak.counts["rounds"] += 1
        shutil.rmtree(output)


def assert_same_run(expected, got):
    """Every model, store and file of a run is that of another; returns how many."""
    compared = 0
    for path in sorted(expected.rglob("*")):
        if path.name in ARTIFACTS or path.suffix in (".npy", ".tflite"):
            other = got / path.relative_to(expected)
            assert same_content(path, other), path.relative_to(expected)
            compared += 1
    assert accuracies(got) == accuracies(expected)
    assert not list(got.rglob("*partial*")), "half-written files were left"
    return compared


def same_content(path, other):
    if path.suffix == ".h5":  # HDF5 keeps the time of writing.
        return all(
            np.array_equal(a, b)
            for a, b in zip(arrays(path), arrays(other), strict=True)
        )
    return path.read_bytes() == other.read_bytes()


def arrays(path):
    import h5py

    found = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found.append(item[()])

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(recipe, tmp_path):
    process = start(recipe, tmp_path)
    while not any(tmp_path.glob("teacher/checkpoints/epoch-*")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors


def test_the_recipe_covers_every_kind_of_stage():
    from kdprune.config import KINDS

    kinds = {stage["kind"] for stage in yaml.safe_load(RECIPE)["stages"].values()}
    assert kinds == set(KINDS) - {"load"}  # `load` has nothing to resume.
