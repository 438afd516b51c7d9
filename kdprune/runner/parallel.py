"""Stages side by side, each in a process of its own, on cores of its own.

A small network cannot keep several cores busy: it waits at every layer until the
slowest of them is done. Trained one to a core, several finish sooner than one after
the other on all cores (`scripts/bench_jobs.py` measures by how much).
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import IO

from kdprune import _io
from kdprune._log import logger
from kdprune.runner.folder import Run
from kdprune.stages import Node

# Begins the line in which a worker says what is wrong with its input.
ERROR = "kdprune: "


@dataclasses.dataclass
class _Job:
    """A stage under way: its node, process, cores, and what it says on stderr."""

    node: Node
    process: subprocess.Popen[str]
    cores: list[int]
    errors: IO[str]


def execute(run: Run, nodes: Sequence[Node], jobs: int, lock: IO[str]) -> None:
    """Executes nodes as soon as what they need is done, up to `jobs` at once.

    The cores this process may use are divided among the jobs; a node that has
    nothing beside it gets all of them. The processes end with this one, however it
    ends, and hold the folder's lock until then.

    Args:
        run: The run.
        nodes: Its nodes to execute, each after those it needs.
        jobs: Most processes at a time, at least 1 and at most the cores.
        lock: The open file whose lock keeps other runs out of the folder.

    Raises:
        ValueError: If `jobs` is out of range, or as a stage raised it. The other
            stages are stopped; run again, they go on from there.
        RuntimeError: If a stage's process ended otherwise than by an error of its
            input.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        raise ValueError(
            f"expected from 1 to {len(cores)} jobs (the cores at hand). "
            f"Received: {jobs}"
        )
    free = [cores[index::jobs] for index in range(jobs)]
    waiting = list(nodes)
    running: list[_Job] = []
    ended: queue.Queue[_Job] = queue.Queue()
    try:
        while waiting or running:
            ready = [node for node in waiting if _ready(run, node)]
            done = [node for node in ready if run.record(node)]
            for node in done:
                waiting.remove(node)
                run.skip(node)
            if done:
                continue  # Others may be ready for it.
            chosen = _choose(ready, running, len(free))
            alone = len(chosen) == 1 and not running
            for node in chosen:
                waiting.remove(node)
                share = cores if alone else free.pop()
                running.append(_start(run, node, share, lock, ended))
            if not running:
                raise RuntimeError(
                    f"stage {waiting[0].name!r} can't start: the stages it needs are "
                    "done, but their records or files have been changed since"
                )
            job = ended.get()
            running.remove(job)
            _end(job)
            if job.cores is not cores:
                free.append(job.cores)
    finally:
        for job in running:
            job.process.kill()
            job.process.wait()


def _ready(run: Run, node: Node) -> bool:
    return all(run.record(parent) for parent in node.all_parents())


def _choose(ready: list[Node], running: list[_Job], places: int) -> list[Node]:
    """The nodes to start now, in the recipe's order: what is timed starts alone."""
    together = [node for node in ready if not node.settings.alone]
    if together:
        timed = any(job.node.settings.alone for job in running)
        return [] if timed else together[:places]
    return [] if running else ready[:1]


def _start(
    run: Run, node: Node, cores: list[int], lock: IO[str], ended: queue.Queue[_Job]
) -> _Job:
    errors = tempfile.TemporaryFile("w+", errors="replace")
    process = subprocess.Popen(
        _command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        errors="replace",
        pass_fds=[lock.fileno()],
        # Ctrl-C is for the first process alone; the others end with it.
        start_new_session=True,
    )
    content = {
        "recipe": run.recipe.model_dump(mode="json", by_alias=True, exclude_unset=True),
        "folder": str(run.folder),
        "data_dir": run.data_dir,
        "command": run.command,
        "node": node.name,
        "cores": cores,
    }
    assert process.stdin is not None  # It is a pipe.
    process.stdin.write(json.dumps(content) + "\n")
    process.stdin.flush()
    job = _Job(node, process, cores, errors)
    threading.Thread(target=_relay, args=(job, ended), daemon=True).start()
    return job


def _command() -> list[str]:
    """Starts a worker that imports what this process does, wherever it runs."""
    # By -m, a json.py in the present folder would stand before Python's own.
    start = "from kdprune.runner import worker; sys.exit(worker.main())"
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {start}"]


def _relay(job: _Job, ended: queue.Queue[_Job]) -> None:
    """Passes on what a process prints, under its node's name, until it ends."""
    try:
        # Closed at an error, so that the process does not wait for its reader.
        assert job.process.stdout is not None  # It is a pipe.
        with job.process.stdout as lines:
            for line in lines:
                if line.strip():
                    named = line.startswith((job.node.name, "=="))
                    text = line.rstrip("\n")
                    logger.info("%s", text if named else f"{job.node.name}: {text}")
    finally:
        job.process.wait()
        ended.put(job)


def _end(job: _Job) -> None:
    """Raises what ended a process; what it said of no consequence is dropped."""
    assert job.process.stdin is not None  # It is a pipe.
    job.process.stdin.close()
    with job.errors as errors:
        errors.seek(0)
        said = errors.read()
    status = job.process.returncode
    if not status:
        return
    lines = [line for line in said.splitlines() if line.startswith(ERROR)]
    if lines:
        message = f"stage {job.node.name!r}: {lines[-1].removeprefix(ERROR)}"
        # The traceback is in what it said.
        raise ValueError(message) from RuntimeError(said)
    if status < 0:
        name = signal.Signals(-status).name
        cause = " (out of memory?)" if status == -signal.SIGKILL else ""
        raise ValueError(
            f"stage {job.node.name!r}: its process was ended by {name}{cause}. "
            f"{_io.describe_memory()}. Run the same command again to go on from "
            "here, with fewer --jobs"
        )
    sys.stderr.write(said)
    raise RuntimeError(
        f"the process of stage {job.node.name!r} ended with status {status}"
    )
