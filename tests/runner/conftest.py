"""What tests of runs share: an earlier run's folder, a run's states, and workers."""

import contextlib
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from kdprune.runner import run as runner

OLD_RUN = Path(__file__).parent / "old_run"


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
