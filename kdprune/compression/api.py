"""`compress`: a model and images in, a verified small file out."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdprune import _io
from kdprune._log import logger
from kdprune._plain import read_yaml, read_yaml_file
from kdprune._registry import suggesting
from kdprune.compression.page import write_page
from kdprune.compression.request import MEASURED, Request
from kdprune.compression.verdict import Compressed

if TYPE_CHECKING:
    from kdprune.runner.folder import Run


@suggesting
def compress(
    model: Any,
    train: Any,
    validation: Any = None,
    test: Any = None,
    *,
    output: str | pathlib.Path | None = None,
    classes: Sequence[str] | None = None,
    max_drop: float = 0.01,
    target_macs: int | None = None,
    target_bytes: int | None = None,
    ratio: float | None = None,
    teacher: str | pathlib.Path | None = None,
    epochs: int | None = None,
    input_range: Any = None,
    model_output: str | None = None,
    labels: str | pathlib.Path | None = None,
    on_error: str = "stop",
    resize: str = "stretch",
    value_range: tuple[float, float] | None = None,
    devices: str = "both",
    data_dir: str | None = None,
) -> Compressed:
    """Makes a small verified int8 file of an image classifier.

    Without a target the network stays as it is and becomes int8: by post-training
    quantization where that is proven to lose no more than `max_drop`, else by
    quantization-aware training under the original as teacher. With a target, channels
    are removed first, and what is left learns from the original.

    Everything is written into a folder, with the recipe that was run. Called again,
    after an interruption as well, what is done is skipped; `kdprune run` goes on from
    the same recipe.

    Args:
        model: A `.keras` or `.h5` file, or a model of Keras 3 or `tf_keras` in memory,
            which is saved into the folder.
        train: A folder of class folders, an `.npz` file, "cifar10" or "shapes"; or
            `(images, labels)`, or a `tf.data.Dataset` of batches of them. Arrays are
            what the model was trained on: uint8, or floats of 0 to 255, of [0, 1], or
            of `input_range`; they are kept as bytes in the folder.
        validation: Likewise, with arrays: images to make choices on; drawn from
            `train` if None.
        test: Likewise, with arrays: images to measure on; a fifth of `train` if None.
        output: The folder; the model's name with "-compressed" if None. It needs to
            be given for a model in memory.
        classes: The classes' names in the order of the labels, with arrays.
        max_drop: Accuracy that the file may lose, as a share of images in (0, 1).
        target_macs: The most multiply-accumulates of one image that may be left.
        target_bytes: In place of it: the most bytes of the int8 file.
        ratio: In place of it: the share of channels to remove, in (0, 1).
        teacher: A model file that teaches in place of the original.
        epochs: Epochs of training, where there is any; by the data's size if None.
        input_range: What the model takes for black and white, `(low, high)`, or
            "imagenet", "caffe" or `{"mean": …, "std": …}`; found out and checked on
            labelled images if None.
        model_output: Of a model of several outputs, the layer whose output counts.
        labels: A text file of the classes in the order of the model's outputs.
        on_error: "stop" at image files that can't be used, naming all of them, or
            "skip" them and list them in the records.
        resize: How images of other proportions come to the model's size: "stretch",
            "crop" the center, or "pad" with black.
        value_range: `(low, high)` that the values of an `.npz` file lie in, if not
            [0, 1] or bytes. It is `input_range` as well, unless that is given.
        devices: "android", "micro" or "both": what the file must be fit for.
        data_dir: Where a data set is that is given by name.

    Returns:
        `Compressed`: `met`, the files, models, records, and a table to print. A file
        that is not good enough is no error: ask `met`.

    Raises:
        ValueError: If something given does not fit, cannot be proven or reached: one
            line, before anything is trained.
        FileNotFoundError: If a file is not there.

    Example:
        >>> made = kdprune.compress("mine.keras", "photos/")  # doctest: +SKIP
        >>> print(made)  # doctest: +SKIP
        >>> made.files["int8"]  # doctest: +SKIP
    """
    from kdprune.compression import memory

    given = {
        "max_drop": max_drop,
        "target_macs": target_macs,
        "target_bytes": target_bytes,
        "ratio": ratio,
        "teacher": None if teacher is None else pathlib.Path(teacher),
        "epochs": epochs,
        "input_range": input_range,
        "model_output": model_output,
        "labels": None if labels is None else pathlib.Path(labels),
        "on_error": on_error,
        "resize": resize,
        "value_range": value_range,
        "devices": devices,
        "data_dir": data_dir,
        "output": None if output is None else pathlib.Path(output),
        "command": "kdprune.compress, in Python",
    }
    with _io.scratch() as folder:
        taken = memory.take(model, train, validation, test, classes, given, folder)
        return compress_request(taken.request, taken.files)


def compress_request(
    request: Request, copied: Mapping[pathlib.Path, pathlib.Path] | None = None
) -> Compressed:
    """Does what a request asks; see `compress`.

    Args:
        request: What is asked.
        copied: Files that the recipe names, which are not there yet, and what they
            are copied from.
    """
    run = _prepare(request, copied or {})
    from kdprune.compression import checks, outcome
    from kdprune.runner import run as runner

    logger.info("recipe: %s", request.recipe)
    if not run.record(checks.node_of(run, MEASURED)):
        run.dataset.check_test()
    checks.check_target(run, request)
    loaded = [node for node in run.nodes if not node.settings.parents()]
    runner.execute(run, loaded)
    checks.check_learned(run, loaded)
    # What fails from now on is a result, told beside what there is.
    return outcome.reach(run, request)


def initialize(request: Request) -> pathlib.Path:
    """Writes the recipe of a request, without running it; returns its path."""
    _prepare(request, {})
    return request.recipe


def _prepare(request: Request, copied: Mapping[pathlib.Path, pathlib.Path]) -> Run:
    """Checks a request, writes its recipe, and returns the run that it makes."""
    from kdprune import config
    from kdprune.compression import checks
    from kdprune.runner.folder import Run

    request = dataclasses.replace(request, model=request.model.absolute())
    request.check(copied)
    shape, counts, task = checks.check_given(request, copied)
    text = write_page(request, shape, counts, task)
    recipe = config.parse_recipe(read_yaml(text, str(request.recipe)))
    request.folder.mkdir(parents=True, exist_ok=True)
    _write_recipe(request.recipe, text)
    for path, source in copied.items():
        if not path.is_file() or _contents(path) != _contents(source):
            _io.write_file(path, source.read_bytes())
    return Run(recipe, request.folder, request.data_dir, request.command)


def _contents(archive: pathlib.Path) -> dict[str, int]:
    """The checksums of what is in a file of ours, but for when it was saved.

    `.keras` and `.npz` files are archives. A Keras 3 model saved twice differs in its
    date alone; as another file, all that is made of it would be made again.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {item.filename: item.CRC for item in opened.infolist()}
    except zipfile.BadZipFile:
        return {}
    members.pop("metadata.json", None)
    return members


def _write_recipe(path: pathlib.Path, text: str) -> None:
    """Writes a recipe; one that says something else, perhaps by hand, is kept beside.

    One that says the same is left as it is, with its comments.
    """
    if path.is_file():
        former = path.read_bytes()
        with contextlib.suppress(ValueError):
            if read_yaml_file(path) == read_yaml(text, str(path)):
                return
        kept = path.with_suffix(".before.yaml")
        _io.write_file(kept, former)
        logger.info("the recipe that was there is kept as %s", kept)
    _io.write_file(path, text)
