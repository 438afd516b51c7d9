"""Where the layers of a stage's model come from, told before anything is trained."""

from kdprune.fitting import load_fitting, new_model, parent_of

# Stages whose model has the layers, by name, of the one they start from.
_SAME_LAYERS = ("train", "distill", "prune", "prune_channels", "cluster")


def source_of(node):
    """The node that makes the layers of a node's model; None if it can't be told."""
    if origin_of(node):
        return node
    if getattr(node.settings, "model", None):
        return source_of(node.parents[node.settings.model.like][0])
    return source_of(parent_of(node, "from_")) if node.kind in _SAME_LAYERS else None


def origin_of(node):
    """A file or factory, as the recipe gives it; None if another stage gives it."""
    if node.kind == "load":
        return node.settings.file
    model = getattr(node.settings, "model", None)
    return model if model and not model.like else None


def untrained_model(run, source):
    """The model of a node that `source_of` returned, before it is trained."""
    if source.kind == "load":
        return load_fitting(source.settings.file, run.dataset)
    return new_model(run, source)
