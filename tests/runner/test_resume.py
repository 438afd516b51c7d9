"""A run killed with SIGKILL in any stage goes on and ends as if it had not been."""

import collections
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

# The stages whose work is kept by parts, as trained epochs or stored views.
BY_PARTS = ("soft", "student", "pruned", "slim", "sparse")


@pytest.mark.slow
def test_killed_in_five_stages_it_ends_bit_equal(every_stage, tmp_path):
    """Kills past the first part that is kept, against a run that was left alone."""
    output = tmp_path / "run"
    for number, stage in enumerate(BY_PARTS):
        draw = random.Random(number)
        folder = output / stage
        ended = every_stage.run(output, below=folder, at=draw.randint(12, 20))
        assert ended.status == -signal.SIGKILL, ended.errors
        assert folder.exists() and not (folder / "record.json").exists()
    ended = every_stage.run(output)
    assert ended.status == 0, ended.errors
    compared = every_stage.assert_same(output)
    # Models, stored logits, files for the runtime, the two at the top and the kit's.
    assert compared >= 6 + 3 + 3 + 4 + 2 + 2


@pytest.mark.soak
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_random_operations_it_ends_bit_equal(
    every_stage, tmp_path, soak, jobs
):
    """A hundred kills a round, at a file operation or soon after; 25 of `--jobs 2`."""
    if jobs > len(os.sched_getaffinity(0)):
        pytest.skip("needs two cores")
    stages, whom = collections.Counter(), ["self", "first", "all"][: 2 * jobs - 1]
    soak.counts |= {"kills": 0, "at_an_operation": 0, "after_one": 0}
    soak.counts |= {"in_stages": stages, "runs_compared": 0, "files_compared": 0}
    draw = random.Random(soak.seed)
    output, whole, beside = tmp_path / "run", None, []
    if jobs > 1:
        # Each stage then has a part of the cores, on which sums are rounded otherwise.
        whole, beside = tmp_path / "whole", ["--jobs", str(jobs)]
        ended = every_stage.run(whole, *beside)
        assert ended.status == 0, ended.errors
    # Far enough now and then for the longest of what is done as a whole.
    shares = [40, 40, 12, 12, 12, 4]
    # Each process of a stage imports TensorFlow: four times the work.
    wanted = {1: 100, 2: 25}[jobs] * soak.rounds
    while True:
        kills = soak.counts["kills"] < wanted
        at = draw.randint(1, every_stage.operations // draw.choice(shares))
        delay = draw.choice([0, 0, draw.uniform(0, 0.05)])
        victim = draw.choice(whom)
        ended = every_stage.run(
            output,
            *beside,
            at=at * kills,
            delay=delay,
            whom=victim,
        )
        if ended.status == 2 and "another run is under way" in ended.errors:
            time.sleep(0.2)  # A stage's process is about to find its first one gone.
            continue
        if ended.operations >= at and kills and ended.status:
            killed = [2] if jobs > 1 and "was ended by SIGKILL" in ended.errors else []
            assert ended.status in [-signal.SIGKILL, *killed], ended.errors
            soak.counts["kills"] += 1
            soak.counts["after_one" if delay else "at_an_operation"] += 1
            stages.update(begun_in(output) or ["between"])
            continue
        assert ended.status == 0, ended.errors
        soak.counts["files_compared"] += every_stage.assert_same(output, whole=whole)
        soak.counts["runs_compared"] += 1
        shutil.rmtree(output)
        if not kills:
            return


@pytest.mark.soak
def test_damage_to_a_killed_run_is_found(every_stage, tmp_path, soak):
    """Forty damaged files a round: what they were is made again, or it says a line."""
    soak.counts |= {"accepted": 0, "a_line": 0, "anything_else": 1}
    output = tmp_path / "run"
    for number in range(40 * soak.rounds):
        draw = random.Random(f"{soak.seed} {number}")
        stage = draw.choice(BY_PARTS)
        every_stage.copy_before(stage, output)
        ended = every_stage.run(
            output, "--until", stage, below=output / stage, at=draw.randint(4, 30)
        )
        assert ended.status in (0, -signal.SIGKILL), ended.errors
        what = damage(output, stage, draw)
        ended = every_stage.run(output, "--until", stage)
        said = f"{number}, {stage}, {what}: {ended.status}, {ended.errors[-3000:]}"
        if ended.status:
            told = re.findall("^kdprune: ", ended.errors, re.MULTILINE)
            assert ended.status == 2 and len(told) == 1, said
            assert "Traceback" not in ended.errors, said
            soak.counts["a_line"] += 1
        else:
            try:
                every_stage.assert_same(output, stage)
            except AssertionError as error:
                raise AssertionError(said) from error
            soak.counts["accepted"] += 1
        shutil.rmtree(output)
    soak.counts["anything_else"] = 0


def damage(output, stage, draw):
    """Changes a file of a run, of the stage that was killed most often."""
    place = output / stage if draw.random() < 0.8 else output
    files = sorted(path for path in place.rglob("*") if path.is_file())
    path = draw.choice(files)
    content = bytearray(path.read_bytes())
    kind = draw.choice(["bit", "bit", "cut", "empty", "gone", "twice", "of another"])
    if kind == "bit" and content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del content[draw.randrange(len(content) + 1) :]
    elif kind == "empty":
        content.clear()
    elif kind == "twice":
        content *= 2
    elif kind == "of another":
        content = draw.choice(files).read_bytes()
    path.write_bytes(content)
    if kind == "gone":
        path.unlink()
    return f"{path.relative_to(output)} {kind}"


def begun_in(output):
    """The stages that were begun and not ended."""
    begun = {path.parent.name for path in output.glob("*/begun.json")}
    return sorted(begun - {path.parent.name for path in output.glob("*/record.json")})


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(every_stage, tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kdprune", "run", str(every_stage.path)),
            *("--output", str(tmp_path)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A suite in a shell's background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
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

    content = yaml.safe_load(Path(__file__).with_name("every_stage.yaml").read_text())
    kinds = {stage["kind"] for stage in content["stages"].values()}
    assert kinds == set(KINDS)
