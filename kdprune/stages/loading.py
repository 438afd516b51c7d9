"""Model files that a recipe names, loaded as the other stages take models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdprune import data
from kdprune._graph import check_graph_model, check_repeatable
from kdprune._log import logger
from kdprune.intake import (
    check_head,
    find_head,
    select_output,
    split_head,
    take_model,
    with_channel,
)
from kdprune.intake.comparison import Comparison
from kdprune.intake.labels import find_order, reorder_outputs
from kdprune.intake.pixels import Given
from kdprune.models import load_model
from kdprune.models.original import Original
from kdprune.models.taking import values_for

if TYPE_CHECKING:
    import tf_keras as keras

# Names of classes in the order of a model's outputs, or a file with them.
Labels = str | Sequence[str] | None


def load_fitting(
    path: str | os.PathLike,
    dataset: data.Dataset,
    labels: Labels = None,
    output: str | None = None,
    loaded: keras.Model | None = None,
) -> keras.Model:
    """Loads a model file and checks that it takes these images to these classes.

    A final softmax or sigmoid is taken off: what is trained and compared are logits,
    and files end in it again. Outputs are put into the order of the data's classes.

    Args:
        path: The file.
        dataset: What the recipe's models are for.
        labels: The classes in the order of its outputs, or a file with them; by
            default what the file's record tells, else the order of the data.
        output: Of a model of several outputs, the name of the one to take.
        loaded: What is in the file, if that is known.

    Raises:
        ValueError: If its images differ, or its outputs are not those of the labels.
    """
    model = load_model(path) if loaded is None else loaded
    try:
        model, head = split_head(with_channel(select_output(model, output)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    check_head(head, dataset.task, dataset.classes, str(path))
    expected, received = tuple(dataset.image_shape), tuple(model.input_shape[1:])
    if received != expected:
        raise ValueError(
            f"{path}: expected a model of images {expected}, as in {dataset.name}. "
            f"Received: images {received}; use a model trained on this data"
        )
    order = find_order(path, dataset.classes, labels)
    return model if order is None else reorder_outputs(model, order)


def check_handed_on(model: keras.Model, dataset: data.Dataset, stage: str) -> None:
    """Refuses what no stage has handed on, though it stands in a stage's folder.

    Args:
        model: What was loaded from there, quantization-aware or not.
        dataset: What the recipe's models are for.
        stage: The stage's name, for the error.

    Raises:
        ValueError: If it has no graph or says something else each time, if its images
            are not the data's, or if it does not give logits of the data's classes.
    """
    name = f"stage {stage!r}, whose folder holds another model than it made"
    try:
        check_graph_model(model)
        check_repeatable(model)
        head = find_head(model)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    expected, received = tuple(dataset.image_shape), tuple(model.input_shape[1:])
    if received != expected:
        raise ValueError(
            f"{name}: expected a model of images {expected}. Received: images "
            f"{received}; remove the folder, and run the stage again"
        )
    if head.activation != "none":
        raise ValueError(
            f"{name}: expected logits. Received: a model that ends in "
            f"{head.activation}; remove the folder, and run the stage again"
        )
    check_head(head, dataset.task, dataset.classes, name)


def load_in_range(
    path: str | os.PathLike,
    dataset: data.Dataset,
    input_range: Given | None = None,
    labels: Labels = None,
    output: str | None = None,
) -> tuple[keras.Model, Comparison]:
    """Loads a model file as the other stages take it: flat, of pixels in [0, 1].

    Args:
        path: The file.
        dataset: What the recipe's models are for; its validation images tell the
            pixel range.
        input_range: The range as the recipe gives it.
        labels: As of `load_fitting`.

    Returns:
        `(model, comparison)`: the model, and how far the outputs of what was loaded
        are from those that the file's own Keras computes.

    Raises:
        ValueError: As `load_fitting`, or if the pixel range can't be determined or is
            not the given one, or if outputs differ from the original's.
    """
    loaded = load_model(path)
    model = load_fitting(path, dataset, labels, output, loaded)
    original = Original(path)  # Starts while the images are scored.
    if find_order(path, dataset.classes, labels):
        logger.info("%s: its outputs are put into the order of the classes", path)
    validation = dataset.validation
    try:
        taken = take_model(
            model,
            input_range=input_range,
            images=validation.images,
            labels=validation.labels,
        )
    except ValueError as error:
        original.close()
        raise ValueError(f"{path}: {error}") from error
    for note in taken.notes:
        logger.info("%s: %s", path, note)
    values = values_for(loaded, taken.range, validation.images)
    comparison = original.compare(loaded, values)
    logger.info("%s: %s", path, comparison)
    comparison.check(path)
    return taken.model, comparison


def load_layers(
    path: str | os.PathLike,
    dataset: data.Dataset,
    input_range: Given | None = None,
    labels: Labels = None,
    output: str | None = None,
) -> keras.Model:
    """Loads a model file with the layers that `load_in_range` leaves, unscored."""
    model = load_fitting(path, dataset, labels, output)
    return take_model(model, input_range=input_range).model
