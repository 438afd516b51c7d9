"""Any classifier, a file or a model in memory, in the form that kdprune works on."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import tf_keras as keras
from numpy.typing import ArrayLike, NDArray

from kdprune import intake
from kdprune._io import scratch
from kdprune._registry import suggesting
from kdprune.images import check, spread
from kdprune.intake.comparison import (
    HALF_LIMIT,
    LIMIT,
    Comparison,
    compare_outputs,
    random_images,
)
from kdprune.intake.pixels import Given, parse_range
from kdprune.intake.taking import range_of
from kdprune.models.io import load_model, read_config
from kdprune.models.original import Original, allow_rounding, outputs_of

_ANY_SIZE = 64  # Of a side for which a model takes any.


@suggesting
def take_model(
    model: keras.Model | str | os.PathLike,
    *,
    input_range: Given | None = None,
    images: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    output: str | None = None,
    compare: bool = False,
) -> intake.Taken:
    """Brings a classifier to the form that training, pruning and export work on.

    Models inside it become part of its graph; dropout, noise and random augmentation
    are left out; a convolution with a group for each channel is a depthwise one; a
    final softmax or sigmoid is split off; and arithmetic in front, of
    two layers at most, makes it take pixels in [0, 1] whatever it was made for.

    The pixel range is the given one; else the one that stands out on labelled images;
    else what the arithmetic at the front of the model is for: bytes, if it makes a few
    units of 0 to 255. Without any of these it is [0, 1].

    Args:
        model: The path of a `.keras` or `.h5` file, or a built Functional or
            Sequential float model of tf_keras or Keras 3; left as it is.
        input_range: What the given model takes: `(low, high)` for black and white;
            "imagenet" (mean and deviation taken off outside of the model) or "caffe"
            (BGR minus mean); or `{"mean": [...], "std": [...]}` of pixels in [0, 1].
            With labelled images it is checked.
        images: Validation images, uint8 or float in [0, 1], shape
            `(n, height, width, channels)`; at most 500 are scored.
        labels: Their classes, `(n,)`, or zeros and ones `(n, labels)`.
        output: The name of the layer whose output counts, of a model with several.
        compare: Whether a file's outputs are compared with those that the Keras that
            saved it computes, on noise and on `images`: a few seconds, in a process of
            its own; else the last note says that they are not. A model of Keras 3 in
            memory always is.

    Returns:
        A `Taken`: the `model`, its `head` and `range`, the `augmentation` that was
        left out, the `comparison`, and `notes` of what was done.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no model; if the model has no graph or layers that
            can't be made again, or outputs that change from call to call (dropout
            called with `training=True`); if the pixel range can't be determined, or is
            not the given one; or if outputs differ from the original's.
    """
    if not isinstance(model, str | os.PathLike):
        rebuilt, comparison = rebuild_keras3(model)
        taken = intake.take_model(
            rebuilt,
            input_range=input_range,
            images=images,
            labels=labels,
            output=output,
        )
        return replace(taken, comparison=comparison)
    loaded = load_model(model)
    original = Original(model) if compare else None
    try:
        taken = intake.take_model(
            loaded,
            input_range=input_range,
            images=images,
            labels=labels,
            output=output,
            share=not compare,
        )
    except ValueError as error:
        if original is not None:
            original.close()
        if str(error).startswith(str(model)):
            raise
        raise ValueError(f"{os.fspath(model)}: {error}") from error
    if original is None:
        file = read_config(model)
        if file.ours:
            return taken
        why_not = "it was not asked for, take_model(path, compare=True) does"
        found = Comparison("Keras 3" if file.third else "tf_keras", why_not=why_not)
        return replace(taken, comparison=found, notes=(*taken.notes, str(found)))
    comparison = original.compare(loaded, values_for(loaded, taken.range, images))
    comparison.check(model)
    return replace(taken, comparison=comparison, notes=(*taken.notes, str(comparison)))


def compare_file(
    path: str | os.PathLike, input_range: Given | None = None, images: Any = None
) -> Comparison | None:
    """Compares what is made of a file with what the Keras that saved it says.

    Args:
        path: A `.keras` or `.h5` file.
        input_range: As for `take_model`.
        images: A few are compared on, beside noise.

    Returns:
        A `Comparison`; None of a file that `save_model` has written.

    Raises:
        ValueError: If outputs differ by more than they may.
    """
    if read_config(path).ours:
        return None
    loaded = load_model(path)
    original = Original(path)
    given = None if input_range is None else parse_range(input_range)
    found = original.compare(loaded, values_for(loaded, given, images))
    found.check(path)
    return found


def values_for(
    model: keras.Model, range_: intake.PixelRange | None = None, images: Any = None
) -> NDArray[np.float32]:
    """What a model's outputs are compared on: noise, and a few of the images if given.

    Args:
        model: Takes images of one size.
        range_: Its pixel range; else that which its front tells.
        images: uint8 or floats in [0, 1].
    """
    range_ = range_of(model) if range_ is None else range_
    noise = random_images([size or _ANY_SIZE for size in model.input_shape[1:]])
    values = range_.values(noise).astype(np.float32)
    if images is None:
        return values
    few = range_.apply(check(images)[spread(len(images), len(noise))])
    return np.concatenate([values, few.reshape(-1, *values.shape[1:])])


def as_tf_keras(model: Any) -> Any:
    """A Keras 3 model rebuilt in tf_keras and compared; anything else as it is.

    Raises:
        ValueError: If it holds something that can't be rebuilt, or the outputs of
            what was rebuilt differ.
    """
    return rebuild_keras3(model)[0]


def rebuild_keras3(model: Any) -> tuple[Any, Comparison | None]:
    """The same, and what the comparison found; None where there was nothing to."""
    origins = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if isinstance(model, keras.Model) or "keras" not in origins:
        return model, None
    name = f"model {getattr(model, 'name', 'model')!r}"
    with scratch() as folder:
        path = folder / f"{getattr(model, 'name', 'model')}.keras"
        try:
            model.save(path)
            rebuilt = load_model(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from error
    comparison = _compare_in_memory(model, rebuilt)
    comparison.check(name)
    return rebuilt, comparison


def _compare_in_memory(model: Any, rebuilt: keras.Model) -> Comparison:
    if len(rebuilt.inputs) != 1:
        return Comparison("Keras 3", why_not="it has several inputs")
    half = {getattr(one, "compute_dtype", "float32") for one in model._flatten_layers()}
    values = values_for(rebuilt)
    limit = LIMIT if half <= {"float32"} else HALF_LIMIT
    expected, found = outputs_of(model, values), outputs_of(rebuilt, values)
    comparison = compare_outputs("Keras 3", expected, found, limit)
    return allow_rounding(comparison, rebuilt, values)
