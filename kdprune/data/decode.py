"""Image files into one array: formats, sizes, and what is wrong with any of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from kdprune._io import check_memory, first_line
from kdprune._log import logger, progress
from kdprune.data.dataset import Split, shorten

# Formats are named so that a file's content cannot choose another decoder, such
# as EPS, which would start Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jpe .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split()
)
# Of images as well, which have to be converted first.
OTHER_SUFFIXES = frozenset(
    ".arw .cr2 .cr3 .dng .exr .hdr .heic .heif .j2k .jp2 .jxl .nef .orf .psd .raw .svg "
    ".tga".split()
)
MAX_PIXELS = 100_000_000
PROGRESS_FROM = 5_000

# How an image of other proportions comes to the size that is asked for.
RESIZES = ("stretch", "crop", "pad")
ON_ERROR = ("stop", "skip")

Files = list[tuple[Path, int]]


@dataclass
class Reader:
    """Reads image files that must all become arrays of one shape.

    Attributes:
        root: The folder that files are named relative to.
        channels: 3 for RGB, 1 for gray.
        image_size: `(height, width)` that images are resized to; None leaves them as
            they are, all of one size.
        resize: "stretch" to that size, "crop" the centre of the right proportions, or
            "pad" with black.
        on_error: "stop" at files that can't be used, naming all; "skip" leaves them
            out.
        skipped: The files that were left out, with the reason.
    """

    root: Path
    channels: int = 3
    image_size: tuple[int, int] | None = None
    resize: str = "stretch"
    on_error: str = "stop"
    skipped: list[str] = field(default_factory=list)
    _first: tuple[str, tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise ValueError(f"Expected channels 1 or 3. Received: {self.channels!r}.")
        for key, value, known in (
            ("resize", self.resize, RESIZES),
            ("on_error", self.on_error, ON_ERROR),
        ):
            if value not in known:
                raise ValueError(
                    f"Expected {key} to be one of {', '.join(known)}. "
                    f"Received: {value!r}."
                )
        if self.resize != "stretch" and self.image_size is None:
            raise ValueError(
                f"Expected image_size=(height, width) with resize {self.resize!r}. "
                "Received: none."
            )

    def read(
        self, parts: Mapping[str, Files], later: Sequence[Path] = ()
    ) -> dict[str, Split]:
        """Reads the files of one or more splits, each into one array.

        Args:
            parts: Pairs `(file, label)` of each split, by its name.
            later: Files that are read another time: where some of `parts` can't be
                used, those of these are named as well.

        Returns:
            The splits by name; images `(n, height, width, channels)`.

        Raises:
            ValueError: If files can't be used and are not to be skipped, none of a
                class is left, or sizes differ: one line that names them.
        """
        files = [file for part in parts.values() for file, _ in part]
        if self.image_size is not None:
            pixels = math.prod(self.image_size)
            check_memory(
                len(files) * pixels * self.channels,
                f"{len(files):,} images of {_by(self.image_size)}",
                "give a smaller image_size, or take fewer images",
            )
        decoded = self._decode(files)
        faults: list[str] = []
        sizes: list[str] = []
        splits: dict[str, Split] = {}
        for name, part in parts.items():
            images = np.empty((0, 0, 0, self.channels), np.uint8)
            kept: list[int] = []
            for file, label in part:
                found = next(decoded)
                called = self._name(file)
                if isinstance(found, str):
                    faults.append(_fault(called, found))
                    continue
                if self._first is None:
                    self._first = called, (found.shape[0], found.shape[1])
                if found.shape[:2] != self._first[1]:
                    sizes.append(f"{_by(found.shape)} in {called}")
                    continue
                if not kept:
                    shape = (len(part), *self._first[1], self.channels)
                    check_memory(
                        math.prod(shape),
                        f"{len(part):,} images of {_by(shape[1:3])}",
                        "give a smaller image_size, or take fewer images",
                    )
                    images = np.empty(shape, np.uint8)
                images[len(kept)] = found
                kept.append(label)
            # A copy only where files were left out.
            whole = images if len(kept) == len(images) else images[: len(kept)].copy()
            splits[name] = Split(whole, np.array(kept, np.int64))
        if faults and self.on_error == "stop":
            found_later = zip(later, self._decode(later), strict=True)
            faults += [
                _fault(self._name(file), found)
                for file, found in found_later
                if isinstance(found, str)
            ]
            raise ValueError(
                f"Expected images. Received: {_count(len(faults), 'file')} that can't "
                f"be used: {shorten(faults)}. Repair or remove them, or leave them out "
                "with on_error: skip."
            )
        if sizes:
            assert self._first is not None  # There was one to differ from.
            raise ValueError(
                f"Expected images of one size, {_by(self._first[1])} (height x width) "
                f"as {self._first[0]}. Received: {_count(len(sizes), 'image')} of "
                f"others: {shorten(sizes)}. Give image_size, [height, width], to "
                "resize all."
            )
        # Test images are read twice: checked first, and used at the end.
        self.skipped += [fault for fault in faults if fault not in self.skipped]
        if faults:
            self._check_left(parts, splits)
        return splits

    def _decode(self, files: Sequence[Path]) -> Iterator[NDArray[np.uint8] | str]:
        """The pixels of each file, or why there are none."""
        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
            # Pillow warns of what is refused here, and of palettes.
            warnings.simplefilter("ignore")
            decoded: Iterator = pool.map(self._read_file, files)
            if len(files) > PROGRESS_FROM:
                logger.info("reading %s images", f"{len(files):,}")
                decoded = progress(decoded, "reading images", len(files))
            yield from decoded

    def _read_file(self, file: Path) -> NDArray[np.uint8] | str:
        """Decodes one image, uint8 of shape `(height, width, channels)`."""
        try:
            if not file.is_file():  # A pipe would be waited for.
                return "no file but a pipe, a socket or a device"
            if not file.stat().st_size:
                return "empty"
            with Image.open(file, formats=FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image = ImageOps.exif_transpose(opened)
                image.load()
            if image.mode[0] in "IF":  # I, I;16, F: of unknown range.
                return f"more than 8 bits for each channel, mode {image.mode}"
            image = image.convert("RGB" if self.channels == 3 else "L")
        except Image.DecompressionBombError:
            return f"more than {MAX_PIXELS:,} pixels"
        except UnidentifiedImageError:
            if file.suffix.lower() == ".avif" and not features.check("avif"):
                return "AVIF, which needs Pillow 11.3 or later"
            return f"not one of {', '.join(FORMATS)}"
        except OSError as error:
            return error.strerror or f"cannot be read: {first_line(error)}"
        except Exception as error:  # Pillow's decoders raise many types on bad files.
            return f"cannot be read: {first_line(error)}"
        return np.asarray(self._resized(image)).reshape(
            *(self.image_size or (image.height, image.width)), self.channels
        )

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.image_size is None or image.size == self.image_size[::-1]:
            return image
        size, method = self.image_size[::-1], Image.Resampling.BILINEAR
        if self.resize == "crop":
            return ImageOps.fit(image, size, method)
        if self.resize == "pad":
            return ImageOps.pad(image, size, method)
        return image.resize(size, method)

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.root).as_posix())

    def _check_left(
        self, parts: Mapping[str, Files], splits: Mapping[str, Split]
    ) -> None:
        for name, part in parts.items():
            left = set(splits[name].labels.tolist())
            for file, label in part:
                if label not in left:
                    raise ValueError(
                        f"Expected a {name} image beside {self._name(file)} that can "
                        f"be used. Received: none, after {len(self.skipped)} were "
                        f"skipped: {shorten(self.skipped)}. Repair them."
                    )


def check_image_size(image_size: object) -> tuple[int, int] | None:
    """`(height, width)` of what was given: that, one number for both, or None.

    Raises:
        ValueError: If it is something else.
    """
    if image_size is None:
        return None
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size,) * 2
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(
            "Expected image_size as whole numbers, one or (height, width). "
            f"Received: {image_size!r}."
        )
    return size


def _fault(name: str, why: str) -> str:
    return f"{name} ({why})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
