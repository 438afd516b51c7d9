"""The kinds of stages: each is a class in a file of its own.

A kind's class holds its settings, what it may start from, what it draws from the seed,
its checks, its plan for a dry run, its estimate and what it does. The recipe's schema,
the runner and the command read all that from the class: a new kind is one file and
its registration, here or, outside of the package, by `register_stage`. Importing this
needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable

from kdprune.stages.base import (
    FILES,
    FLOAT_MODEL,
    KINDS,
    MEASUREMENTS,
    QUANTIZED_MODEL,
    SENSITIVITY,
    SOFT_LABELS,
    InvalidRecipe,
    Node,
    Result,
    Run,
    Stage,
    register_stage,
)
from kdprune.stages.cluster import Cluster
from kdprune.stages.distill import Distill
from kdprune.stages.evaluate import Evaluate
from kdprune.stages.export import Export
from kdprune.stages.kit import Kit
from kdprune.stages.load import Load
from kdprune.stages.prune import Prune
from kdprune.stages.prune_blocks import PruneBlocks
from kdprune.stages.prune_channels import PruneChannels
from kdprune.stages.quantize import Quantize
from kdprune.stages.report import Report
from kdprune.stages.sensitivity import Sensitivity
from kdprune.stages.soft_labels import SoftLabels
from kdprune.stages.train import Train
from kdprune.stages.trained import Compressed, Started, Taught, Trains

__all__ = [
    "FILES",
    "FLOAT_MODEL",
    "KINDS",
    "MEASUREMENTS",
    "QUANTIZED_MODEL",
    "SENSITIVITY",
    "SOFT_LABELS",
    "Compressed",
    "InvalidRecipe",
    "Node",
    "Result",
    "Run",
    "Stage",
    "Started",
    "Taught",
    "Trains",
    "check",
    "register_stage",
]

for _kind in (
    Train,
    Load,
    SoftLabels,
    Distill,
    Prune,
    PruneChannels,
    PruneBlocks,
    Sensitivity,
    Cluster,
    Quantize,
    Export,
    Evaluate,
    Kit,
    Report,
):
    register_stage(_kind)


def check(nodes: list[Node], run: Run) -> None:
    """Finds what would fail later, before anything is trained.

    Raises:
        InvalidRecipe: With one line for each problem.
        OSError: If a file can't be read, and nothing else is wrong.
    """
    # Reading fifty thousand images takes minutes: what can be told before, is.
    _check_each(nodes, lambda node: node.settings.check_files(run, node))
    # What is wrong with the images is told by itself, and once.
    dataset = run.dataset
    reads_test = [node for node in nodes if node.settings.reads_test]
    if run.reads_test and not all(map(run.record, reads_test)):
        dataset.check_test()
    _check_each(nodes, lambda node: node.settings.check(run, node))


def _check_each(nodes: list[Node], check_one: Callable[[Node], None]) -> None:
    found: dict[str, Exception] = {}
    for node in nodes:
        try:
            check_one(node)
        except (ValueError, OSError) as error:
            found.setdefault(str(error), error)
    if len(found) == 1:
        raise next(iter(found.values()))
    if found:
        raise InvalidRecipe(list(found))
