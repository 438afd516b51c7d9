"""The whole diagnosis of a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras as keras
from numpy.typing import NDArray

from kdprune import quantize
from kdprune._registry import suggesting
from kdprune.doctor import export, proof, sample
from kdprune.doctor.estimate import estimate
from kdprune.doctor.findings import Obstacle
from kdprune.doctor.layers import describe_layers
from kdprune.doctor.loading import load
from kdprune.doctor.report import Diagnosis
from kdprune.intake import Taken, with_channel
from kdprune.intake.pixels import Given, is_unit, read_chain
from kdprune.intake.taking import take_model
from kdprune.models import load_model
from kdprune.models.original import Original

_COMPARED = 2  # Images that outputs are compared and ranges taken on.
_SHOWN = 10  # Classes that are named.
_QAT = "quantization-aware training"


@suggesting
def diagnose(
    model: keras.Model | str | os.PathLike,
    images: Any = None,
    *,
    input_range: Given | None = None,
    output: str | None = None,
    labels: Sequence[str] | None = None,
    data_dir: str | None = None,
) -> Diagnosis:
    """Finds all that keeps a model from becoming a small int8 file.

    Nothing is trained. The model is loaded and brought to the form that kdprune works
    on, outputs are compared with the original's, each layer is asked what pruning and
    quantization make of it, and an int8 file is made of the model as it is, whose
    operators are held against what XNNPACK, the GPU delegate and TFLite Micro run.
    Seconds, for networks of the size of ResNet50 as well.

    Args:
        model: The path of a `.keras` or `.h5` file, or a model of tf_keras or Keras 3.
        images: A folder of class folders, a file `.npz`, a data set's name ("cifar10"),
            or `(images, labels)`: by them the pixel range is found and the classes are
            compared. At most 500 are looked at. Without them the range is what stands
            in front of the model.
        input_range: What the model takes for black and white, `(low, high)`, or
            "imagenet" or "caffe", see `take_model`; checked on the images.
        output: The layer whose output counts, of a model with several.
        labels: The classes' names in the order of the model's outputs.
        data_dir: Where a data set is that is given by name.

    Returns:
        A `Diagnosis`: print it, or read its `status` (0; 3 with warnings; 4 where a
        `compress` will fail), `obstacles`, `rows` and `to_json()`.

    Raises:
        FileNotFoundError: If there is no such model file or folder of images.
        ValueError: If the model is neither a file of Keras nor a model.

    Example:
        >>> found = kdprune.diagnose("mine.keras", "photos/")  # doctest: +SKIP
        >>> print(found)  # doctest: +SKIP
        >>> [one.problem for one in found.obstacles if one.fatal]  # doctest: +SKIP
    """
    with Original() as original:
        return _diagnose(model, images, original, input_range, output, labels, data_dir)


def _diagnose(
    model: Any,
    images: Any,
    original: Original,
    input_range: Given | None,
    output: str | None,
    labels: Sequence[str] | None,
    data_dir: str | None,
) -> Diagnosis:
    named = isinstance(model, str | os.PathLike)
    name = os.fspath(model) if named else getattr(model, "name", "model")
    loaded, obstacles = load(model, output, original.start)
    if loaded is None or any(one.fatal for one in obstacles):
        return Diagnosis(str(name), tuple(obstacles))

    loaded = with_channel(loaded)
    shape = tuple(loaded.input_shape[1:])
    drawn = None
    if images is not None:
        drawn, more = sample.draw(images, shape, data_dir)
        obstacles += more
    taken, more = _take(loaded, input_range, drawn, named)
    obstacles += more
    if taken is None:
        return Diagnosis(str(name), tuple(obstacles))
    if drawn is not None:
        obstacles += sample.check_labels(drawn, taken.head, labels)
    elif images is None:
        obstacles += _unknown_range(taken, input_range)

    few = _few(shape, drawn)
    original.give(taken.range.apply(few))
    refused, more = _qat(taken.model)
    obstacles += more
    content, file, more = export.export(taken.model, taken.head, few)
    obstacles += more
    rows, more = describe_layers(taken.model, content, refused)
    obstacles += more
    compared = None
    if original.path is not None:
        whole = loaded if output is None else load_model(original.path)
        compared = original.compare(whole, taken.range.apply(few))
    proven, more = proof.prove(loaded, taken, few, compared)
    obstacles += more
    seconds = file.pop("seconds", 0.0)
    total = None if drawn is None else drawn.total
    return Diagnosis(
        str(name),
        tuple(sorted(obstacles, key=lambda one: not one.fatal)),
        tuple(rows),
        taken.notes,
        proven,
        _facts(loaded, taken, drawn, labels),
        file,
        estimate(taken.model, seconds, total),
    )


def _take(
    model: keras.Model,
    input_range: Given | None,
    drawn: sample.Sample | None,
    share: bool,
) -> tuple[Taken | None, list[Obstacle]]:
    obstacles = []
    if drawn is not None:
        try:
            return take_model(
                model,
                input_range=input_range,
                images=drawn.images,
                labels=drawn.labels,
                share=share,
            ), []
        except ValueError as error:
            obstacles.append(Obstacle("pixel range", "", str(error)))
    try:
        return take_model(model, input_range=input_range, share=share), obstacles
    except ValueError as error:
        return None, [*obstacles, Obstacle("loading", "", str(error))]


def _unknown_range(taken: Taken, input_range: Given | None) -> list[Obstacle]:
    told = input_range is not None or not is_unit(taken.range)
    if told or read_chain(taken.model).calls:
        return []
    return [
        Obstacle(
            "pixel range",
            "",
            "nothing in the model says what pixels it takes, and [0, 1] is assumed",
            "give --images DIR, by which it is found, or --input-range LOW,HIGH",
            fatal=False,
        )
    ]


def _few(shape: tuple[int, ...], drawn: sample.Sample | None) -> NDArray[np.uint8]:
    """A few images: the user's, or noise."""
    if drawn is not None:
        return drawn.images[:_COMPARED]
    random = np.random.default_rng(0)
    return random.integers(0, 256, (_COMPARED, *shape), dtype=np.uint8)


def _qat(model: keras.Model) -> tuple[dict[str, str], list[Obstacle]]:
    try:
        found = quantize.qat_obstacles(model)
    except ValueError as error:
        return {}, [Obstacle(_QAT, "", str(error), fatal=False)]
    obstacles = [Obstacle(_QAT, name, why, fatal=False) for name, why in found]
    return dict(found), obstacles


def _facts(
    loaded: keras.Model,
    taken: Taken,
    drawn: sample.Sample | None,
    labels: Sequence[str] | None,
) -> dict[str, str]:
    height, width, channels = loaded.input_shape[1:]
    head = taken.head
    kinds = {
        "classes": f"one of {head.units} classes",
        "labels": f"any of {head.units} labels",
        "binary": "one of two classes, by one unit",
    }
    ends = "logits" if head.activation == "none" else head.activation
    facts = {
        "input": f"images of {height} x {width} pixels, {channels} channels",
        "output": f"{kinds[head.kind]} ({ends})",
        "pixel range": taken.range.name,
    }
    if taken.found is not None:
        shares = taken.found.accuracies
        best = ", ".join(f"{100 * v:.1f} % in {k}" for k, v in shares.items())
        facts["pixel range"] += f"; right on {best} of {taken.found.images} images"
    if drawn is not None:
        facts["images"] = drawn.words
    names = labels or (drawn.classes if drawn is not None else None)
    if names:
        more = len(names) - _SHOWN
        facts["labels"] = ", ".join(names[:_SHOWN]) + (
            f" and {more} more" if more > 0 else ""
        )
        if not labels:
            facts["labels"] += " (the folders' order; --labels FILE gives another)"
    return facts
