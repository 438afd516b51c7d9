"""From a model that was taken to a verdict, whatever fails on the way.

Training may diverge, a network may not convert, the gate may refuse a file: each is an
answer to what was asked, and comes with the figures of what there is.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from kdprune._io import first_line
from kdprune._log import logger
from kdprune._plain import read_yaml_file
from kdprune.compression.request import FILES, INT8, MEASURED, Request
from kdprune.compression.verdict import Compressed, read_verdict

if TYPE_CHECKING:
    from kdprune.runner.folder import Run


def reach(run: Run, request: Request) -> Compressed:
    """Runs what is left of a run, as far as it goes, and says what came of it.

    A stage that fails is left out, with those that need it; the others are run.

    Raises:
        ValueError: If nothing can be measured.
    """
    from kdprune import config
    from kdprune.runner.folder import Run

    content = read_yaml_file(request.recipe)
    failures: list[str] = []
    while (failed := _execute(run, failures)) is not None:
        content = without(content, failed)
        recipe = config.parse_recipe(content)
        run = Run(recipe, run.folder, run.data_dir, run.command)
    return read_verdict(run, request, failures)


def _execute(run: Run, failures: list[str]) -> str | None:
    """Runs all stages; returns the one that failed, and notes why."""
    from kdprune import stages
    from kdprune.runner import run as runner

    nodes = [node for node in run.nodes if node.settings.parents()]
    stages.check(nodes, run)
    for node in nodes:
        if node.kind == "kit" and not _passed(run):
            continue
        try:
            runner.execute(run, [node])
        except ValueError as error:
            if node.stage == MEASURED:
                raise
            failures.append(f"stage {node.stage} failed: {first_line(error, 2000)}")
            logger.warning("%s", failures[-1])
            return node.stage
    return None


def _passed(run: Run) -> bool:
    """Whether the gate has let the int8 and the uint8 file pass."""
    files = (run.record(node) for node in run.nodes if node.stage == FILES)
    record = next(files, None)
    names = (f"{INT8}.{dtype}.tflite" for dtype in ("int8", "uint8"))
    return record is not None and all(name in record["outputs"] for name in names)


def without(content: dict[str, Any], failed: str) -> dict[str, Any]:
    """A recipe without a stage, and without those that can't do without it.

    Args:
        content: The recipe.
        failed: The stage's name.

    Returns:
        Another recipe: where a stage starts from several, the others are left.
    """
    content = copy.deepcopy(content)
    stages, gone = content["stages"], [failed]
    while gone:
        name = gone.pop()
        stages.pop(name, None)
        for key, stage in stages.items():
            source = stage.get("from")
            if isinstance(source, list) and len(source) > 1 and name in source:
                stage["from"] = [other for other in source if other != name]
            elif name in (source, stage.get("teacher")) or source == [name]:
                gone.append(key)
        exported = [s["from"] for s in stages.values() if s["kind"] == "export"]
        if not any(content.get("flagship") in names for names in exported):
            content.pop("flagship", None)
            gone += [key for key, stage in stages.items() if stage["kind"] == "kit"]
    return content
