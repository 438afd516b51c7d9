"""Runs on several workers: what they train, what they agree on, and a lost one."""

import json
import signal
import time

import numpy as np
import pytest

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
