"""What is found out before anything is written or trained."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from kdprune._log import logger
from kdprune.compression.page import Counts
from kdprune.compression.request import SMALLER, Request
from kdprune.stages import InvalidRecipe

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


@dataclasses.dataclass(frozen=True)
class Found:
    """What is known of the images before they are read.

    Attributes:
        train: How many there are to train on, validation images that are drawn from
            them included.
        validation: Those that come for validation, or None.
        classes: The classes' or labels' names.
        task: "labels" where several may apply to an image, else "classes".
        shape: Height, width and channels, or None of files, which are resized.
    """

    train: int
    validation: int | None
    classes: tuple[str, ...]
    task: str = "classes"
    shape: tuple[int, ...] | None = None


def check_given(
    request: Request, copied: Mapping[pathlib.Path, pathlib.Path]
) -> tuple[tuple[int, int, int], Counts, str | None]:
    """Finds all that is wrong with models and images, as far as that is soon known.

    No image of a folder is opened.

    Args:
        request: What is asked.
        copied: Files that are not there yet, and what they are copied from.

    Returns:
        The shape of the model's images, the counts of images, and what labels mean if
        their form does not tell.

    Raises:
        ValueError: For all of it, a line for each.
    """
    problems: list[Exception] = []
    models: dict[pathlib.Path, keras.Model] = {}
    for path in filter(None, (request.model, request.teacher)):
        try:
            output = request.model_output if path == request.model else None
            models[path] = _load(path, copied.get(path, path), output)
        except ValueError as error:
            problems.append(error)
    found = counts = None
    try:
        found = find_images(request, copied)
        counts = count_provable(request.max_drop, found.train, found.validation)
    except (ValueError, OSError) as error:
        problems.append(error)
    for path, model in models.items():
        labels = request.labels if path == request.model else None
        problems += _misfits(path, model, found, labels)
    if len(problems) == 1:
        raise problems[0]
    if problems or counts is None:
        raise InvalidRecipe([line for p in problems for line in _lines(p)])
    model = models[request.model]
    # Two classes by one unit, or by two: labels look the same.
    task = "binary" if model.output_shape[-1] == 1 else None
    return model.input_shape[1:], counts, task


def _load(path: pathlib.Path, file: pathlib.Path, output: str | None) -> keras.Model:
    """A model whose outputs and images are as they must be, or all that is wrong."""
    from kdprune.doctor import loading

    model, obstacles = loading.load(file, output)
    if obstacles or model is None:
        raise InvalidRecipe([f"{path}: {one.told}" for one in obstacles])
    return model


def _lines(problem: Exception) -> list[str]:
    return getattr(problem, "problems", [str(problem)])


def _misfits(
    path: pathlib.Path,
    model: keras.Model,
    found: Found | None,
    labels: pathlib.Path | None,
) -> Iterator[ValueError]:
    """What of a model does not go together with the images."""
    from kdprune.intake import check_head, find_head
    from kdprune.intake.labels import find_order

    shape = tuple(model.input_shape[1:])
    if found is None:
        return
    if found.shape is None and shape[2] not in (1, 3):
        yield ValueError(
            f"{path}: expected a model of images of 1 or 3 channels, which files have. "
            f"Received: {shape}; give the images as arrays (.npz)"
        )
    if found.shape is not None and shape != found.shape:
        yield ValueError(
            f"{path}: expected a model of images {found.shape}, as given. Received: "
            f"images {shape}; give images as it was trained on"
        )
    try:
        check_head(find_head(model), found.task, found.classes, str(path))
        find_order(path, found.classes, labels)
    except ValueError as error:
        yield error


def find_images(request: Request, copied: Mapping[pathlib.Path, pathlib.Path]) -> Found:
    """What there is to train on, and for validation where the data has any.

    A folder's images are counted without opening one.

    Args:
        request: What is asked.
        copied: Files that are not there yet, and what they are copied from.

    Raises:
        ValueError: If these are no images with labels.
        OSError: If they can't be read.
    """
    from kdprune.data import DATASETS, folder, npz

    if request.dataset == "folder":
        root = request.path
        parts = folder.find_parts(root)
        classes = folder.class_names(parts["train"])
        count = {
            part: len(folder.find_images(parts[part], classes, root)) for part in parts
        }
        train = count["train"]
        if "test" not in count:
            train -= round(_TEST * train)
        return Found(train, count.get("validation"), classes)
    if request.dataset == "npz":
        file = copied.get(request.path, request.path)
        source = npz.load(path=file, range=request.value_range)
    else:
        source = DATASETS[request.dataset](data_dir=request.data_dir)
    validation = source.validation
    return Found(
        len(source.train),
        None if validation is None else len(validation),
        source.classes,
        "labels" if source.train.labels.ndim == 2 else "classes",
        source.train.images.shape[1:],
    )


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
