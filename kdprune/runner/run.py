"""Runs a plan: the nodes' folders, skipping what is done, resuming what is not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from kdprune._log import logger
from kdprune._registry import nearest
from kdprune.config import Recipe
from kdprune.runner import cluster, parallel
from kdprune.runner.folder import LOCK, SEEN_WITHIN, Run
from kdprune.runner.processes import Processes
from kdprune.stages import Node, check

if TYPE_CHECKING:
    from kdprune.runner.dask_engine import Dask

# Tells whether a stage of a recipe, by its name, is wanted.
Wanted = Callable[[Recipe, str], bool]


def run(
    recipe: Recipe,
    folder: str | pathlib.Path,
    *,
    data_dir: str | None = None,
    until: str | None = None,
    only: str | None = None,
    wanted: Wanted | None = None,
    command: str = "",
    jobs: int = 1,
    workers: cluster.Cluster | None = None,
    dask: Dask | None = None,
) -> None:
    """Runs a recipe's stages in order; what is done already is skipped.

    Args:
        recipe: A `Recipe`.
        folder: The run's folder.
        data_dir: Where the data set is, or None for its usual places.
        until: Name of the last stage to run (with what it needs); None for all.
        only: Name of the only stage to run, or of its folder for one cell of the
            matrix: what it needs must be done. Several processes may do so at once.
        wanted: Function of a recipe and a stage's name; stages it accepts are run
            with what they need. None for all.
        command: What made the run, for the records.
        jobs: Stages run at once; more than one have processes of their own. Unused
            with `workers` and `dask`.
        workers: Those that train together, each of which calls this; None for this
            process alone.
        dask: The machines that run the stages; None for this one.

    Raises:
        ValueError: If the recipe, the data or a result is not as it must be, or
            workers have others.
        OSError: If a file can't be read or written.
    """
    current = Run(recipe, pathlib.Path(folder), data_dir, command)
    nodes = select(current, until=until, wanted=wanted, only=only)
    if workers is None:
        execute(current, nodes, jobs, dask, alone=only is None)
        return
    workers.strategy  # noqa: B018  # It is made before anything is computed.
    current.workers = workers
    if workers.index:
        _accompany(current, nodes, workers)
    else:
        execute(current, nodes)


def execute(
    current: Run,
    nodes: list[Node],
    jobs: int = 1,
    dask: Dask | None = None,
    alone: bool = True,
) -> None:
    """Runs some nodes of a run, each after those it needs; see `run`.

    With `alone` this is the only process in the folder; without, others may run other
    nodes, and what these need must be done.
    """
    _check_writable(current.folder)
    with _holding(current.folder, alone) as lock:
        if alone:
            current.sweep()
        if dask:
            dask.enter(current.folder, lock)
        check(nodes, current)
        if not alone:
            _check_inputs(current, nodes)
        if dask or jobs != 1:
            parallel.execute(current, nodes, dask or Processes(jobs, lock))
            return
        for node in nodes:
            if current.workers and not current.record(node):
                _announce(current, node, current.workers)
            current.execute(node)


def _announce(current: Run, node: Node, workers: cluster.Cluster) -> None:
    """Tells the others what the chief does next, and has them ready to take part."""
    together = node.settings.together()
    told = {"node": node.name, "kind": node.kind, "together": together}
    workers.tell({**told, "fingerprint": current.fingerprint(node)})
    if together:
        refused = [one["refused"] for one in workers.answers() if one["refused"]]
        if refused:
            raise cluster.Refused(refused[0])


def _accompany(current: Run, nodes: list[Node], workers: cluster.Cluster) -> None:
    """What the others do: train with the chief, and wait while it does the rest."""
    by_name = {node.name: node for node in nodes}
    while True:
        message, _ = workers.hear()
        if "end" in message:
            return
        node = by_name[message["node"]]
        if not message["together"]:
            logger.info("%s (%s): waiting for the chief", node.name, node.kind)
            continue
        refused = _unlike(current, node, message, workers)
        workers.tell({"refused": refused})
        if refused:
            workers.hear()  # The chief ends all workers.
        current.accompany(node, workers)


def _unlike(
    current: Run, node: Node, message: dict[str, Any], workers: cluster.Cluster
) -> str | None:
    """What of this worker's images or files is not as the chief has it, or None."""
    missing = current.unseen(node.all_parents(), SEEN_WITHIN)
    name = workers.layout.name(workers.index)
    folder = f"let its --output ({current.folder}) be a folder that all workers share"
    if missing:
        return (
            f"{name} has no results of stage {missing[0].name!r} as this recipe and "
            f"these images make them: {folder}, or a copy of the chief's"
        )
    if current.fingerprint(node) != message["fingerprint"]:
        return (
            f"{name} has other images, files or results than the chief for stage "
            f"{node.name!r}: give it the same data, and {folder}, or a new copy of the "
            "chief's"
        )
    return None


def preview(
    recipe: Recipe,
    folder: str | pathlib.Path,
    data_dir: str | None = None,
    until: str | None = None,
    wanted: Wanted | None = None,
    only: str | None = None,
) -> str:
    """Describes a run without doing anything: the dry run's text.

    The test images are not read: what was measured on them counts as done if all else
    is as it was.
    """
    import yaml

    current = Run(recipe, pathlib.Path(folder), data_dir, reads_test=False)
    nodes = select(current, until=until, wanted=wanted, only=only)
    check(nodes, current)
    content = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    lines = [yaml.safe_dump(content, sort_keys=False).rstrip(), "", f"folder: {folder}"]
    total = 0.0
    for node in nodes:
        if current.record(node):
            state = "done"
            if node.settings.reads_test:
                state += ", if the test images are as they were"
        else:
            seconds = node.settings.estimate(current, node)
            total += seconds
            begun = current.half_done(node)
            state = f"{'half done' if begun else 'to do'}, {_duration(seconds)}"
        lines.append(f"  {node.name} ({node.kind}): {state}")
        if node.settings.plans:
            lines += [f"    {line}" for line in _plan(current, node).splitlines()]
    lines.append(f"in all {_duration(total)} (a rough estimate for this machine)")
    return "\n".join(lines)


def select(
    run: Run,
    until: str | None = None,
    wanted: Wanted | None = None,
    only: str | None = None,
) -> list[Node]:
    """The nodes to run: all, or those up to a stage, or those wanted, or only some."""
    recipe, nodes = run.recipe, run.nodes
    if only is not None:
        chosen = [node for node in nodes if only in (node.stage, node.name)]
        if not chosen:
            known = dict.fromkeys([*recipe.stages, *(node.name for node in nodes)])
            raise ValueError(
                f"--only expects a stage, or its folder for one cell, out of "
                f"{', '.join(known)}. Received: {only!r}{nearest(only, known)}"
            )
        return chosen
    if until is not None and until not in recipe.stages:
        raise ValueError(
            f"--until expects a stage out of {', '.join(recipe.stages)}. "
            f"Received: {until!r}{nearest(until, recipe.stages)}"
        )
    if until is None and wanted is None:
        return nodes
    chosen = [
        node
        for node in nodes
        if node.stage == until or (wanted and wanted(recipe, node.stage))
    ]
    if not chosen:
        kinds = ", ".join(dict.fromkeys(f"{n.stage} ({n.kind})" for n in nodes))
        raise ValueError(
            f"recipe {recipe.name!r} has no stage for this command. It has: {kinds}"
        )
    needed: set[str] = set()
    waiting = list(chosen)
    while waiting:
        node = waiting.pop()
        needed.add(node.name)
        waiting += node.all_parents()
    return [node for node in nodes if node.name in needed]


@contextlib.contextmanager
def _holding(folder: pathlib.Path, alone: bool) -> Iterator[IO[str]]:
    """Keeps other runs out of a folder; not `alone`, only those that want it alone."""
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with open(folder / LOCK, "a+") as lock:
        tries = 5
        while True:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                tries -= 1
                if not tries:
                    raise OSError(
                        f"another run is under way in {folder}; wait for it, or choose "
                        "another --output"
                    ) from error
                time.sleep(0.05)  # It may only have been looked at.
            except OSError as error:
                raise OSError(
                    f"expected an output folder on a disk with locks, got {folder} "
                    f"({error.strerror}); choose another with --output"
                ) from error
        if alone:
            lock.truncate(0)
            try:  # Not by the file's own buffer, which closing it would write again.
                os.write(lock.fileno(), uuid.uuid4().hex.encode())
            except OSError as error:
                raise OSError(error.errno, error.strerror, lock.name) from error
        yield lock


def _check_inputs(current: Run, nodes: list[Node]) -> None:
    """Raises `ValueError` if what some nodes need is neither done nor among them."""
    ours = {node.name for node in nodes}
    for node in nodes:
        outside = [one for one in node.all_parents() if one.name not in ours]
        if missing := current.unseen(outside, SEEN_WITHIN):
            raise ValueError(
                f"--only {node.stage} expects its inputs to be done in "
                f"{current.folder}, as this recipe and these images make them. "
                f"Received: {missing[0].name!r}, which is not; run it first"
            )


def _check_writable(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # Several single stages may start at once.
    except OSError as error:
        reason = os.strerror(error.errno or errno.EACCES)
        raise OSError(
            f"expected an output folder that can be written, got {folder} ({reason}); "
            "choose another with --output"
        ) from error


def _plan(current: Run, node: Node) -> str:
    """What a stage will do, as text; a file that a stage loads is there before it."""
    needed = [parent for key in node.settings.plans for parent in node.parents_of(key)]
    missing = [
        f"`{parent.name}`"
        for parent in needed
        if not isinstance(parent.settings.origin(), str) and not current.record(parent)
    ]
    if missing:
        stages = "stage" if len(missing) == 1 else "stages"
        return f"plan available after {stages} {' and '.join(missing)}"
    return node.settings.plan(current, node)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min"
