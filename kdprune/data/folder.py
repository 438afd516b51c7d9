"""Image folders with one subfolder for each class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kdprune._log import logger, progress
from kdprune.data.dataset import Source, Split
from kdprune.data.splits import stratified_split

# Formats are named so that a file's content cannot choose another decoder, such
# as EPS, which would start Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())
MAX_PIXELS = 100_000_000
PROGRESS_FROM = 5_000
UNLABELLED = ("unlabelled", "unlabeled")

Files = list[tuple[Path, int]]


def load(
    *,
    path: str | os.PathLike | None = None,
    image_size: Sequence[int] | None = None,
    channels: int = 3,
    test: float | int = 0.2,
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
) -> Source:
    """Finds the images of a folder and reads those to train on.

    The folder holds `train/<class>/*`, `test/<class>/*` and, if you have it,
    `validation/<class>/*` (or `val`) and `unlabelled/*`; or only `<class>/*`, of which
    a stratified share is then held out as test set. Images are turned upright
    (EXIF), their transparency is dropped, animations give their first frame. Nothing
    is cached.

    Args:
        path: The folder, relative to `data_dir` if that is given.
        image_size: `(height, width)` that images are resized to, antialiased and
            without keeping their proportions. None if all have one size.
        channels: 3 for RGB, 1 for grey.
        test: Share or number of images to hold out where there is no `test/`.
        data_dir: The folder, or what `path` is relative to.
        seed: Seed of the held-out share.

    Returns:
        The source; test images are opened when it is asked for them.

    Raises:
        ValueError: If a class is empty, an image is unreadable, too large or not
            of 8 bits, sizes differ, or a symbolic link leaves the folder.
        FileNotFoundError: If the folder is not there.
    """
    root = _root(path, data_dir)
    resize = _image_size(image_size)
    if channels not in (1, 3):
        raise ValueError(f"Expected channels 1 or 3. Received: {channels!r}.")
    parts = find_parts(root)
    classes = class_names(parts["train"])
    files = {part: find_images(parts[part], classes, root) for part in parts}
    if "test" not in files:
        files["train"], files["test"] = _hold_out(files["train"], test, seed)
    train = read_images(files["train"], channels, resize=resize)
    size = train.images.shape[1:3]
    validation = None
    if "validation" in files:
        validation = read_images(files["validation"], channels, size, resize=resize)
    unlabelled = None
    if found := find_unlabelled(root):
        unlabelled = read_images(found, channels, size, resize=resize)
    return Source(
        origin=f"image folder {root.name!r}",
        classes=classes,
        train=train,
        read_test=lambda: read_images(files["test"], channels, size, resize=resize),
        test_size=len(files["test"]),
        validation=validation,
        unlabelled=unlabelled,
    )


def find_parts(root: Path) -> dict[str, Path]:
    """Finds the folders of the splits; one that has none is all training.

    Args:
        root: The folder of the dataset.

    Returns:
        Folders by `train`, and where there is one, `validation` and `test`.

    Raises:
        ValueError: If there is a `test/` without `train/`, or both `validation/`
            and `val/`.
    """
    present = {
        name: root / name
        for name in ("train", "validation", "val", "test")
        if (root / name).is_dir() and _folders(root / name)
    }
    if not present:
        return {"train": root}
    if "train" not in present:
        raise ValueError(
            f"Expected train/<class>/ beside {', '.join(present)}/ in {root}. "
            "Received: no such folder."
        )
    if "val" in present:
        if "validation" in present:
            raise ValueError(
                f"Expected one validation folder in {root}. "
                "Received: both val/ and validation/. Remove one."
            )
        present["validation"] = present.pop("val")
    return present


def class_names(folder: Path) -> tuple[str, ...]:
    """Returns the names of the class folders in `folder`, sorted.

    Raises:
        ValueError: If there are fewer than two.
    """
    names = tuple(_folders(folder))
    if len(names) < 2:
        raise ValueError(
            f"Expected two or more class folders in {folder}. "
            f"Received: {', '.join(names) or 'none'}. "
            "Put the images of each class into a folder of its name."
        )
    if found := set(UNLABELLED) & set(names):
        raise ValueError(
            f"Expected folders of classes in {folder}. Received: {found.pop()}/ among "
            "them. Put images that have no class beside train/, which holds the others."
        )
    return names


def find_unlabelled(root: Path) -> Files:
    """Lists the images of `unlabelled/` (or `unlabeled`) with -1; none without it.

    Raises:
        ValueError: If the folder is there but holds no image, or a symbolic link
            leaves `root` or leads to a folder.
    """
    folder = next((root / name for name in UNLABELLED if (root / name).is_dir()), None)
    if folder is None:
        return []
    images = sorted(_walk(folder, root.resolve()))
    if not images:
        raise ValueError(
            f"Expected images in {folder}. Received: none "
            f"({' '.join(sorted(SUFFIXES))}). Add images or remove the folder."
        )
    return [(image, -1) for image in images]


def find_images(folder: Path, classes: tuple[str, ...], root: Path) -> Files:
    """Lists the images of every class, without opening one.

    Args:
        folder: What holds the class folders.
        classes: The names they must have, in the order of the labels.
        root: The folder that symbolic links must not leave.

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
    files = []
    for label, name in enumerate(classes):
        images = sorted(_walk(folder / name, root.resolve()))
        if not images:
            raise ValueError(
                f"Expected images of class {name!r} in {folder / name}. Received: none "
                f"({' '.join(sorted(SUFFIXES))}). Add images or remove the folder."
            )
        files += [(image, label) for image in images]
    return files


def read_images(
    files: Files,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    *,
    resize: tuple[int, int] | None = None,
) -> Split:
    """Reads images into one array.

    Args:
        files: Pairs `(file, label)`.
        channels: 3 for RGB, 1 for grey.
        size: `(height, width)` all must have; that of the first image if None.
        resize: `(height, width)` to resize to; None leaves them as they are.

    Returns:
        The images, shape `(len(files), height, width, channels)`, and labels.

    Raises:
        ValueError: If an image is unreadable, too large, not of 8 bits, or not of
            the same size as the others; the message names the file.
    """
    labels = np.array([label for _, label in files], np.int64)
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        # Pillow only warns of what is refused below.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        decoded: Iterable = pool.map(
            lambda file: _read(file[0], channels, resize), files
        )
        if len(files) > PROGRESS_FROM:
            logger.info("reading %s images", f"{len(files):,}")
            decoded = progress(decoded, "reading images", len(files))
        for index, pixels in enumerate(decoded):
            if size is None:
                size = pixels.shape[:2]
            if index == 0:
                images = np.empty((len(files), *size, channels), np.uint8)
            if pixels.shape[:2] != tuple(size):
                pool.shutdown(cancel_futures=True)
                raise ValueError(
                    f"Expected images of one size, {_by(size)} (height x width) as "
                    f"{files[0][0].name}. Received: {_by(pixels.shape)} in "
                    f"{files[index][0]}. Give image_size=(height, width) to resize."
                )
            images[index] = pixels
    return Split(images, labels)


def _read(file: Path, channels: int, resize: tuple[int, int] | None) -> np.ndarray:
    """Decodes one image, uint8 of shape `(height, width, channels)`."""
    try:
        with Image.open(file, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image = ImageOps.exif_transpose(opened)
            image.load()
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"Expected at most {MAX_PIXELS:,} pixels. Received: {file}, which has more "
            "when decompressed. Remove it or make it smaller."
        ) from error
    except Exception as error:  # Pillow's decoders raise many types on bad files.
        raise ValueError(
            f"Expected an image. Received: {file}, which cannot be read ({error}). "
            "Repair or remove it."
        ) from error
    if image.mode[0] in "IF":  # I, I;16, F: more than 8 bits, of unknown range.
        values = np.asarray(image)
        broken = values.size - np.isfinite(values).sum()
        raise ValueError(
            f"Expected 8 bits for each channel. Received: {file} of mode {image.mode} "
            f"({values.dtype}, {broken} of {values.size} pixels NaN or infinite). "
            "Convert it to 8 bits."
        )
    image = image.convert("RGB" if channels == 3 else "L")
    if resize is not None and image.size != resize[::-1]:
        image = image.resize(resize[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


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


def _image_size(image_size: Sequence[int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size,) * 2
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(
            "Expected image_size as whole numbers, one or (height, width). "
            f"Received: {image_size!r}."
        )
    return size


def _folders(folder: Path) -> list[str]:
    """Names of the subfolders of `folder`, sorted, without hidden ones."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def _walk(folder: Path, root: Path) -> list[Path]:
    """Lists the images in `folder` and below, refusing what is not inside `root`."""
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
            images += _walk(path, root)
        elif path.suffix.lower() in SUFFIXES:
            if path.is_symlink():
                _refuse_outside(path, root)
            images.append(path)
    return images


def _refuse_outside(path: Path, root: Path):
    target = path.resolve()
    if not target.is_relative_to(root):
        raise ValueError(
            f"Expected images inside {root}. Received: {path}, which a symbolic link "
            f"takes to {target}. Copy the images."
        )


def _hold_out(files: Files, share: float | int, seed: int) -> tuple[Files, Files]:
    """Divides the files into those to train on and a stratified test set."""
    labels = np.array([label for _, label in files])
    kept, drawn = stratified_split(labels, share, (seed, 2), "test")
    return [files[i] for i in kept], [files[i] for i in drawn]


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
