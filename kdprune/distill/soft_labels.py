"""Soft labels: a teacher's logits, computed once and replayed."""

from __future__ import annotations

import hashlib
import io
import json
import time
import tokenize
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras

from kdprune import _io
from kdprune._graph import final_activation
from kdprune._log import logger
from kdprune.images import parts

_STORE = "store.json"
_MOST_VIEWS = 1_000  # What three digits in a file's name can tell.
# Parts of a layer's config that change no logits: how weights were drawn and learned,
# and what Keras calls things. The precision has its own entry.
_NO_LOGITS = ("name", "trainable", "dtype", "module", "registered_name", "build_config")
_NO_LOGITS_ENDINGS = ("_initializer", "_regularizer", "_constraint")


def store_key(
    teachers: Sequence[keras.Model],
    split: Any,
    *,
    augment: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Names all that determines the logits of a store.

    Args:
        teachers: The `keras.Model` objects whose logits are averaged, each in the
            precision it will compute in (`models.precision.cast_model`).
        split: The images, `data.Split`.
        augment: The augmentation of the views, a dict, or None.
        seed: Its seed.

    Returns:
        JSON-able dict, for `write_soft_labels` and `load_soft_labels`.
    """
    _check_models(teachers)
    content = hashlib.sha256()
    precisions: set[str | None] = set()
    for teacher in teachers:
        content.update(_architecture(teacher).encode())
        for value in teacher.get_weights():
            content.update(np.ascontiguousarray(value).tobytes())
        precisions |= {layer.compute_dtype for layer in teacher._flatten_layers()}
    pixels = hashlib.sha256()
    for part in parts(split.images):
        pixels.update(np.ascontiguousarray(part).data)
    return {
        "teacher": content.hexdigest(),
        "precision": sorted(filter(None, precisions)),
        "images": pixels.hexdigest(),
        "augmentation": augment,
        "seed": seed,
    }


def write_soft_labels(
    teachers: keras.Model | Sequence[keras.Model],
    read_view: Callable[[int], Any],
    folder: Path,
    *,
    views: int,
    key: Mapping[str, Any],
) -> None:
    """Stores teachers' logits for augmentation views of every image.

    A file per view, each written whole; called again after an interruption, it
    goes on with the first view that is missing. The checksums of the views stand in
    the store: one that was changed, or that has none, is stored again.

    Args:
        teachers: A `keras.Model` that gives logits, or several, whose mean is stored.
        read_view: Function of a view's number, giving batches of that view of all
            images in their own order (`data.batches.view_batches`). One view
            without augmentation is the articles' `teacher.predict`.
        folder: `pathlib.Path` of the store.
        views: Number K of views, at least 1; more than there are add to a store. In
            epoch e a student sees view e mod K.
        key: What the logits depend on: `store_key` of teachers and images.

    Raises:
        ValueError: If there is no view to store, the folder holds the store of
            another key, or the teachers give no logits that half precision can hold.
        OSError: If a view can't be written; those before it are kept.
    """
    teachers = list(teachers) if isinstance(teachers, list | tuple) else [teachers]
    _check_models(teachers)
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise ValueError(f"views must be a whole number above 0. Received: {views!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if _io.PARTIAL in path.name:
            path.unlink()  # Of a process that was killed.
    found = _read_store(folder)
    if found:
        _check_key(folder, found, key)
    store = {**found, **key, "views": views}
    if found.get("views") != views:
        _write(folder / _STORE, json.dumps(store).encode())
    sums = _sums(found)
    for view, path in enumerate(_paths(folder, views)):
        if path.exists():
            if _io.sha256(path) == sums.get(path.name):
                continue
            logger.warning(
                "soft labels: %s is not as it was stored; view %d is stored again",
                path,
                view + 1,
            )
        started = time.perf_counter()
        logits = _checked(_mean_logits(teachers, read_view(view)))
        # Given a file, NumPy writes past Python, and a full disk goes unnoticed.
        content = io.BytesIO()
        np.save(content, logits)
        _write(path, content.getbuffer())
        sums[path.name] = _io.sha256(content.getvalue())
        _write(folder / _STORE, json.dumps({**store, "sha256": sums}).encode())
        seconds = time.perf_counter() - started
        logger.info("soft labels: view %d of %d, %.0f s", view + 1, views, seconds)


def load_soft_labels(
    folder: str | Path, key: Mapping[str, Any] | None = None
) -> list[np.ndarray]:
    """Opens what `write_soft_labels` stored.

    The logits stay on disk and are read as they are used.

    Args:
        folder: The folder of the store.
        key: The `store_key` that it must have; None for any.

    Returns:
        One array per view, `(images, classes)`, float16.

    Raises:
        ValueError: If there is no store, if it is of another teacher or precision,
            of other images, another augmentation or seed, or if a view is missing, cut
            short or not as it was stored.
    """
    folder = Path(folder)
    found = _read_store(folder)
    if not found:
        raise ValueError(f"no soft labels in {folder}: {_STORE} not found")
    if key is not None:
        _check_key(folder, found, key)
    paths = _paths(folder, found["views"])
    # Views are numbered by position: with one missing, the next would take its place.
    there = sum(path.exists() for path in paths)
    if there < len(paths):
        raise ValueError(
            f"{folder}: expected {len(paths)} views of soft labels, got {there}; build "
            "the store again, which goes on with those that are missing"
        )
    views = [_open(path) for path in paths]
    shapes = {view.shape for view in views}
    if len(shapes) > 1:
        raise ValueError(
            f"{folder}: expected views of one shape, got {sorted(shapes)}; remove the "
            "folder and store them again"
        )
    sums = _sums(found)
    for path in paths:
        if path.name in sums and _io.sha256(path) != sums[path.name]:
            raise ValueError(
                f"{path}: expected the view as it was stored, got a file that was "
                "changed; remove it and store it again"
            )
    return views


def describe_soft_labels(
    logits: np.ndarray, labels: np.ndarray, temperature: float
) -> dict[str, float]:
    """Measures what soft labels say, and how much of it the labels do not.

    Args:
        logits: A teacher's logits, `(images, classes)`.
        labels: The images' classes, `(images,)`.
        temperature: T > 0 that the logits are divided by, as in the loss.

    Returns:
        `{figure: value}`, means over images. `agreement`: share whose best class is
        the label. `entropy`: in nats, of ln(classes) at most. `outside_top`:
        probability of all classes but the best. `beyond_labels`: in nats, the
        divergence KL(p(image) || mean p of the images of its label), which is the
        mutual information of image and soft label given the label. It is 0 for a
        teacher that says the same of all images of a class, as one trained with label
        smoothing tends to (Müller et al., 2019, https://arxiv.org/abs/1906.02629,
        section 4), however much entropy that has.
    """
    scaled = np.asarray(logits, np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    log_p = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    if scaled.shape[1] < 2 or np.shape(labels) != scaled.shape[:1]:
        raise ValueError(
            "expected logits (n, classes) of two classes at least, and classes (n,). "
            f"Received: {scaled.shape} and {np.shape(labels)}"
        )
    means = {c: p[labels == c].mean(axis=0) for c in np.unique(labels)}
    mean = np.stack([means[c] for c in labels])
    return {
        "agreement": float((p.argmax(axis=1) == labels).mean()),
        "entropy": float(-(p * log_p).sum(axis=1).mean()),
        "outside_top": float(1 - p.max(axis=1).mean()),
        "beyond_labels": float((p * (log_p - np.log(mean))).sum(axis=1).mean()),
    }


def _check_models(teachers: Sequence[Any]) -> None:
    """Refuses what is no model, such as a path, or no teacher at all."""
    wrong = [model for model in teachers if not isinstance(model, keras.Model)]
    if wrong or not teachers:
        raise ValueError(
            "teachers must be keras.Model objects, such as kdprune.load_model gives, "
            f"at least one. Received: {wrong[0] if wrong else 'none'!r}"
        )
    for model in teachers:
        if final_activation(model)[0] == "sigmoid":
            raise ValueError(
                f"expected logits. Received: model {model.name!r} giving probabilities "
                "by sigmoid; take it off by kdprune.intake.split_head(model)[0]"
            )


def _architecture(model: keras.Model) -> str:
    """Describes, as text, how a model computes logits from its weights.

    Layers go by their numbers, since their names count up within a process: a model
    that is built twice is the same.
    """
    try:
        config = json.loads(model.to_json())["config"]
    except (NotImplementedError, TypeError, ValueError):
        config = {}  # A subclassed model may have none that can be written.
    kind = type(model).__qualname__
    return json.dumps([kind, _without_names(config, {})], sort_keys=True)


def _without_names(config: Any, numbers: Mapping[str, int]) -> Any:
    """A part of a config; `numbers` are those of the layers around it, by name."""
    if isinstance(config, dict):
        inner = config.get("layers")
        if isinstance(inner, list) and all(map(_is_layer, inner)):
            found = [layer["config"].get("name") for layer in inner]
            numbers = {name: number for number, name in enumerate(found)}
        return {
            key: _without_names(value, numbers)
            for key, value in config.items()
            if key not in _NO_LOGITS and not key.endswith(_NO_LOGITS_ENDINGS)
        }
    if isinstance(config, list):
        # What a layer is called with stands in lists, and other names do not.
        return [
            numbers.get(value, value)
            if isinstance(value, str)
            else _without_names(value, numbers)
            for value in config
        ]
    return config


def _is_layer(config: Any) -> bool:
    return isinstance(config, dict) and isinstance(config.get("config"), dict)


def _mean_logits(teachers: Sequence[keras.Model], batches: Any) -> np.ndarray:
    total = sum(teacher.predict(batches, verbose=0) for teacher in teachers)
    return total / len(teachers)


def _checked(logits: np.ndarray) -> np.ndarray:
    """The logits in half precision, if that holds them.

    It moves a logit by 0.05 % at most, far less than the difference between two
    views of one image.
    """
    sums = logits.sum(axis=1)
    if (logits >= 0).all() and np.allclose(sums, 1.0, atol=1e-3):
        raise ValueError(
            "expected a teacher that gives logits. Received: probabilities, whose "
            "softmax would be taken twice; build it with activation=None in its last "
            "layer"
        )
    with np.errstate(over="ignore"):  # Said below, in one line.
        stored = logits.astype(np.float16)
    if not np.isfinite(stored).all():
        raise ValueError(
            "expected logits between -65,504 and 65,504. Received: "
            f"{logits.min():.3g} to {logits.max():.3g}; train the teacher again, with "
            "a lower learning rate or label smoothing"
        )
    return stored


def _write(path: Path, content: Any) -> None:
    try:
        _io.write_file(path, content)
    except OSError as error:
        raise OSError(
            f"{path} could not be written: {error.strerror or error}. The views before "
            "it are kept; free some space and run the same command again."
        ) from error


def _open(path: Path) -> np.ndarray:
    try:
        view = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(
            f"{path}: expected a whole view of soft labels, got a file that is cut "
            f"short or of another program ({error}); remove it and store it again"
        ) from error
    if view.ndim != 2 or view.dtype != np.float16:
        raise ValueError(
            f"{path}: expected logits (images, classes) in float16, got {view.shape} "
            f"in {view.dtype}; remove it and store it again"
        )
    return view


def _paths(folder: Path, views: int) -> list[Path]:
    return [folder / f"view-{view:03d}.npy" for view in range(views)]


def _read_store(folder: Path) -> dict[str, Any]:
    """The content of a store's description; empty if there is none."""
    path = folder / _STORE
    if not path.exists():
        return {}
    found = _io.read_object(path)
    views = found.get("views")
    if type(views) is not int or not 1 <= views <= _MOST_VIEWS:
        raise ValueError(
            f"{path}: expected the number of views of soft labels, got a file without "
            "it; remove the folder and store them again"
        )
    return found


def _sums(store: Mapping[str, Any]) -> dict[str, str]:
    """The views' checksums by their files; none in a store of an earlier version."""
    sums = store.get("sha256")
    return dict(sums) if isinstance(sums, dict) else {}


def _check_key(folder: Path, found: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    # As JSON has them, where a tuple is a list.
    key = json.loads(json.dumps(key))
    differing = [name for name in key if found.get(name) != key[name]]
    if differing:
        raise ValueError(
            f"{folder}: expected soft labels of the same teacher, precision, images, "
            f"augmentation and seed, got those of another {' and '.join(differing)}; "
            "use another folder, or remove this one"
        )
