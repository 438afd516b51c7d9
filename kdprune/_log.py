"""What a user is told while something runs: the logger, and progress.

Library functions log under `kdprune` and never print; the command attaches a handler
that prints plain lines. Progress is a bar on a terminal, a line now and then elsewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger("kdprune")
logger.addHandler(logging.NullHandler())

# Seconds between two lines of progress where no bar can be drawn.
_EVERY = 10.0


class _StandardOutput(logging.StreamHandler):
    """Writes to whatever `sys.stdout` (warnings: `sys.stderr`) is at the time."""

    def __init__(self, warnings_too: bool = False):
        super().__init__()
        self._warnings_too = warnings_too

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING and not self._warnings_too
        self.stream = sys.stderr if warns else sys.stdout
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        # A reader that is gone (`kdprune run ... | head`) ends what is written for it.
        raise  # noqa: PLE0704  # logging calls this while it handles the error.


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"warning: {text}" if record.levelno >= logging.WARNING else text


@contextlib.contextmanager
def shown(level: int = logging.INFO, warnings_too: bool = False) -> Iterator[None]:
    """Shows what is logged meanwhile as plain lines; the command runs inside.

    Args:
        level: The least level that is shown.
        warnings_too: Whether warnings go to the standard output like the rest, from
            where another process takes them.
    """
    level_before, propagated = logger.level, logger.propagate
    handler = _attach(level, warnings_too)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)
        logger.propagate = propagated


def show(level: int = logging.INFO) -> None:
    """Shows what is logged from now on as plain lines: for scripts."""
    if not any(isinstance(handler, _StandardOutput) for handler in logger.handlers):
        _attach(level, warnings_too=False)


def _attach(level: int, warnings_too: bool) -> logging.Handler:
    handler = _StandardOutput(warnings_too)
    handler.setFormatter(_Lines())
    logger.setLevel(level)
    logger.addHandler(handler)
    logger.propagate = False
    return handler


def align(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """A table's rows as lines, each column as wide as its widest cell.

    Args:
        rows: Cells, of which each row has as many.
        right: The columns that are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows how far it is, if `kdprune` logs at INFO.

    Args:
        items: What is worked through.
        what: What is done, for the line: "scoring images".
        total: How many there are; found from `items` if it has a length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not logger.isEnabledFor(logging.INFO):
        yield from items
    elif sys.stdout.isatty():
        from rich.progress import track

        yield from track(items, what, total=total, transient=True)
    else:
        yield from _in_lines(items, what, total)


def counted(function: Callable[..., T], what: str) -> Callable[..., T]:
    """The function, saying now and then how often it has been called."""
    calls, said = itertools.count(1), [time.monotonic()]

    def called(*arguments: Any, **named: Any) -> T:
        result, count = function(*arguments, **named), next(calls)
        if time.monotonic() - said[0] > _EVERY:
            said[0] = time.monotonic()
            logger.info("%s: %d", what, count)
        return result

    return called


def _in_lines(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said > _EVERY:
            said = time.monotonic()
            logger.info("%s: %d%s", what, done, f" of {total}" if total else "")
        yield item
