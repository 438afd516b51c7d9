"""Files: written beside their place and moved into it, JSON, SHA-256, error lines.

A reader never sees half of a file, and what was there before stays until the new
content is complete and synced. Imports nothing of kdprune.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What is written but not yet in place is named `.NAME.XXXXXXXX.partial`.
PARTIAL = ".partial"
_BLOCK = 1 << 20


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
        OSError: If the folder is missing, read-only or full; names `path`.
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
        _sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_file(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes bytes, or text as UTF-8, as `writing` does."""
    data = content.encode() if isinstance(content, str) else content
    with writing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON, indented by two; NaN and infinity are refused (`ValueError`)."""
    write_file(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads JSON; a missing or broken file is None, as if nothing were done."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def sha256(content: bytes | str | os.PathLike) -> str:
    """SHA-256, hexadecimal, of bytes, or of the file at a path."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def first_line(error: object, limit: int = 200) -> str:
    """The first line of an error's message, at most `limit` characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
