"""Files of others, damaged: each is refused in one line, or is what it should be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("damage_files.py")
KINDS = ("recipes", "pickles", "images", "arrays", "benchmarks", "models")


def open_damaged(kind, folder, first, count, seconds=600):
    """What became of how many files; see the program."""
    folder.mkdir(exist_ok=True)
    numbers = [str(first), str(count)]
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), kind, str(folder), *numbers],
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[1])},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    last = (folder / kind / "seed").read_text()
    said = f"last seed {last}, status {ended.returncode}: {ended.stderr[-3000:]}"
    assert ended.returncode == 0, said
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fifty_damaged_files_are_a_line_or_what_they_should_be(tmp_path, kind):
    found = open_damaged(kind, tmp_path, 0, 50)
    assert sum(found.values()) == 50 and found["a_line"] > 10


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_damaged_files_are_a_line_or_what_they_should_be(
    tmp_path, kind, soak
):
    soak.counts |= {"accepted": 0, "a_line": 0, "anything_else": 1}
    for number in range(soak.rounds):
        first = 1000 * (soak.seed + number) + 50
        for start in range(first, first + 1000, 250):
            found = open_damaged(kind, tmp_path, start, 250, seconds=7200)
            for outcome, count in found.items():
                soak.counts[outcome] += count
    soak.counts["anything_else"] = 0
