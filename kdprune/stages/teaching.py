"""What a stage is taught by, checked before its teacher is trained."""

from __future__ import annotations

import warnings

from kdprune import distill
from kdprune.stages import fitting
from kdprune.stages.base import Node, Run, Taught
from kdprune.stages.sources import origin_of, source_of, untrained_model


def check_teaching(settings: Taught, run: Run, node: Node) -> None:
    """Raises `ValueError` for losses that do not fit, or schedules out of order.

    Layers that losses of features name are looked for where the recipe tells the
    layers of both models: not behind a stage that finds out which to keep.
    """
    key = f"stages.{node.stage}"
    for name in ("temperature", "soft_weight"):
        try:
            distill.Schedule(getattr(settings, name), steps=1, name=name)
        except ValueError as error:
            raise ValueError(f"{key}.{name}: {error}") from error
    try:
        losses = distill.as_soft_losses(fitting.soft_losses_of(settings))
        for loss in losses:
            loss.validate(len(run.dataset.classes))
    except ValueError as error:
        raise ValueError(f"{key}.losses: {error}") from error
    if not any(loss.of_features for loss in losses):
        return
    if not isinstance(settings.teacher, str):
        raise ValueError(
            f"{key}.losses: losses of features need one live `teacher`, since only "
            f"logits are averaged or stored, got {settings.teacher or 'none'}"
        )
    sources = source_of(node.parent_of("teacher")), source_of(node)
    found = [source for source in sources if source is not None]
    if len(found) < 2:
        return
    # Cells of a matrix that differ in other settings have the same layers.
    if not run.first_time(f"taught {[*map(origin_of, found), losses]!r}"):
        return
    teacher, student = (untrained_model(run, source) for source in found)
    try:
        with warnings.catch_warnings():  # Warned of when it trains.
            warnings.simplefilter("ignore", UserWarning)
            distill.Distiller(student, teacher, losses)
    except ValueError as error:
        raise ValueError(f"{key}.losses: {error}") from error
