"""What a user is told while something runs: the logger, and progress.

Library functions log under `kdprune` and never print; the command attaches a handler
that prints plain lines. Progress is a bar on a terminal, a line now and then elsewhere.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger("kdprune")
logger.addHandler(logging.NullHandler())

# Seconds between two lines of progress where no bar can be drawn.
_EVERY = 10.0


class _StandardOutput(logging.StreamHandler):
    """Writes to whatever `sys.stdout` (warnings: `sys.stderr`) is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        self.stream = sys.stderr if warns else sys.stdout
        super().emit(record)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"warning: {text}" if record.levelno >= logging.WARNING else text


def show(level: int = logging.INFO) -> None:
    """Shows what is logged as plain lines; done once by the command."""
    logger.setLevel(level)
    if not any(isinstance(handler, _StandardOutput) for handler in logger.handlers):
        handler = _StandardOutput()
        handler.setFormatter(_Lines())
        logger.addHandler(handler)
        logger.propagate = False


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows how far it is, if `kdprune` logs at INFO.

    Args:
        items: What is worked through.
        what: What is done, for the line: "scoring images".
        total: How many there are; found from `items` if it has a length.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if not logger.isEnabledFor(logging.INFO):
        yield from items
    elif sys.stdout.isatty():
        from rich.progress import track

        yield from track(items, what, total=total, transient=True)
    else:
        yield from _in_lines(items, what, total)


def _in_lines(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said > _EVERY:
            said = time.monotonic()
            logger.info("%s: %d%s", what, done, f" of {total}" if total else "")
        yield item
