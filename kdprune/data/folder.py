"""Image folders with one subfolder for each class."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdprune._log import logger
from kdprune.data.cache import Cache
from kdprune.data.dataset import Source, shorten
from kdprune.data.decode import (
    OTHER_SUFFIXES,
    SUFFIXES,
    Files,
    Reader,
    check_image_size,
)
from kdprune.data.splits import stratified_split

# What the folders of the splits are called, in any case.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
UNLABELLED = ("unlabelled", "unlabeled")
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}


def load(
    *,
    path: str | os.PathLike | None = None,
    image_size: Sequence[int] | int | None = None,
    channels: int = 3,
    resize: str = "stretch",
    on_error: str = "stop",
    test: float | int = 0.2,
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    cache: Cache | None = None,
) -> Source:
    """Finds the images of a folder and reads those to train on.

    The folder holds `train/<class>/*`, `test/<class>/*` and, if you have it,
    `validation/<class>/*` and `unlabelled/*`; or only `<class>/*`, of which a
    stratified share is then held out as test set. The splits' folders may be called as
    in `SPLITS`, in any case. Images are turned upright (EXIF), their transparency is
    dropped, animations give their first frame. Images that are many are decoded into a
    cache once and mapped from there, see `kdprune.data.cache`.

    Args:
        path: The folder, relative to `data_dir` if that is given.
        image_size: `(height, width)` that images are resized to, antialiased, or one
            number for both. None if all have one size.
        channels: 3 for RGB, 1 for gray.
        resize: How images of other proportions come to that size: "stretch", "crop"
            the center, or "pad" with black.
        on_error: "stop" at files that can't be used, naming all of them, or "skip"
            them and list them in the data set's description.
        test: Share or number of images to hold out where there is no `test/`.
        data_dir: The folder, or what `path` is relative to.
        seed: Seed of the held-out share.
        cache: Where decoded images of more than 128 MiB go; None to hold all in memory.

    Returns:
        The source; test images are opened when it is asked for them.

    Raises:
        ValueError: If a class is empty, images are unreadable, too large or not
            of 8 bits, sizes differ, a symbolic link leaves the folder, or folders
            of splits and of classes can't be distinguished.
        FileNotFoundError: If the folder is not there.
    """
    root = _root(path, data_dir)
    size = check_image_size(image_size)
    reader = Reader(root, channels, size, resize, on_error, cache)
    parts = find_parts(root)
    classes = class_names(parts["train"])
    unread: Counter[str] = Counter()
    files = {part: find_images(parts[part], classes, root, unread) for part in parts}
    _warn_of_nesting(parts["train"], classes)
    if parts["train"] != root:
        unread.update(_beside(root, parts))
    heavy = [f"{n:,} {name}" for name, n in unread.items() if name in OTHER_SUFFIXES]
    if heavy:
        logger.warning(
            "images that are not read: %s; convert them to JPEG or PNG", shorten(heavy)
        )
    if "test" not in files:
        files["train"], files["test"] = _hold_out(files["train"], test, seed)
    wanted = {"training": files["train"]}
    if "validation" in files:
        wanted["validation"] = files["validation"]
    if found := find_unlabelled(root, unread):
        wanted["unlabelled"] = found
    tested = files["test"]
    splits = reader.read(wanted, later=[file for file, _ in tested])
    return Source(
        origin=f"image folder {root.name!r}",
        classes=classes,
        train=splits["training"],
        read_test=lambda: reader.read({"test": tested})["test"],
        test_size=len(tested),
        validation=splits.get("validation"),
        unlabelled=splits.get("unlabelled"),
        unread=dict(sorted(unread.items())),
        skipped=reader.skipped,
        resize=None if reader.image_size is None else resize,
    )


def find_parts(root: Path) -> dict[str, Path]:
    """Finds the folders of the splits; one that has none is all training.

    Args:
        root: The folder of the dataset.

    Returns:
        Folders by `train`, and where there is one, `validation` and `test`.

    Raises:
        ValueError: If there is a `test/` without `train/`, two folders of one split,
            a split's folder without classes, or what is no split beside `train/`.
    """
    names = [name for name in _folders(root) if name.casefold() not in UNLABELLED]
    named = [name for name in names if name.casefold() in _SPLIT_OF]
    others = [name for name in names if name not in named]
    splits = [name for name in named if _folders(root / name)]
    if not splits:
        _check_class_names(root, named, others)
        return {"train": root}
    present: dict[str, str] = {}
    for name in named:
        split = _SPLIT_OF[name.casefold()]
        if split in present:
            raise ValueError(
                f"Expected one {split} folder in {root}. Received: both "
                f"{present[split]}/ and {name}/. Remove or merge one."
            )
        present[split] = name
    if "train" not in present:
        raise ValueError(
            f"Expected train/<class>/ beside {'/, '.join(named)}/ in {root}. "
            "Received: no such folder."
        )
    for name in named:
        if name not in splits:
            raise ValueError(
                f"Expected folders of classes in {root / name}. Received: none. Sort "
                "its images by class, or move it away."
            )
    if len(present) == 1 and (images := [n for n in others if _holds(root / n)]):
        raise ValueError(
            f"Expected folders of splits or folders of classes in {root}. Received: "
            f"{splits[0]}/, which holds folders, beside {shorten(images)}. Move away "
            "what is neither."
        )
    return {split: root / name for split, name in present.items()}


def _check_class_names(root: Path, named: list[str], others: list[str]) -> None:
    """Refuses classes that are called like splits; a train may be a vehicle."""
    wrong = [name for name in named if _SPLIT_OF[name.casefold()] != "train"]
    if wrong or (named and not others):
        beside = f" beside {shorten(others)}" if others else ""
        raise ValueError(
            f"Expected folders of classes in {root / (wrong or named)[0]}, which is "
            f"called like a split. Received: none in {', '.join(named)}{beside}. Sort "
            "the images of each split into a folder for each class."
        )


def class_names(folder: Path) -> tuple[str, ...]:
    """Returns the names of the class folders in `folder`, sorted.

    Raises:
        ValueError: If there are fewer than two, or two differ in case alone.
    """
    names = tuple(_folders(folder))
    if len(names) < 2:
        inside = _folders(folder / names[0]) if names else []
        hint = "Put the images of each class into a folder of its name."
        if len(inside) > 1:
            hint = f"Give the path {folder / names[0]} if that holds the data."
        raise ValueError(
            f"Expected two or more class folders in {folder}. "
            f"Received: {', '.join(names) or 'none'}. {hint}"
        )
    if found := [name for name in names if name.casefold() in UNLABELLED]:
        raise ValueError(
            f"Expected folders of classes in {folder}. Received: {found[0]}/ among "
            "them. Put images that have no class beside train/, which holds the others."
        )
    seen: dict[str, str] = {}
    for name in names:
        same = seen.setdefault(_alike(name), name)
        if same != name:
            raise ValueError(
                f"Expected classes of different names in {folder}. Received: {same}/ "
                f"and {name}/, which differ in case or accents' encoding alone. Merge "
                "or rename them."
            )
    return names


def find_unlabelled(root: Path, unread: Counter[str] | None = None) -> Files:
    """Lists the images of `unlabelled/` (or `unlabeled`) with -1; none without it.

    Args:
        root: The folder of the dataset.
        unread: Counts other files by what they end in.

    Raises:
        ValueError: If the folder is there but holds no image, or a symbolic link
            leaves `root` or leads to a folder.
    """
    names = [name for name in _folders(root) if name.casefold() in UNLABELLED]
    if not names:
        return []
    folder = root / names[0]
    images = _images(folder, root, unread, f"Expected images in {folder}.")
    return [(image, -1) for image in images]


def find_images(
    folder: Path,
    classes: tuple[str, ...],
    root: Path,
    unread: Counter[str] | None = None,
) -> Files:
    """Lists the images of every class, without opening one.

    Args:
        folder: What holds the class folders.
        classes: The names they must have, in the order of the labels.
        root: The folder that symbolic links must not leave.
        unread: Counts files that are no images by what they end in.

    Returns:
        Pairs `(file, label)`, sorted by class and path.

    Raises:
        ValueError: If the class folders differ from `classes`, one holds no
            image, or a symbolic link leaves `root` or leads to a folder.
    """
    found = tuple(_folders(folder))
    if found != classes:
        missing = ", ".join(sorted(set(classes) - set(found)))
        extra = ", ".join(sorted(set(found) - set(classes)))
        raise ValueError(
            f"Expected the same classes in {folder} as in training. "
            f"Received: {missing or 'none'} missing; {extra or 'none'} beyond them."
        )
    if unread is not None:
        loose = [path for path in folder.iterdir() if _is_image(path)]
        unread.update({f"outside of class folders in {folder.name}/": len(loose)})
    files = []
    for label, name in enumerate(classes):
        expected = f"Expected images of class {name!r} in {folder / name}."
        images = _images(folder / name, root, unread, expected)
        files += [(image, label) for image in images]
    return files


def _images(
    folder: Path, root: Path, unread: Counter[str] | None, expected: str
) -> list[Path]:
    """The images of one folder, sorted; an error if there is none."""
    others: Counter[str] = Counter()
    images = sorted(_walk(folder, root.resolve(), others))
    if not images:
        found = ", ".join(f"{count} {name}" for name, count in others.items())
        raise ValueError(
            f"{expected} Received: {found or 'none'} ({' '.join(sorted(SUFFIXES))} are "
            "read). Add images or remove the folder."
        )
    if unread is not None:
        unread.update(others)
    return images


def _root(path: str | os.PathLike | None, data_dir: str | os.PathLike | None) -> Path:
    if path is None and data_dir is None:
        raise ValueError(
            "Expected the option path, a folder with one subfolder for each class. "
            "Received: none."
        )
    root = Path(data_dir or "", path or "").expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"Expected a folder of images. Received: {root}.")
    return root


def _folders(folder: Path) -> list[str]:
    """Names of the subfolders of `folder`, sorted, without hidden ones."""
    names = []
    for path in list(folder.iterdir()):
        if path.name.startswith((".", "__MACOSX")):
            continue
        if path.is_symlink() and not path.exists() and not path.suffix:
            raise ValueError(
                f"Expected a folder. Received: {path}, a symbolic link that leads "
                "nowhere. Repair or remove it."
            )
        if path.is_dir():
            names.append(path.name)
    return sorted(names)


def _walk(folder: Path, root: Path, others: Counter[str]) -> list[Path]:
    """Lists the images in `folder` and below, refusing what is not inside `root`.

    Files of other kinds are counted in `others`, by what their names end in.
    """
    _refuse_outside(folder, root)
    images = []
    # A list, for a directory left half read would stay open.
    for path in list(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.is_symlink():
                raise ValueError(
                    f"Expected images in {folder}. Received: {path.name}, a symbolic "
                    "link to a folder, which is not followed. Copy the images."
                )
            images += _walk(path, root, others)
        elif path.suffix.lower() in SUFFIXES:
            if path.is_symlink():
                _refuse_outside(path, root)
            images.append(path)
        else:
            others[path.suffix.lower() or path.name] += 1
    return images


def _refuse_outside(path: Path, root: Path) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # A circle is a RuntimeError to Python.
        raise ValueError(
            f"Expected images inside {root}. Received: {path}, a symbolic link that "
            "leads nowhere. Repair or remove it."
        ) from error
    if not target.is_relative_to(root):
        raise ValueError(
            f"Expected images inside {root}. Received: {path}, which a symbolic link "
            f"takes to {target}. Copy the images."
        )


def _beside(root: Path, parts: dict[str, Path]) -> Counter[str]:
    """Counts folders that are neither splits nor hidden, and images beside them."""
    taken = {path.name for path in parts.values()}
    unread: Counter[str] = Counter()
    for name in _folders(root):
        if name not in taken and name.casefold() not in UNLABELLED:
            unread[f"folder {name}/"] += 1
    loose = sum(_is_image(path) for path in root.iterdir())
    unread.update({"outside of class folders": loose})
    return unread


def _warn_of_nesting(folder: Path, classes: tuple[str, ...]) -> None:
    """Warns where each class holds the same folders and no image: a level too many."""
    inside = {tuple(_folders(folder / name)) for name in classes}
    direct = (_is_image(path) for name in classes for path in (folder / name).iterdir())
    if len(inside) == 1 and len(names := inside.pop()) > 1 and not any(direct):
        logger.warning(
            "each of the classes %s holds the same folders %s and no image beside "
            "them: if those are the classes, sort the images by them",
            shorten(classes),
            shorten(names),
        )


def _holds(folder: Path) -> bool:
    """Whether an image lies in the folder or below it."""
    return any(_is_image(path) for path in folder.rglob("*"))


def _is_image(path: Path) -> bool:
    return (
        path.suffix.lower() in SUFFIXES | OTHER_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _hold_out(files: Files, share: float | int, seed: int) -> tuple[Files, Files]:
    """Divides the files into those to train on and a stratified test set."""
    labels = np.array([label for _, label in files])
    kept, drawn = stratified_split(labels, share, (seed, 2), "test")
    return [files[i] for i in kept], [files[i] for i in drawn]
