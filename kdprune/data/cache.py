"""Images that are decoded once and then mapped from a file, however many they are.

Each set of image files has a folder in the cache, named by its key: the files' names,
sizes and times, what they are brought to, and what decodes them. One that changes is
another set. In it are

    pixels       a row of bytes for each file, in their order
    blocks.json  while they are written: a line for each block of rows that is whole
    index.json   once all are: the key, and the blocks

so that a process that is killed leaves whole blocks, and the next one goes on there.
What is in the cache can be removed at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdprune import _io
from kdprune._log import logger, progress

# Decoded images of up to so many bytes are held in memory, and no file is written.
IN_MEMORY = 2**27
# GiB of decoded images above which none are written, if nobody says otherwise.
LIMIT = 200.0
_BLOCK = 2**25
_PIXELS, _BLOCKS, _INDEX, _LOCK = "pixels", "blocks.json", "index.json", "lock"
# Says when the disk or the user's quota became full, for so many seconds: the processes
# of a run would each find it out again.
_FULL, _STAYS_FULL = "full", 3600.0
# Of what is written here; another number is another key.
_SCHEMA = 1
_LEAVE = 2**28  # Bytes of the disk to leave free.

_REMEDY = (
    "name a folder with room by --cache-dir (cache_dir=, KDPRUNE_CACHE_DIR), or decode "
    "images each time they are used by --cache-limit 0"
)


class Wrong(NamedTuple):
    """Why there are no pixels of a file.

    Attributes:
        why: In words; the size of an image that differs from the others'.
        of_size: Whether it is that.
        passing: Whether the system could not read the file, which says nothing of
            its content and may be over the next time.
    """

    why: str
    of_size: bool = False
    passing: bool = False


# What becomes of a file: pixels `(height, width, channels)`, or why there are none.
Decoded = NDArray[np.uint8] | Wrong


class CacheUnusable(ValueError):
    """The cache's folder can't be written, or has too little room."""


class CacheFull(OSError):
    """The disk, or the user's quota, became full while the cache was written."""


@dataclass(frozen=True)
class Cache:
    """Where decoded images are kept, and how much of them.

    Attributes:
        folder: The folder; each set of images has its own in it.
        limit: GiB of decoded images; of more than that none are written.
        named: Whether somebody named the folder: only then one that can't be used is
            an error.
    """

    folder: Path
    limit: float = LIMIT
    named: bool = True

    @classmethod
    def of(
        cls, folder: str | os.PathLike | None = None, limit: float | None = None
    ) -> Cache:
        """The cache that is asked for.

        Args:
            folder: Its folder; else `KDPRUNE_CACHE_DIR`, else `kdprune` in the user's
                cache folder.
            limit: GiB; else `KDPRUNE_CACHE_LIMIT`, else `LIMIT`.

        Raises:
            ValueError: If the limit is no number of at least 0.
        """
        folder = folder or os.environ.get("KDPRUNE_CACHE_DIR")
        usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        place = Path(folder or Path(usual, "kdprune")).expanduser()
        given: Any = os.environ.get("KDPRUNE_CACHE_LIMIT") if limit is None else limit
        try:
            most = LIMIT if given in (None, "") else float(given)
        except (TypeError, ValueError):
            most = math.nan
        if not most >= 0:
            raise ValueError(
                "Expected a number of GiB, 0 or more, as cache_limit. "
                f"Received: {given!r}."
            )
        return cls(place, most, folder is not None)

    def takes(self, size: int) -> bool:
        """Whether so many bytes of images are within the limit."""
        return size <= self.limit * 2**30

    def images(
        self,
        key: dict[str, Any],
        shape: tuple[int, ...],
        decode: Callable[[range], Iterable[Decoded]],
    ) -> tuple[np.memmap, dict[int, Wrong]]:
        """Maps the pixels of a set of files; decodes those that are not there yet.

        Args:
            key: All that the pixels depend on, JSON-able.
            shape: `(files, height, width, channels)`.
            decode: Decodes some of the files, in their order.

        Returns:
            `(pixels, wrong)`: uint8 of that shape, and what is wrong with which files,
            whose rows hold nothing.

        Raises:
            CacheUnusable: If the folder can't be written or has too little room; of
                one that nobody named, also if it became full within the hour.
            ValueError: If the set's folder holds that of another key.
            CacheFull: If that happens in the middle. What is written is kept in a
                folder that somebody named, and removed from another, where it would
                keep others from writing.
        """
        key = json.loads(json.dumps({"schema": _SCHEMA, "shape": shape, **key}))
        named = _io.sha256(json.dumps(key, sort_keys=True).encode())
        folder = self.folder / f"images-{named[:32]}"
        kept = _Set(folder, key, shape)
        seen = kept.stamps()
        if not kept.is_whole():
            if not self.named and kept.is_full():
                raise _unusable(folder, "where the disk or your quota was full lately")
            with kept.alone():
                # Another process may just have written it.
                if kept.stamps() == seen or not kept.is_whole():
                    try:
                        kept.write(decode)
                    except CacheFull:
                        if not self.named:
                            kept.give_up()
                        raise
        return np.memmap(kept.pixels, np.uint8, "r", shape=shape), kept.wrong()

    def spool(self, batches: Iterable[NDArray[np.uint8]]) -> np.memmap | None:
        """Writes a stream to a file without a name, and maps it; None of nothing.

        Nothing tells whether a stream is the same the next time, so that the file is
        gone when this process ends.

        Args:
            batches: Arrays of any shapes.

        Returns:
            Their bytes, shape `(n,)`.

        Raises:
            CacheUnusable: If the folder can't be written or becomes full.
        """
        with contextlib.ExitStack() as opened:
            with _or_unusable(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                unnamed = tempfile.TemporaryFile(dir=self.folder, buffering=0)
                file = opened.enter_context(unnamed)
            for batch in batches:
                content = np.ascontiguousarray(batch).data.cast("B")
                while len(content):
                    with _or_unusable(self.folder):
                        content = content[file.write(content) :]
            return np.memmap(file, np.uint8, "r") if file.tell() else None


@dataclass(frozen=True)
class _Set:
    """The folder of one set of images."""

    folder: Path
    key: dict[str, Any]
    shape: tuple[int, ...]

    @property
    def pixels(self) -> Path:
        return self.folder / _PIXELS

    @property
    def _row(self) -> int:
        return math.prod(self.shape[1:])

    def is_whole(self) -> bool:
        """Whether all is there, as it was written."""
        index = _io.read_object(self.folder / _INDEX)
        if not index:
            return False
        if index.get("key") != self.key:
            raise ValueError(
                f"Expected these images in {self.folder}. Received: the cache of "
                "others. Remove that folder."
            )
        blocks: Any = index.get("blocks")
        if _are_blocks(blocks) and any(one.passing for one in _wrong(blocks).values()):
            return False
        if index.get("stamp") == _stamp(self.pixels) and _are_blocks(blocks):
            return True
        # Copied or changed by somebody.
        if self._checked(blocks) == self.shape[0] and _size(self.pixels) == (
            self.shape[0] * self._row
        ):
            with contextlib.suppress(OSError):  # Else it is checked each time.
                whole = {**index, "stamp": _stamp(self.pixels)}
                _io.write_json(self.folder / _INDEX, whole)
            return True
        logger.warning("%s is damaged; its images are decoded again", self.folder)
        return False

    def stamps(self) -> list[list[int]]:
        """What tells whether another process has written the set meanwhile."""
        return [_stamp(self.pixels), _stamp(self.folder / _INDEX)]

    def is_full(self) -> bool:
        """Whether there was no room for it within the hour."""
        with contextlib.suppress(OSError):
            age = time.time() - (self.folder / _FULL).stat().st_mtime
            return age < _STAYS_FULL
        return False

    def give_up(self) -> None:
        """Leaves the room to others, and a note for other processes."""
        for name in (_PIXELS, _BLOCKS):
            with contextlib.suppress(OSError):  # The disk may be read-only by now.
                (self.folder / name).unlink()
        with contextlib.suppress(OSError):
            (self.folder / _FULL).touch()

    def wrong(self) -> dict[int, Wrong]:
        """What is wrong with which files."""
        blocks = _io.read_object(self.folder / _INDEX)["blocks"]
        return _wrong(blocks)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from writing meanwhile; waits for one that does."""
        with _or_unusable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / _LOCK, "a")
        with lock:
            with _or_unusable(self.folder):  # Some disks have no locks.
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    logger.info("another process caches these images: waiting for it")
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def write(self, decode: Callable[[range], Iterable[Decoded]]) -> None:
        """Decodes what is missing, block by block, and makes the set whole."""
        blocks = self._journal()
        start = self._checked(blocks)
        blocks = [block for block in blocks if block["rows"][1] <= start]
        needed = (self.shape[0] - start) * self._row + _LEAVE
        free = shutil.disk_usage(self.folder).free
        # Rows that are not whole yet are written over.
        free += max(0, _size(self.pixels) - start * self._row)
        if needed > free:
            raise _unusable(
                self.folder,
                f"{free / 2**30:.1f} GiB free, of {needed / 2**30:.1f} GiB needed",
            )
        size = max(1, _BLOCK // self._row)
        logger.info(
            "caching %s images, %.1f GiB, in %s%s",
            f"{self.shape[0]:,}",
            self.shape[0] * self._row / 2**30,
            self.folder,
            f"; going on after {start:,}" if start else "",
        )
        try:
            (self.folder / _INDEX).unlink(missing_ok=True)
            if not start:  # Rows that another process has mapped stay as they are.
                self.pixels.unlink(missing_ok=True)
            # Lines are written again, lest one cut short stand before the next.
            _io.write_file(self.folder / _BLOCKS, "".join(map(_line, blocks)))
            with open(self.pixels, "ab") as file, open(self.folder / _BLOCKS, "a") as j:
                file.truncate(start * self._row)
                starts = range(start, self.shape[0], size)
                for first in progress(starts, f"caching images, {size:,} at a time"):
                    rows = range(first, min(first + size, self.shape[0]))
                    content, wrong = self._decoded(rows, decode)
                    file.write(content.data)
                    file.flush()
                    os.fsync(file.fileno())
                    blocks.append(
                        {
                            "rows": [rows.start, rows.stop],
                            "sha256": _io.sha256(content.data),
                            "wrong": wrong,
                        }
                    )
                    j.write(_line(blocks[-1]))
                    j.flush()
                    os.fsync(j.fileno())
            content_of = {
                "key": self.key,
                "stamp": _stamp(self.pixels),
                "blocks": blocks,
            }
            _io.write_json(self.folder / _INDEX, content_of)
            (self.folder / _BLOCKS).unlink()
        except OSError as error:
            raise CacheFull(
                error.errno,
                f"cannot cache images: {error.strerror or error}; the first "
                f"{blocks[-1]['rows'][1] if blocks else 0:,} of {self.shape[0]:,} are "
                f"kept. Free some room and run again, which goes on, or {_REMEDY}",
                str(self.folder),
            ) from error

    def _decoded(
        self, rows: range, decode: Callable[[range], Iterable[Decoded]]
    ) -> tuple[NDArray[np.uint8], dict[str, Wrong]]:
        content = np.zeros((len(rows), *self.shape[1:]), np.uint8)
        wrong = {}
        for place, found in enumerate(decode(rows)):
            if isinstance(found, Wrong):
                wrong[str(rows.start + place)] = found
            else:
                content[place] = found
        return content, wrong

    def _journal(self) -> list[dict[str, Any]]:
        """The blocks of a process that was stopped, up to a line cut short."""
        blocks = []
        with contextlib.suppress(OSError, ValueError):
            for line in (self.folder / _BLOCKS).read_text().splitlines():
                blocks.append(json.loads(line))
        return blocks if _are_blocks(blocks) else []

    def _checked(self, blocks: Any) -> int:
        """How many rows, from the first on, are as the blocks say."""
        done = 0
        if not _are_blocks(blocks):
            return done
        with contextlib.suppress(OSError), open(self.pixels, "rb") as file:
            for block in blocks:
                first, last = block["rows"]
                content = file.read((last - first) * self._row)
                if first != done or len(content) != (last - first) * self._row:
                    break
                if _io.sha256(content) != block["sha256"]:
                    break
                done = last
        return done


def _unusable(folder: Path, why: str) -> CacheUnusable:
    return CacheUnusable(
        "Expected a folder for decoded images that can be written. Received: "
        f"{folder}, {why}; {_REMEDY}."
    )


@contextlib.contextmanager
def _or_unusable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error


def _line(block: Mapping[str, Any]) -> str:
    return json.dumps(block) + "\n"


def _wrong(blocks: Sequence[Mapping[str, Any]]) -> dict[int, Wrong]:
    return {
        int(row): Wrong(*found)
        for block in blocks
        for row, found in block["wrong"].items()
    }


def _are_blocks(blocks: Any) -> bool:
    """Whether this is a list of what `write` notes of a block."""
    return isinstance(blocks, list) and all(
        isinstance(block, dict)
        and isinstance(block.get("rows"), list)
        and [type(row) for row in block["rows"]] == [int, int]
        and 0 <= block["rows"][0] < block["rows"][1]
        and isinstance(block.get("sha256"), str)
        and isinstance(block.get("wrong"), dict)
        and all(
            row.isdigit() and [type(value) for value in found] == [str, bool, bool]
            for row, found in block["wrong"].items()
        )
        for block in blocks
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _stamp(path: Path) -> list[int]:
    """Size and time of a file, which change with its content."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def stamps(files: Sequence[Path]) -> NDArray[np.int64]:
    """What tells that a file is another than before, `(files, 3)`.

    The time of its last change of any kind is among it, which nobody can set: a file
    that is put in another's place, of the same size and date, is seen.

    Raises:
        OSError: If one is not there.
    """
    found = (os.stat(file) for file in files)
    rows = [(one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found]
    return np.array(rows, np.int64).reshape(-1, 3)
