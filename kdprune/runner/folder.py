"""A run's folder: what of it is done, half done or to do, and doing it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kdprune import _io, records
from kdprune._log import logger
from kdprune.config import Recipe
from kdprune.config.plugins import sources_sha256
from kdprune.runner.graph import plan
from kdprune.stages import Node

if TYPE_CHECKING:
    from kdprune.data import Dataset
    from kdprune.runner.cluster import Cluster

_RECORD, _BEGUN = "record.json", "begun.json"
# In a run's folder: what the run holds, with a word of its own in it; and a folder with
# a file for each node, held by the process that executes it.
LOCK, _LOCKS = ".lock", ".locks"
# Seconds after which other hosts see what was written to a folder that they share.
SEEN_WITHIN = 60.0
# Seconds in which a process ends whose run is over, on whatever host.
_ENDED_WITHIN = 120.0


@dataclasses.dataclass
class Run:
    """A recipe, where its results go, and where its data is.

    Attributes:
        recipe: The recipe.
        folder: The run's folder; each node has a folder in it.
        data_dir: Where the data set is, or None for its usual places.
        command: What made the run, for the records.
        reads_test: Whether the test images may be read: not by a dry run.
        workers: The workers that train together; None for this process alone.
    """

    recipe: Recipe
    folder: pathlib.Path
    data_dir: str | None = None
    command: str = ""
    reads_test: bool = True
    workers: Cluster | None = None

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
            record = records.read_record(self.folder / node.name / _RECORD)
            if not record or self.fingerprint(node) != record.get("fingerprint"):
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
        if not self.record(node):
            with self._alone(node):
                if not self.record(node):  # Another process may just have done it.
                    self._execute(node)
                    return
        self.skip(node)

    def _execute(self, node: Node) -> None:
        fingerprint = self.fingerprint(node)
        folder = self._prepare(node, fingerprint)
        logger.info("\n== %s (%s) ==", node.name, node.kind)
        started, clock = datetime.now(UTC), time.perf_counter()
        from kdprune import training

        # Names and random streams count up within a process: a stage must not
        # depend on those that ran before it.
        with training.layers_as_before():
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
        if result.identity:
            record["identity"] = result.identity
        if self.workers and node.settings.together():
            record["workers"] = list(self.workers.addresses)
        self._publish(node, record)
        _io.write_json(folder / _RECORD, records.sealed(record))
        for checkpoints in folder.rglob("checkpoints"):
            shutil.rmtree(checkpoints)
        logger.info("%s: done in %.0f s", node.name, record["seconds"])

    @contextlib.contextmanager
    def _alone(self, node: Node) -> Iterator[None]:
        """Keeps other processes from a node, such as one whose run was just killed."""
        path = self.folder / _LOCKS / node.name
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline, told = time.monotonic() + _ENDED_WITHIN, False
        with open(path, "a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise OSError(
                            f"another process runs stage {node.name!r} in "
                            f"{self.folder}; wait for it, or choose another --output"
                        ) from error
                if not told:
                    told = True
                    logger.info("%s: waiting for a process that runs it", node.name)
                time.sleep(0.2)
            yield

    def unseen(self, nodes: Iterable[Node], within: float = 0) -> list[Node]:
        """The nodes that are not done, as far as can be seen.

        A folder that hosts share may show a file later than it is written.

        Args:
            nodes: What is thought to be done.
            within: Seconds to wait for records that are not there.
        """
        nodes = list(nodes)
        deadline, told = time.monotonic() + within, False
        while missing := [node for node in nodes if not self.record(node)]:
            there = any((self.folder / one.name / _RECORD).exists() for one in missing)
            if there or time.monotonic() >= deadline:
                break
            if not told:
                told = True
                logger.info(
                    "waiting for %s to be seen in %s", missing[0].name, self.folder
                )
            time.sleep(1)
        return missing

    def accompany(self, node: Node, workers: Cluster) -> None:
        """Takes part in a stage that trains, of which the chief keeps what it makes."""
        from kdprune import training

        logger.info("\n== %s (%s), with the chief ==", node.name, node.kind)
        temporary = tempfile.TemporaryDirectory(prefix="kdprune-")
        with training.layers_as_before(), temporary as scratch:
            training.seed_everything(node.settings.own_seed)
            workers.scratch = pathlib.Path(scratch)
            node.settings.execute(self, node, pathlib.Path(scratch))

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

    def fingerprint(self, node: Node) -> str:
        """Hashes all that determines the result; not the machine."""
        content = {
            "schema": records.SCHEMA,
            "settings": node.settings.hashed(),
            "data": self.dataset.description["sha256"],
            "inputs": self._inputs(node, identities=True),
            "files": [_io.sha256(pathlib.Path(path)) for path in node.settings.files()],
            **node.settings.fingerprinted(self, node),
        }
        unlabelled = self.dataset.description.get("unlabelled_sha256")
        if unlabelled and node.taught:
            content["unlabelled"] = unlabelled
        if self.plugins:
            content["plugins"] = self.plugins
        return records.fingerprint(content)

    def _inputs(
        self, node: Node, identities: bool = False
    ) -> dict[str, dict[str, str]]:
        """The content that each parent handed on, by the parent's name.

        With `identities`, what stands for it where a parent says so.
        """
        inputs = {}
        for parent in node.all_parents():
            record = self.record(parent) or {"outputs": {}}
            outputs = {name: o["sha256"] for name, o in record["outputs"].items()}
            identity = record.get("identity") if identities else None
            inputs[parent.name] = {"identity": identity} if identity else outputs
        return inputs

    def _holds(self, node: Node, outputs: dict[str, Any]) -> bool:
        """Whether a node's files are there and are what its record says."""
        folder = self.folder / node.name
        return all(_is(folder / name, one) for name, one in outputs.items())

    def _tell_changed(self, node: Node, fingerprint: str) -> None:
        """Says that a stage is run again since its files were changed, if they were."""
        folder = self.folder / node.name
        if not (folder / _RECORD).exists():
            return
        record = records.read_record(folder / _RECORD)
        if record is None:
            changed = [_RECORD]
        elif record["fingerprint"] != fingerprint:
            return  # Of other settings or inputs.
        else:
            outputs = record["outputs"].items()
            changed = [name for name, one in outputs if not _is(folder / name, one)]
        logger.warning(
            "%s: %s changed or missing, the stage is run again",
            node.name,
            ", ".join(changed),
        )

    def half_done(self, node: Node) -> bool:
        """Whether a node was started with its present inputs and not ended."""
        begun = _io.read_object(self.folder / node.name / _BEGUN)
        return begun.get("fingerprint") == self.fingerprint(node)

    def sweep(self) -> None:
        """Removes what killed processes were writing, where it can be this run's."""
        _remove_partial(path for path in self.folder.iterdir() if path.is_file())
        for name in ("plots", *(node.name for node in self.nodes)):
            folder = self.folder / name
            if name == "plots" or _is_stage(folder):
                _remove_partial(folder.rglob(".*"))

    def _prepare(self, node: Node, fingerprint: str) -> pathlib.Path:
        """The node's folder, emptied unless it was half done with these inputs."""
        folder = self.folder / node.name
        if folder.exists():
            # Killed at its first file, a stage leaves nothing but a part of it.
            _remove_partial(path for path in folder.iterdir() if path.is_file())
            if any(folder.iterdir()) and not _is_stage(folder):
                raise ValueError(
                    f"expected {folder} to be a stage's folder or empty, got a folder "
                    "of other files; choose another --output"
                )
            # A stage that was complete has nothing to resume, whatever it lost.
            if (folder / _RECORD).exists() or not self.half_done(node):
                self._tell_changed(node, fingerprint)
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _io.write_json(folder / _BEGUN, {"fingerprint": fingerprint})
        return folder


def _is(path: pathlib.Path, recorded: dict[str, Any]) -> bool:
    """Whether a file is there and is what a record says of it."""
    if not path.is_file():
        return False
    if records.describe_outputs(path.parent, [path.name])[path.name] != recorded:
        return False
    _io.vouch(recorded["sha256"])
    return True


def _is_stage(folder: pathlib.Path) -> bool:
    """Whether a folder was made by a stage; any other may be of the user."""
    # Files were once not named at random while they are written.
    ours = (_BEGUN, f"{_BEGUN}.partial", _RECORD)
    return any((folder / name).is_file() for name in ours)


def _remove_partial(paths: Iterable[pathlib.Path]) -> None:
    """Removes what a killed process was writing, which is in no place yet."""
    for path in list(paths):
        hidden = path.name.startswith(".") and _io.PARTIAL in path.suffixes
        if not hidden or path.is_symlink():
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
