"""The ship kit: a folder with all that an app or a device needs of a model."""

from __future__ import annotations

import io
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdprune import __version__
from kdprune._io import first_line, writing_folder
from kdprune._log import logger
from kdprune._registry import suggesting
from kdprune.images import as_uint8
from kdprune.kit import selftest
from kdprune.kit.c_source import c_source
from kdprune.kit.card import write_card
from kdprune.kit.facts import Facts, task_of
from kdprune.kit.fits import find_needs
from kdprune.kit.golden import golden_images
from kdprune.kit.metadata import LABELS, add_metadata
from kdprune.tflite.format import File, read_content, read_tflite
from kdprune.tflite.inspection import inspect_tflite

SCHEMA = 1
ZERO_POINTS = {"int8": -128, "uint8": 0}
_RANGES = ((0, 1), (0, 255), (-1, 1))
# Optimized kernels round differently from one processor to the next. Golden scores
# may differ by a tenth, or by twice what they differ by here, but never by more than
# half: a limit that allows any score tests nothing.
_LEAST_KERNEL_LIMIT = 26  # Steps of 1/256.
_MOST_KERNEL_LIMIT = 128


@suggesting
def write_kit(
    folder: str | os.PathLike,
    *,
    int8: File,
    uint8: File,
    classes: Iterable[str],
    name: str,
    version: str = "1",
    images: ArrayLike | None = None,
    metrics: dict[str, Any] | None = None,
    input_range: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Writes the folder that is handed over: models, labels, source, tests, card.

    - `model_uint8.tflite` for Android, `model_int8.tflite` for microcontrollers,
      both with metadata and labels embedded;
    - `labels.txt`; `model.h` and `model.cc`, the int8 model as a C++ array;
    - `golden.npz`: generated images and the scores the reference kernels give them;
    - `selftest.py`, which needs only numpy and ai-edge-litert;
    - `MODEL_CARD.md`: figures, limits, and code for Android, Python and C++;
    - `manifest.json`: the SHA-256 of every file.

    The kit passes its own self-test before it appears: the folder is there whole or
    not at all.

    Args:
        folder: Where to; must not exist.
        int8: The int8 `.tflite` file (its content, or its path), as `convert_tflite`
            makes it.
        uint8: The uint8 file of the same model.
        classes: The classes' names, in the order of the outputs; of a single output
            the names of both classes.
        name: The model's name: letters, digits, "-" and "_".
        version: The model's version.
        images: More images for the golden vectors, uint8 or float in [0, 1], shape
            `(n, height, width, channels)`: generated ones, since they are handed on.
        metrics: What the card shows as figures, in the form of `metrics.json`; its
            `flagship` names the entry that the int8 file was measured as.
        input_range: What black and white are to the files, if neither [0, 1] nor
            [0, 255] nor [-1, 1]: a file's own range may be one that was taken from
            calibration images, where bytes would go in wrong.

    Returns:
        The content of `manifest.json`, a dict.

    Raises:
        FileExistsError: If `folder` exists.
        ValueError: If the files are not an int8 and a uint8 `.tflite` of one image
            classifier, the arguments do not fit them, or this machine's kernels
            are too far from the reference kernels.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise FileExistsError(
            f"{folder} exists: a kit goes into a new folder. Remove it, or name another"
        )
    classes = check_names(name, classes)
    models = {
        dtype: _read(file, f"the {dtype} model: ")
        for dtype, file in (("int8", int8), ("uint8", uint8))
    }
    ends = {
        dtype: _inspect(content, f"the {dtype} model: ")
        for dtype, content in models.items()
    }
    # A slimmed file has the names of its layers beside it.
    ends["int8"]["float_ops"] = inspect_tflite(int8)["float_ops"]
    shape = _check_ends(ends, classes, input_range)
    pixels = _gather_images(shape, images)
    scores, apart = _score(models, pixels)
    kept = _steady(apart)
    if not kept.all():
        logger.info(
            "%d of %d golden images are left out: a rounding decides on them",
            np.sum(~kept),
            len(kept),
        )
    pixels, scores = pixels[kept], scores[kept]
    deviation = int(apart[kept].max())
    limit = _kernel_limit(deviation)
    needs = find_needs(models["int8"])

    files: dict[str, bytes | str] = {
        f"model_{dtype}.tflite": label_file(
            models[dtype], classes, name=name, version=version
        )
        for dtype in ("uint8", "int8")
    }
    files[LABELS] = "\n".join(classes) + "\n"
    # Without metadata: a microcontroller has no reader for it, and little flash.
    array = re.sub(r"\W", "_", name) + "_model"
    files["model.h"], files["model.cc"] = c_source(models["int8"], array, title=name)
    files["golden.npz"] = _pack_golden(pixels, scores)
    files["selftest.py"] = pathlib.Path(selftest.__file__).read_text(encoding="utf-8")
    facts = Facts(
        name=name,
        version=version,
        classes=classes,
        array=array,
        ends=ends,
        sizes={file: len(content) for file, content in files.items()},
        flash=len(models["int8"]),
        needs=needs,
        golden=len(pixels),
        deviation=deviation,
        metrics=metrics or {},
    )
    files["MODEL_CARD.md"] = write_card(facts)
    about = {"name": name, "version": version, "classes": len(classes)}
    return _write_whole(folder, files, {**about, "kernel_limit": limit})


def label_file(
    file: File, classes: Iterable[str], *, name: str, version: str = "1"
) -> bytes:
    """A `.tflite` file as apps load it: with metadata, and the classes' names inside.

    Without them MediaPipe Tasks gives `None` for the name of each class. A kit's files
    are made by this, and what a run shows at the top of its folder. Operators, weights
    and scores stay as they are; of a file labelled before, the labels are replaced.

    Args:
        file: An image classifier's `.tflite` file: its content, or its path.
        classes: The classes' names, in the order of the outputs; of a single output
            the names of both classes, of which the second is put into the file.
        name: The model's name: letters, digits, "-" and "_".
        version: The model's version.

    Returns:
        The labelled file's content.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a `.tflite` file of one image classifier, or the
            classes are not names, or not as many as its outputs.
    """
    classes = check_names(name, classes)
    content = read_content(file)
    found = inspect_tflite(content)
    image, _ = _check_shapes(found, "the model")
    _check_count("the model", found, classes)
    size, task = " x ".join(map(str, image[1:])), task_of(found)
    description = f"Classifies images of {size} into {len(classes)} classes."
    scores = f"The probability of each of {len(classes)} classes."
    if task == "labels":
        description = f"Tells which of {len(classes)} labels apply to images of {size}."
        scores = f"The probability of each of {len(classes)} labels, by itself."
    elif task == "binary":
        scores = f"The probability of {classes[1]}; below one half it is {classes[0]}."
        classes = classes[1:]
    return add_metadata(
        content,
        classes,
        name=name,
        description=description,
        version=version,
        scores=scores,
    )


def check_names(name: str, classes: Iterable[str]) -> tuple[str, ...]:
    """Raises `ValueError` for a name of a kit or of a class that is unfit for it."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(
            "name must start with a letter and hold letters, digits, '-' and '_'. "
            f"Received: {name!r}"
        )
    classes = (classes,) if isinstance(classes, str) else tuple(classes)
    for label in classes:
        if not isinstance(label, str) or not label.strip() or not label.isprintable():
            raise ValueError(
                "classes must be names of one line each, not empty. "
                f"Received: {label!r}"
            )
    return classes


def _read(file: File, start: str) -> bytes:
    try:
        return read_content(file)
    except ValueError as error:
        raise ValueError(f"{start}{error}") from error


def _inspect(content: bytes, start: str) -> dict[str, Any]:
    """What `inspect_tflite` finds, with the names of input and output."""
    try:
        found = inspect_tflite(content)
        graph = read_tflite(content)
    except ValueError as error:
        raise ValueError(f"{start}{error}") from error
    for end, (index,) in (("input", graph.inputs), ("output", graph.outputs)):
        found[end]["name"] = graph.tensors[index].name
    return found


def _check_shapes(found: dict[str, Any], what: str) -> tuple[list[int], list[int]]:
    """The shapes of an image classifier's input and output."""
    image, scores = found["input"]["shape"], found["output"]["shape"]
    if len(image) != 4 or len(scores) != 2 or image[0] != 1 or scores[0] != 1:
        raise ValueError(
            f"{what} must take (1, height, width, channels) and give "
            f"(1, classes). Received: {image} and {scores}"
        )
    return image, scores


def _check_count(what: str, found: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Refuses other names than an output each, or two of a single output."""
    outputs = found["output"]["shape"][1]
    if outputs == 1 and len(classes) != 2:
        raise ValueError(
            f"{what} has a single output, the second of two classes: name both. "
            f"Received: {len(classes)} classes"
        )
    if outputs != 1 and len(classes) != outputs:
        raise ValueError(
            f"{what} has {outputs} outputs: name as many classes. "
            f"Received: {len(classes)} classes"
        )


def _takes_bytes(
    tensor: dict[str, Any], dtype: str, given: tuple[float, float] | None
) -> bool:
    """Whether an input takes bytes as they are, of one of the ranges."""
    scale, zero = tensor["scale"], tensor["zero_point"]
    if tensor["dtype"] != dtype or scale is None:
        return False
    black = (ZERO_POINTS[dtype] - zero) * scale
    near = 0.51 * scale  # 0 has to be one of the bytes.
    return any(
        math.isclose(255 * scale, high - low, rel_tol=1e-6) and abs(black - low) < near
        for low, high in ([given] if given is not None else _RANGES)
    )


def _check_ends(
    ends: dict[str, dict[str, Any]],
    classes: tuple[str, ...],
    input_range: tuple[float, float] | None,
) -> tuple[int, ...]:
    """The image's shape, after the checks of what the files take and give."""
    for dtype, found in ends.items():
        for end, steps in (("input", 255), ("output", 256)):
            tensor = found[end]
            quantization = (tensor["dtype"], tensor["scale"], tensor["zero_point"])
            expected = (dtype, float(np.float32(1 / steps)), ZERO_POINTS[dtype])
            good = quantization == expected
            if end == "input":
                good = _takes_bytes(tensor, dtype, input_range)
            if not good:
                raise ValueError(
                    f"the {dtype} model's {end} must be {dtype} of scale 1/{steps} and "
                    f"zero point {ZERO_POINTS[dtype]}, as convert_tflite makes it. "
                    "Received: {}, {}, {}".format(*quantization)
                )
        _check_shapes(found, f"the {dtype} model")
        _check_count(f"the {dtype} model", found, classes)
    if ends["int8"]["input"]["shape"] != ends["uint8"]["input"]["shape"]:
        raise ValueError(
            "the int8 and the uint8 model must take images of one shape. Received: "
            f"{ends['int8']['input']['shape']} and {ends['uint8']['input']['shape']}"
        )
    return tuple(ends["int8"]["input"]["shape"][1:])


def _gather_images(shape: tuple[int, ...], images: ArrayLike | None) -> NDArray:
    golden = golden_images(shape)
    if images is None:
        return golden
    return np.concatenate([golden, as_uint8(images, shape)])


def _steady(apart: NDArray) -> NDArray[np.bool_]:
    """Which golden images to keep, of those whose scores are `apart` on two kernels.

    Generated ones are like nothing that a model has learned from: on some of them a
    deep one is so undecided that a rounding changes its answer, which tells nothing of
    the kernels. They are left out, unless that is so of most of them.
    """
    kept = apart <= _MOST_KERNEL_LIMIT // 2
    return kept if 2 * kept.sum() >= len(kept) else np.ones_like(kept)


def _score(models: dict[str, bytes], images: NDArray) -> tuple[NDArray, NDArray]:
    """The golden scores, and by how many steps this machine's kernels differ.

    The latter for each image, `(n,)`.
    """
    scores = {}
    for dtype, content in models.items():
        try:
            scores[dtype] = selftest.score(content, images, "reference")
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"the {dtype} model does not run: {first_line(error)}"
            ) from error
    apart = selftest.deviation(scores["int8"], scores["uint8"])
    if apart:
        raise ValueError(
            "the int8 and the uint8 file must hold the same model: convert both from "
            "one model, with the same calibration images. Received: scores that "
            f"differ by up to {apart}/256"
        )
    default = [selftest.score(content, images) for content in models.values()]
    apart_by_image = [
        max(selftest.deviation(found[i], scores["int8"][i]) for found in default)
        for i in range(len(images))
    ]
    return scores["int8"], np.array(apart_by_image)


def _kernel_limit(deviation: int) -> int:
    """How far the self-test lets golden scores be from the reference kernels'."""
    if 2 * deviation > _MOST_KERNEL_LIMIT:
        raise ValueError(
            "expected this machine's kernels to score golden images as the reference "
            f"kernels do, within {_MOST_KERNEL_LIMIT // 2}/256. Received: "
            f"{deviation}/256; convert the model again with more calibration images, "
            "or use quantization-aware training"
        )
    return max(_LEAST_KERNEL_LIMIT, 2 * deviation)


def _pack_golden(images: NDArray, scores: NDArray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, images=images, scores=scores)
    return file.getvalue()


def _write_whole(
    folder: pathlib.Path, files: dict[str, bytes | str], about: dict[str, Any]
) -> dict[str, Any]:
    """Writes and tests a kit beside its place, then moves it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with writing_folder(folder) as partial:
        listed = {}
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (partial / name).write_bytes(data)
            listed[name] = {"sha256": selftest.sha256(data), "bytes": len(data)}
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            **about,
            "kdprune": __version__,
            "files": listed,
        }
        manifest["sha256"] = selftest.digest_of_manifest(manifest)
        text = json.dumps(manifest, indent=2) + "\n"
        (partial / "manifest.json").write_text(text, encoding="utf-8")
        problems = selftest.find_damage(partial)
        problems += [what for what, good in selftest.check_scores(partial) if not good]
        if problems:
            raise ValueError(f"the kit fails its own self-test: {'; '.join(problems)}")
    return manifest
