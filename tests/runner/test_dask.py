"""Stages on the workers of a real dask scheduler: refusals, places, and a lost one."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest

from kdprune import cli
from kdprune.runner import dask_engine, dask_tasks
from kdprune.runner.parallel import Ended, Job, Place
from tests.runner.conftest import children_of, wait_until

pytest.importorskip("distributed", reason="needs the extra: cluster")

RECIPE = """
name: small
seed: 1
data: {dataset: shapes, train_images: 100, test_images: 50}
baseline: alone
matrix: {seed: [1, 2]}
stages:
  alone:
    kind: train
    model: {name: dscnn, width: 8, blocks: 1}
    training: {epochs: 20, batch_size: 50, learning_rate: 0.01}
  measured: {kind: evaluate, from: alone, latency: false}
"""
# A program of dask's, of which nothing is open to other machines.
HTTP = ("--dashboard-address", "127.0.0.1:0")
PROGRAM = "import sys; from dask.__main__ import main; sys.exit(main())"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def dask(tmp_path):
    """`dask(*arguments)` starts `dask scheduler` or `dask worker`; ended afterwards."""
    with contextlib.ExitStack() as started:

        def start(*arguments, before=(), **environment):
            log = started.enter_context(open(tmp_path / "dask.log", "a"))
            process = subprocess.Popen(
                [*before, sys.executable, "-c", PROGRAM, *map(str, arguments), *HTTP],
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                cwd=tmp_path,
            )
            started.callback(process.wait)
            started.callback(process.kill)
            return process

        yield start


@pytest.fixture
def scheduler(dask, hosts):
    (address,) = hosts.free(1)
    host, port = address.split(":")
    dask("scheduler", "--host", host, "--port", port)
    return f"tcp://{address}"


@pytest.fixture
def worker(dask, scheduler):
    """`worker(**environment)` starts one on the loopback address with one core."""

    def start(*more, **options):
        arguments = ["--host", "127.0.0.1", "--nthreads", 1]
        arguments += ["--no-nanny", "--death-timeout", 60, "--resources", "CORES=1"]
        return dask("worker", scheduler, *arguments, *more, **options)

    return start


def refused(capsys, recipe, *arguments):
    """The one line in which a run is refused."""
    command = ["run", str(recipe), "--output", str(recipe.parent / "run")]
    assert cli.main([*command, "--executor", "dask", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_the_extra_it_is_named(capsys, recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'kdprune[cluster]'" in refused(capsys, recipe)


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        (
            "127.0.0.1:8786",
            "expects tcp://HOST:PORT or tls://HOST:PORT. Received: '127",
        ),
        ("tcp://127.0.0.1", "expects tcp://HOST:PORT or tls://HOST:PORT"),
        ("tcp://127.0.0.1:99999", "expects tcp://HOST:PORT or tls://HOST:PORT"),
        ("ucx://127.0.0.1:8786", "expects tcp://HOST:PORT or tls://HOST:PORT"),
        ("tcp://192.0.2.1:8786", "or --insecure where all who reach these ports"),
        ("tls://192.0.2.1:8786", "expects certificates in dask's configuration"),
    ],
)
def test_a_scheduler_of_no_use_or_open_to_others_is_refused(
    capsys, recipe, address, fault
):
    assert fault in refused(capsys, recipe, "--scheduler", address)


def test_a_scheduler_that_is_not_there_is_one_line(capsys, recipe, hosts, monkeypatch):
    monkeypatch.setattr(dask_engine, "CONNECT", 0.5)
    address = f"tcp://{hosts.free(1)[0]}"
    line = refused(capsys, recipe, "--scheduler", address)
    # Which it is depends on what the last attempt was doing when time was up.
    why = "(Connection refused|no answer in 0.5 s)"
    assert re.search(f"can't reach the scheduler {address}: {why}; start it", line)


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        (["--jobs", "2"], "--jobs"),
        (["--only", "alone"], "--only"),
        (["--workers", "a:1,b:1", "--index", "0"], "--workers"),
    ],
)
def test_other_ways_to_spread_stages_do_not_go_with_it(
    capsys, recipe, arguments, received
):
    line = refused(capsys, recipe, *arguments)
    assert "runs each stage on one worker of the scheduler" in line
    assert line.endswith(f"Received: {received}")


@pytest.mark.parametrize(
    "option", [["--scheduler", "tcp://127.0.0.1:1"], ["--insecure"]]
)
def test_options_of_dask_expect_it(capsys, recipe, option):
    assert cli.main(["run", str(recipe), *option]) == 2
    assert f"{option[0]} expects --executor dask" in capsys.readouterr().err


ANSWER = {"machine": "m", "host": "h", "cores": [0, 1, 2, 3], "gpus": None}


def told(threads=1, **resources):
    return {"resources": resources, "nthreads": threads}


def test_workers_of_other_versions_or_without_kdprune_or_cores_are_told():
    answer = {**ANSWER, "versions": dask_tasks.versions()}
    assert dask_engine._problem(answer, told(CORES=1)) is None
    older = {**answer, "versions": {**answer["versions"], "kdprune": "0.0"}}
    line = dask_engine._problem(older, told(CORES=1))
    assert line.startswith("has kdprune 0.0, and this process")
    line = dask_engine._problem(
        ModuleNotFoundError("No module named 'kdprune'"), told()
    )
    assert line.startswith("can't run this kdprune") and "No module" in line
    assert "gives no CORES" in dask_engine._problem(answer, told())


def test_workers_of_one_machine_have_cores_and_gpus_of_their_own():
    first = dask_engine._share(ANSWER, told(CORES=2, GPU=1), [])
    second = dask_engine._share(ANSWER, told(CORES=2, GPU=1), [first])
    assert (first["cores"], second["cores"]) == ([0, 1], [2, 3])
    assert (first["gpus"], second["gpus"]) == (["0"], ["1"])
    assert "has 0 on h" in dask_engine._share(ANSWER, told(CORES=1), [first, second])
    visible = {**ANSWER, "gpus": ["3"]}
    assert dask_engine._share(visible, told(CORES=1, GPU=1), [])["gpus"] == ["3"]
    line = dask_engine._share(visible, told(CORES=1, GPU=2), [])
    assert "gives GPU=2, and has 1 in CUDA_VISIBLE_DEVICES" in line


def test_a_worker_has_a_place_for_each_thread_with_a_core_and_a_gpu():
    known = {"w": {"machine": "m", "cores": [0, 1, 2], "gpus": [], "threads": 2}}
    assert dask_engine._places(known) == [
        Place("m", "w", (0, 2)),
        Place("m", "w", (1,)),
    ]
    known["w"]["gpus"] = ["0"]
    assert dask_engine._places(known) == [Place("m", "w", (0, 1, 2), ("0",))]


def test_a_folder_is_shared_if_its_word_and_its_lock_are_seen(tmp_path):
    find = dask_tasks.find_run
    assert find(str(tmp_path / "none"), "word").startswith("does not see it")
    with open(tmp_path / ".lock", "w") as lock:
        lock.write("word")
        lock.flush()
        assert "without its locks" in find(str(tmp_path), "word")
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert find(str(tmp_path), "word") is None
        assert find(str(tmp_path), "other") == "has another folder there"


@pytest.mark.parametrize("status", ["lost", "pending"])
def test_a_result_that_was_lost_with_its_worker_is_a_lost_worker(status):
    client = types.SimpleNamespace(status="running")
    engine = dask_engine.Dask(client, "tcp://127.0.0.1:1", False)
    job = Job(types.SimpleNamespace(name="slim"), (Place("m", "w", (0,)),))
    engine._running[job] = future = types.SimpleNamespace(status=status)
    engine._ended.put((job, future))
    assert engine.wait() == Ended(job, None)


@pytest.mark.slow
def test_a_worker_of_another_version_an_open_one_and_one_without_the_folder(
    capsys, recipe, tmp_path, dask, scheduler, worker, monkeypatch
):
    (tmp_path / "older.py").write_text("import kdprune\nkdprune.__version__ = '0.0'\n")
    older = worker("--preload", tmp_path / "older.py")
    line = refused(capsys, recipe, "--scheduler", scheduler)
    assert "has kdprune 0.0, and this process" in line
    older.kill()
    older.wait()
    # By its address it is of this machine; its port is open to others.
    resources = ["--resources", "CORES=1", "--no-nanny", "--death-timeout", 60]
    everywhere = dask("worker", scheduler, *resources)
    line = refused(capsys, recipe, "--scheduler", scheduler)
    assert "where other machines may reach it: start it with --host 127.0.0.1" in line
    everywhere.kill()
    everywhere.wait()
    monkeypatch.setattr(dask_engine, "SEEN", 0.0)
    # It sees another folder at that place: a mount of its own.
    run = tmp_path / "run"
    run.mkdir()
    mounting = ["unshare", "--mount", "sh", "-c"]
    mounting += [f'mount -t tmpfs none {run} && exec "$@"', "sh"]
    if subprocess.run([*mounting, "true"], capture_output=True).returncode:
        pytest.skip("can't give a process a mount of its own")
    worker(before=mounting)
    line = refused(capsys, recipe, "--scheduler", scheduler)
    assert f"does not share the run's folder {run}: it does not see it" in line


def certificate(folder, name):
    """dask's configuration of a certificate that is its own authority."""
    cert, key = (str(folder / f"{name}.{kind}") for kind in ("cert", "key"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    roles = {
        f"distributed.comm.tls.{role}.{kind}": path
        for role in ("scheduler", "worker", "client")
        for kind, path in (("cert", cert), ("key", key))
    }
    return {"distributed.comm.tls.ca-file": cert, **roles}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_by_tls_both_ends_show_a_certificate(dask, hosts, tmp_path, monkeypatch):
    from dask import config

    (address,) = hosts.free(1)
    host, port = address.split(":")
    ours, foreign = (certificate(tmp_path, name) for name in ("ours", "foreign"))
    environment = {
        f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": path
        for key, path in ours.items()
    }
    place = ["--host", host, "--protocol", "tls"]
    dask("scheduler", *place, "--port", port, **environment)
    address = f"tls://{address}"
    arguments = [*place, "--nthreads", 1, "--no-nanny", "--death-timeout", 60]
    dask("worker", address, *arguments, "--resources", "CORES=1", **environment)
    with config.set(ours), dask_engine.connect(address) as engine:
        (known,) = engine._known
        assert known.startswith("tls://127.0.0.1:")
    monkeypatch.setattr(dask_engine, "CONNECT", 2.0)
    refused = pytest.raises(OSError, match="can't reach the scheduler")
    with config.set({**ours, **foreign, "distributed.comm.tls.ca-file": ours[CA]}):
        with refused as error:  # It trusts the scheduler, which does not trust it.
            dask_engine.connect(address)
    assert "\n" not in str(error.value)


CA = "distributed.comm.tls.ca-file"


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_workers_come_and_go_and_a_lost_scheduler_is_one_line(
    tmp_path, dask, hosts, caplog
):
    (address,) = hosts.free(1)
    host, port = address.split(":")
    scheduler = dask("scheduler", "--host", host, "--port", port)

    def worker(*more):
        place = ["--host", host, "--no-nanny", "--nthreads", 1]
        return dask("worker", f"tcp://{address}", *place, "--death-timeout", 60, *more)

    first = worker("--resources", "CORES=1")
    with (
        dask_engine.connect(f"tcp://{address}") as engine,
        open(tmp_path / ".lock", "a+") as lock,
    ):
        lock.write("word")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine.enter(tmp_path, lock)
        assert len(engine.places()) == 1
        (at,) = hosts.free(1)
        same_port = ["--worker-port", at.split(":")[1]]
        without = worker(*same_port)
        wait_until(lambda: engine.places() and "is left out" in caplog.text)
        assert "gives no CORES" in caplog.text
        without.kill()
        without.wait()
        worker("--resources", "CORES=1", *same_port)
        wait_until(lambda: len(engine.places()) == 2)
        first.kill()
        wait_until(lambda: len(engine.places()) == 1)
        scheduler.kill()
        with pytest.raises(OSError, match=r"the scheduler .* was lost") as error:
            wait_until(lambda: not engine.places())
    assert "\n" not in str(error.value)


def results(folder):
    """What the stages have handed on, but for the commands and cores that made it."""
    found = {}
    for path in sorted(folder.glob("alone*/record.json")):
        outputs = json.loads(path.read_text())["outputs"]
        found[path.parent.name] = {n: o["sha256"] for n, o in outputs.items()}
    metrics = json.loads((folder / "metrics.json").read_text())
    return found, {**metrics, "command": "", "machine": {}}


def node_of(process, folder):
    """The stage whose process a dask worker has started, by the lock that it holds."""
    for child in children_of(process.pid):
        links = []
        with contextlib.suppress(OSError):  # It may just have ended.
            links = os.listdir(f"/proc/{child}/fd")
        for link in links:
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/{child}/fd/{link}")
                if path.startswith(str(folder / ".locks")):
                    return child, path.rpartition("/")[2]
    return None


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_run_with_a_killed_worker_ends_as_one_machine_does(
    recipe, tmp_path, scheduler, worker
):
    workers = [worker(), worker()]
    command = [sys.executable, "-m", "kdprune", "run", str(recipe), "--output"]
    run = subprocess.Popen(
        [
            *command,
            str(tmp_path / "run"),
            "--executor",
            "dask",
            "--scheduler",
            scheduler,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    killed = None
    while killed is None:
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.1)
        for one in workers:
            found = node_of(one, tmp_path / "run")
            if found and any((tmp_path / "run" / found[1]).glob("checkpoints/epoch-*")):
                killed, (child, node) = one, found
                break
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    shown, errors = run.communicate(timeout=400)
    assert run.returncode == 0, errors
    assert f"{node}: worker tcp://127.0.0.1" in errors and "was lost" in errors
    assert f"{node}: resuming after epoch" in shown
    for name in ("alone--seed=1", "alone--seed=2", "measured"):
        assert f"{name}: done in" in shown
    # Its process ended with it, whoever was its parent.
    assert not os.path.exists(f"/proc/{child}")
    alone = subprocess.run(
        ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), *command]
        + [str(tmp_path / "one"), "--jobs", "1"],
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    assert results(tmp_path / "run") == results(tmp_path / "one")
