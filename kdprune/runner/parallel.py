"""Stages side by side: which can start, where, and what becomes of them.

A small network cannot keep several cores busy: it waits at every layer until the
slowest of them is done. Trained one to a core, several finish sooner than one after
the other on all cores (`scripts/bench_jobs.py` measures by how much). An engine starts
the stages: in processes of this machine (`processes`), or on several (`dask_engine`).
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from kdprune import _io
from kdprune._log import logger
from kdprune.runner.folder import SEEN_WITHIN, Run
from kdprune.stages import Node

# Begins the line in which a stage's process says what is wrong with its input.
ERROR = "kdprune: "
# A stage that lost so many workers is likely to be what ends them.
_LOSSES = 3


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one stage at a time can run: a share of a worker.

    Attributes:
        machine: What is timed has it to itself.
        worker: Its name; "" for this process. A machine may have several.
        cores: The numbers of its processor cores.
        gpus: The names of its GPUs, where they are shared out.
    """

    machine: str
    worker: str
    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()


@dataclasses.dataclass(eq=False)
class Job:
    """A stage under way, and the places that it has: one, or all of a worker."""

    node: Node
    places: tuple[Place, ...]

    @property
    def worker(self) -> str:
        return self.places[0].worker

    @property
    def machine(self) -> str:
        return self.places[0].machine

    @property
    def cores(self) -> list[int]:
        return sorted(core for place in self.places for core in place.cores)

    @property
    def gpus(self) -> list[str]:
        return [gpu for place in self.places for gpu in place.gpus]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a stage ended.

    Attributes:
        job: The stage.
        status: The exit status of its process, as `subprocess` gives it; None if its
            worker was lost.
        said: What the process wrote to its standard error.
    """

    job: Job
    status: int | None
    said: str = ""


class Engine(Protocol):
    """Runs stages somewhere, in processes of their own."""

    def places(self) -> Sequence[Place]:
        """Where stages can run at present, at least one; may wait for it."""

    def start(self, job: Job, content: dict[str, Any]) -> None:
        """Starts a process of `worker.main`, which is told `content`."""

    def wait(self) -> Ended | None:
        """The next stage that ended; None if the places may be others now."""

    def stop(self) -> None:
        """Ends what is under way."""


def execute(run: Run, nodes: Sequence[Node], engine: Engine) -> None:
    """Executes nodes as soon as what they need is done, wherever there is a place.

    Args:
        run: The run.
        nodes: Its nodes to execute, each after those it needs.
        engine: Where they run.

    Raises:
        ValueError: As a stage raised it, or where a stage's process or its workers
            were ended. The other stages are stopped; run again, they go on from there.
        RuntimeError: If a stage's process ended otherwise than by an error of its
            input.
    """
    waiting = list(nodes)
    running: list[Job] = []
    lost: dict[str, list[str]] = {}
    try:
        while waiting or running:
            ready = [node for node in waiting if _ready(run, node)]
            done = [node for node in ready if run.record(node)]
            for node in done:
                waiting.remove(node)
                run.skip(node)
            if done:
                continue  # Others may be ready for it.
            if not (ready or running):
                raise RuntimeError(
                    f"stage {waiting[0].name!r} can't start: the stages it needs are "
                    "done, but their records or files have been changed since"
                )
            for job in assign(ready, running, engine.places()):
                waiting.remove(job.node)
                running.append(job)
                if job.worker:
                    logger.info("%s: on %s", job.node.name, job.worker)
                engine.start(job, _content(run, job))
            ended = engine.wait()
            if ended is None:
                continue
            running.remove(ended.job)
            node = ended.job.node
            if ended.status is None:
                _lose(ended.job, lost.setdefault(node.name, []))
                names = {node.name, *(one.name for one in waiting)}
                waiting = [one for one in nodes if one.name in names]
                continue
            _check(ended)
            if run.unseen([node], SEEN_WITHIN if ended.job.worker else 0):
                where = f" of {ended.job.worker}" if ended.job.worker else ""
                raise ValueError(
                    f"stage {node.name!r} is done, but its record or files{where} are "
                    f"not to be seen in {run.folder}, or have been changed since"
                )
    finally:
        engine.stop()


def assign(
    ready: Sequence[Node], running: Sequence[Job], places: Sequence[Place]
) -> list[Job]:
    """The stages to start now, in the recipe's order, and where.

    What is timed gets a worker of a machine where nothing else runs, after all that
    can run beside others; nothing starts beside it. What has nothing beside it
    anywhere gets all of its worker.

    Args:
        ready: Nodes whose inputs are done.
        running: Stages under way.
        places: All places there are, taken ones too.
    """
    taken = {place for job in running for place in job.places}
    closed = {job.machine for job in running if job.node.settings.alone}
    free = [one for one in places if one not in taken and one.machine not in closed]
    chosen = []
    for node in ready:
        if free and not node.settings.alone:
            place = _best(node, free)
            free.remove(place)
            chosen.append(Job(node, (place,)))
    busy = {job.machine for job in (*running, *chosen)}
    for node in ready:
        quiet = [place for place in places if place.machine not in busy]
        if quiet and node.settings.alone:
            place = _best(node, quiet)
            busy.add(place.machine)
            chosen.append(Job(node, _all_of(place, places)))
    if len(chosen) == 1 and not running:
        chosen[0].places = _all_of(chosen[0].places[0], places)
    return chosen


def _best(node: Node, places: Sequence[Place]) -> Place:
    """Where a node runs best: by whether GPUs are of use, and on the freest worker."""
    learns = node.settings.together() or node.taught
    count = {one.worker: 0 for one in places}
    for one in places:
        count[one.worker] += 1
    return max(places, key=lambda one: (bool(one.gpus) == learns, count[one.worker]))


def _all_of(place: Place, places: Sequence[Place]) -> tuple[Place, ...]:
    return tuple(one for one in places if one.worker == place.worker)


def _ready(run: Run, node: Node) -> bool:
    return all(run.record(parent) for parent in node.all_parents())


def _content(run: Run, job: Job) -> dict[str, Any]:
    """What `worker.main` is told, JSON-able."""
    return {
        "recipe": run.recipe.model_dump(mode="json", by_alias=True, exclude_unset=True),
        "folder": str(run.folder.absolute()),
        "data_dir": run.data_dir and os.path.abspath(run.data_dir),
        "command": run.command,
        "node": job.node.name,
        "fingerprint": run.fingerprint(job.node),
        "cores": job.cores,
    }


def _lose(job: Job, before: list[str]) -> None:
    """Tells of a worker that was lost; raises an error where it is not the first."""
    before.append(job.worker)
    if len(before) == _LOSSES:
        raise ValueError(
            f"stage {job.node.name!r}: {_LOSSES} workers were lost while they ran it "
            f"({', '.join(before)}): out of memory? Run the same command again to go "
            "on from here"
        )
    logger.warning(
        "%s: worker %s was lost; the stage goes on elsewhere", job.node.name, job.worker
    )


def _check(ended: Ended) -> None:
    """Raises what ended a process; what it said of no consequence is dropped."""
    name, status = ended.job.node.name, ended.status
    if not status:
        return
    where = f" on {ended.job.worker}" if ended.job.worker else ""
    lines = [line for line in ended.said.splitlines() if line.startswith(ERROR)]
    if lines:
        message = f"stage {name!r}{where}: {lines[-1].removeprefix(ERROR)}"
        # The traceback is in what it said.
        raise ValueError(message) from RuntimeError(ended.said)
    if status < 0:
        by = signal.Signals(-status).name
        cause = " (out of memory?)" if status == -signal.SIGKILL else ""
        memory = "" if where else f" {_io.describe_memory()}."
        fewer = "places on that worker" if where else "--jobs"
        raise ValueError(
            f"stage {name!r}{where}: its process was ended by {by}{cause}.{memory} Run "
            f"the same command again to go on from here, with fewer {fewer}"
        )
    sys.stderr.write(ended.said)
    raise RuntimeError(f"the process of stage {name!r}{where} ended with {status}")
