"""A disk that fills during a stage: one line tells it, and the run goes on after."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml

from kdprune import _io
from kdprune.models import load_model
from kdprune.runner import run as runner
from kdprune.runner.errors import explain
from tests.conftest import disk_of

STAGES = yaml.safe_load(Path(__file__).with_name("every_stage.yaml").read_text())
STAGES = {name: stage["kind"] for name, stage in STAGES["stages"].items()}
PAGE = 4096
GIVEN = Path(__file__).parents[2] / "results" / "quantization" / "student.keras"


@pytest.fixture
def disk(tmp_path):
    """A disk of 32 MiB."""
    with disk_of("32m", tmp_path / "disk") as place:
        yield place


def fill(disk, free):
    """Takes all room but so many bytes; returns the file that does."""
    filler, space = disk / "filler", os.statvfs(disk)
    filler.write_bytes(bytes(space.f_bavail * space.f_frsize - free))
    return filler


def run_short_of_room(every_stage, disk, stage, free, temporary=False):
    """Runs a stage with so many bytes free, and again with more; whether they did."""
    output = disk / "run"
    output.mkdir()
    every_stage.copy_before(stage, output)
    filler = fill(disk, free)
    (disk / "tmp").mkdir(exist_ok=True)
    environment = {"TMPDIR": str(disk / "tmp")} if temporary else {}
    short = every_stage.run(output, "--until", stage, **environment)
    told = [one for one in short.errors.splitlines() if one.startswith("kdprune: ")]
    said = f"{stage}, {free} bytes free: {short.status}, {short.errors[-3000:]}"
    assert "Traceback" not in short.errors, said
    if short.status:
        assert short.status == 2 and len(told) == 1, said
        assert "space" in told[0] and str(disk) in told[0], said
    filler.unlink()
    again = every_stage.run(output, "--until", stage, **environment)
    assert again.status == 0, f"{said}; then {again.errors}"
    every_stage.assert_same(output, stage)
    shutil.rmtree(output)
    return short.status == 0


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_stage_goes_on(every_stage, disk):
    assert not run_short_of_room(every_stage, disk, "student", 10 * PAGE)


@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_told_of_a_full_disk_and_goes_on(every_stage, disk, soak, stage):
    """None free, and four draws of what is; in one, temporary files lie there too."""
    soak.counts |= {"kind": STAGES[stage], "a_line": 0, "accepted": 0}
    draw = random.Random(f"{soak.seed} {stage}")
    whole = every_stage.whole / stage
    needed = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    soak.counts["anything_else"] = 1
    for number in range(5 * soak.rounds):
        free = number and draw.randrange(2 + needed // PAGE) * PAGE
        had_room = run_short_of_room(every_stage, disk, stage, free, number % 5 == 4)
        soak.counts["accepted" if had_room else "a_line"] += 1
    soak.counts["anything_else"] = 0
    assert soak.counts["a_line"]


def test_no_room_for_the_lock_names_it(disk):
    fill(disk, 0)
    with pytest.raises(OSError, match=r"No space left.*disk/\.lock"):
        with runner._holding(disk, alone=True):
            pass


def test_a_full_disk_of_temporary_files_is_told_and_is_no_damage(disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    fill(disk, PAGE)
    with pytest.raises(OSError) as raised:
        load_model(GIVEN)
    with pytest.raises(OSError) as unnamed, tempfile.TemporaryFile() as file:
        file.write(bytes(8 * PAGE))
    for error in (raised.value, unnamed.value):
        (line,) = explain(error)
        assert "No space left on device" in line and "temporary files" in line
        assert str(disk) in line and "TMPDIR names" in line


def test_a_folder_that_the_disk_has_no_room_for_is_named(disk):
    fill(disk, 4 * PAGE)
    with pytest.raises(OSError, match="No space left on device: '.*disk/kit'"):
        with _io.writing_folder(disk / "kit") as folder:
            with open(folder / "model.cc", "wb") as file:
                file.write(bytes(16 * PAGE))
    assert [path.name for path in disk.iterdir()] == ["filler"]
