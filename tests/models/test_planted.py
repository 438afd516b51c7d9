"""A model file is never code: names of code planted in files, opened by everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("plant_code.py")


def plant(folder, first, count, *options, seconds=600):
    """Opens `count` files with code planted in them; what became of how many."""
    # The bait and the notes lie outside of the folder that may be written.
    inside = folder / "inside"
    (inside / "tmp").mkdir(parents=True)
    command = [sys.executable, str(PROGRAM), str(inside), str(first), str(count)]
    paths = [Path(__file__).parents[2], PROGRAM.with_name("watching")]
    watched = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "WATCH_INSIDE": str(inside),
        "WATCH_TRACE": str(folder / "notes"),
        **dict.fromkeys(("HOME", "XDG_CACHE_HOME"), str(inside)),
        "TMPDIR": str(inside / "tmp"),
    }
    result = subprocess.run(
        [*command, *options],
        env={**os.environ, **watched},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_no_file_of_sixty_four_is_code(tmp_path):
    found = plant(tmp_path, 0, 64)
    assert found["refused"] > 15 and sum(found.values()) == 64


@pytest.mark.soak
def test_no_file_of_more_is_code(tmp_path, soak):
    soak.counts |= {"accepted": 0, "refused": 0}
    for number in range(soak.rounds):
        first = 64 + 500 * (soak.seed + number)
        found = plant(tmp_path / str(number), first, 500, seconds=3000)
        for outcome, count in found.items():
            soak.counts[outcome] += count


@pytest.mark.soak
def test_no_file_is_code_to_any_command(tmp_path, soak):
    soak.counts |= {"accepted": 0, "refused": 0}
    for number in range(soak.rounds):
        first = 10**6 + 8 * (soak.seed + number)
        found = plant(tmp_path / str(number), first, 8, "commands", seconds=3000)
        for outcome, count in found.items():
            soak.counts[outcome] += count
