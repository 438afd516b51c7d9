"""Stages in processes of this machine, each on cores of its own."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from kdprune._log import logger
from kdprune.runner.parallel import Ended, Job, Place


class Processes:
    """The engine of `--jobs`: the cores of this process, divided among the jobs.

    The stages' processes end with this one, however it ends, and hold the folder's
    lock until then.

    Args:
        jobs: Most processes at a time, at least 1 and at most the cores.
        lock: The open file whose lock keeps other runs out of the folder.

    Raises:
        ValueError: If `jobs` is out of range.
    """

    def __init__(self, jobs: int, lock: IO[str]) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if not 1 <= jobs <= len(cores):
            raise ValueError(
                f"expected from 1 to {len(cores)} jobs (the cores at hand). "
                f"Received: {jobs}"
            )
        shares = [cores[index::jobs] for index in range(jobs)]
        self._places = [Place("", "", tuple(share)) for share in shares]
        self._lock = lock
        self._running: dict[Job, StageProcess] = {}
        self._ended: queue.Queue[Job] = queue.Queue()

    def places(self) -> Sequence[Place]:
        return self._places

    def start(self, job: Job, content: dict[str, Any]) -> None:
        process = StageProcess(content, lock=self._lock)
        self._running[job] = process

        def follow() -> None:
            try:
                process.relay(job.node.name, lambda line: logger.info("%s", line))
            finally:
                self._ended.put(job)

        threading.Thread(target=follow, daemon=True).start()

    def wait(self) -> Ended:
        job = self._ended.get()
        return Ended(job, *self._running.pop(job).end())

    def stop(self) -> None:
        for process in self._running.values():
            process.kill()


class StageProcess:
    """A process of `worker.main`, which ends with this one.

    Args:
        content: What it is told.
        environment: Variables that are not as in this process.
        folder: Where it runs; None for the present folder.
        lock: An open file that it shall hold too.
    """

    def __init__(
        self,
        content: dict[str, Any],
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
        lock: IO[str] | None = None,
    ) -> None:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            errors="replace",
            cwd=folder,
            env={**os.environ, **(environment or {})},
            pass_fds=[lock.fileno()] if lock else [],
            # Ctrl-C is for the first process alone; the others end with it.
            start_new_session=True,
        )
        assert self._process.stdin is not None  # It is a pipe.
        self._process.stdin.write(json.dumps(content) + "\n")
        self._process.stdin.flush()

    def relay(self, name: str, tell: Callable[[str], None]) -> None:
        """Passes on the lines it prints, under its node's name, until it ends."""
        try:
            # Closed at an error, so that the process does not wait for its reader.
            assert self._process.stdout is not None  # It is a pipe.
            with self._process.stdout as lines:
                for line in lines:
                    if line.strip():
                        named = line.startswith((name, "=="))
                        text = line.rstrip("\n")
                        tell(text if named else f"{name}: {text}")
        finally:
            self._process.wait()

    def end(self) -> tuple[int, str]:
        """Its exit status and what it said on its standard error, once it has ended."""
        assert self._process.stdin is not None  # It is a pipe.
        self._process.stdin.close()
        with self._errors as errors:
            errors.seek(0)
            return self._process.wait(), errors.read()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _command() -> list[str]:
    """Starts a worker that imports what this process does, wherever it runs."""
    # By -m, a json.py in the present folder would stand before Python's own.
    start = "from kdprune.runner import worker; sys.exit(worker.main())"
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {start}"]
