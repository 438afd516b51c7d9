"""Soft labels: a teacher's logits, computed once and replayed."""

import hashlib
import io
import json
import os
import sys
import time

import numpy as np

_KEY = "store.json"


def store_key(teachers, split, *, augment=None, seed=0):
    """Names all that determines the logits of a store.

    Args:
        teachers: The `keras.Model` objects whose logits are averaged.
        split: The images, `data.Split`.
        augment: The augmentation of the views, a dict, or None.
        seed: Its seed.

    Returns:
        JSON-able dict, for `write_soft_labels` and `load_soft_labels`.
    """
    weights = hashlib.sha256()
    for teacher in teachers:
        for value in teacher.get_weights():
            weights.update(np.ascontiguousarray(value).tobytes())
    return {
        "teacher": weights.hexdigest(),
        "images": hashlib.sha256(np.ascontiguousarray(split.images)).hexdigest(),
        "augmentation": augment,
        "seed": seed,
    }


def write_soft_labels(teachers, read_view, folder, *, views, key):
    """Stores teachers' logits for augmentation views of every image.

    A file per view, each written whole; called again after an interruption, it
    goes on with the first view that is missing.

    Args:
        teachers: A `keras.Model` that gives logits, or several, whose mean is stored.
        read_view: Function of a view's number, giving batches of that view of all
            images in their own order (`data.batches.view_batches`). One view
            without augmentation is the articles' `teacher.predict`.
        folder: `pathlib.Path` of the store.
        views: Number K of views. In epoch e a student sees view e mod K.
        key: What the logits depend on: `store_key` of teachers and images.

    Raises:
        ValueError: If the folder holds the store of another key, or the teachers
            give no logits that half precision can hold.
        OSError: If a view can't be written; those before it are kept.
    """
    teachers = list(teachers) if isinstance(teachers, list | tuple) else [teachers]
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / _KEY).exists():
        _check_key(folder, key)
    else:
        _write(folder / _KEY, json.dumps(key).encode())
    for view in range(views):
        path = folder / f"view-{view:03d}.npy"
        if path.exists():
            continue
        started = time.perf_counter()
        logits = _checked(_mean_logits(teachers, read_view(view)))
        # Given a file, NumPy writes past Python, and a full disk goes unnoticed.
        content = io.BytesIO()
        np.save(content, logits)
        _write(path, content.getbuffer())
        seconds = time.perf_counter() - started
        print(f"soft labels: view {view + 1} of {views}, {seconds:.0f} s", flush=True)


def load_soft_labels(folder, key=None):
    """Opens what `write_soft_labels` stored.

    The logits stay on disk and are read as they are used.

    Args:
        folder: `pathlib.Path` of the store.
        key: The `store_key` that it must have; None for any.

    Returns:
        One array per view, `(images, classes)`, float16.

    Raises:
        ValueError: If there is no store, if it is of another teacher, of other
            images, another augmentation or seed, or if a view is cut short.
    """
    paths = sorted(folder.glob("view-*.npy"))
    if not paths:
        raise ValueError(f"expected soft labels (view-000.npy, …) in {folder}: none.")
    if key is not None:
        _check_key(folder, key)
    views = [_open(path) for path in paths]
    shapes = {view.shape for view in views}
    if len(shapes) > 1:
        raise ValueError(
            f"{folder}: expected views of one shape, got {sorted(shapes)}; remove the "
            "folder and store them again"
        )
    return views


def _mean_logits(teachers, batches):
    verbose = 1 if sys.stdout.isatty() else 0
    total = sum(teacher.predict(batches, verbose=verbose) for teacher in teachers)
    return total / len(teachers)


def _checked(logits):
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


def _write(path, content):
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written: {error.strerror or error}. The views before "
            "it are kept; free some space and run the same command again."
        ) from error


def _open(path):
    try:
        view = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: expected a whole view of soft labels, got a file that is cut "
            f"short or none of ours ({error}); remove it and store it again"
        ) from error
    if view.ndim != 2 or view.dtype != np.float16:
        raise ValueError(
            f"{path}: expected logits (images, classes) in float16, got {view.shape} "
            f"in {view.dtype}; remove it and store it again"
        )
    return view


def _check_key(folder, key):
    path = folder / _KEY
    found = json.loads(path.read_text()) if path.exists() else {}
    # As JSON has them, where a tuple is a list.
    key = json.loads(json.dumps(key))
    differing = [name for name in key if found.get(name) != key[name]]
    if differing:
        raise ValueError(
            f"{folder}: expected soft labels of the same teacher, images, augmentation "
            f"and seed, got those of another {' and '.join(differing)}; use another "
            "folder, or remove this one"
        )
