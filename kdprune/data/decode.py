"""Image files into one array: formats, sizes, and what is wrong with any of them."""

from __future__ import annotations

import errno
import functools
import hashlib
import math
import os
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from kdprune._io import check_memory, first_line
from kdprune._log import logger, progress
from kdprune.data.cache import (
    IN_MEMORY,
    Cache,
    CacheFull,
    CacheUnusable,
    Decoded,
    Wrong,
    stamps,
)
from kdprune.data.dataset import Split, shorten
from kdprune.images import Rows

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
_AHEAD = 64  # Images that are decoded before they are asked for.

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
        resize: "stretch" to that size, "crop" the center of the right proportions, or
            "pad" with black.
        on_error: "stop" at files that can't be used, naming all; "skip" leaves them
            out.
        cache: Where images of more than `IN_MEMORY` bytes go; None to hold all in
            memory.
        skipped: The files that were left out, with the reason.
    """

    root: Path
    channels: int = 3
    image_size: tuple[int, int] | None = None
    resize: str = "stretch"
    on_error: str = "stop"
    cache: Cache | None = None
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
        """Reads the files of one or more splits.

        Args:
            parts: Pairs `(file, label)` of each split, by its name.
            later: Files that are read another time: where some of `parts` can't be
                used, those of these are named as well.

        Returns:
            The splits by name; images `(n, height, width, channels)`, an array, or
            `Rows` of more than `IN_MEMORY` bytes where there is a cache.

        Raises:
            ValueError: If files can't be used and are not to be skipped, none of a
                class is left, or sizes differ: one line that names them.
        """
        files = [file for part in parts.values() for file, _ in part]
        pixels, wrong = self._pixels(files)
        faults = [
            _fault(self._name(files[row]), found.why)
            for row, found in wrong.items()
            if not found.of_size
        ]
        sizes = [
            f"{found.why} in {self._name(files[row])}"
            for row, found in wrong.items()
            if found.of_size
        ]
        if faults and self.on_error == "stop":
            found_later = zip(later, self._decode(later), strict=True)
            faults += [
                _fault(self._name(file), found.why)
                for file, found in found_later
                if isinstance(found, Wrong) and not found.of_size
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
        splits: dict[str, Split] = {}
        start = 0
        for name, part in parts.items():
            rows = np.arange(start, start + len(part))
            kept = rows[[row not in wrong for row in rows.tolist()]] if wrong else rows
            labels = np.array([label for _, label in part], np.int64)[kept - start]
            if isinstance(pixels, Rows):
                images: Any = pixels.select(kept)
            else:  # A copy only where files were left out.
                whole = len(kept) == len(part)
                images = pixels[start : start + len(part)] if whole else pixels[kept]
            splits[name] = Split(images, labels)
            start += len(part)
        if faults:
            self._check_left(parts, splits)
        return splits

    def _pixels(self, files: Sequence[Path]) -> tuple[Any, dict[int, Wrong]]:
        """A row of pixels for each file, and what is wrong with which files."""
        size = self._find_size(files)
        if size is None:
            found = enumerate(self._decode(files))
            none = np.empty((0, 0, 0, self.channels), np.uint8)
            return none, {row: one for row, one in found if isinstance(one, Wrong)}
        shape = (len(files), *size, self.channels)
        if self.cache is not None and math.prod(shape) > IN_MEMORY:
            return self._streamed(self.cache, files, shape)
        check_memory(
            math.prod(shape),
            f"{len(files):,} images of {_by(size)}",
            "give a smaller image_size, or take fewer images",
        )
        pixels = np.empty(shape, np.uint8)
        wrong = {}
        for row, decoded in enumerate(self._decode(files)):
            if isinstance(decoded, Wrong):
                wrong[row] = decoded
            else:
                pixels[row] = decoded
        return pixels, wrong

    def _streamed(
        self, cache: Cache, files: Sequence[Path], shape: tuple[int, ...]
    ) -> tuple[Rows, dict[int, Wrong]]:
        """The same, of files that are cached, or decoded each time."""
        before = stamps(files)
        names = hashlib.sha256(before.tobytes())
        for file in files:
            names.update(os.fsencode(self._name(file)) + b"\0")
        key = {
            "files": names.hexdigest(),
            "resize": None if self.image_size is None else self.resize,
            "decoder": _decoder_versions(),
        }

        def decode(rows: range) -> Iterator[Decoded]:
            chosen = files[rows.start : rows.stop]
            yield from self._decode(chosen, shown=False)
            _check_same(chosen, before[rows.start : rows.stop])

        size = f"{len(files):,} images, {math.prod(shape) / 2**30:.1f} GiB"
        if cache.takes(math.prod(shape)):
            try:
                pixels, wrong = cache.images(key, shape, decode)
                return Rows(pixels), wrong
            except (CacheUnusable, CacheFull) as error:
                if cache.named:
                    raise
                logger.warning("%s: decoded each time they are used. %s", size, error)
        else:
            logger.info("%s: above the cache's limit, decoded each time", size)
        checked = enumerate(self._decode(files))
        wrong = {row: found for row, found in checked if isinstance(found, Wrong)}
        return Rows(_Undecoded(self, files, before, shape)), wrong

    def _find_size(self, files: Sequence[Path]) -> tuple[int, int] | None:
        """The size of all images: asked for, or the first one's that has any."""
        if self.image_size is not None:
            return self.image_size
        for file in files if self._first is None else ():
            found = self._read_file(file)
            if not isinstance(found, Wrong):
                self._first = self._name(file), (found.shape[0], found.shape[1])
                break
        return self._first and self._first[1]

    def _decode(self, files: Sequence[Path], shown: bool = True) -> Iterator[Decoded]:
        """The pixels of each file, or why there are none."""
        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
            # Pillow warns of what is refused here, and of palettes.
            warnings.simplefilter("ignore")
            decoded = self._few_ahead(pool, files)
            if shown and len(files) > PROGRESS_FROM:
                logger.info("reading %s images", f"{len(files):,}")
                decoded = progress(decoded, "reading images", len(files))
            yield from decoded

    def _few_ahead(
        self, pool: ThreadPoolExecutor, files: Sequence[Path]
    ) -> Iterator[Decoded]:
        waiting: deque[Future[Decoded]] = deque()
        for file in files:
            waiting.append(pool.submit(self._read_sized, file))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _read_sized(self, file: Path) -> Decoded:
        """Decodes one image, which must be of the others' size."""
        found = self._read_file(file)
        if isinstance(found, Wrong) or self._first is None:
            return found
        if found.shape[:2] != self._first[1]:
            return Wrong(_by(found.shape), of_size=True)
        return found

    def _read_file(self, file: Path) -> Decoded:
        """Decodes one image, uint8 of shape `(height, width, channels)`."""
        try:
            if not file.is_file():  # A pipe would be waited for.
                return Wrong("no file but a pipe, a socket or a device")
            if not file.stat().st_size:
                return Wrong("empty")
            with Image.open(file, formats=FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image = ImageOps.exif_transpose(opened)
                image.load()
            if image.mode[0] in "IF":  # I, I;16, F: of unknown range.
                return Wrong(f"more than 8 bits for each channel, mode {image.mode}")
            image = image.convert("RGB" if self.channels == 3 else "L")
        except Image.DecompressionBombError:
            return Wrong(f"more than {MAX_PIXELS:,} pixels")
        except UnidentifiedImageError:
            if file.suffix.lower() == ".avif" and not features.check("avif"):
                return Wrong("AVIF, which needs Pillow 11.3 or later")
            return Wrong(f"not one of {', '.join(FORMATS)}")
        except OSError as error:
            why = error.strerror or f"cannot be read: {first_line(error)}"
            return Wrong(why, passing=error.errno not in (None, errno.EACCES))
        except MemoryError:  # Which is no fault of the file.
            raise
        except Exception as error:  # Pillow's decoders raise many types on bad files.
            return Wrong(f"cannot be read: {first_line(error)}")
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


class _Undecoded:
    """Files that are decoded each time, as the base of `Rows`."""

    def __init__(
        self,
        reader: Reader,
        files: Sequence[Path],
        before: NDArray[np.int64],
        shape: tuple[int, ...],
    ) -> None:
        self.shape = shape
        self._reader, self._files, self._before = reader, files, before

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: NDArray, axis: int = 0) -> NDArray[np.uint8]:
        """Decodes these files, `(m,)`, into `(m, height, width, channels)`."""
        files = [self._files[index] for index in indices]
        pixels = np.empty((len(files), *self.shape[1:]), np.uint8)
        decoded = self._reader._few_ahead(_pool(), files)
        for place, found in enumerate(decoded):
            if isinstance(found, Wrong):
                raise _changed(files[place])
            pixels[place] = found
        _check_same(files, self._before[indices])
        return pixels


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """The threads that decode images each time they are used, of all data sets."""
    return ThreadPoolExecutor(thread_name_prefix="kdprune-decode")


def _check_same(files: Sequence[Path], before: NDArray[np.int64]) -> None:
    try:
        other = (stamps(files) != before).any(axis=1)
    except FileNotFoundError as error:
        raise _changed(error.filename) from error
    if other.any():
        raise _changed(files[int(other.argmax())])


def _changed(file: object) -> ValueError:
    return ValueError(
        f"Expected images that stay as they are while they are used. Received: {file}, "
        "which has changed since. Run again, and leave them alone meanwhile."
    )


def _decoder_versions() -> dict[str, str | None]:
    """What decodes and resizes, whose next version may give other pixels."""
    codecs = ("jpg", "libtiff", "avif", "webp")
    found = {codec: features.version(codec) for codec in codecs}
    return {"pillow": PIL.__version__, **found}


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
