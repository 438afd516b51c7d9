"""Runs on several workers: what they train, what they agree on, and a lost one."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from kdprune.models import load_model
from kdprune.runner import cluster

EVERY_STAGE = Path(__file__).with_name("every_stage.yaml")
GIVEN = Path(__file__).parents[2] / "results" / "quantization" / "student.keras"
TRAINING = {"epochs": 2, "batch_size": 60, "optimizer": "adam", "learning_rate": 0.003}
NETWORK = {"name": "dscnn", "width": 8, "blocks": 1}
DATA = {"dataset": "shapes", "train_images": 400, "test_images": 100}

# The command, which then writes the last model's weights and ranges beside its output:
# what each worker has ended with.
TELLING = """
import pathlib, sys
import numpy as np
from kdprune.cli import main

def observe():
    from kdprune.stages import fitting
    fit_stage = fitting.fit_stage

    def observed(run, node, *arguments, **options):
        model, figures = fit_stage(run, node, *arguments, **options)
        path = pathlib.Path(OUT) / f"{node.name}-{run.workers.index}.npz"
        np.savez(path, **{v.name: v.numpy() for v in model.variables})
        return model, figures

    fitting.fit_stage = observed

OUT = str(pathlib.Path(sys.argv[2]).parent)
observe()
sys.exit(main())
"""


def recipe(**stages):
    return {"name": "hosts", "seed": 1, "data": DATA, "stages": stages}


def record(folder, stage):
    return json.loads((folder / stage / "record.json").read_text())


def kill_after(processes, which, checkpoint, number=signal.SIGKILL):
    """Ends one of the workers once the chief has saved a checkpoint."""
    deadline = time.monotonic() + 120
    while not any(checkpoint.glob("epoch-*")):
        assert time.monotonic() < deadline
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.02)
    processes[which].send_signal(number)
    return time.monotonic()


@pytest.mark.slow
def test_a_run_goes_on_after_a_worker_was_killed(tmp_path, hosts):
    """Trains, loses a worker, goes on, and quantizes: ranges agree on all workers."""
    content = recipe(
        base={
            "kind": "train",
            "model": NETWORK,
            "training": {**TRAINING, "epochs": 16, "select": "best"},
        },
        int8={
            "kind": "quantize",
            "from": "base",
            "method": "qat",
            "training": {**TRAINING, "epochs": 1},
        },
    )
    addresses = hosts.free(2)
    workers = hosts.start(tmp_path, content, addresses)
    killed = kill_after(workers, 1, tmp_path / "run" / "base" / "checkpoints")
    (status, _, errors), _ = hosts.finish(workers)
    assert time.monotonic() - killed < 10
    line = f"kdprune: worker 1 ({addresses[1]}) was lost: its connection broke; start"
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith(line)

    found = hosts.finish(hosts.start(tmp_path, content, addresses, program=TELLING))
    assert [status for status, *_ in found] == [0, 0], found
    # TensorFlow's own look at the others, each half minute, is not waited for.
    assert time.time() - (tmp_path / "run/int8/record.json").stat().st_mtime < 12
    for _, shown, _ in found:
        assert "resuming after epoch" in shown
    told = record(tmp_path / "run", "base")
    assert told["workers"] == list(addresses)
    assert told["results"]["epochs"] == 16
    for stage in ("base", "int8"):
        mine, others = (np.load(tmp_path / f"{stage}-{i}.npz") for i in (0, 1))
        assert mine.files == others.files
        for name in mine.files:
            np.testing.assert_array_equal(mine[name], others[name], err_msg=name)
    ranges = [mine[name] for name in mine.files if "post_activation_m" in name]
    assert ranges and any(value not in (-6.0, 6.0) for value in ranges)


def weights_of(folder, stage):
    return [w for w in load_model(folder / stage / "model.keras").get_weights()]


@pytest.mark.soak
@pytest.mark.parametrize("count", [2, 3])
def test_every_kind_of_stage_on_several_workers(tmp_path, hosts, count):
    """The kinds that train do so together, all others run on the chief."""
    content = yaml.safe_load(EVERY_STAGE.read_text())
    content["stages"]["given"]["file"] = str(GIVEN)
    for stage in content["stages"].values():
        if "training" in stage:
            stage["training"] |= {"batch_size": 30, "epochs": 2}
    addresses = hosts.free(count)
    found = hosts.finish(hosts.start(tmp_path, content, addresses), within=3600)
    assert [status for status, *_ in found] == [0] * count, found
    run = tmp_path / "run"
    for stage in content["stages"]:
        told = record(run, stage)
        trains = "training" in content["stages"][stage]
        assert told.get("workers") == (list(addresses) if trains else None)
        if not trains:
            assert f"{stage} ({told['kind']}): waiting for the chief" in found[1][1]
    assert max(record(run, "pruned")["results"]["sparsity_by_layer"].values()) > 0.5


@pytest.mark.soak
def test_a_store_of_another_key_is_refused_by_all(tmp_path, hosts):
    taught = {"kind": "distill", "model": NETWORK, "training": TRAINING}
    content = recipe(
        teacher={"kind": "train", "model": NETWORK, "training": TRAINING},
        soft={"kind": "soft_labels", "teacher": "teacher", "views": 1},
        student={**taught, "soft_labels": "soft"},
    )
    addresses, run = hosts.free(2), tmp_path / "run"
    found = hosts.finish(hosts.start(tmp_path, content, addresses), within=3600)
    assert [status for status, *_ in found] == [0, 0], found

    # One machine trains another teacher, whose store is not the chief's.
    shutil.copytree(run, tmp_path / "other")
    alone = ["--output", str(tmp_path / "other"), "--until", "soft"]
    alone += ["--set", "stages.teacher.seed=5"]
    subprocess.run(
        [sys.executable, "-m", "kdprune", "run", tmp_path / "recipe-0.yaml", *alone],
        check=True,
    )
    shutil.rmtree(run / "student")
    outputs = ["run", "other"]
    found = hosts.finish(hosts.start(tmp_path, content, addresses, outputs))
    for status, _, errors in found:
        assert (status, errors.count("\n")) == (2, 1), errors
        assert f"worker 1 ({addresses[1]}) has no results of stage" in errors


@pytest.mark.soak
def test_a_repeated_and_a_resumed_run_of_the_same_workers_are_bit_equal(
    tmp_path, hosts
):
    content = recipe(
        base={
            "kind": "train",
            "model": NETWORK,
            "training": {**TRAINING, "epochs": 12, "ema": 0.9, "augment": {"crop": 2}},
        }
    )
    addresses = hosts.free(2)
    for output in ("first", "second"):
        found = hosts.finish(hosts.start(tmp_path, content, addresses, output))
        assert [status for status, *_ in found] == [0, 0], found
    workers = hosts.start(tmp_path, content, addresses, "third")
    kill_after(workers, 0, tmp_path / "third" / "base" / "checkpoints")
    hosts.finish(workers)
    assert not (tmp_path / "third" / "base" / "record.json").exists()
    found = hosts.finish(hosts.start(tmp_path, content, addresses, "third"))
    assert all("resuming after epoch" in shown for _, shown, _ in found)
    first = weights_of(tmp_path / "first", "base")
    for output in ("second", "third"):
        for mine, others in zip(
            first, weights_of(tmp_path / output, "base"), strict=True
        ):
            np.testing.assert_array_equal(mine, others, err_msg=output)


@pytest.mark.soak
@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_hangs_is_named_within_two_minutes(tmp_path, hosts, which):
    training = {**TRAINING, "epochs": 1000}
    content = recipe(base={"kind": "train", "model": NETWORK, "training": training})
    addresses = hosts.free(2)
    workers = hosts.start(tmp_path, content, addresses)
    checkpoints = tmp_path / "run" / "base" / "checkpoints"
    hung = kill_after(workers, which, checkpoints, signal.SIGSTOP)
    ((status, _, errors),) = hosts.finish(workers[1 - which : 2 - which])
    workers[which].kill()
    assert time.monotonic() - hung < 120
    name = f"worker {which} ({addresses[which]})"
    assert (status, errors.count("\n")) == (2, 1)
    silent = f"gave no sign for {cluster.SILENCE:.0f} s"
    assert f"kdprune: {name} was lost: {silent}" in errors
