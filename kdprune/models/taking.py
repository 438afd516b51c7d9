"""Any classifier, a file or a model in memory, in the form that kdprune works on."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import tf_keras as keras
from numpy.typing import ArrayLike

from kdprune import intake
from kdprune.intake.pixels import Given
from kdprune.models.io import load_model


def take_model(
    model: keras.Model | str | os.PathLike,
    *,
    input_range: Given | None = None,
    images: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    output: str | None = None,
) -> intake.Taken:
    """Brings a classifier to the form that training, pruning and export work on.

    Models inside it become part of its graph; dropout, noise and random augmentation
    are left out; a final softmax or sigmoid is split off; and arithmetic in front, of
    one layer at most, makes it take pixels in [0, 1] whatever it was made for.

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

    Returns:
        A `Taken`: the `model`, its `head` and `range`, the `augmentation` that was
        left out, and `notes` of what was done.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no model; if the model has no graph or layers that
            can't be made again, or says something else each time (dropout called with
            `training=True`); or if the pixel range can't be told, or is not the given
            one.
    """
    named = isinstance(model, str | os.PathLike)
    try:
        return intake.take_model(
            load_model(model) if named else as_tf_keras(model),
            input_range=input_range,
            images=images,
            labels=labels,
            output=output,
            share=named,
        )
    except ValueError as error:
        if not named or str(error).startswith(str(model)):
            raise
        raise ValueError(f"{os.fspath(model)}: {error}") from error


def as_tf_keras(model: Any) -> Any:
    """A Keras 3 model rebuilt in tf_keras; anything else as it is.

    Raises:
        ValueError: If it holds something that can't be rebuilt.
    """
    origins = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if isinstance(model, keras.Model) or "keras" not in origins:
        return model
    with tempfile.TemporaryDirectory(prefix="kdprune-") as folder:
        path = Path(folder) / f"{getattr(model, 'name', 'model')}.keras"
        try:
            model.save(path)
            return load_model(path)
        except ValueError as error:
            text = str(error).replace(str(path), f"model {path.stem!r}")
            raise ValueError(text) from error
