"""Runs a plan: the nodes' folders, skipping what is done, resuming what is not."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

from kdprune import _io, records
from kdprune._log import logger
from kdprune._registry import nearest
from kdprune.config import Recipe
from kdprune.config.plugins import sources_sha256
from kdprune.runner import parallel
from kdprune.runner.graph import plan
from kdprune.stages import Node, check

if TYPE_CHECKING:
    from kdprune.data import Dataset

# Tells whether a stage of a recipe, by its name, is wanted.
Wanted = Callable[[Recipe, str], bool]
_RECORD, _BEGUN = "record.json", "begun.json"


@dataclasses.dataclass
class Run:
    """A recipe, where its results go, and where its data is.

    Attributes:
        recipe: The recipe.
        folder: The run's folder; each node has a folder in it.
        data_dir: Where the data set is, or None for its usual places.
        command: What made the run, for the records.
        reads_test: Whether the test images may be read: not by a dry run.
    """

    recipe: Recipe
    folder: pathlib.Path
    data_dir: str | None = None
    command: str = ""
    reads_test: bool = True

    def __post_init__(self) -> None:
        self.folder = pathlib.Path(self.folder)
        self.nodes = plan(self.recipe)
        self._records: dict[str, dict[str, Any]] = {}
        self._asked: set[str] = set()

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The `data.Dataset` of the recipe, loaded once."""
        from kdprune.data import load_dataset

        settings = self.recipe.data
        return load_dataset(
            settings.dataset, data_dir=self.data_dir, **settings.loading()
        )

    @functools.cached_property
    def plugins(self) -> dict[str, str]:
        """The SHA-256 of each module that the recipe names."""
        return sources_sha256(self.recipe.plugins)

    def first_time(self, what: str) -> bool:
        """Whether this is asked for the first time: for checks that cells share."""
        first = what not in self._asked
        self._asked.add(what)
        return first

    def record(self, node: Node) -> dict[str, Any] | None:
        """The record of a node that is done with its present inputs, else None."""
        if node.name not in self._records:
            if not all(self.record(parent) for parent in node.all_parents()):
                return None
            record = _io.read_json(self.folder / node.name / _RECORD)
            if not record or self._fingerprint(node) != record.get("fingerprint"):
                return None
            if not self._holds(node, record["outputs"]):
                return None
            self._records[node.name] = record
        return self._records[node.name]

    def output(self, node: Node, name: str) -> pathlib.Path:
        """Where a file is that a node has handed on.

        What is shown at the run's top was once written there, and nowhere else.
        """
        path = self.folder / node.name / name
        return path if path.exists() else self.folder / name

    def execute(self, node: Node) -> None:
        """Runs a node's stage, unless that is done; resumes what was half done."""
        if self.record(node):
            self.skip(node)
            return
        fingerprint = self._fingerprint(node)
        folder = self._prepare(node, fingerprint)
        logger.info("\n== %s (%s) ==", node.name, node.kind)
        started, clock = datetime.now(UTC), time.perf_counter()
        from kdprune import training

        # Names and random streams count up within a process: a stage must not
        # depend on those that ran before it.
        training.seed_everything(node.settings.own_seed)
        result = node.settings.execute(self, node, folder)
        record = {
            "schema": records.SCHEMA,
            "stage": node.stage,
            "kind": node.kind,
            "recipe": self.recipe.name,
            "command": self.command,
            "settings": node.settings.model_dump(mode="json", by_alias=True),
            "fingerprint": fingerprint,
            "inputs": self._inputs(node),
            "outputs": records.describe_outputs(folder, result.outputs),
            "published": dict(result.published),
            "seed": node.settings.seed,
            "data": self.dataset.description,
            "versions": records.versions(),
            "machine": records.machine(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock, 1),
            "results": result.figures,
        }
        self._publish(node, record)
        _io.write_json(folder / _RECORD, record)
        for checkpoints in folder.rglob("checkpoints"):
            shutil.rmtree(checkpoints)
        logger.info("%s: done in %.0f s", node.name, record["seconds"])

    def skip(self, node: Node) -> None:
        """Leaves a node that is done as it is; shows again what it has published."""
        record = self.record(node)
        assert record is not None  # It is done.
        for name in self._publish(node, record):
            logger.info("%s: %s was changed or missing, restored", node.name, name)
        logger.info("%s: done, skipped", node.name)

    def _publish(self, node: Node, record: dict[str, Any]) -> list[str]:
        """Copies what a stage shows to the run's top; returns what was not there."""
        copied = []
        for name, output in record.get("published", {}).items():
            target = self.folder / name
            expected = record["outputs"][output]["sha256"]
            if target.is_file() and _io.sha256(target) == expected:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with _io.writing(target) as partial:
                shutil.copyfile(self.folder / node.name / output, partial)
            copied.append(name)
        return copied

    def _fingerprint(self, node: Node) -> str:
        """Hashes all that determines the result; not the machine."""
        content = {
            "schema": records.SCHEMA,
            "settings": node.settings.hashed(),
            "data": self.dataset.description["sha256"],
            "inputs": self._inputs(node),
            "files": [_io.sha256(pathlib.Path(path)) for path in node.settings.files()],
            **node.settings.fingerprinted(self, node),
        }
        unlabelled = self.dataset.description.get("unlabelled_sha256")
        if unlabelled and node.taught:
            content["unlabelled"] = unlabelled
        if self.plugins:
            content["plugins"] = self.plugins
        return records.fingerprint(content)

    def _inputs(self, node: Node) -> dict[str, dict[str, str]]:
        """The content that each parent handed on, by the parent's name."""
        inputs = {}
        for parent in node.all_parents():
            record = self.record(parent)
            outputs = record["outputs"] if record else {}
            inputs[parent.name] = {name: o["sha256"] for name, o in outputs.items()}
        return inputs

    def _holds(self, node: Node, outputs: dict[str, Any]) -> bool:
        """Whether a node's files are there and are what its record says."""
        folder = self.folder / node.name
        return all((folder / name).is_file() for name in outputs) and (
            records.describe_outputs(folder, outputs) == outputs
        )

    def half_done(self, node: Node) -> bool:
        """Whether a node was started with its present inputs and not ended."""
        begun = _io.read_json(self.folder / node.name / _BEGUN) or {}
        return begun.get("fingerprint") == self._fingerprint(node)

    def _prepare(self, node: Node, fingerprint: str) -> pathlib.Path:
        """The node's folder, emptied unless it was half done with these inputs."""
        folder = self.folder / node.name
        # Before files were named at random while they are written.
        ours = {_BEGUN, f"{_BEGUN}.partial", _RECORD}
        if folder.exists():
            # Killed at its first file, a stage leaves nothing but a part of it.
            _remove_partial(folder.rglob("*"))
            found = {path.name for path in folder.iterdir()}
            if found and not found & ours:
                raise ValueError(
                    f"expected {folder} to be a stage's folder or empty, got a folder "
                    "of other files; choose another --output"
                )
            # A stage that was complete has nothing to resume, whatever it lost.
            if (folder / _RECORD).exists() or not self.half_done(node):
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _io.write_json(folder / _BEGUN, {"fingerprint": fingerprint})
        return folder


def run(
    recipe: Recipe,
    folder: str | pathlib.Path,
    *,
    data_dir: str | None = None,
    until: str | None = None,
    wanted: Wanted | None = None,
    command: str = "",
    jobs: int = 1,
) -> None:
    """Runs a recipe's stages in order; what is done already is skipped.

    Args:
        recipe: A `Recipe`.
        folder: The run's folder.
        data_dir: Where the data set is, or None for its usual places.
        until: Name of the last stage to run (with what it needs); None for all.
        wanted: Function of a recipe and a stage's name; stages it accepts are run
            with what they need. None for all.
        command: What made the run, for the records.
        jobs: Stages run at once; more than one have processes of their own.

    Raises:
        ValueError: If the recipe, the data or a result is not as it must be.
        OSError: If a file can't be read or written.
    """
    current = Run(recipe, pathlib.Path(folder), data_dir, command)
    nodes = select(current, until=until, wanted=wanted)
    _check_writable(current.folder)
    with _only_run_of(current.folder) as lock:
        _remove_partial(current.folder.iterdir())
        check(nodes, current)
        if jobs != 1:
            parallel.execute(current, nodes, jobs, lock)
            return
        for node in nodes:
            current.execute(node)


def preview(
    recipe: Recipe,
    folder: str | pathlib.Path,
    data_dir: str | None = None,
    until: str | None = None,
    wanted: Wanted | None = None,
) -> str:
    """Describes a run without doing anything: the dry run's text.

    The test images are not read: what was measured on them counts as done if all else
    is as it was.
    """
    import yaml

    current = Run(recipe, pathlib.Path(folder), data_dir, reads_test=False)
    nodes = select(current, until=until, wanted=wanted)
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
    run: Run, until: str | None = None, wanted: Wanted | None = None
) -> list[Node]:
    """The nodes to run: all, or those up to a stage, or those wanted."""
    recipe, nodes = run.recipe, run.nodes
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
def _only_run_of(folder: pathlib.Path) -> Iterator[IO[str]]:
    """Keeps a second run out of a folder while one is under way."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(
                f"another run is under way in {folder}; wait for it, or choose another "
                "--output"
            ) from error
        yield lock


def _check_writable(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = os.strerror(error.errno or errno.EACCES)
        raise OSError(
            f"expected an output folder that can be written, got {folder} ({reason}); "
            "choose another with --output"
        ) from error


def _remove_partial(paths: Iterable[pathlib.Path]) -> None:
    """Removes what a killed process was writing, which is in no place yet."""
    for path in list(paths):
        hidden = path.name.startswith(".") and _io.PARTIAL in path.suffixes
        if hidden and path.is_file():
            path.unlink()


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
