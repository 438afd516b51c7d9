"""What a stage is taught by, checked before its teacher is trained."""

from kdprune import distill
from kdprune.fitting import parent_of, soft_losses_of
from kdprune.stages.sources import origin_of, source_of, untrained_model


def check_teaching(nodes, run):
    """Raises `ValueError` for losses that do not fit, or schedules out of order.

    Layers that losses of features name are looked for where the recipe tells the
    layers of both models: not behind a stage that finds out which to keep.
    """
    tried = set()
    for node in nodes:
        settings, key = node.settings, f"stages.{node.stage}"
        if not hasattr(settings, "losses") or not node.taught:
            continue
        for name in ("temperature", "soft_weight"):
            try:
                distill.Schedule(getattr(settings, name), steps=1, name=name)
            except ValueError as error:
                raise ValueError(f"{key}.{name}: {error}") from error
        try:
            losses = distill.as_soft_losses(soft_losses_of(settings))
        except ValueError as error:
            raise ValueError(f"{key}.losses: {error}") from error
        if not any(loss.of_features for loss in losses):
            continue
        teacher = settings.teacher
        if not isinstance(teacher, str):
            raise ValueError(
                f"{key}.losses: losses of features need one `teacher` in the loop, "
                f"since only logits are averaged or stored, got {teacher or 'none'}"
            )
        sources = source_of(parent_of(node, "teacher")), source_of(node)
        if None in sources:
            continue
        # Cells of a matrix that differ in other settings have the same layers.
        trial = repr([*map(origin_of, sources), losses])
        if trial in tried:
            continue
        tried.add(trial)
        teacher, student = (untrained_model(run, source) for source in sources)
        try:
            distill.Distiller(student, teacher, losses)
        except ValueError as error:
            raise ValueError(f"{key}.losses: {error}") from error
