"""Soft labels: a teacher's logits, computed once and replayed."""

import os
import time

import numpy as np


def write_soft_labels(teacher, read_view, folder, *, views):
    """Stores a teacher's logits for augmentation views of every image.

    A file per view, each written whole; called again after an interruption, it
    goes on with the first view that is missing. The folder must be used for one
    teacher, data set, seed and augmentation only.

    Args:
        teacher: `keras.Model`, logits out.
        read_view: Function of a view's number, giving batches of that view of all
            images in their own order (`data.batches.view_batches`). One view
            without augmentation is the articles' `teacher.predict`.
        folder: `pathlib.Path` of the store.
        views: Number K of views. In epoch e a student sees view e mod K.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for view in range(views):
        path = folder / f"view-{view:03d}.npy"
        if path.exists():
            continue
        started = time.perf_counter()
        logits = teacher.predict(read_view(view), verbose=0)
        # Half precision moves a logit by 0.05 % at most, far less than the
        # difference between two views of one image.
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:
            np.save(file, logits.astype(np.float16))
        os.replace(partial, path)
        seconds = time.perf_counter() - started
        print(f"soft labels: view {view + 1} of {views}, {seconds:.0f} s", flush=True)


def load_soft_labels(folder):
    """Reads what `write_soft_labels` stored: `(views, n, classes)`, float16."""
    paths = sorted(folder.glob("view-*.npy"))
    if not paths:
        raise ValueError(f"expected soft labels (view-000.npy, …) in {folder}: none.")
    return np.stack([np.load(path, allow_pickle=False) for path in paths])
