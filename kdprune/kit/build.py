"""The ship kit: a folder with all that an app or a device needs of a model."""

import io
import json
import pathlib
import re
import shutil

import numpy as np

from kdprune import __version__
from kdprune.kit import selftest
from kdprune.kit.c_source import c_source
from kdprune.kit.card import Facts, write_card
from kdprune.kit.golden import golden_images
from kdprune.kit.metadata import LABELS, add_metadata
from kdprune.kit.micro import measure_arena
from kdprune.tflite import inspect_tflite, read_tflite

SCHEMA = 1
ZERO_POINTS = {"int8": -128, "uint8": 0}
# Optimized kernels round differently from one processor to the next. Golden scores
# may differ by a tenth, or by twice what they differ by here, but never by more than
# half: a limit that allows any score tests nothing.
_LEAST_KERNEL_LIMIT = 26  # Steps of 1/256.
_MOST_KERNEL_LIMIT = 128


def write_kit(
    folder, *, int8, uint8, classes, name, version="1", images=None, metrics=None
):
    """Writes the folder that is handed over: models, labels, source, proof, card.

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
        int8: The content of the int8 `.tflite` file, as `convert_tflite` gives it.
        uint8: The content of the uint8 file of the same model.
        classes: The classes' names, in the order of the outputs.
        name: The model's name: letters, digits, "-" and "_".
        version: The model's version.
        images: More images for the golden vectors, uint8 of shape
            `(n, height, width, channels)`: generated ones, since they are handed on.
        metrics: What the card shows as figures, in the form of `metrics.json`; its
            `flagship` names the entry that the int8 file was measured as.

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
    classes = _check_names(name, classes)
    models = {"int8": int8, "uint8": uint8}
    ends = {dtype: _inspect(content, dtype) for dtype, content in models.items()}
    shape = _check_ends(ends, len(classes))
    pixels = _gather_images(shape, images)
    scores, deviation = _score(models, pixels)
    limit = _kernel_limit(deviation)
    try:
        arena, refusal = measure_arena(int8), None
    except ValueError as error:
        arena, refusal = None, str(error)

    size = " x ".join(str(length) for length in shape)
    description = f"Tells {len(classes)} classes apart in images of {size}."
    files = {
        f"model_{dtype}.tflite": add_metadata(
            models[dtype], classes, name=name, description=description, version=version
        )
        for dtype in ("uint8", "int8")
    }
    files[LABELS] = "\n".join(classes) + "\n"
    # Without metadata: a microcontroller has no reader for it, and little flash.
    array = re.sub(r"\W", "_", name) + "_model"
    files["model.h"], files["model.cc"] = c_source(int8, array, title=name)
    files["golden.npz"] = _pack_golden(pixels, scores)
    files["selftest.py"] = pathlib.Path(selftest.__file__).read_text(encoding="utf-8")
    facts = Facts(
        name=name,
        version=version,
        classes=classes,
        array=array,
        ends=ends,
        sizes={file: len(content) for file, content in files.items()},
        flash=len(int8),
        arena=arena,
        refusal=refusal,
        golden=len(pixels),
        deviation=deviation,
        metrics=metrics or {},
    )
    files["MODEL_CARD.md"] = write_card(facts)
    about = {"name": name, "version": version, "classes": len(classes)}
    return _write_whole(folder, files, {**about, "kernel_limit": limit})


def _check_names(name, classes):
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(
            "name must start with a letter and hold letters, digits, '-' and '_'. "
            f"Received: {name!r}"
        )
    classes = tuple(classes)
    for label in classes:
        if not isinstance(label, str) or not label.strip() or not label.isprintable():
            raise ValueError(
                "classes must be names of one line each, not empty. "
                f"Received: {label!r}"
            )
    return classes


def _inspect(content, dtype):
    """How a file's model works, with the names of its input and output."""
    try:
        found = inspect_tflite(content)
        graph = read_tflite(content)
        for end, (index,) in (("input", graph.inputs), ("output", graph.outputs)):
            found[end]["name"] = graph.tensors[index].name
    except ValueError as error:
        raise ValueError(f"the {dtype} model: {error}") from error
    return found


def _check_ends(ends, classes):
    """The image's shape, after the checks of what the files take and give."""
    for dtype, found in ends.items():
        for end, steps in (("input", 255), ("output", 256)):
            tensor = found[end]
            quantization = (tensor["dtype"], tensor["scale"], tensor["zero_point"])
            expected = (dtype, float(np.float32(1 / steps)), ZERO_POINTS[dtype])
            if quantization != expected:
                raise ValueError(
                    f"the {dtype} model's {end} must be {dtype} of scale 1/{steps} and "
                    f"zero point {ZERO_POINTS[dtype]}, as convert_tflite makes it. "
                    "Received: {}, {}, {}".format(*quantization)
                )
        image, scores = found["input"]["shape"], found["output"]["shape"]
        if len(image) != 4 or len(scores) != 2 or image[0] != 1 or scores[0] != 1:
            raise ValueError(
                f"the {dtype} model must take (1, height, width, channels) and give "
                f"(1, classes). Received: {image} and {scores}"
            )
        if scores[1] != classes:
            raise ValueError(
                f"the {dtype} model has {scores[1]} outputs: name as many classes. "
                f"Received: {classes} classes"
            )
    if ends["int8"]["input"]["shape"] != ends["uint8"]["input"]["shape"]:
        raise ValueError(
            "the int8 and the uint8 model must take images of one shape. Received: "
            f"{ends['int8']['input']['shape']} and {ends['uint8']['input']['shape']}"
        )
    return tuple(ends["int8"]["input"]["shape"][1:])


def _gather_images(shape, images):
    golden = golden_images(shape)
    if images is None:
        return golden
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise ValueError(
            f"images must be uint8 of shape (n, {', '.join(map(str, shape))}). "
            f"Received: {images.dtype} {images.shape}"
        )
    return np.concatenate([golden, images])


def _score(models, images):
    """The golden scores, and by how many steps this machine's kernels differ."""
    scores = {}
    for dtype, content in models.items():
        try:
            scores[dtype] = selftest.score(content, images, "reference")
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"the {dtype} model does not run: {reason}") from error
    apart = selftest.deviation(scores["int8"], scores["uint8"])
    if apart:
        raise ValueError(
            "the int8 and the uint8 file must hold the same model: convert both from "
            "one model, with the same calibration images. Received: scores that "
            f"differ by up to {apart}/256"
        )
    default = (selftest.score(content, images) for content in models.values())
    deviation = max(selftest.deviation(found, scores["int8"]) for found in default)
    return scores["int8"], deviation


def _kernel_limit(deviation):
    """How far the self-test lets golden scores be from the reference kernels'."""
    if 2 * deviation > _MOST_KERNEL_LIMIT:
        raise ValueError(
            "expected the kernels of this machine to score golden images as the "
            f"reference kernels do, give or take {_MOST_KERNEL_LIMIT // 2}/256. "
            f"Received: {deviation}/256; convert the model anew with more calibration "
            "images, or train it quantization-aware"
        )
    return max(_LEAST_KERNEL_LIMIT, 2 * deviation)


def _pack_golden(images, scores):
    file = io.BytesIO()
    np.savez_compressed(file, images=images, scores=scores)
    return file.getvalue()


def _write_whole(folder, files, about):
    """Writes and tests a kit beside its place, then moves it there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # Of a run that was killed.
    partial.mkdir(parents=True)
    try:
        listed = {}
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            (partial / name).write_bytes(content)
            digest = selftest.sha256(content)
            listed[name] = {"sha256": digest, "bytes": len(content)}
        manifest = {"schema": SCHEMA, **about, "kdprune": __version__, "files": listed}
        manifest["sha256"] = selftest.digest_of_manifest(manifest)
        text = json.dumps(manifest, indent=2) + "\n"
        (partial / "manifest.json").write_text(text, encoding="utf-8")
        problems = selftest.find_damage(partial)
        problems += [what for what, good in selftest.check_scores(partial) if not good]
        if problems:
            raise ValueError(f"the kit fails its own self-test: {'; '.join(problems)}")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest
