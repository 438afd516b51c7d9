"""Models and images that are in memory become files, so that the recipe runs again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdprune.compression.request import Request

IMAGES = "images.npz"


@dataclasses.dataclass(frozen=True)
class SavedRequest:
    """A request, and the files that it names and that are not in its folder yet.

    Attributes:
        request: What is asked.
        files: Where each of these files goes, and where it is.
    """

    request: Request
    files: Mapping[pathlib.Path, pathlib.Path]


def take(
    model: Any,
    train: Any,
    validation: Any,
    test: Any,
    classes: Sequence[str] | None,
    given: dict[str, Any],
    scratch: pathlib.Path,
) -> SavedRequest:
    """Makes a request of what `compress` was given.

    Args:
        model: A path, or a model.
        train: A path, a data set's name, or images with labels.
        validation: Images with labels, or None.
        test: Likewise.
        classes: Names of the classes, or None.
        given: The other fields of the request.
        scratch: A folder for what goes into the run's folder later.

    Raises:
        ValueError: If these do not go together, or are not what they should be.
    """
    files = {}
    named = isinstance(train, str | os.PathLike)
    if not isinstance(model, str | os.PathLike):
        output = given["output"]
        if output is None:
            raise ValueError("a model in memory expects `output`, the folder to make")
        given = {**given, "title": output.absolute().name}
        saved = _save(model, scratch)
        model = output.absolute() / saved.name
        files[model] = saved
    model = pathlib.Path(model).expanduser().absolute()
    request = Request(model=model, images=str(train) if named else "", **given)
    if named:
        unused = {"validation": validation, "test": test, "classes": classes}
        for key, value in unused.items():
            if value is not None:
                raise ValueError(
                    f"`{key}` goes with arrays. Received: it beside {train}; put such "
                    "images into a folder beside the others, or give arrays"
                )
    else:
        parts = {"train": train, "validation": validation, "test": test}
        arrays: dict[str, Any] = {}
        for part, images in parts.items():
            if images is not None:
                pair = _arrays(images, part, request.input_range)
                arrays |= dict(zip((f"x_{part}", f"y_{part}"), pair, strict=True))
        if classes is not None:
            arrays["classes"] = np.array(list(map(str, classes)))
        stored = scratch / IMAGES
        np.savez(stored, **arrays)
        target = request.folder.absolute() / IMAGES
        files[target] = stored
        request = dataclasses.replace(request, images=str(target))
    return SavedRequest(request, files)


def _save(model: Any, scratch: pathlib.Path) -> pathlib.Path:
    """Saves a model by the Keras it is of, under a name that tells its weights."""
    import tf_keras

    from kdprune.models import save_model

    ancestors = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if isinstance(model, tf_keras.Model):
        path = scratch / f"original-{_digest(model)}.keras"
        save_model(model, path)
    elif "keras" in ancestors and hasattr(model, "save"):
        path = scratch / f"original-{_digest(model)}.keras"
        model.save(path)
    else:
        raise ValueError(
            "model: expected the path of a .keras or .h5 file, or a model of Keras 3 "
            f"or tf_keras. Received: {type(model).__name__}"
        )
    return path


def _digest(model: Any) -> str:
    found = hashlib.sha256()
    for layer in model.layers:
        found.update(f"{type(layer).__name__} {layer.name}\n".encode())
    for weight in model.get_weights():
        found.update(repr(weight.shape).encode())
        found.update(np.ascontiguousarray(weight).tobytes())
    return found.hexdigest()[:8]


def _arrays(images: Any, part: str, input_range: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images as bytes, and their labels."""
    if hasattr(images, "element_spec"):
        pair = _read(images, part)
    else:
        try:
            first, second = images
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{part}: expected a folder, an .npz file, a data set's name, (images, "
                "labels), or a tf.data.Dataset of batches of them. Received: "
                f"{type(images).__name__}"
            ) from error
        pair = np.asarray(first), np.asarray(second)
    if len(pair[0]) != len(pair[1]):
        raise ValueError(
            f"{part}: expected a label for each image. Received: {len(pair[0]):,} "
            f"images and {len(pair[1]):,} labels"
        )
    return _bytes(pair[0], part, input_range), pair[1]


def _read(dataset: Any, part: str) -> tuple[np.ndarray, np.ndarray]:
    """All of a `tf.data.Dataset`, which must end."""
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(
            f"{part}: expected a tf.data.Dataset of (images, labels). Received: "
            f"elements {spec}"
        )
    if int(dataset.cardinality()) == -1:  # Infinite.
        raise ValueError(
            f"{part}: expected a tf.data.Dataset that ends. Received: one that repeats "
            "for ever; give it without repeat()"
        )
    if spec[0].shape.rank == 3:
        dataset = dataset.batch(256)
    batches = [(np.asarray(x), np.asarray(y)) for x, y in dataset]
    if not batches:
        raise ValueError(f"{part}: expected images. Received: an empty tf.data.Dataset")
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _bytes(images: np.ndarray, part: str, input_range: Any) -> np.ndarray:
    """Images as uint8: what was given of 0..255, [0, 1] or the model's range."""
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or not len(images) or images.dtype.kind not in "uif":
        raise ValueError(
            f"{part}: expected images of shape (n, height, width, channels), n > 0. "
            f"Received: {images.dtype} of shape {images.shape}"
        )
    if images.dtype == np.uint8:
        return images
    low, high = float(images.min()), float(images.max())
    given = isinstance(input_range, tuple | list)
    if given:
        black, white = map(float, input_range)
    elif images.dtype.kind == "f" and 0 <= low and high <= 1:
        black, white = 0.0, 1.0
    else:
        black, white = 0.0, 255.0
    # Written so that NaN fails.
    if not (black <= low and high <= white):
        said = "input_range" if given else "0 to 255, or of [0, 1]"
        raise ValueError(
            f"{part}: expected pixels of {said}. Received: {low:g} to {high:g}; give "
            "input_range=(low, high), what black and white are"
        )
    scaled = (images.astype(np.float32) - black) * (255 / (white - black))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)
