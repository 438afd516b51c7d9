"""What tests of runs share: a run folder of an earlier version, and a run's states."""

import tarfile
from pathlib import Path

import pytest

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
