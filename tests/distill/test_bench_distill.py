"""The benchmark of what a teacher costs, run as a user runs it."""

import json
import pathlib
import subprocess
import sys

import keras
import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "bench_distill.py"


@pytest.mark.soak
def test_it_times_all_four_and_says_what_ran(tmp_path):
    arguments = ["--images", "64", "--batch", "32", "--rounds", "1", "--views", "2"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments, "--json", tmp_path / "bench.json"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["versions"]["keras"] == keras.__version__
    assert content["command"].endswith("bench.json") and content["machine"]["cores"]
    times = content["seconds_per_epoch"]
    assert len(times) == 4 and all(value > 0 for value in times.values())
