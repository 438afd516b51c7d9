"""What is found out before anything is written or trained."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kdprune._log import logger
from kdprune.compression.page import Counts
from kdprune.compression.request import SMALLER, Request

if TYPE_CHECKING:
    import tf_keras as keras

    from kdprune.runner.folder import Run
    from kdprune.stages import Node

# Of training images, held out where the data has none for validation: that share, or
# as many times what a file that changes nothing would need, since real ones change
# some; never more than the last.
_SHARE, _TIMES, _MOST = 0.1, 4, 1 / 3
# Beyond chance, as a share of what is left: less proves nothing.
_LEAST_LEARNED = 0.1
# Of a folder and an .npz file that has no test images, as the loaders hold them out.
_TEST = 0.2


def image_shape(path: pathlib.Path, model: keras.Model) -> tuple[int, int, int]:
    """Height, width and channels of a model's images.

    Raises:
        ValueError: If it takes something else, images of any size, or its weights are
            not numbers.
    """
    if len(model.inputs) != 1:
        names = ", ".join(tensor.name for tensor in model.inputs)
        raise ValueError(
            f"{path}: expected a model of one image. Received: {len(model.inputs)} "
            f"inputs, {names}"
        )
    shape = tuple(model.input_shape[1:])
    if len(shape) != 3 or None in shape:
        raise ValueError(
            f"{path}: expected a model of images of a fixed size, (height, width, "
            f"channels). Received: {shape}; save it with an Input of the size it is "
            "used with"
        )
    if shape[2] not in (1, 3) and shape[0] in (1, 3):
        raise ValueError(
            f"{path}: expected (height, width, channels). Received: {shape}, channels "
            "first, which devices do not run; save it as channels last"
        )
    for layer in model._flatten_layers(include_self=False, recursive=True):
        for weight in layer.weights:
            values = np.asarray(weight)
            wrong = values.size - int(np.isfinite(values).sum())
            if wrong:
                raise ValueError(
                    f"{path}: expected weights that are numbers. Received: {wrong:,} "
                    f"NaN or infinite of {values.size:,} in layer {layer.name!r}; its "
                    "training diverged: save an earlier state, or train it again"
                )
    return shape


def count_images(
    request: Request, copied: Mapping[pathlib.Path, pathlib.Path]
) -> tuple[int, int | None]:
    """How many images there are to train on, and for validation where the data has any.

    A folder's images are counted without opening one.

    Args:
        request: What is asked.
        copied: Files that are not there yet, and what they are copied from.
    """
    from kdprune.data import DATASETS, folder, npz

    if request.dataset == "folder":
        root = request.path
        parts = folder.find_parts(root)
        classes = folder.class_names(parts["train"])
        found = {
            part: len(folder.find_images(parts[part], classes, root)) for part in parts
        }
        train = found["train"]
        if "test" not in found:
            train -= round(_TEST * train)
        return train, found.get("validation")
    if request.dataset == "npz":
        source = npz.load(path=copied.get(request.path, request.path))
    else:
        source = DATASETS[request.dataset](data_dir=request.data_dir)
    validation = source.validation
    return len(source.train), None if validation is None else len(validation)


def count_provable(max_drop: float, train: int, validation: int | None) -> Counts:
    """Chooses how many images are held out, so that the drop can be proven.

    Raises:
        ValueError: If there are too few, with the drop that they can prove.
    """
    from kdprune.tflite import images_to_prove, provable_drop

    needed = images_to_prove(max_drop)
    most = int(_MOST * train)
    held_out = min(most, max(math.ceil(_SHARE * train), _TIMES * needed))
    counts = Counts(train, validation, held_out, provable_drop(validation or held_out))
    if counts.validated_on < needed:
        provable = math.ceil(1e4 * counts.provable) / 1e4
        have = (
            f"{validation:,} validation images"
            if validation
            else f"{train:,} training images, of which {held_out:,} can be held out"
        )
        raise ValueError(
            f"max_drop: {max_drop:g} takes at least {needed:,} validation images to "
            f"prove. Received: {have}, which can prove {provable:g} at best; allow "
            f"max_drop {provable:g} or more, or add images"
        )
    return counts


def check_target(run: Run, request: Request) -> None:
    """Finds out from a plan whether a target can be met, and says what it takes.

    Raises:
        ValueError: If it can't, or needs nothing to be removed.
    """
    if not request.target:
        return
    node = node_of(run, SMALLER)
    if run.record(node):
        return
    ((key, value),) = request.target.items()
    try:
        plan = cast(Any, node.settings).channel_plan(run, node)
    except ValueError as error:
        named = "" if str(error).startswith(key) else f"{key}: "
        raise ValueError(f"{named}{error}") from error
    if not len(plan.removed):
        raise ValueError(
            f"{key}: the model is within {value:,} as it is; give a smaller target, or "
            "leave it out"
        )
    for line in str(plan).splitlines():
        logger.info("%s", line)


def check_learned(run: Run, loaded: Iterable[Node]) -> None:
    """Refuses models that know next to nothing of the images: no drop tells anything.

    Raises:
        ValueError: If one is near chance on the validation images.
    """
    for node in loaded:
        record = run.record(node)
        assert record is not None  # It has been executed.
        found = record["results"]
        accuracy, chance = found["val_accuracy"], found["chance"]
        if accuracy - chance < _LEAST_LEARNED * (1 - chance):
            raise ValueError(
                f"{node.settings.files()[0]}: expected a trained model of these "
                f"classes. Received: one that is right on {accuracy:.1%} of the "
                f"validation images, near the {chance:.1%} of chance; check that these "
                "are its images and classes, and see --input-range and --labels"
            )


def node_of(run: Run, stage: str) -> Node:
    """The node of a stage."""
    return next(node for node in run.nodes if node.stage == stage)
