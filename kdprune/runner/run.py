"""Runs a plan: the nodes' folders, skipping what is done, resuming what is not."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import itertools
import os
import pathlib
import shutil
import time
from datetime import datetime, timezone

from kdprune import records
from kdprune.config import Recipe
from kdprune.runner import parallel
from kdprune.runner.graph import plan


@dataclasses.dataclass
class Run:
    """A recipe, where its results go, and where its data is.

    Attributes:
        recipe: The recipe.
        folder: The run's folder; each node has a folder in it.
        data_dir: Where the data set is, or None for its usual places.
        command: What made the run, for the records.
    """

    recipe: Recipe
    folder: pathlib.Path
    data_dir: str | None = None
    command: str = ""

    def __post_init__(self):
        self.folder = pathlib.Path(self.folder)
        self.nodes = plan(self.recipe)
        self._records = {}

    @functools.cached_property
    def dataset(self):
        """The `data.Dataset` of the recipe, loaded once."""
        from kdprune.data import load_dataset

        settings = self.recipe.data
        options = settings.model_dump(exclude_none=True, exclude={"dataset"})
        return load_dataset(settings.dataset, data_dir=self.data_dir, **options)

    def record(self, node):
        """The record of a node that is done with its present inputs, else None."""
        if node.name not in self._records:
            if not all(self.record(p) for p in itertools.chain(*node.parents.values())):
                return None
            record = records.read_json(self.folder / node.name / "record.json")
            if not record or self._fingerprint(node) != record.get("fingerprint"):
                return None
            if not self._holds(node, record["outputs"]):
                return None
            self._records[node.name] = record
        return self._records[node.name]

    def execute(self, node):
        """Runs a node's stage, unless that is done; resumes what was half done."""
        if self.record(node):
            print(f"{node.name}: done, skipped", flush=True)
            return
        fingerprint = self._fingerprint(node)
        folder = self._prepare(node, fingerprint)
        print(f"\n== {node.name} ({node.kind}) ==", flush=True)
        started, clock = datetime.now(timezone.utc), time.perf_counter()
        from kdprune import stages, training

        # Names and random streams count up within a process: a stage must not
        # depend on those that ran before it.
        training.seed_everything(node.settings.seed)
        results, outputs = stages.STAGES[node.kind](self, node, folder)
        record = {
            "schema": records.SCHEMA,
            "stage": node.stage,
            "kind": node.kind,
            "recipe": self.recipe.name,
            "command": self.command,
            "settings": node.settings.model_dump(mode="json", by_alias=True),
            "fingerprint": fingerprint,
            "inputs": self._inputs(node),
            "outputs": records.describe_outputs(folder, outputs),
            "seed": node.settings.seed,
            "data": self.dataset.description,
            "versions": records.versions(),
            "machine": records.machine(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock, 1),
            "results": results,
        }
        records.write_json(folder / "record.json", record)
        for checkpoints in folder.rglob("checkpoints"):
            shutil.rmtree(checkpoints)
        print(f"{node.name}: done in {record['seconds']:.0f} s", flush=True)

    def _fingerprint(self, node):
        """Hashes all that determines the result; not the machine."""
        content = {
            "schema": records.SCHEMA,
            "settings": node.settings.model_dump(mode="json", by_alias=True),
            "data": self.dataset.description["sha256"],
            "inputs": self._inputs(node),
            "files": [records.sha256(path) for path in node.settings.files()],
        }
        unlabelled = self.dataset.description.get("unlabelled_sha256")
        if unlabelled and node.taught:
            content["unlabelled"] = unlabelled
        if node.kind == "evaluate":
            named = ("name", "baseline", "flagship", "keep")
            content["recipe"] = {key: getattr(self.recipe, key) for key in named}
            content["nodes"] = [other.name for other in self.nodes]
            content["test"] = self.dataset.test.sha256()
        return records.fingerprint(content)

    def _inputs(self, node):
        """The content that each parent handed on, by the parent's name."""
        inputs = {}
        for parent in itertools.chain(*node.parents.values()):
            record = self.record(parent)
            outputs = record["outputs"] if record else {}
            inputs[parent.name] = {name: o["sha256"] for name, o in outputs.items()}
        return inputs

    def _holds(self, node, outputs):
        """Whether a node's files are there and are what its record says."""
        folder = self.folder / node.name
        return all((folder / name).is_file() for name in outputs) and (
            records.describe_outputs(folder, outputs) == outputs
        )

    def half_done(self, node):
        """Whether a node was begun with its present inputs and not ended."""
        begun = records.read_json(self.folder / node.name / "begun.json") or {}
        return begun.get("fingerprint") == self._fingerprint(node)

    def _prepare(self, node, fingerprint):
        """The node's folder, emptied unless it was half done with these inputs."""
        folder = self.folder / node.name
        ours = {"begun.json", "begun.json.partial", "record.json"}
        if folder.exists():
            found = {path.name for path in folder.iterdir()}
            if found and not found & ours:
                raise ValueError(
                    f"expected {folder} to be a stage's folder or empty, got a folder "
                    "of other files; choose another --output"
                )
            # A stage that was complete has nothing to resume, whatever it lost.
            if (folder / "record.json").exists() or not self.half_done(node):
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        records.write_json(folder / "begun.json", {"fingerprint": fingerprint})
        return folder


def run(recipe, folder, *, data_dir=None, until=None, wanted=None, command="", jobs=1):
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
    current = Run(recipe, folder, data_dir, command)
    nodes = select(current, until=until, wanted=wanted)
    _check_writable(current.folder)
    from kdprune import stages

    with _only_run_of(current.folder) as lock:
        stages.check(nodes, current)
        if jobs != 1:
            parallel.execute(current, nodes, jobs, lock)
            return
        for node in nodes:
            current.execute(node)


def select(run, until=None, wanted=None):
    """The nodes to run: all, or those up to a stage, or those wanted."""
    recipe, nodes = run.recipe, run.nodes
    if until is not None and until not in recipe.stages:
        raise ValueError(
            f"--until expects a stage out of {', '.join(recipe.stages)}. "
            f"Received: {until!r}"
        )
    if until is None and wanted is None:
        return nodes
    chosen = [
        node
        for node in nodes
        if node.stage == until or (wanted and wanted(recipe, node.stage))
    ]
    if not chosen:
        raise ValueError(
            f"the recipe {recipe.name!r} has no such stage; it has "
            f"{', '.join(f'{name} ({s.kind})' for name, s in recipe.stages.items())}"
        )
    needed = set()
    waiting = list(chosen)
    while waiting:
        node = waiting.pop()
        needed.add(node.name)
        waiting += itertools.chain(*node.parents.values())
    return [node for node in nodes if node.name in needed]


@contextlib.contextmanager
def _only_run_of(folder):
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


def _check_writable(folder):
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


def preview(recipe, folder, data_dir=None, until=None, wanted=None):
    """Describes a run without doing anything: the dry run's text."""
    import yaml

    current = Run(recipe, folder, data_dir)
    nodes = select(current, until, wanted)
    from kdprune import fitting, stages

    stages.check(nodes, current)
    content = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    lines = [yaml.safe_dump(content, sort_keys=False).rstrip(), "", f"folder: {folder}"]
    total = 0.0
    for node in nodes:
        if current.record(node):
            state = "done"
        else:
            seconds = fitting.estimate_seconds(current, node)
            total += seconds
            begun = current.half_done(node)
            state = f"{'half done' if begun else 'to do'}, {_duration(seconds)}"
        lines.append(f"  {node.name} ({node.kind}): {state}")
        if node.kind in stages.PLANS:
            plan = _plan(current, node, stages.PLANS[node.kind])
            lines += [f"    {line}" for line in plan.splitlines()]
    lines.append(f"in all {_duration(total)} (a rough estimate for this machine)")
    return "\n".join(lines)


def _plan(current, node, make):
    """What a stage will cut, as text; a file that a stage loads is there before it."""
    from kdprune.fitting import parents_of

    given = [k for k in ("from_", "sensitivity") if getattr(node.settings, k, None)]
    parents = [parent for key in given for parent in parents_of(node, key)]
    missing = [p.name for p in parents if p.kind != "load" and not current.record(p)]
    if missing:
        done = "is done" if len(missing) == 1 else "are done"
        return f"what it cuts can be told once {' and '.join(missing)} {done}"
    return str(make(current, node))


def _duration(seconds):
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min"
