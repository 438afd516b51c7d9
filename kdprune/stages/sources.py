"""Where the layers of a stage's model come from, told before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdprune.stages import fitting
from kdprune.stages.base import Node, Run

if TYPE_CHECKING:
    import tf_keras as keras


def source_of(node: Node) -> Node | None:
    """The node that makes the layers of a node's model; None if it can't be told."""
    if node.settings.origin():
        return node
    if node.settings.references("model.architecture_of"):
        return source_of(node.parent_of("model.architecture_of"))
    return source_of(node.parent_of("from")) if node.settings.keeps_layers else None


def origin_of(node: Node) -> object | None:
    """A file or factory, as the recipe gives it; None if another stage gives it."""
    return node.settings.origin()


def untrained_model(run: Run, source: Node) -> keras.Model:
    """The model of a node that `source_of` returned, before it is trained."""
    settings = source.settings
    model = getattr(settings, "model", None)
    if model is not None and model.file:
        return fitting.load_layers(model.file, run.dataset, model.input_range)
    if hasattr(settings, "model"):
        return fitting.new_model(run, source)
    keys = ("input_range", "labels", "output")
    given = (getattr(settings, key, None) for key in keys)
    return fitting.load_layers(str(settings.origin()), run.dataset, *given)
