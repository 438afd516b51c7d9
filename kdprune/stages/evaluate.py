"""Scores models and files on the test images; writes `metrics.json`."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic

from kdprune import _io, records
from kdprune._log import logger
from kdprune.stages.base import (
    FILES,
    FLOAT_MODEL,
    MEASUREMENTS,
    MODEL,
    Node,
    Result,
    Run,
    Stage,
)
from kdprune.stages.kit import DTYPES, Kit, flagship_files
from kdprune.stages.settings import Count, Names

if TYPE_CHECKING:
    import tf_keras as keras

METRICS = "metrics.json"


class Evaluate(Stage):
    """Scores models and files on the test images; the only stage that does."""

    kind: Literal["evaluate"]
    from_: Names = pydantic.Field(alias="from")
    """Stages with models, and export stages with files."""
    latency: bool = True
    """Whether files are timed."""
    threads: Count = 1
    """Threads of the interpreter."""
    resolver: Literal["xnnpack", "builtin", "reference"] = "xnnpack"
    """The runtime's kernels; phones use XNNPACK."""

    accepts = {"from": (FLOAT_MODEL, FILES)}
    gives = MEASUREMENTS
    role = "evaluate"
    gathers = True
    alone = True
    reads_test = True

    def fingerprinted(self, run: Run, node: Node) -> dict[str, Any]:
        recipe = run.recipe
        return {
            "recipe": {
                "name": recipe.name,
                "baseline": recipe.baseline,
                "flagship": recipe.flagship,
                "keep": recipe.save_models,
            },
            "nodes": [other.name for other in run.nodes],
            "test": _test_sha256(run, node),
        }

    def check(self, run: Run, node: Node) -> None:
        from kdprune.kit.build import check_names

        super().check(run, node)
        if run.recipe.flagship:  # Its files are labelled in the end.
            check_names(run.recipe.name, run.dataset.classes)

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Scores every model and file on the test images; writes `metrics.json`."""
        from kdprune import evaluate
        from kdprune.stages import fitting
        from kdprune.tflite.sizes import file_sizes

        test, parents = run.dataset.test, list(node.all_parents())
        scores: dict[str, np.ndarray] = {}
        entries, said = [], []
        for parent in [p for p in parents if p.settings.gives != FILES]:
            path = run.folder / parent.name / MODEL
            model = fitting.load_node(run, parent)
            entry, own = self._measure(run, path, parent, parent.stage, model)
            entries.append({**entry, **file_sizes(path)})
            scores[parent.name] = own
            said.append(own)
        for path, source in exported(run, parents):
            if source.name not in scores:
                model = fitting.load_node(run, source)
                scores[source.name] = evaluate.predict(
                    model, test.images, head=run.dataset.head
                )
            called = path.stem.replace(".", "_")
            try:
                entry, own = self._measure(
                    run, path, source, called, scores=scores[source.name]
                )
            except ValueError as error:
                if not path.stem.endswith(".rejected"):
                    raise
                logger.warning("%s can't be measured: %s", path.name, error)
                continue
            entries.append(entry)
            said.append(own)
        _compare(run, entries, said)
        if self.latency:
            self._time(run, entries)
        recipe = run.recipe
        _add_fits(run, entries)
        metrics = {
            "schema": records.SCHEMA,
            "recipe": recipe.name,
            "command": run.command,
            "dataset": {**run.dataset.description, "test_sha256": test.sha256()},
            "seed": recipe.seed,
            "baseline": recipe.baseline,
            "flagship": recipe.flagship and f"{recipe.flagship}_int8",
            "stages": [other.name for other in run.nodes],
            "versions": records.versions(),
            "machine": records.machine(),
            "models": entries,
        }
        _io.write_json(folder / METRICS, metrics)
        outputs = [METRICS, *_select(run, node, folder)]
        accuracies = {entry["path"]: entry["accuracy"] for entry in entries}
        published = {name: name for name in outputs}
        if any(isinstance(other.settings, Kit) for other in run.nodes):
            # The kit's, with its name and version, are shown in their place.
            for dtype in DTYPES:
                published.pop(f"model_{dtype}.tflite", None)
        return Result(accuracies, outputs, published=published)

    def _measure(
        self,
        run: Run,
        path: pathlib.Path,
        source: Node,
        name: str,
        model: keras.Model | None = None,
        scores: np.ndarray | None = None,
    ) -> tuple[dict[str, Any], np.ndarray]:
        """One entry of `metrics.json`, and the scores it is made of.

        Args:
            path: The file.
            source: The node that it is of, or was made from.
            name: What the entry is called.
            model: What is in it, where that is a Keras model.
            scores: Those of the node that it was made from, to hold it against.
        """
        from kdprune import evaluate

        logger.info("measuring %s", path.relative_to(run.folder))
        measured = evaluate.evaluate_model(
            path if model is None else model,
            run.dataset.test.images,
            run.dataset.test.labels,
            source=None if scores is None else (source.name, scores),
            resolver=self.resolver,
            threads=self.threads,
            classes=len(run.dataset.classes),
            check_range=False,  # The stages before have seen to it.
            latency=False,  # Of all files at the end, interleaved.
        )
        named = {"name": name, "stage": source.name}
        named["path"] = str(path.relative_to(run.folder))
        return {**measured.entry, **named}, measured.scores

    def _time(self, run: Run, entries: list[dict[str, Any]]) -> None:
        """Adds latencies of the files, interleaved: what disturbs one meets all."""
        from kdprune import benchmark

        files = [entry for entry in entries if entry["format"] == "tflite"]
        if not files:
            return
        logger.info("timing %d files, interleaved", len(files))
        timed = benchmark.measure_latencies(
            [run.folder / entry["path"] for entry in files],
            [self.resolver],
            threads=self.threads,
            settle=False,
        )
        for entry, times in zip(files, timed, strict=True):
            for key in ("latency_ms_p50", "latency_ms_p90"):
                entry[key] = times[key]


def _add_fits(run: Run, entries: list[dict[str, Any]]) -> None:
    """Adds the flagship's arena and which boards and phones its int8 file fits."""
    from kdprune import kit

    flagship = run.recipe.flagship and f"{run.recipe.flagship}_int8"
    for entry in [e for e in entries if flagship and e["name"] == flagship]:
        needs = kit.find_needs(run.folder / entry["path"])
        entry["arena_bytes"] = needs.arena if needs.measured else None
        entry["fits"] = [fit.to_json() for fit in kit.check_fit(needs)]


def _compare(run: Run, entries: list[dict[str, Any]], scores: list[np.ndarray]) -> None:
    """Adds to each entry how it differs from the baseline, image by image.

    Not in a matrix, where several models are the baseline.
    """
    from kdprune import evaluate

    found = [
        own
        for entry, own in zip(entries, scores, strict=True)
        if entry["name"] == run.recipe.baseline
    ]
    if len(found) != 1:
        return
    for entry, own in zip(entries, scores, strict=True):
        compared = evaluate.compare_predictions(found[0], own, run.dataset.test.labels)
        kept = ("difference", "difference_ci", "disagreement")
        entry["against_baseline"] = {key: compared[key] for key in kept}


def _test_sha256(run: Run, node: Node) -> str | None:
    """The digest of the test images; of those that were measured, for a dry run."""
    if run.reads_test:
        return run.dataset.test.sha256()
    described = _io.read_object(run.output(node, METRICS)).get("dataset")
    return described.get("test_sha256") if isinstance(described, dict) else None


def exported(run: Run, parents: list[Node]) -> list[tuple[pathlib.Path, Node]]:
    """`(path, node)` of each file of the export stages and of what it was made of.

    Cells of an export stage that have one of their models in common write the same
    file of it: the first stands for all.
    """
    found: dict[tuple[str, str], tuple[pathlib.Path, Node]] = {}
    for parent in [p for p in parents if p.settings.gives == FILES]:
        record = run.record(parent) or {"outputs": {}}
        for source in parent.all_parents():
            for name in record["outputs"]:
                if name.startswith(f"{source.stage}.") and name.endswith(".tflite"):
                    path = run.folder / parent.name / name
                    found.setdefault((source.name, name), (path, source))
    return list(found.values())


def _select(run: Run, node: Node, folder: pathlib.Path) -> list[str]:
    """Puts the models that the recipe named beforehand into the stage's folder.

    The flagship's files have the metadata and labels that apps read, as in a kit.
    """
    from kdprune import kit
    from kdprune.models import save_model
    from kdprune.stages import fitting

    selected = []
    for saved in run.recipe.save_models:
        # Of a matrix the first cell: chosen by the recipe, not by its score.
        parent = next(other for other in node.all_parents() if other.stage == saved)
        selected.append(f"{saved}.keras")
        save_model(fitting.load_node(run, parent), folder / selected[-1], half=True)
    classes = list(map(str, run.dataset.classes))
    for dtype, path in flagship_files(run, node).items():
        selected.append(f"model_{dtype}.tflite")
        labelled = kit.label_file(path, classes, name=run.recipe.name)
        _io.write_file(folder / selected[-1], labelled)
    return selected
