"""One stage of a recipe at a time, by processes of their own in one folder."""

import fcntl
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from kdprune import cli
from kdprune.config import load_recipe
from kdprune.runner import run as runner
from kdprune.runner.folder import Run

RECIPE = """
name: small
data: {dataset: shapes, train_images: 100, test_images: 50}
matrix: {seed: [1, 2]}
stages:
  teacher:
    kind: train
    seed: 1
    model: &model {name: dscnn, width: 8, blocks: 1}
    training: &training {epochs: 1, batch_size: 50, learning_rate: 0.01}
  student: {kind: distill, teacher: teacher, model: *model, training: *training}
  int8: {kind: quantize, from: student, method: ptq}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def command(recipe, *arguments):
    return ["run", str(recipe), "--output", str(recipe.parent / "run"), *arguments]


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("student", ["student--seed=1", "student--seed=2"]),
        ("student--seed=2", ["student--seed=2"]),
        ("teacher", ["teacher"]),
    ],
)
def test_a_stage_is_all_its_cells_and_a_folders_name_is_one(recipe, only, names):
    run = Run(load_recipe(recipe), recipe.parent / "run")
    assert [node.name for node in runner.select(run, only=only)] == names


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--only", "studnet"], "out of teacher, student, int8, student--seed=1"),
        (["--only", "studnet"], "Received: 'studnet'; did you mean 'student'?"),
        (["--only", "student"], "Received: 'teacher', which is not; run it first"),
        (["--only", "student", "--workers", "a:1,b:1", "--index", "0"], "one process"),
    ],
)
def test_what_is_not_a_stage_or_lacks_its_inputs_is_one_line(
    recipe, capsys, monkeypatch, arguments, fault
):
    monkeypatch.setattr(runner, "SEEN_WITHIN", 0)
    assert cli.main(command(recipe, *arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert fault in line


def test_one_stage_and_all_up_to_one_do_not_go_together(recipe, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(command(recipe, "--only", "student", "--until", "student"))
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_whole_run_keeps_single_stages_out_of_its_folder(recipe, capsys):
    folder = recipe.parent / "run"
    folder.mkdir()
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(command(recipe, "--only", "teacher")) == 2
        assert "another run is under way" in capsys.readouterr().err
        # Another process with a single stage does not; this one lacks its inputs.
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert cli.main(command(recipe)) == 2
        assert "another run is under way" in capsys.readouterr().err


def test_processes_that_start_at_once_find_the_folder_writable(tmp_path):
    """One removes what another has just made to see whether it can."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(runner._check_writable, [tmp_path] * 2_000))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_single_stages_make_a_whole_run(recipe, capsys):
    folder = recipe.parent / "run"
    assert cli.main(command(recipe, "--only", "teacher")) == 0
    start = [sys.executable, "-m", "kdprune"]
    cells = [
        subprocess.Popen([*start, *command(recipe, "--only", f"student--seed={seed}")])
        for seed in (1, 2)
    ]
    assert [cell.wait(timeout=300) for cell in cells] == [0, 0]
    record = json.loads((folder / "student--seed=2" / "record.json").read_text())
    assert record["command"].endswith("--only student--seed=2")
    capsys.readouterr()
    assert cli.main(command(recipe, "--until", "student")) == 0
    assert capsys.readouterr().out.count("done, skipped") == 3
