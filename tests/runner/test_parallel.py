"""Stages in processes of their own: the same results, and nothing left behind."""

import os
import signal
import subprocess
import sys
import types

import pytest
import yaml

from kdprune import _log, cli, records
from kdprune._log import logger
from kdprune.runner import parallel, processes
from kdprune.runner.parallel import Job, Place, assign
from tests.runner.conftest import children_of, wait_until

RECIPE = """
name: together
seed: 1
data: {dataset: shapes, train_images: 100, test_images: 50}
baseline: alone
matrix: {seed: [1, 2]}
stages:
  teacher:
    kind: train
    seed: 1
    model: {name: article_student}
    training: &training {epochs: 1, batch_size: 50, learning_rate: 0.01}
  alone: {kind: train, model: {name: article_student}, training: *training}
  measured: {kind: evaluate, from: [teacher, alone], latency: false}
  page: {kind: report, from: measured}
"""

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="needs two cores"
)


def write(folder, **changes):
    content = yaml.safe_load(RECIPE)
    for key, value in changes.items():
        content["stages"][key].update(value)
    path = folder / "together.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def command(path, *arguments):
    run = [sys.executable, "-m", "kdprune", "run", str(path)]
    return [*run, "--output", str(path.parent / "run"), *arguments]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.soak
def test_stages_run_beside_each_other_and_only_once(tmp_path, capsys):
    path = write(tmp_path)
    first = subprocess.run(
        command(path, "--jobs", "2"), capture_output=True, text=True, timeout=900
    )
    assert first.returncode == 0, first.stderr
    folders = ["teacher", "alone--seed=1", "alone--seed=2", "measured", "page"]
    found = {
        name: records.read_json(tmp_path / "run" / name / "record.json")
        for name in folders
    }
    assert all(found.values())
    assert found["alone--seed=1"]["command"].endswith("--jobs 2")
    # Of three that were ready two began; what is timed had the machine to itself.
    cores = len(os.sched_getaffinity(0))
    shares = {name: found[name]["machine"]["cores"] for name in folders}
    assert shares["teacher"] < cores and shares["measured"] == cores
    # In one process now: every stage is recognized as done.
    assert cli.main(command(path)[3:]) == 0
    assert capsys.readouterr().out.count("done, skipped") == len(folders)


@pytest.mark.slow
def test_killed_with_its_workers_it_goes_on(tmp_path):
    path = write(tmp_path, alone={"training": {"epochs": 50, "batch_size": 50}})
    process = subprocess.Popen(command(path, "--jobs", "2"), stdout=subprocess.DEVNULL)
    history = tmp_path / "run" / "alone--seed=1" / "history.csv"
    wait_until(lambda: history.exists() and len(history.read_text().splitlines()) > 2)
    workers = children_of(process.pid)
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(is_alive, workers)), seconds=30)
    # Nothing holds the folder, and half the work is not done again.
    again = subprocess.run(
        command(path, "--jobs", "2", "--until", "alone"), capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert "Epoch 1/50" not in again.stdout.split("alone--seed=2")[0]


@pytest.mark.slow
def test_an_error_in_a_worker_is_one_line(tmp_path):
    foreign = tmp_path / "run" / "alone--seed=2"
    foreign.mkdir(parents=True)
    (foreign / "thesis.tex").write_text("not to be lost")
    ended = subprocess.run(
        command(write(tmp_path), "--jobs", "2", "--until", "alone"),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "alone--seed=2" in ended.stderr and "other files" in ended.stderr
    assert (foreign / "thesis.tex").exists()


@pytest.mark.parametrize("jobs", [0, 4096])
def test_jobs_are_as_many_as_cores_at_most(tmp_path, jobs, capsys):
    status = cli.main(command(write(tmp_path), "--jobs", str(jobs))[3:])
    assert status == 2
    assert "expected from 1 to" in capsys.readouterr().err


def end_of(code, monkeypatch):
    """What becomes of a stage's process that runs this code."""
    monkeypatch.setattr(processes, "_command", lambda: [sys.executable, "-c", code])
    process = processes.StageProcess({})
    try:
        with _log.shown():
            process.relay("slim", logger.info)
    finally:
        ended = process.end()
    job = Job(types.SimpleNamespace(name="slim"), (Place("", "", (0,)),))
    parallel._check(parallel.Ended(job, *ended))


def test_what_a_process_prints_is_told_apart_whatever_its_bytes(capsys, monkeypatch):
    code = r"print('== slim ==\n\nslim: begun\nEpoch 1', flush=True);"
    code += r"import sys; sys.stdout.buffer.write(b'caf\xe9\n')"
    end_of(code, monkeypatch)
    assert capsys.readouterr().out.splitlines() == [
        "== slim ==",
        "slim: begun",
        "slim: Epoch 1",
        "slim: caf\ufffd",
    ]


def test_the_error_is_found_between_notices_and_its_traceback_is_kept(monkeypatch):
    code = "import sys; sys.exit('Traceback: in a.py\\nkdprune: too wide\\nnotice')"
    with pytest.raises(ValueError, match="^stage 'slim': too wide$") as caught:
        end_of(code, monkeypatch)
    assert "in a.py" in str(caught.value.__cause__)


def test_a_worker_imports_nothing_from_the_folder_it_runs_in(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('a json.py of the user')")
    ended = subprocess.run(
        processes._command(),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "JSONDecodeError" in ended.stderr and "of the user" not in ended.stderr


def test_a_process_that_is_killed_is_no_error_of_the_input(monkeypatch):
    with pytest.raises(ValueError, match="'slim': its process was ended by SIGKILL"):
        code = "import os; print('x', flush=True); os.kill(os.getpid(), 9)"
        end_of(code, monkeypatch)


def test_a_reader_that_is_gone_ends_the_process(monkeypatch):
    with open(os.devnull) as unwritable:
        monkeypatch.setattr(sys, "stdout", unwritable)
        with pytest.raises(OSError):
            end_of("while True: print('x' * 1000, flush=True)", monkeypatch)


def node(name, alone=False, learns=False):
    settings = types.SimpleNamespace(alone=alone, together=lambda: learns)
    return types.SimpleNamespace(name=name, settings=settings, taught=False)


def assigned(ready, running, places):
    return {job.node.name: job.places for job in assign(ready, running, places)}


ONE, TWO = (Place("m", "", (core,)) for core in (0, 1))


def test_on_one_machine_what_is_timed_waits_until_nothing_else_runs():
    first, second, timed = node("first"), node("second"), node("timed", alone=True)
    chosen = assigned([timed, first, second], [], [ONE, TWO])
    assert chosen == {"first": (ONE,), "second": (TWO,)}
    assert assigned([timed], [Job(first, (ONE,))], [ONE, TWO]) == {}
    assert assigned([timed], [], [ONE, TWO]) == {"timed": (ONE, TWO)}
    assert assigned([first], [Job(timed, (ONE, TWO))], [ONE, TWO]) == {}


def test_what_has_nothing_beside_it_gets_all_of_its_worker():
    first, second = node("first"), node("second")
    assert assigned([first], [], [ONE, TWO]) == {"first": (ONE, TWO)}
    assert assigned([first], [Job(second, (TWO,))], [ONE, TWO]) == {"first": (ONE,)}


def test_on_several_machines_what_is_timed_has_one_to_itself():
    a, b = (Place("m", name, (core,)) for name, core in (("a", 0), ("b", 1)))
    c, d = (Place("n", "c", (core,)) for core in (0, 1))
    first, timed = node("first"), node("timed", alone=True)
    also = node("also", alone=True)
    # The freest worker is c; beside a worker of its machine nothing is timed.
    found = assigned([timed, also, first], [], [a, b, c, d])
    assert found == {"first": (c,), "timed": (a,)}
    assert assigned([timed], [Job(first, (b,))], [a, b, c, d]) == {"timed": (c, d)}
    # Nothing starts beside what is timed, on any worker of its machine.
    assert assigned([first], [Job(timed, (a,))], [a, b]) == {}


def test_what_learns_goes_where_there_are_gpus_and_the_rest_elsewhere():
    plain, fast = Place("m", "a", (0, 1)), Place("n", "b", (0,), ("0",))
    learns, rest = node("learns", learns=True), node("rest")
    assert assigned([rest, learns], [], [fast, plain]) == {
        "rest": (plain,),
        "learns": (fast,),
    }
    assert assigned([rest], [Job(learns, (plain,))], [fast, plain]) == {"rest": (fast,)}
