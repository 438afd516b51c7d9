"""Workers that meet, that are refused, and that are lost: over real connections."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import pytest
import yaml

from kdprune.runner import beat, cluster
from kdprune.runner.cluster import Refused, meet
from kdprune.runner.hosts import Layout

ABOUT = {"recipe": "r", "versions": {"kdprune": "1", "tensorflow": "2"}}
RECIPE = {
    "name": "small",
    "data": {"dataset": "shapes", "train_images": 200, "test_images": 20},
    "stages": {
        "model": {
            "kind": "train",
            "model": {"name": "dscnn", "width": 8, "blocks": 1},
            "training": {"epochs": 1, "batch_size": 20, "learning_rate": 0.01},
        }
    },
}


def together(workers, wait=20.0):
    """What `meet` returns or raises, of `(layout, about)` each in a thread."""
    results = [None] * len(workers)

    def run(place, layout, about):
        try:
            peers = meet(layout, about, wait)
            results[place] = sorted(peer.index for peer in peers)
            results[place] = tuple(results[place])
            time.sleep(0.2)
            for peer in peers:
                peer.socket.close()
        except (ValueError, OSError) as error:
            results[place] = error

    threads = [
        threading.Thread(target=run, args=(place, *worker))
        for place, worker in enumerate(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=wait + 10)
    return results


def test_workers_meet_in_any_order(hosts):
    addresses = hosts.free(3)
    layouts = [Layout(addresses, index) for index in (2, 1, 0)]
    assert together([(layout, ABOUT) for layout in layouts]) == [(0,), (0,), (1, 2)]


def test_a_worker_that_starts_late_is_waited_for(hosts):
    addresses = hosts.free(2)
    chief = threading.Thread(target=together, args=([(Layout(addresses, 0), ABOUT)],))
    chief.start()
    time.sleep(1.2)
    assert together([(Layout(addresses, 1), ABOUT)]) == [(0,)]
    chief.join()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"recipe": "other"}, "was given another recipe than the chief"),
        (
            {"versions": {"kdprune": "1", "tensorflow": "3"}},
            "has other versions: tensorflow 3 (the chief: 2); install the same on all",
        ),
        ({"versions": {"kdprune": "1"}}, "tensorflow none (the chief: 2)"),
    ],
)
def test_what_differs_is_refused_by_all(changes, fault, hosts):
    addresses = hosts.free(3)
    abouts = [ABOUT, {**ABOUT, **changes}, ABOUT]
    found = together([(Layout(addresses, i), abouts[i]) for i in range(3)])
    assert all(type(error) is Refused for error in found)
    assert {str(error) for error in found} == {str(found[0])}
    assert f"worker 1 ({addresses[1]})" in str(found[0])
    assert fault in str(found[0])


def test_the_same_index_twice_is_refused_by_all(hosts):
    addresses = hosts.free(3)
    found = together([(Layout(addresses, i), ABOUT) for i in (0, 1, 1)])
    assert {str(error) for error in found} == {str(found[0])}
    assert "got two workers of index 1" in str(found[0])


def test_a_second_chief_is_refused_by_all(hosts):
    addresses = hosts.free(3)
    found = together([(Layout(addresses, i), ABOUT) for i in (0, 0, 1)])
    assert {str(error) for error in found} == {str(found[0])}
    assert "got two workers of index 0" in str(found[0])


def test_other_workers_than_the_chiefs_are_refused_by_all(hosts):
    addresses = hosts.free(3)
    found = together(
        [
            (Layout(addresses[:2], 0), ABOUT),
            (Layout((addresses[0], addresses[2]), 1), ABOUT),
        ]
    )
    assert {str(error) for error in found} == {str(found[0])}
    assert "was given other workers than the chief" in str(found[0])


@pytest.mark.parametrize("taken", [0, 1])
def test_a_port_in_use_is_refused(taken, monkeypatch, hosts):
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    monkeypatch.setattr(cluster, "GRACE", 0.5)
    addresses = hosts.free(2)
    host, port = addresses[taken].split(":")
    with socket.create_server((host, int(port))):
        found = together([(Layout(addresses, i), ABOUT) for i in (0, 1)], wait=1.0)
    assert f"worker {taken} ({addresses[taken]}) can't listen there" in str(
        found[taken]
    )
    assert "in use" in str(found[taken])
    assert isinstance(found[1 - taken], ValueError | OSError)
    if taken:  # The chief hears of it.
        assert str(found[0]) == str(found[1])


def test_a_worker_that_never_comes_is_named(hosts):
    addresses = hosts.free(3)
    found = together([(Layout(addresses, i), ABOUT) for i in (0, 1)], wait=1.0)
    assert {str(error) for error in found} == {str(found[0])}
    assert f"waited 1 s for worker 2 ({addresses[2]})" in str(found[0])


def test_a_chief_that_never_comes_is_named(hosts):
    addresses = hosts.free(2)
    (error,) = together([(Layout(addresses, 1), ABOUT)], wait=0.5)
    assert f"for worker 0 ({addresses[0]}), the chief" in str(error)


def test_strangers_at_the_port_are_ignored(hosts):
    addresses = hosts.free(2)
    host, port = addresses[0].split(":")

    def stranger():
        nested = struct.pack(">I", 60_000) + b"[" * 60_000
        http = b"GET / HTTP/1.1\r\n\r\n"
        for content in (http, b"\0\0\0\2[]", b"\0\0\0\2{}", nested, b""):
            for _ in range(100):
                with contextlib.suppress(OSError):
                    with socket.create_connection((host, int(port))) as one:
                        one.sendall(content)
                    break
                time.sleep(0.02)
        together([(Layout(addresses, 1), ABOUT)])

    thread = threading.Thread(target=stranger)
    thread.start()
    assert together([(Layout(addresses, 0), ABOUT)]) == [(1,)]
    thread.join()


def test_a_worker_may_be_started_again_while_others_are_waited_for(hosts):
    addresses = hosts.free(3)
    host, port = addresses[0].split(":")

    def ended():
        """Worker 1 says hello and is killed."""
        hello = {"kdprune": True, "workers": list(addresses), "index": 1, **ABOUT}
        for _ in range(100):
            with contextlib.suppress(OSError):
                with socket.create_connection((host, int(port))) as one:
                    one.sendall(cluster._packed(hello))
                break
            time.sleep(0.02)
        time.sleep(0.2)
        together([(Layout(addresses, 1), ABOUT), (Layout(addresses, 2), ABOUT)])

    thread = threading.Thread(target=ended)
    thread.start()
    assert together([(Layout(addresses, 0), ABOUT)]) == [(1, 2)]
    thread.join()


def test_a_hello_is_waited_for_as_a_whole(monkeypatch):
    """A stranger that says a byte at a time keeps nobody waiting."""
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    here, there = socket.socketpair()

    def drip():
        with contextlib.suppress(OSError):
            there.sendall(struct.pack(">I", 1_000))
            for _ in range(60):
                there.sendall(b" ")
                time.sleep(0.1)

    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    assert cluster._hello_of(here) is None
    assert time.monotonic() - started < 3
    here.close()
    there.close()
    thread.join()


def test_tensorflow_can_take_over_the_port(hosts):
    addresses = hosts.free(2)
    layouts = [Layout(addresses, index) for index in (0, 1)]
    peers = {}
    threads = [
        threading.Thread(
            target=lambda one=one: peers.update({one.index: meet(one, ABOUT)})
        )
        for one in layouts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("0.0.0.0", int(addresses[0].split(":")[1])))
        server.listen()
    for one in (*peers[0], *peers[1]):
        one.socket.close()


# A worker that trains nothing: what it does is wait for what the chief tells.
WORKER = """
import ctypes, sys, time
from kdprune.runner import cluster
from kdprune.runner.hosts import Layout

index, silence, *addresses = sys.argv[1:]
cluster.SILENCE, cluster.BEAT = float(silence), 0.1
layout = Layout(tuple(addresses), int(index))
me = cluster.Cluster(layout, cluster.meet(layout, {"recipe": 1, "versions": {}}))
print("met", flush=True)
told = sys.stdin.readline()
if "fail" in told:
    me.fail(ValueError("the stage failed"))
    sys.exit(2)
if "hold" in told:
    ctypes.PyDLL(None).usleep(2_500_000)  # With the interpreter's lock.
    print("held", flush=True)
me.hear() if me.index else time.sleep(60)
"""


@contextlib.contextmanager
def waiting(hosts, count, silence=30.0):
    """Processes of so many workers that have met."""
    addresses = hosts.free(count)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(index), str(silence), *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        for one in started:
            assert one.stdout.readline() == "met\n", one.stderr.read()
        yield started, addresses
    finally:
        for one in started:
            one.kill()
            one.communicate()


def ends(process, within):
    _, errors = process.communicate(timeout=within)
    return process.returncode, errors


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_all_end_in_a_line_when_one_is_killed(lost, hosts):
    with waiting(hosts, 3) as (workers, addresses):
        workers[lost].send_signal(signal.SIGKILL)
        for index in {0, 1, 2} - {lost}:
            status, errors = ends(workers[index], within=10)
            assert (status, errors.count("\n")) == (2, 1)
            assert errors.startswith(
                f"kdprune: worker {lost} ({addresses[lost]}) was lost: its connection "
                "broke; start all workers again"
            )


def test_all_end_in_a_line_when_one_hangs(hosts):
    with waiting(hosts, 3, silence=1.0) as (workers, addresses):
        workers[1].send_signal(signal.SIGSTOP)
        for index in (0, 2):
            status, errors = ends(workers[index], within=10)
            assert (status, errors.count("\n")) == (2, 1)
            expected = f"worker 1 ({addresses[1]}) was lost: gave no sign for 1 s"
            assert expected in errors
        # Woken up, it finds that the others are gone.
        workers[1].send_signal(signal.SIGCONT)
        status, errors = ends(workers[1], within=10)
        assert (status, errors.count("\n")) == (2, 1)
        assert f"worker 0 ({addresses[0]}) was lost" in errors


@pytest.mark.slow
def test_one_that_holds_the_interpreters_lock_gives_signs_of_life(hosts):
    with waiting(hosts, 2, silence=1.5) as (workers, _):
        workers[1].stdin.write("hold\n")
        workers[1].stdin.flush()
        assert workers[1].stdout.readline() == "held\n"
        assert [one.poll() for one in workers] == [None, None]


@contextlib.contextmanager
def beating(parent, *sockets):
    """The process that gives signs of life on these, of a worker of that number."""
    with tempfile.TemporaryFile() as lock:
        files = [lock.fileno(), *(one.fileno() for one in sockets)]
        process = subprocess.Popen(
            [sys.executable, "-I", beat.__file__]
            + [str(one) for one in (parent, 0.05, 30, *files)],
            stdin=subprocess.PIPE,
            pass_fds=files,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def test_signs_of_life_end_with_the_worker_whoever_holds_their_input():
    with contextlib.ExitStack() as opened:
        pair = [opened.enter_context(one) for one in socket.socketpair()]
        with beating(os.getppid(), pair[0]) as process:  # Its parent is another.
            assert process.wait(timeout=10) == 0


def test_one_that_takes_nothing_keeps_no_signs_of_life_from_others():
    with contextlib.ExitStack() as opened:
        full, _, live, there = (
            opened.enter_context(one)
            for pair in (socket.socketpair(), socket.socketpair())
            for one in pair
        )
        full.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while full.send(bytes(1 << 16)):
                pass
        there.settimeout(10)
        with beating(os.getpid(), full, live):
            for _ in range(3):
                assert there.recv(len(beat.FRAME), socket.MSG_WAITALL) == beat.FRAME


def test_an_error_of_one_is_told_by_all(hosts):
    with waiting(hosts, 3) as (workers, addresses):
        workers[2].stdin.write("fail\n")
        workers[2].stdin.flush()
        for index in (0, 1):
            status, errors = ends(workers[index], within=10)
            expected = f"kdprune: worker 2 ({addresses[2]}): the stage failed\n"
            assert (status, errors) == (2, expected)


def test_another_recipe_is_refused_by_both_commands(tmp_path, hosts):
    other = {**RECIPE, "seed": 7}
    found = hosts.finish(hosts.start(tmp_path, [RECIPE, other], hosts.free(2)))
    for status, _, errors in found:
        assert (status, errors.count("\n")) == (2, 1), errors
        assert "was given another recipe than the chief" in errors


def test_what_the_options_say_is_checked_before_anything(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    done = subprocess.run(
        [sys.executable, "-m", "kdprune", "run", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CONFIG": "{cluster"},
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("kdprune: TF_CONFIG expects JSON such as")
