"""Files: written beside their place and moved into it, JSON, SHA-256, error lines.

A reader never sees half of a file, and what was there before stays until the new
content is complete and synced. Imports nothing of kdprune.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What is written but not yet in place is named `.NAME.XXXXXXXX.partial`.
PARTIAL = ".partial"
_BLOCK = 1 << 20
_vouched: set[str] = set()
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# With less left on it, in bytes, a disk is full.
_LEAST_SPACE = 1 << 16


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path in the same folder; moves it to `path` at the end.

    The name keeps the suffix of `path`, since some writers choose a format by it.

    Args:
        path: Where the file is to be. Its folder must exist.

    Yields:
        The path to write to. If the block raises, the file is removed and `path` is
        left as it was.

    Raises:
        OSError: If the folder is missing, read-only or full; names `path`, whatever
            the block raised for want of space.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL + path.suffix
        )
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {path}: {os.strerror(error.errno or 0)}"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        code = _no_space(error, path.parent)
        temporary.unlink(missing_ok=True)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error
    sync(path.parent)


@contextlib.contextmanager
def writing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives an empty folder beside `path`; moves it there at the end, files synced.

    Args:
        path: Where the folder is to be, in place of one that is there. The folder
            above it must exist.

    Yields:
        The folder to write to. If the block raises, it is removed and `path` is left
        as it was.

    Raises:
        OSError: If the disk is full; names `path`, whatever the block raised for want
            of space.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(temporary, ignore_errors=True)  # Of a process that was killed.
    temporary.mkdir()
    try:
        yield temporary
        for one in (*temporary.rglob("*"), temporary):
            sync(one)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except BaseException as error:
        code = _no_space(error, path.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error
    sync(path.parent)


def write_file(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes bytes, or text as UTF-8, as `writing` does."""
    data = content.encode() if isinstance(content, str) else content
    with writing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON, indented by two; NaN and infinity are refused (`ValueError`)."""
    write_file(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Gives a temporary folder, which is removed at the end.

    Raises:
        OSError: If the disk that it lies on is full; names the folder, unless the
            block's error names a file.
    """
    with tempfile.TemporaryDirectory(prefix="kdprune-") as name:
        folder = Path(name)
        try:
            yield folder
        except Exception as error:
            told = isinstance(error, ValueError) or getattr(error, "filename", None)
            code = None if told else _no_space(error, folder)
            if code is None:
                raise
            reason = f"{os.strerror(code)} for temporary files; TMPDIR names a place"
            raise OSError(code, reason, name) from error


def read_json(path: str | os.PathLike) -> Any:
    """Reads JSON; a missing or broken file is None, as if nothing were done.

    Broken is what is no JSON, nested deeper than Python goes, with NaN or infinity,
    or no file at all.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_refuse_constant)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        return None


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a JSON object; empty where there is none: see `read_json`."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def sha256(content: bytes | memoryview | str | os.PathLike) -> str:
    """SHA-256, hexadecimal, of bytes, or of the file at a path."""
    if isinstance(content, bytes | memoryview):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def vouch(digest: str) -> None:
    """Notes the SHA-256 of a file that this process has written or verified.

    A model file of that content is read without a trial in another process.
    """
    _vouched.add(digest)


def is_vouched(digest: str) -> bool:
    """Whether this process has written or verified a file of that SHA-256."""
    return digest in _vouched


def first_line(error: object, limit: int = 200) -> str:
    """The first line of an error's message, at most `limit` characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def wants_space(error: BaseException) -> bool:
    """Whether an error is the system's for want of space on a disk."""
    return isinstance(error, OSError) and error.errno in _NO_SPACE


def _no_space(error: BaseException, folder: Path) -> int | None:
    """The system's number of want of space, if that is what an error came from.

    Libraries that write by themselves raise errors of their own, which name no file.
    """
    if isinstance(error, OSError) and wants_space(error):
        return error.errno
    if not isinstance(error, Exception):
        return None
    disk = os.statvfs(folder)
    full = disk.f_bavail * disk.f_frsize < _LEAST_SPACE
    return errno.ENOSPC if full else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def free_memory() -> int | None:
    """Bytes of memory that this process can still have; None if that is not known."""
    limits = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        most = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        pairs = map(str.split, (group / "memory.stat").read_text().splitlines())
        kept = {name: int(value) for name, value in pairs}
        # What is kept of files is given up when it is needed.
        files = kept.get("inactive_file", 0) + kept.get("active_file", 0)
        limits.append(most - used + files)
    return max(0, min(limits)) if limits else None


def describe_memory() -> str:
    """How much memory there is, as a sentence without its full stop."""
    free = free_memory()
    return "" if free is None else f"Free are {free / 2**30:.1f} GiB"


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Raises `ValueError` for what doesn't fit into memory, before it is loaded.

    Args:
        needed: Bytes.
        what: What takes them.
        remedy: What to do.
    """
    free = free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"expected {what} that fit into memory, {free / 2**30:.1f} GiB free. "
            f"Received: {needed / 2**30:.1f} GiB; {remedy}"
        )


def sync(path: Path) -> None:
    """Has the disk hold what was written to a file, or moved into a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
