"""What a stage is taught by, checked before its teacher is trained."""

from __future__ import annotations

import warnings
from typing import Any, cast

from kdprune import distill
from kdprune.stages import fitting
from kdprune.stages.base import Node, Run


def check_teaching(run: Run, node: Node) -> None:
    """Raises `ValueError` for losses that do not fit, or schedules out of order.

    Layers that losses of features name are looked for where the recipe tells the
    layers of both models: not behind a stage that finds out which to keep.
    """
    key, settings = f"stages.{node.stage}", cast(Any, node.settings)
    for name in ("temperature", "soft_weight"):
        try:
            distill.Schedule(getattr(settings, name), steps=1, name=name)
        except ValueError as error:
            raise ValueError(f"{key}.{name}: {error}") from error
    try:
        losses = distill.as_soft_losses(fitting.soft_losses_of(settings))
        for loss in losses:
            loss.validate(*_logits_of(run, node))
    except ValueError as error:
        raise ValueError(f"{key}.losses: {error}") from error
    _check_units(run, node)
    if not any(loss.of_features for loss in losses):
        return
    if not isinstance(settings.teacher, str):
        raise ValueError(
            f"{key}.losses: losses of features need one live `teacher`, since only "
            f"logits are averaged or stored, got {settings.teacher or 'none'}"
        )
    sources = node.parent_of("teacher").source(), node.source()
    found = [source for source in sources if source is not None]
    if len(found) < 2:
        return
    origins = [source.settings.origin() for source in found]
    # Cells of a matrix that differ in other settings have the same layers.
    if not run.first_time(f"taught {[*origins, losses]!r}"):
        return
    teacher, student = (one.settings.untrained_model(run, one) for one in found)
    try:
        with warnings.catch_warnings():  # Warned of when it trains.
            warnings.simplefilter("ignore", UserWarning)
            distill.Distiller(student, teacher, losses, head=run.dataset.head)
    except ValueError as error:
        raise ValueError(f"{key}.losses: {error}") from error


def _check_units(run: Run, node: Node) -> None:
    """Refuses a single unit that teaches two, or is taught by them."""
    if len(run.dataset.classes) != 2 or run.dataset.task != "classes":
        return
    stores = node.parents_of("soft_labels")
    teachers = [one for asked in (node, *stores) for one in asked.parents_of("teacher")]
    sources = [one.source() for one in (*teachers, node)]
    units = {
        source.settings.untrained_model(run, source).output_shape[-1]
        for source in sources
        if source is not None
    }
    if len(units) > 1:
        raise ValueError(
            f"stages.{node.stage}: teacher and student must have the same outputs, got "
            "a single unit and two; set data.task: binary, so that networks of two "
            "classes have a single unit"
        )


def _logits_of(run: Run, node: Node) -> tuple[int, str]:
    """How many logits a node's model gives, and what makes probabilities of them."""
    dataset = run.dataset
    if dataset.task == "binary":
        return 1, "sigmoid"
    return len(dataset.classes), dataset.head or "softmax"
