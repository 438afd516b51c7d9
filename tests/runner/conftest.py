"""What tests of runs share: an earlier run's folder, a run's states, and workers."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from kdprune.runner import run as runner

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OLD_RUN = HERE / "old_run"
KILLING = HERE / "killing"
# What holds the content of a run, beside stored labels and files for the runtime.
ARTIFACTS = ("model.keras", "weights.h5", "base.keras")
GIVEN = ROOT / "results" / "quantization" / "student.keras"


@pytest.fixture
def old_run(tmp_path):
    """A copy of the run folder described in `old_run/README.md`."""
    with tarfile.open(OLD_RUN / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


@pytest.fixture
def states():
    """`states(recipe, folder)`: what a dry run says of each stage, by its name."""

    def read(recipe, folder):
        _, _, shown = runner.preview(recipe, folder).partition("folder: ")
        lines = [line.strip().partition(" (") for line in shown.splitlines()]
        return {
            name: state.partition("): ")[2].split(",")[0]
            for name, found, state in lines
            if found and name in recipe.stages
        }

    return read


def children_of(pid):
    """The processes that a process has started, by whichever of its threads."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    return found


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


@pytest.fixture
def hosts():
    """Worker processes on this machine: `free(n)` addresses, `start`, `finish`."""
    return SimpleNamespace(free=free, start=start, finish=finish)


def free(count):
    """Addresses whose ports were free just now, each another."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
        return tuple(f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)


def start(folder, recipe, addresses, output="run", program=None, **environment):
    """A process of `kdprune run` for each address; `recipe` may be one for each."""
    recipes = recipe if isinstance(recipe, list) else [recipe] * len(addresses)
    started = []
    for index, content in enumerate(recipes):
        path = folder / f"recipe-{index}.yaml"
        path.write_text(yaml.safe_dump(content))
        outputs = output if isinstance(output, list) else [output] * len(addresses)
        command = ["run", str(path), "--output", str(folder / outputs[index])]
        command += ["--workers", ",".join(addresses), "--index", str(index)]
        code = program or "import sys; from kdprune.cli import main; sys.exit(main())"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **environment},
            )
        )
    return started


def finish(processes, within=240):
    """`(status, stdout, stderr)` of each, none of which outlives the test."""
    try:
        found = [one.communicate(timeout=within) for one in processes]
    finally:
        for one in processes:
            one.kill()
    return [(p.returncode, *told) for p, told in zip(processes, found, strict=True)]


def accuracies(output):
    metrics = json.loads((output / "metrics.json").read_text())
    return {m["path"]: (m["accuracy"], m["ece"]) for m in metrics["models"]}


def assert_same_run(expected, got):
    """Every model, store and file of a run is that of another; returns how many."""
    compared = 0
    for path in sorted(expected.rglob("*")):
        if path.name in ARTIFACTS or path.suffix in (".npy", ".tflite"):
            other = got / path.relative_to(expected)
            assert same_content(path, other), path.relative_to(expected)
            compared += 1
    if (expected / "metrics.json").exists():
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


class EveryStage:
    """`every_stage.yaml`, run in processes that are killed and starved.

    They are forks of one process (`killing/server.py`), which saves each the import of
    TensorFlow, and they trace nothing; with `--jobs` each stage's process imports it.

    Attributes:
        path: The recipe.
        content: What it holds.
        whole: The folder of a run that was left alone.
        operations: Of files, that it made there: see `killing/sitecustomize.py`.
    """

    def __init__(self, folder):
        text = (HERE / "every_stage.yaml").read_text()
        self.content = yaml.safe_load(text)
        self.content["stages"]["given"]["file"] = str(GIVEN)
        self.path = folder / "every_stage.yaml"
        self.path.write_text(yaml.safe_dump(self.content, sort_keys=False))
        self.whole = folder / "whole"
        self._counter = folder / "counter"
        self._said = {"output": folder / "output", "errors": folder / "errors"}
        self._server = subprocess.Popen(
            [sys.executable, str(KILLING / "server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{KILLING}:{ROOT}"},
        )
        try:
            ended = self.run(self.whole)
            assert ended.status == 0, ended.errors
        except BaseException:
            self.close()
            raise
        self.operations = ended.operations

    def run(
        self,
        output,
        *arguments,
        at=0,
        delay=0.0,
        whom="self",
        below=None,
        **environment,
    ):
        """Runs into a folder, killed at an operation: exit status, what was said.

        Args:
            output: The run's folder.
            *arguments: Further ones of `kdprune run`.
            at: The operation to be killed at; 0 for none.
            delay: Seconds that pass before.
            whom: "self", "first" or "all".
            below: The folder whose operations count, if not all of the output.
            **environment: Variables to set.
        """
        self._counter.write_bytes(b"")
        told = {
            "arguments": ["run", str(self.path), "--output", str(output), *arguments],
            "environment": {
                "KILL_BELOW": str(below or output),
                "KILL_COUNTER": str(self._counter),
                "KILL_AT": str(at),
                "KILL_DELAY": str(delay),
                "KILL_WHOM": whom,
                "KILL_EAGERLY": "yes",
                **environment,
            },
            **{key: str(path) for key, path in self._said.items()},
        }
        self._server.stdin.write(json.dumps(told) + "\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline(), "the process of all runs has ended"
        status = int(self._server.stdout.readline())
        said = {key: path.read_text() for key, path in self._said.items()}
        operations = self._counter.stat().st_size
        return SimpleNamespace(status=status, operations=operations, **said)

    def assert_same(self, output, stage=".", whole=None):
        """That a run, or a stage of it, made what the uninterrupted did; how much."""
        return assert_same_run((whole or self.whole) / stage, output / stage)

    def copy_before(self, stage, output):
        """Copies of the uninterrupted run what a stage needs, and not the stage."""
        waiting, needed = [stage], set()
        while waiting:
            settings = self.content["stages"][waiting.pop()]
            for key in ("from", "teacher", "soft_labels"):
                given = settings.get(key, [])
                parents = {given} if isinstance(given, str) else set(given)
                waiting += parents - needed
                needed |= parents
        for name in needed:
            shutil.copytree(self.whole / name, output / name)

    def close(self):
        self._server.stdin.close()
        self._server.wait(timeout=60)


@pytest.fixture(scope="session")
def every_stage(tmp_path_factory):
    """An `EveryStage`, whose recipe was run once."""
    made = EveryStage(tmp_path_factory.mktemp("every_stage"))
    yield made
    made.close()
