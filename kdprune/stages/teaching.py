"""What a stage is taught by, checked before its teacher is trained."""

from kdprune import distill
from kdprune.fitting import load_fitting, new_model, parent_of, soft_losses_of

# Stages whose model has the layers, by name, of the one they start from.
_SAME_LAYERS = ("train", "distill", "prune", "prune_channels", "cluster")


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
        sources = _source(parent_of(node, "teacher")), _source(node)
        if None in sources:
            continue
        # Cells of a matrix that differ in other settings have the same layers.
        trial = repr([*map(_origin, sources), losses])
        if trial in tried:
            continue
        tried.add(trial)
        teacher, student = (_untrained(run, source) for source in sources)
        try:
            distill.Distiller(student, teacher, losses)
        except ValueError as error:
            raise ValueError(f"{key}.losses: {error}") from error


def _source(node):
    """The node that makes the layers of a node's model; None if it can't be told."""
    if _origin(node):
        return node
    if getattr(node.settings, "model", None):
        return _source(node.parents[node.settings.model.like][0])
    return _source(parent_of(node, "from_")) if node.kind in _SAME_LAYERS else None


def _origin(node):
    """A file or factory, as the recipe gives it; None if another stage gives it."""
    if node.kind == "load":
        return node.settings.file
    model = getattr(node.settings, "model", None)
    return model if model and not model.like else None


def _untrained(run, source):
    if source.kind == "load":
        return load_fitting(source.settings.file, run.dataset)
    return new_model(run, source)
