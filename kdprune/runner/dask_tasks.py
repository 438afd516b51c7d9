"""What runs inside a dask worker: it tells what it is, and runs stages."""

from __future__ import annotations

import fcntl
import os
import pathlib
import platform
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from kdprune.runner import cluster
from kdprune.runner.folder import LOCK
from kdprune.runner.processes import StageProcess

# Seconds between two looks at whether the run is still under way, and how many in a row
# must say that it is not: a shared folder may be away for a moment.
_LOOK, _LOOKS = 1.0, 3
# Characters of what a process says on its standard error, the last ones, to send.
_SAID = 20_000


def versions() -> dict[str, str]:
    """What must be the same in all workers and where the run is started."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **cluster.versions()}


def describe(dask_worker: Any) -> dict[str, Any]:
    """What a worker is: JSON-able, as `dask_engine` needs it."""
    import psutil  # It comes with dask.

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Where it listens, which need not be the address that it tells others.
    ports = {urlsplit(one.listen_address).port for one in dask_worker.listeners}
    sockets = psutil.Process().net_connections("tcp")
    listening = (one.laddr for one in sockets if one.status == psutil.CONN_LISTEN)
    return {
        "versions": versions(),
        # Its address may be of the loopback interface, and its port open on all.
        "listens": sorted({at.ip for at in listening if at.port in ports}),
        "host": socket.gethostname(),
        "machine": _machine(),
        "cores": sorted(os.sched_getaffinity(0)),
        "gpus": visible.split(",") if visible else None,
    }


def _machine() -> str:
    """What tells machines apart: containers have own names, and share its cores."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # A sandbox may not show it.
        return socket.gethostname()


def find_run(folder: str, word: str) -> str | None:
    """What keeps this process from a run's folder, in words; None if nothing does.

    Args:
        folder: The run's folder.
        word: What the process that started the run has written to its lock.
    """
    try:
        with open(pathlib.Path(folder, LOCK)) as lock:
            if lock.read() != word:
                return "has another folder there"
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return None if os.access(folder, os.W_OK) else "may not write there"
    except OSError as error:
        return f"does not see it ({error.strerror})"
    return "sees it without its locks: mount it with locks that all hosts share"


def run_stage(
    content: dict[str, Any],
    word: str,
    gpus: list[str],
    folder: str,
    topic: str,
) -> tuple[int, str]:
    """Runs a stage in a process of its own, as long as its run is under way.

    Args:
        content: What `worker.main` is told.
        word: What is written in the lock of the run's folder.
        gpus: The GPUs that it may use.
        folder: Where the run was started, for relative paths.
        topic: The topic of the events by which the lines that it prints are sent.

    Returns:
        `(status, said)`: as of `parallel.Ended`.
    """
    from distributed import get_worker

    tell = get_worker().log_event
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    here = folder if os.path.isdir(folder) else None
    process = StageProcess(content, environment, here)
    over = threading.Event()

    def look() -> None:
        """Ends the process with the run: nothing else would tell that it is gone."""
        gone = 0
        while not over.wait(_LOOK):
            gone = gone + 1 if find_run(content["folder"], word) else 0
            if gone == _LOOKS:
                process.kill()

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        process.relay(content["node"], lambda line: tell(topic, line))
    finally:
        over.set()
        watching.join()
        status, said = process.end()
    return status, said[-_SAID:]
